from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medfed.client.preflight import Notice
from medfed.client.site_settings import read_settings
from medfed.common.errors import ConfigError
from medfed.common.trust.certificates import new_authority
from medfed.deploy.cli import app
from medfed.deploy.cli.site import _say_text
from tests.support.sites import STUDY, make_ready_site, make_site, write_scans


def run(*arguments: object) -> str:
    """A command's standard output; errors are raised as they are."""
    words = [str(argument) for argument in arguments]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


def test_from_init_to_an_approved_study(tmp_path: Path, study: Path) -> None:
    root, scans = tmp_path / "A", write_scans(tmp_path / "scans.npz")
    ca = new_authority(tmp_path / "trust")

    made = run(
        "site", "init", "--site", "A", "--root", root, "--scans", scans,
        "--server", "hub:8443", "--ca", ca, "--patient-array", "patient",
    )  # fmt: skip
    assert f"Send {root}/keys/node_key.pub to the coordinator as A.pub" in made
    assert "SHA256:" in made
    assert "Its witness is " in made and "keep that out of the backups" in made

    with (root / "site.toml").open("a") as file:
        file.write("epsilon_limit = 50.0\ndelta_limit = 1e-2\n")
    given = run("site", "approve", study, "--root", root)
    assert "approved study two_labels" in given
    assert "epsilon = 2.0" in given  # 2.066: see test_approvals
    assert f"medfed client --site A --root {root}" in given
    assert "Set aside for " in given and "Warning" not in given


def test_init_tells_programs_the_same(tmp_path: Path) -> None:
    out = run(
        "site", "init", "--site", "A", "--root", tmp_path / "A", "--scans", tmp_path,
        "--server", "hub:8443", "--ca", new_authority(tmp_path / "t"), "--format", "json",
    )  # fmt: skip

    assert set(json.loads(out)) == {"site", "root", "public_key", "fingerprint"}


def test_check_reports_to_the_admin_what_a_study_will_find(tmp_path: Path, study: Path) -> None:
    scans = write_scans(tmp_path / "scans.npz", patients=30, labels=(1,))
    site = make_site(tmp_path, scans=scans)

    text = run("site", "check", "--root", site.folder, "--study", study)
    found = json.loads(
        run("site", "check", "--root", site.folder, "--study", study, "--format", "json")
    )

    assert text.count("Warning:") == len(found["warnings"]) == 2  # one label, few patients
    assert "none of them leaves the site" in text
    assert (found["patients"], found["labels"]) == (30, {"dark": 0, "bright": 30})


def test_check_warns_where_every_backup_has_the_pseudonym_key(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)
    settings = site.folder / "site.toml"
    assert "pseudonym key" not in run("site", "check", "--root", site.folder)

    shutil.move(site.pseudonym_key, site.folder / "keys" / "pseudonym.key")
    line = f'pseudonym_key = "{site.pseudonym_key}"\n'
    settings.write_text(settings.read_text().replace(line, ""))

    assert "the pseudonym key lies in the site's folder" in run(
        "site", "check", "--root", site.folder
    )
    found = json.loads(run("site", "check", "--root", site.folder, "--format", "json"))
    assert "[ledger] pseudonym_key" in found["warnings"][-1]


def test_check_takes_the_study_that_was_approved_last(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)

    assert "study two_labels" in run("site", "check", "--root", site.folder)


def test_approve_tells_programs_what_it_costs(tmp_path: Path, study: Path) -> None:
    out = run("site", "approve", study, "--root", make_site(tmp_path).folder, "--format", "json")

    told = json.loads(out)
    assert len(told["digest"]) == 64
    assert told["delta"] == 1e-3
    assert told["eligible_patients"] == told["training_patients"] > 0


def test_init_puts_the_witness_where_it_is_told(tmp_path: Path) -> None:
    run(
        "site", "init", "--site", "A", "--root", tmp_path / "A", "--scans", tmp_path / "scans",
        "--server", "hub:8443", "--ca", new_authority(tmp_path / "t"),
        "--witness", tmp_path / "w" / "witness.json",
    )  # fmt: skip

    assert (tmp_path / "w" / "witness.json").is_file()


def test_approve_warns_where_no_patient_can_take_part(tmp_path: Path, study: Path) -> None:
    # 2.07 at delta 1e-3: one such study is within 2.1, a second is not.
    site = make_ready_site(tmp_path, limits="epsilon_limit = 2.1\ndelta_limit = 1e-3\n")
    study.write_text(STUDY.replace('name = "two_labels"', 'name = "again"'))

    given = run("site", "approve", study, "--root", site.folder)

    assert "Set aside for 0 of " in given
    assert "Warning: no patient here can take part" in given


def test_client_refuses_the_root_of_another_site(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the root of site 'A'"):
        run("client", "--site", "B", "--root", make_site(tmp_path).folder)


@pytest.mark.parametrize(
    "command", [["site", "init"], ["site", "check"], ["site", "approve"], ["client"]]
)
def test_help_shows_an_example(command: list[str]) -> None:
    assert "Example: medfed " in run(*command, "--help")


def test_the_client_has_no_flag_for_seeds_workers_or_limits() -> None:
    text = run("client", "--help")

    for word in ("seed", "worker", "epsilon", "delta", "random"):
        assert word not in text.lower()


def test_what_is_told_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _say_text("A", Notice("warning", "a\x1b[2J\u202eb\nc"))

    assert capsys.readouterr().out == "[A] warning: a\ufffd[2J\ufffdb c\n"


def test_init_without_the_servers_ca_writes_a_request_and_the_limits(tmp_path: Path) -> None:
    words = ("site", "init", "--site", "A", "--scans", tmp_path / "s", "--server", "hub:8443")
    limits = ("--epsilon-limit", "8", "--delta-limit", "1e-4", "--study-epsilon-limit", "4")

    told = json.loads(run(*words, *limits, "--root", tmp_path / "A", "--format", "json"))
    text = run(*words, "--root", tmp_path / "B", "--witness", tmp_path / "w" / "other.json")

    assert set(told) == {"site", "root", "public_key", "request", "fingerprint"}
    assert told["request"] == str(tmp_path / "A" / "A.request.pem")
    assert re.fullmatch(r"([A-Z2-7]{4}-){3}[A-Z2-7]{4}", told["fingerprint"])
    policy = read_settings(tmp_path / "A").policy
    assert (policy.epsilon_limit, policy.delta_limit, policy.study_epsilon_limit) == (8, 1e-4, 4)
    assert f"Send {tmp_path}/B/A.request.pem to the coordinator" in text
    assert "medfed enrol accept A.approval.json" in text and "data board's limits" in text


def test_client_of_a_site_that_is_not_enrolled_says_which_step_is_missing(tmp_path: Path) -> None:
    run(
        "site", "init", "--site", "A", "--scans", tmp_path / "s", "--server", "hub:8443",
        "--root", tmp_path / "A",
    )  # fmt: skip

    with pytest.raises(ConfigError, match=r"is not enrolled(.|\n)*A\.request\.pem"):
        run("client", "--site", "A", "--root", tmp_path / "A")
