"""What the admin can do with single patients: exclude them, merge their record numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medfed.client.approvals import scans_of_patients
from medfed.client.ledger import RoundKey
from medfed.client.scans.patients import PseudonymKey
from medfed.client.site_root import SiteRoot, open_ledger
from medfed.common.errors import ConfigError, LedgerError
from medfed.common.trust.audit_log import KEY_MADE, KEY_USED, MERGED, verify
from medfed.deploy.cli import app
from tests.support.ledgers import pay
from tests.support.sites import make_ready_site, make_site, make_study

STUDY = make_study()
DIGEST = STUDY.digest
TRAINING = [str(p) for p in range(60) if STUDY.split.part_of(str(p)) == "train"]
X, Y, Z = TRAINING[:3]


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


def table(folder: Path, text: str) -> Path:
    path = folder / "merged.csv"
    path.write_text(text)
    return path


# ---- merge ---------------------------------------------------------------------------------------
def test_merged_record_numbers_are_one_patient_from_then_on(site: SiteRoot, tmp_path: Path) -> None:
    before = scans_of_patients(site, STUDY)

    text = run(
        "merge", "--root", site.folder, "--file", table(tmp_path, f"patient_id,same_as\n{X},{Y}\n")
    )

    assert "1 pairs given, 1 of them new" in text
    assert "0 merged patients have lost more than the ceiling" in text
    scans = scans_of_patients(site, STUDY)
    assert (len(scans), scans.patients) == (len(before), before.patients - 1)
    key = PseudonymKey(site.pseudonym_key)
    name = min(key(X), key(Y))
    assert {key(X), key(Y)} & set(scans.pseudonyms) == {name}
    assert sum(scans.pseudonyms[p] == name for p in scans.patient) == 2  # a scan of each
    eligible = open_ledger(site).eligible(DIGEST, "train")
    assert eligible == {key(p) for p in TRAINING[2:]} | {name}
    shown = run("budget", "--root", site.folder)
    assert f"patients ever eligible     {len(TRAINING) - 1}, excluded 0, merged 1" in shown
    assert "merge 1" in run("audit", "--root", site.folder)


@pytest.mark.parametrize(
    "text",
    [
        "patient_id,same_as\n{X},{Y}\n{Y},{Z}\n",
        "\ufeffsame_as;patient_id\r\n {Y} ;{X}\r\n\r\n{Y};{Z}\r\n",
        'Patient_ID\tSame_As\n"{X}"\t{Y}\n{X}\t{Z}',
    ],
)
def test_a_table_as_spreadsheets_write_it_is_read_and_chains_join_all(
    site: SiteRoot, tmp_path: Path, text: str
) -> None:
    path = table(tmp_path, text.format(X=X, Y=Y, Z=Z))

    found = told("merge", "--root", site.folder, "--file", path)

    assert found == {"given": 2, "new": 2, "merged_beyond_ceiling": 0}
    assert len(set(open_ledger(site).names().values())) == 1
    assert told("merge", "--root", site.folder, "--file", path)["new"] == 0


def test_a_pair_may_be_typed_or_come_from_the_input(site: SiteRoot) -> None:
    typed = told("merge", "--root", site.folder, "--patient", X, "--same-as", f" {Y} ")
    piped = told(
        "merge", "--root", site.folder, "--file", "-", input=f"patient_id,same_as\n{Y},{Z}\n"
    )

    assert (typed["new"], piped["new"]) == (1, 1)
    assert len(open_ledger(site).names()) == 3


def test_who_is_past_the_ceiling_by_the_merge_is_counted_and_takes_no_further_part(
    tmp_path: Path,
) -> None:
    # Both rounds cost one id 2.07 at delta 1e-3, within the ceiling, and two ids at once 4.85:
    # `composed_epsilon` of four steps with noise 1 and rate 0.2.
    site = make_ready_site(tmp_path, limits="epsilon_limit = 2.1\ndelta_limit = 1e-3\n")
    ledger = open_ledger(site)
    for number in (1, 2):
        pay(ledger, RoundKey(DIGEST, "run-1", number, "b" * 64))
    ledger.close()

    found = told("merge", "--root", site.folder, "--patient", X, "--same-as", Y)

    assert found["merged_beyond_ceiling"] == 1
    assert "1 merged patients have lost more than that" in run("budget", "--root", site.folder)
    budget = told("budget", "--root", site.folder)
    assert (budget["merged"], budget["merged_beyond_ceiling"]) == (1, 1)
    eligible = open_ledger(site).eligible(DIGEST, "train")
    assert eligible is not None and len(eligible) == len(TRAINING) - 2


def test_an_id_that_no_study_has_met_is_refused_as_a_slip_of_the_pen(
    site: SiteRoot, tmp_path: Path
) -> None:
    path = table(tmp_path, f"patient_id,same_as\n{X},{Y}\n{Z},nobody-here\n")

    with pytest.raises(ConfigError, match=r"in lines 3 of .*merged\.csv\. Nobody was merged") as no:
        run("merge", "--root", site.folder, "--file", path)
    assert "nobody-here" not in str(no.value)
    assert open_ledger(site).names() == {}
    assert told("merge", "--root", site.folder, "--file", path, "--unknown")["new"] == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("patient_id\n1\n", "line 1: the columns are not patient_id and same_as"),
        ("1,2\n", "line 1: the columns are not"),
        ("", "line 1: the columns are not"),
        ("patient_id,same_as\n", "no patient id in it"),
        ("patient_id,same_as\n1,\n", "line 2: not two patient ids"),
        ("patient_id,same_as\n1,2,3\n", "line 2: not two patient ids"),
        ('patient_id,same_as\n"1,2\n', "line 2: not valid CSV"),
        ("patient_id,same_as\n1,1\n", "one id twice in lines 2"),
    ],
)
def test_a_table_that_is_none_is_refused_and_merges_nobody(
    site: SiteRoot, tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        run("merge", "--root", site.folder, "--file", table(tmp_path, text))
    assert open_ledger(site).names() == {}


@pytest.mark.parametrize(
    "words",
    ["", "--patient 1", "--same-as 1", "--file - --patient 1", "--patient 1 --same-as="],
)
def test_half_a_pair_or_two_sources_are_refused(site: SiteRoot, words: str) -> None:
    with pytest.raises(ConfigError, match="takes either --file or both"):
        run("merge", "--root", site.folder, *words.split())


def test_no_id_is_shown_or_written(site: SiteRoot, tmp_path: Path) -> None:
    path = table(tmp_path, "patient_id,same_as\nMUSTERMANN-4711,MUSTERMANN-1147\n")

    text = run("merge", "--root", site.folder, "--file", path, "--unknown")

    assert "MUSTERMANN" not in text
    assert all(
        b"MUSTERMANN" not in file.read_bytes() for file in site.folder.rglob("*") if file.is_file()
    )


# ---- the audit log -------------------------------------------------------------------------------
def test_every_use_of_the_pseudonym_key_is_in_the_audit_log(site: SiteRoot) -> None:
    before = verify(site.audit_file)
    assert before.lines[0].event == KEY_MADE

    run("merge", "--root", site.folder, "--patient", X, "--same-as", Y)
    run("exclude", "--root", site.folder, "--patients", "-", input=f"{Z}\n")

    new = verify(site.audit_file, known=before.head).lines[len(before.lines) :]
    assert [(line.event, line.fields.get("purpose")) for line in new] == [
        (KEY_USED, "find patients to merge"),
        (KEY_USED, "open the ledger"),
        (MERGED, None),
        (KEY_USED, "find patients to exclude"),
        (KEY_USED, "open the ledger"),
    ]
    assert new[2].fields["entry"] == 5  # open, approve, reserve, commit, merge
    assert b"pseudonym-key.used" in site.audit_file.read_bytes()


def test_audit_checks_the_log_and_shows_the_last_uses(site: SiteRoot) -> None:
    run("budget", "--root", site.folder)

    found = told("audit", "--root", site.folder)["audit_log"]
    text = run("audit", "--root", site.folder)

    lines = verify(site.audit_file).lines
    assert found["head"] == lines[-3]._asdict()["head"]._asdict()  # each audit adds one
    assert found["last_key_uses"][-1]["purpose"] == "open the ledger"
    assert found["key_uses"] == sum(line.event == KEY_USED for line in lines) - 2
    assert f"audit log: {len(lines) - 1} lines, each in line" in text
    assert "UTC  open the ledger (process " in text


def test_audit_refuses_a_log_that_was_altered(site: SiteRoot) -> None:
    content = site.audit_file.read_bytes()
    site.audit_file.write_bytes(content.replace(b"open the ledger", b"open the locker", 1))

    with pytest.raises(LedgerError, match=r"audit\.jsonl: the audit log cannot be trusted"):
        run("audit", "--root", site.folder)


def test_a_key_is_not_used_where_the_log_cannot_be_written(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    site.audit_file.unlink()
    site.audit_file.mkdir()

    with pytest.raises(ConfigError, match="audit log cannot be written"):
        open_ledger(site)


@pytest.mark.parametrize("command", ["exclude", "merge"])
def test_help_shows_an_example(command: str) -> None:
    assert f"Example: medfed site {command} " in run(command, "--help")
