from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pytest

from medfed.client import approvals, ledger_state
from medfed.client.approvals import (
    approve,
    approved_studies,
    approved_study,
    patients_by_part,
    scans_of_patients,
    withdraw,
)
from medfed.client.ledger import RoundKey
from medfed.client.scans.patients import PseudonymKey
from medfed.client.serials import check_not_replaced
from medfed.client.site_root import open_ledger, open_site
from medfed.common.errors import (
    ApprovalError,
    ConfigError,
    LedgerError,
    PrivacyError,
    ScanError,
    TrustError,
)
from medfed.common.privacy.terms import terms_of
from medfed.common.study import Study
from medfed.common.trust.private_files import private_folder
from medfed.common.trust.signatures import new_signing_key
from tests.support.ledgers import pay
from tests.support.sites import (
    WITHOUT_PRIVACY,
    make_ready_site,
    make_site,
    make_study,
    write_scans,
)


def test_an_approved_study_is_read_back_as_it_was_approved(tmp_path: Path) -> None:
    study = make_study()
    site = make_site(tmp_path)

    given = approve(site, study)

    assert approved_study(site, study.digest) == study
    assert given.file.name == f"{study.digest}.json"
    assert stat.S_IMODE(given.file.stat().st_mode) == 0o600


def test_the_approval_tells_what_the_whole_schedule_costs(tmp_path: Path) -> None:
    given = approve(make_site(tmp_path), make_study())

    # Opacus' PRV accountant on sigma 1, q = 8 / 40, 2 rounds of 2 steps, delta 1e-3: 2.076 +- 0.01
    assert given.epsilon == pytest.approx(2.076, abs=0.02)
    assert given.delta == 1e-3


def test_approving_twice_changes_nothing(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    approve(site, make_study())
    approve(site, make_study())

    assert len(approved_studies(site)) == 1
    ledger = open_ledger(site)
    assert [entry["kind"] for entry in ledger.audit()[1]] == ["open", "approve"]


def test_the_whole_schedule_is_set_aside_in_the_ledger_for_every_patient_of_its_part(
    tmp_path: Path,
) -> None:
    site, study = make_site(tmp_path), make_study()

    given = approve(site, study)

    ledger = open_ledger(site)
    approval = ledger.approval(study.digest)
    assert approval is not None
    assert approval.terms == terms_of(study, study.site_named("A"))
    key = PseudonymKey(site.pseudonym_key)
    training = {str(p) for p in range(60) if study.split.part_of(str(p)) == "train"}
    assert approval.members == {"train": frozenset(key(patient) for patient in training)}
    assert given.eligible == (len(training), len(training))
    assert "eligible" not in repr(given)  # private


def test_whoever_cannot_afford_a_study_is_not_eligible_and_the_admin_is_told(
    tmp_path: Path,
) -> None:
    # 2.07 (PLD, delta 1e-3) for each; both together are 3.4 by the filter: see test_budget.
    site = make_ready_site(tmp_path, limits="epsilon_limit = 2.5\ndelta_limit = 1e-3\n")

    given = approve(site, make_study(('salt = "tests"', 'salt = "other"')))

    eligible, training = given.eligible
    assert 0 < eligible < training  # who tested in the first study and trains in the second


def test_parts_do_not_overlap(tmp_path: Path) -> None:
    study = make_study(("validation_fraction = 0.0", "validation_fraction = 0.3"))
    site = make_site(tmp_path)

    parts = patients_by_part(scans_of_patients(site, study))

    assert (
        sum(len(part) for part in parts.values()) == len(frozenset().union(*parts.values())) == 60
    )
    assert min(len(part) for part in parts.values()) > 0


# ---- withdrawal ----------------------------------------------------------------------------------
def test_a_withdrawn_study_is_gone_from_the_approved_ones_and_from_the_ledger(
    tmp_path: Path,
) -> None:
    site, study = make_ready_site(tmp_path), make_study()

    withdraw(site, study.digest)

    with pytest.raises(ApprovalError, match="is not approved here"):
        approved_study(site, study.digest)
    assert open_ledger(site).approval(study.digest) is None
    with pytest.raises(ApprovalError, match="was withdrawn here"):
        withdraw(site, study.digest)


def test_a_withdrawn_study_may_be_approved_again_for_what_is_left(tmp_path: Path) -> None:
    site, study = make_ready_site(tmp_path), make_study()
    ledger = open_ledger(site)
    pay(ledger, RoundKey(study.digest, "run-1", 1, "b" * 64))
    withdraw(site, study.digest)

    approve(site, study)

    assert approved_study(site, study.digest) == study
    approval = open_ledger(site).approval(study.digest)
    assert approval is not None and approval.left("train") == 1
    pay(ledger, RoundKey(study.digest, "run-1", 2, "b" * 64))
    withdraw(site, study.digest)
    with pytest.raises(PrivacyError, match="everything that was approved"):
        approve(site, study)
    assert not list(site.approved.iterdir())


def test_when_only_histograms_are_left_they_can_be_approved_again(tmp_path: Path) -> None:
    # Found here: it was taken for granted that training is part of every approval.
    study = make_study(
        ("[cohort]", "[evaluation]\nbins = 10\ntest = true\nnoise_multiplier = 4.0\n[cohort]")
    )
    site = make_ready_site(tmp_path, study)
    ledger = open_ledger(site)
    for number in (1, 2):
        pay(ledger, RoundKey(study.digest, "run-1", number, "b" * 64))
    withdraw(site, study.digest)

    given = approve(site, study)

    approval = ledger.approval(study.digest)
    assert approval is not None and set(approval.terms) == {"test"}
    assert given.eligible[0] == 0


def test_the_latest_approval_comes_first(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)
    later = make_study(("rounds = 2", "rounds = 3"))
    approve(site, later)

    assert [study.training.rounds for study in approved_studies(site)] == [3, 2]


@pytest.mark.parametrize("missing", ["epsilon_limit", "delta_limit"])
def test_limits_that_are_not_written_are_asked_for(tmp_path: Path, missing: str) -> None:
    other = {"epsilon_limit": "delta_limit = 1e-2\n", "delta_limit": "epsilon_limit = 9.0\n"}
    site = make_site(tmp_path, limits=other[missing])

    with pytest.raises(ConfigError, match=f"has no {missing}"):
        approve(site, make_study())
    assert not list(site.approved.iterdir())


def test_a_study_without_privacy_needs_the_sites_word(tmp_path: Path) -> None:
    study = make_study(WITHOUT_PRIVACY)
    site = make_site(tmp_path / "a")

    with pytest.raises(ApprovalError, match="trains without privacy"):
        approve(site, study)


def test_a_site_that_the_study_does_not_list_is_refused(tmp_path: Path) -> None:
    site = make_site(tmp_path, name="C")

    with pytest.raises(ConfigError, match="'C' is not in study 'two_labels', which lists A, B"):
        approve(site, make_study())


def test_a_refused_study_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path)
    monkeypatch.setattr(approvals, "dearest_epsilon", lambda study, member: 51.0)  # limit: 50

    with pytest.raises(ApprovalError):
        approve(site, make_study())
    assert not list(site.approved.iterdir())


def test_an_approval_that_was_changed_afterwards_is_refused(tmp_path: Path) -> None:
    study = make_study()
    site = make_ready_site(tmp_path, study)
    file = site.approved / f"{study.digest}.json"
    file.write_bytes(file.read_bytes().replace(b'"rounds":2', b'"rounds":9'))

    with pytest.raises(ApprovalError, match="was changed after it was given"):
        approved_study(site, study.digest)


def test_a_study_that_nobody_approved_is_refused_with_the_next_step(tmp_path: Path) -> None:
    site = make_site(tmp_path)

    with pytest.raises(ApprovalError, match=r"is not approved here.*\n.*medfed site approve"):
        approved_study(site, make_study().digest)
    with pytest.raises(ApprovalError, match="no study is approved"):
        approved_studies(site)


@pytest.mark.parametrize("kind", ["missing", "without patients"])
def test_scans_that_cannot_keep_the_promise_are_refused_before_anything_is_set_aside(
    tmp_path: Path, kind: str
) -> None:
    # Found by an attack: each image was protected, and the admin was told each patient was.
    scans = write_scans(tmp_path / "scans.npz") if kind != "missing" else tmp_path / "none.npz"
    study = make_study() if kind == "missing" else make_study(('group_key = "patient"\n', ""))
    site = make_site(tmp_path, scans=scans, patient_array=None if kind != "missing" else "patient")

    with pytest.raises(ScanError, match="protects patients" if kind != "missing" else "none"):
        approve(site, study)
    assert open_ledger(site).approvals() == []
    assert not list(site.approved.iterdir())


def test_the_sites_own_array_of_patients_serves_a_study_that_names_none(tmp_path: Path) -> None:
    given = approve(make_site(tmp_path), make_study(('group_key = "patient"\n', "")))

    assert given.eligible[0] == given.eligible[1] > 0


def test_a_study_that_takes_patients_from_another_array_is_refused(tmp_path: Path) -> None:
    site = make_site(tmp_path, patient_array="visit")

    with pytest.raises(ScanError, match="site.toml says that array 'visit' tells") as caught:
        approve(site, make_study())

    assert "it would protect something else" in caught.value.advice


@pytest.mark.parametrize("digest", ["", "../keys/node_key", "A" * 64, "a" * 63])
def test_a_digest_that_is_none_is_refused_before_the_disk_is_asked(
    tmp_path: Path, digest: str
) -> None:
    with pytest.raises(ApprovalError, match="no digest"):
        approved_study(make_site(tmp_path), digest)


def test_a_site_cannot_tell_its_patients_apart_in_another_way_once_a_study_is_approved(
    tmp_path: Path,
) -> None:
    # The same people would have other pseudonyms, and would have spent nothing.
    site = make_ready_site(tmp_path)
    toml = site.folder / "site.toml"
    before = toml.read_text()
    toml.write_text(before.replace('patient_array = "patient"', 'patient_array = "visit"'))

    with pytest.raises(LedgerError, match=r"tells patients apart by .*visit.* approved by"):
        open_ledger(open_site(site.folder))
    toml.write_text(before)

    open_ledger(open_site(site.folder)).close()


# ---- one study after the other -------------------------------------------------------------------
def serial(number: int, before: str = "", *changes: tuple[str, str]) -> Study:
    """A serial of the study, which follows the one of a digest."""
    lines = f"serial = {number}\n" + (f'supersedes = "{before}"\n' if before else "")
    return make_study(("[task]", lines + "[task]"), *changes)


FIRST = serial(1)
SECOND = serial(2, FIRST.digest)
THIRD = serial(3, SECOND.digest)


@pytest.mark.parametrize("withdrawn", [False, True])
def test_a_site_never_goes_back_to_an_older_serial(tmp_path: Path, withdrawn: bool) -> None:
    site = make_ready_site(tmp_path, FIRST)
    approve(site, SECOND)
    if withdrawn:
        withdraw(site, SECOND.digest)

    with pytest.raises(ApprovalError, match=f"serial 1 .{FIRST.digest}.*serial 2 .{SECOND.digest}"):
        approve(site, FIRST)
    approve(site, SECOND)  # the newest may be approved again


def test_a_study_that_skips_what_was_approved_last_is_refused_with_both_digests(
    tmp_path: Path,
) -> None:
    site = make_ready_site(tmp_path, FIRST)

    with pytest.raises(ApprovalError, match=rf"(?s){SECOND.digest}.*last was.*{FIRST.digest}"):
        approve(site, THIRD)
    assert not (site.approved / f"{THIRD.digest}.json").exists()

    approve(site, SECOND)
    approve(site, THIRD)


def test_of_a_name_that_is_new_here_any_serial_may_be_the_first(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path, THIRD)

    approve(site, make_study(('name = "two_labels"', 'name = "other"')))


def test_two_signed_studies_of_one_serial_are_one_too_many(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    approve(site, FIRST, signed=True)
    other = serial(1, "", ("rounds = 2", "rounds = 3"))

    with pytest.raises(
        ApprovalError, match=rf"(?s){other.digest}.*as this serial was {FIRST.digest}"
    ):
        approve(site, other, signed=True)
    approve(site, other)  # where nobody signs, nobody gives out serials


def test_the_newest_serial_counts_in_whatever_order_two_were_approved() -> None:
    # Two admins at once: both checks come before both entries.
    given = [
        ledger_state.Approval(entry, study.digest, study.name, {}, {}, study.study.serial)
        for entry, study in enumerate((SECOND, FIRST))
    ]

    check_not_replaced(SECOND, given, "A")
    with pytest.raises(ApprovalError, match="was replaced: serial 2"):
        check_not_replaced(FIRST, given, "A")


# ---- until when, and for how many ----------------------------------------------------------------
def test_an_expired_study_is_not_approved(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    study = make_study(("[task]", "expires = 2027-01-31\n[task]"))
    last = datetime.datetime(2027, 1, 31, 23, 59, tzinfo=datetime.UTC)

    with pytest.raises(ApprovalError, match=r"its last day was 2027-01-31, and it is 2027-02-01"):
        approve(site, study, at=last + datetime.timedelta(minutes=1))
    assert not list(site.approved.iterdir())
    approve(site, study, at=last)


def test_fewer_patients_than_the_sites_minimum_are_told_to_the_admin(tmp_path: Path) -> None:
    # 60 patients, of whom the split keeps some for the test; 40 are declared.
    site = make_site(tmp_path, limits="epsilon_limit = 50.0\ndelta_limit = 1e-2\n")
    there = approve(site, make_study()).eligible[1]
    toml = site.folder / "site.toml"
    toml.write_text(toml.read_text() + f"minimum_patients = {there + 1}\n")
    declared = ("declared_patients = 40\n[[site]]", "declared_patients = 60\n[[site]]")

    with pytest.raises(ApprovalError, match=rf"would find {there} patients.*{there + 1}"):
        approve(open_site(site.folder), make_study(declared))
    toml.write_text(toml.read_text().replace(f"= {there + 1}\n", f"= {there}\n"))
    approve(open_site(site.folder), make_study(declared))


# ---- who signed ----------------------------------------------------------------------------------
def test_a_site_that_knows_its_coordinator_refuses_what_is_not_signed(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    new_signing_key(private_folder(tmp_path / "keys"))
    (site.folder / "trust" / "study.pub").write_bytes((tmp_path / "keys/study.pub").read_bytes())

    with pytest.raises(TrustError, match="is not signed"):
        approve(site, make_study())
    assert not list(site.approved.iterdir())
    approve(site, make_study(), signed=True)
