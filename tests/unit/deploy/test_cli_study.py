"""From a study to be signed to a site that approved it, by the commands of its people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medfed.client.site_root import SiteRoot, open_ledger
from medfed.common.errors import ApprovalError, ConfigError, TrustError
from medfed.deploy.cli import app
from medfed.deploy.coordinator_root import Coordinator, new_coordinator
from tests.support.signing import Signer, write_toml
from tests.support.sites import make_site, make_study

STUDY = make_study()


def run(*arguments: object) -> str:
    """A command's standard output; errors are raised as they are."""
    words = [str(argument) for argument in arguments]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return new_coordinator(tmp_path / "office", "hub.example:8443")


@pytest.fixture
def site(tmp_path: Path, coordinator: Coordinator) -> SiteRoot:
    """A site that knows the coordinator's study key."""
    made = make_site(tmp_path)
    key = (coordinator.folder / "study.pub").read_bytes()
    (made.folder / "trust" / "study.pub").write_bytes(key)
    return made


def sign(coordinator: Coordinator, tmp_path: Path, *changes: tuple[str, str]) -> Path:
    out = tmp_path / "two_labels-1.study.json"
    run("study", "sign", write_toml(tmp_path / "study.toml", *changes),
        "--coordinator", coordinator.folder, "--out", out)  # fmt: skip
    return out


def test_a_study_is_signed_received_shown_and_approved_by_its_digest(
    coordinator: Coordinator, site: SiteRoot, tmp_path: Path
) -> None:
    file = sign(coordinator, tmp_path)

    shown = run("site", "receive", file, "--root", site.folder)
    assert f"trusts ({coordinator.fingerprint})" in shown
    assert "epsilon 2.06" in shown and "kept, not approved" in shown
    assert open_ledger(site).approvals() == []

    given = run("site", "approve", STUDY.digest[:8], "--root", site.folder)
    assert f"approved study two_labels, digest {STUDY.digest}" in given
    assert [approval.digest for approval in open_ledger(site).approvals()] == [STUDY.digest]


def test_show_says_who_signed(coordinator: Coordinator, tmp_path: Path) -> None:
    file = sign(coordinator, tmp_path)

    assert f"signed   by {coordinator.fingerprint}" in run("study", "show", file)
    assert "signed   by nobody" in run("study", "show", tmp_path / "study.toml")
    told = json.loads(run("study", "show", file, "--format", "json"))
    assert (told["signed_by"], told["digest"]) == (coordinator.fingerprint, STUDY.digest)


def test_show_writes_a_page(coordinator: Coordinator, tmp_path: Path) -> None:
    page = tmp_path / "study.html"

    run("study", "show", sign(coordinator, tmp_path), "--html", page)

    assert coordinator.fingerprint in page.read_text() and STUDY.digest in page.read_text()
    with pytest.raises(ConfigError, match="--html .*cannot be written"):
        run("study", "show", tmp_path / "study.toml", "--html", tmp_path / "none" / "x.html")


def test_show_tells_serial_and_last_day_and_no_control_character(tmp_path: Path) -> None:
    lines = f'serial = 2\nsupersedes = "{STUDY.digest}"\nexpires = 2027-12-31\n[task]'
    file = write_toml(
        tmp_path / "s.toml", ("[task]", lines), ("bright images", "bright \\u001b[2J images")
    )

    text = run("study", "show", file)

    assert f"serial   2, follows {STUDY.digest}" in text
    assert "expires  at the end of 2027-12-31 (UTC)" in text
    assert "\x1b" not in text


def test_sign_names_the_file_after_study_and_serial_and_overwrites_no_other(
    coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = write_toml(tmp_path / "study.toml")
    for _ in range(2):  # the same study gives the same file
        told = json.loads(
            run("study", "sign", study, "--coordinator", coordinator.folder, "--format", "json")
        )
    assert told == {
        "file": "two_labels-1.study.json",
        "digest": STUDY.digest,
        "fingerprint": coordinator.fingerprint,
    }

    write_toml(study, ("rounds = 2", "rounds = 3"))
    with pytest.raises(ConfigError, match="is another study; it is not overwritten"):
        run("study", "sign", study, "--coordinator", coordinator.folder)


def test_a_site_with_a_key_approves_no_unsigned_and_no_strangers_study(
    coordinator: Coordinator, site: SiteRoot, tmp_path: Path
) -> None:
    theirs = Signer(tmp_path / "stranger").sign(STUDY, tmp_path / "theirs.json")

    for file in (write_toml(tmp_path / "study.toml"), theirs):
        with pytest.raises(TrustError):
            run("site", "approve", file, "--root", site.folder)
    assert not list(site.approved.iterdir())
    run("site", "approve", sign(coordinator, tmp_path), "--root", site.folder)


def test_a_site_without_a_key_approves_unsigned_studies_and_is_told(tmp_path: Path) -> None:
    site = make_site(tmp_path)

    given = run("site", "approve", write_toml(tmp_path / "study.toml"), "--root", site.folder)

    assert "signed by nobody; this site knows no coordinator's key" in given


def test_receive_says_what_the_policy_would_refuse(
    coordinator: Coordinator, site: SiteRoot, tmp_path: Path
) -> None:
    settings = site.folder / "site.toml"
    settings.write_text(settings.read_text() + "rounds_limit = 1\n")
    file = sign(coordinator, tmp_path)

    assert "rounds_limit 1" in run("site", "receive", file, "--root", site.folder)
    told = json.loads(run("site", "receive", file, "--root", site.folder, "--format", "json"))
    assert told["verified"] is True and "rounds_limit 1" in told["refused"]
    with pytest.raises(ApprovalError, match="rounds_limit 1"):
        run("site", "approve", STUDY.digest, "--root", site.folder)


@pytest.mark.parametrize("what", ["none.toml", "0" * 64, "ab"])
def test_approve_refuses_what_is_neither_a_file_nor_a_received_study(
    site: SiteRoot, what: str
) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read|no received studies"):
        run("site", "approve", what, "--root", site.folder)


def test_a_signed_file_serves_where_a_study_file_is_asked_for(
    coordinator: Coordinator, site: SiteRoot, tmp_path: Path
) -> None:
    file = sign(coordinator, tmp_path)

    assert "study two_labels" in run("site", "check", "--root", site.folder, "--study", file)
    assert "would set aside" in run("site", "budget", "--root", site.folder, "--plan", file)
    run("site", "approve", file, "--root", site.folder)
    assert "withdrew" in run("site", "withdraw", file, "--root", site.folder)


@pytest.mark.parametrize(
    "command", [["study", "show"], ["study", "sign"], ["study", "new"], ["site", "receive"]]
)
def test_help_shows_an_example(command: list[str]) -> None:
    assert "Example: medfed " in run(*command, "--help")
