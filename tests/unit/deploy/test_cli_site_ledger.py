"""What the admin can do with the ledger: budget, exclude, withdraw, audit, witness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medfed.client.ledger import RoundKey
from medfed.client.scans.patients import PseudonymKey
from medfed.client.site_root import SiteRoot, open_ledger
from medfed.common.errors import (
    ApprovalError,
    ConfigError,
    LedgerError,
    LedgerMismatchError,
)
from medfed.deploy.cli import app
from tests.support.ledgers import pay
from tests.support.sites import STUDY, WITHOUT_PRIVACY, make_ready_site, make_site, make_study

DIGEST = make_study().digest
TRAINING = [str(p) for p in range(60) if make_study().split.part_of(str(p)) == "train"]


def run(*arguments: object, input: str | None = None) -> str:
    """A command's standard output; errors are raised as they are."""
    words = ["site", *(str(argument) for argument in arguments)]
    done = CliRunner().invoke(app, words, catch_exceptions=False, input=input)
    assert done.exit_code == 0, done.output
    return done.output


def told(*arguments: object, input: str | None = None) -> dict[str, Any]:
    """What a command tells a program."""
    found: dict[str, Any] = json.loads(run(*arguments, "--format", "json", input=input))
    return found


@pytest.fixture
def site(tmp_path: Path) -> SiteRoot:
    """A site that approved a study and paid for one round of two."""
    made = make_ready_site(tmp_path)
    ledger = open_ledger(made)
    pay(ledger, RoundKey(DIGEST, "run-1", 1, "b" * 64))
    ledger.close()
    return made


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(STUDY.replace('name = "two_labels"', 'name = "the_next_one"'))
    return path


# ---- budget --------------------------------------------------------------------------------------
def test_budget_shows_what_is_spent_and_left_and_what_the_next_round_costs(site: SiteRoot) -> None:
    text = run("budget", "--root", site.folder)
    found = told("budget", "--root", site.folder)

    assert "(add-or-remove one patient)" in text
    assert "ceiling over all studies   epsilon 50 at delta 0.01" in text
    assert f"two_labels ({DIGEST[:8]}), train: 1 paid, 1 of 2 left; spent 0.835 of 1.22" in text
    assert "the next costs 0.376" in text  # 0.8348 and 1.2106, rounded up: see test_budget
    assert "none of them leaves the site" in text
    assert found["site"] == "A"
    assert found["neighbours"] == "add-or-remove one patient"
    assert found["ceiling"] == {"epsilon": 50.0, "delta": 0.01}
    assert found["most_exposed_patient"]["spent"] == pytest.approx(0.8348, abs=1e-3)
    assert found["patients"] == len(TRAINING)
    (purpose,) = found["studies"]
    assert (purpose["paid"], purpose["left"], purpose["open"]) == (1, 1, True)
    assert "plan" not in found


def test_budget_of_a_site_without_studies(tmp_path: Path) -> None:
    assert "no study was approved yet" in run("budget", "--root", make_site(tmp_path).folder)


def test_budget_plans_a_study_before_it_is_approved(site: SiteRoot, study: Path) -> None:
    text = run("budget", "--root", site.folder, "--plan", study)
    found = told("budget", "--root", site.folder, "--plan", study)

    count = len(TRAINING)
    assert "Approving the_next_one would set aside" in text
    assert f"2 releases, epsilon 1.22 for each of {count} patients; 0 of {count} cannot" in text
    assert "Warning" not in text
    assert found["plan"]["study"] == "the_next_one"
    assert [p["eligible"] for p in found["plan"]["purposes"]] == [count]
    assert len(found["studies"]) == 1  # the plan approves nothing


def test_a_plan_that_nobody_can_afford_is_a_warning(tmp_path: Path, study: Path) -> None:
    site = make_ready_site(tmp_path, limits="epsilon_limit = 2.1\ndelta_limit = 1e-3\n")

    text = run("budget", "--root", site.folder, "--plan", study)

    assert "Warning: no patient here could take part" in text
    assert f"{len(TRAINING)} of {len(TRAINING)} cannot afford it" in text


def test_a_plan_without_privacy_is_valid_json(tmp_path: Path, study: Path) -> None:
    study.write_text(STUDY.replace(*WITHOUT_PRIVACY))

    found = told("budget", "--root", make_site(tmp_path).folder, "--plan", study)

    assert found["plan"]["purposes"][0]["epsilon"] is None


def test_a_plan_for_a_file_that_is_missing_is_refused(site: SiteRoot, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        run("budget", "--root", site.folder, "--plan", tmp_path / "none.toml")


# ---- exclude -------------------------------------------------------------------------------------
def test_excluded_patients_take_part_in_nothing_from_then_on(
    site: SiteRoot, tmp_path: Path
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text(f"  {TRAINING[0]}\r\n\n{TRAINING[1]}\nnobody-here\n{TRAINING[0]}\n")

    # Found by a stranger: an id with a slip of the pen was excluded, and the patient went on.
    with pytest.raises(
        ConfigError, match=r"in lines 4 of .*ids\.txt\. Nobody was excluded"
    ) as slip:
        run("exclude", "--root", site.folder, "--patients", ids)
    assert "nobody-here" not in str(slip.value)
    assert open_ledger(site).excluded() == 0
    text = run("exclude", "--root", site.folder, "--patients", ids, "--unknown")

    assert "3 patients given, 3 of them newly excluded" in text
    assert "2 of them were eligible" in text
    key = PseudonymKey(site.pseudonym_key)
    eligible = open_ledger(site).eligible(DIGEST, "train")
    assert eligible == frozenset(key(patient) for patient in TRAINING[2:])
    assert f"excluded {3}" in run("budget", "--root", site.folder)


def test_ids_may_come_from_the_input(site: SiteRoot) -> None:
    arguments = ("exclude", "--root", site.folder, "--patients", "-")

    assert told(*arguments, input=f"{TRAINING[0]}\n") == {"given": 1, "known": 1, "new": 1}
    assert told(*arguments, input=f"{TRAINING[0]}\n") == {"given": 1, "known": 1, "new": 0}


def test_a_file_that_windows_marked_as_utf8_excludes_its_first_patient_too(
    site: SiteRoot, tmp_path: Path
) -> None:
    # Found here: the mark was taken for a part of the first patient's id.
    ids = tmp_path / "ids.txt"
    ids.write_bytes(b"\xef\xbb\xbf" + f"{TRAINING[0]}\r\n".encode())

    assert told("exclude", "--root", site.folder, "--patients", ids)["known"] == 1


@pytest.mark.parametrize("content", [None, b"", b" \n\n", b"\xff\xfe\x00"])
def test_a_file_without_ids_is_refused_and_excludes_nobody(
    site: SiteRoot, tmp_path: Path, content: bytes | None
) -> None:
    ids = tmp_path / "ids.txt"
    if content is not None:
        ids.write_bytes(content)

    with pytest.raises(ConfigError, match=r"ids\.txt: (no patient id|the patient ids cannot)"):
        run("exclude", "--root", site.folder, "--patients", ids)
    assert open_ledger(site).excluded() == 0


def test_no_id_is_shown_or_written(site: SiteRoot, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("MUSTERMANN-4711\n")

    text = run("exclude", "--root", site.folder, "--patients", ids, "--unknown")

    assert "MUSTERMANN" not in text
    assert all(
        b"MUSTERMANN" not in file.read_bytes() for file in site.folder.rglob("*") if file.is_file()
    )


# ---- withdraw ------------------------------------------------------------------------------------
@pytest.mark.parametrize("digits", [8, 20, 64])
def test_withdraw_ends_a_study_and_keeps_what_was_spent(site: SiteRoot, digits: int) -> None:
    text = run("withdraw", DIGEST[:digits], "--root", site.folder)

    assert f"withdrew from study two_labels ({DIGEST[:8]})" in text
    ledger = open_ledger(site)
    assert ledger.approval(DIGEST) is None
    assert ledger.rounds_paid(DIGEST) == 1
    assert "1 paid, withdrawn" in run("budget", "--root", site.folder)


def test_withdraw_tells_programs_the_digest(site: SiteRoot) -> None:
    assert told("withdraw", DIGEST, "--root", site.folder) == {"site": "A", "withdrawn": DIGEST}


@pytest.mark.parametrize("name", [DIGEST[:7], "0" * 64, "two_labels", "", "\x1b[2J" * 50])
def test_withdraw_refuses_what_names_no_approved_study(site: SiteRoot, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"approved are two_labels \({DIGEST[:8]}\)") as caught:
        run("withdraw", name, "--root", site.folder)

    assert "first 8 digits" in caught.value.advice
    assert "\x1b" not in str(caught.value)
    assert open_ledger(site).approval(DIGEST) is not None


def test_withdraw_without_any_study_says_so(tmp_path: Path) -> None:
    with pytest.raises(ApprovalError, match="no study is approved here"):
        run("withdraw", DIGEST, "--root", make_site(tmp_path).folder)


# ---- audit ---------------------------------------------------------------------------------------
def test_audit_reads_every_entry(site: SiteRoot) -> None:
    text = run("audit", "--root", site.folder)
    found = told("audit", "--root", site.folder)

    head = open_ledger(site).head
    assert "4 entries, all in line and signed by this site" in text
    assert "open 1, approve 1, reserve 1, commit 1" in text
    assert f"head 4:{head.hash}" in text
    assert f"witness {site.witness} agrees" in text
    assert found["head"] == head._asdict()
    assert [entry["kind"] for entry in found["entries"]] == ["open", "approve", "reserve", "commit"]


def test_audit_refuses_a_ledger_that_was_altered(site: SiteRoot) -> None:
    site.ledger.write_bytes(site.ledger.read_bytes().replace(b'"round":1', b'"round":2'))

    with pytest.raises(LedgerError, match="changed or removed"):
        run("audit", "--root", site.folder)


# ---- witness -------------------------------------------------------------------------------------
def test_going_on_without_a_witness_needs_the_admins_word(site: SiteRoot) -> None:
    site.witness.unlink()
    with pytest.raises(LedgerMismatchError, match="missing"):
        run("audit", "--root", site.folder)
    with pytest.raises(ConfigError, match="counts all that is approved in it as spent") as caught:
        run("witness", "--root", site.folder)
    assert "--lost" in caught.value.advice
    assert not site.witness.exists()

    text = run("witness", "--root", site.folder, "--lost")

    assert "now remembers entry 5" in text  # four, and that of the loss
    assert "1 approvals ended and count as wholly spent" in text
    assert "medfed enrol approve SITE.pub --replace" in text
    assert "loss 1" in run("audit", "--root", site.folder)


# ---- all -----------------------------------------------------------------------------------------
COMMANDS = ["budget", "exclude", "withdraw", "audit", "witness"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    assert f"Example: medfed site {command} " in run(command, "--help")


@pytest.mark.parametrize(
    "command", [["budget"], ["exclude", "--patients", "-"], ["withdraw", DIGEST], ["audit"]]
)
def test_a_folder_that_is_no_site_is_refused(tmp_path: Path, command: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"site\.toml: cannot be read"):
        run(*command, "--root", tmp_path)
