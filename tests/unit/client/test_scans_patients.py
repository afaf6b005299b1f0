"""How patients are named, grouped and split; and the scans that nobody is named in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medfed.client.approvals import scans_of_patients
from medfed.client.scans.layouts.layout import SourceRules
from medfed.client.scans.patients import (
    KEY_BYTES,
    LEFT_OUT,
    PatientNames,
    PseudonymKey,
    is_left_out,
    parts_of_units,
)
from medfed.client.scans.read import read_scans
from medfed.client.scans.scanset import TEST, TRAIN, VALIDATION, ScanSet
from medfed.client.site_root import SiteRoot, open_site
from medfed.common.errors import ConfigError, ScanError
from medfed.common.study import Study
from tests.support.scans import random_pixels, write_list, write_scan
from tests.support.sites import make_site, make_study

HASHED = make_study(("validation_fraction = 0.0", "validation_fraction = 0.3"))
GIVEN = make_study(
    (
        'rule = "hash"\ntest_fraction = 0.2\nvalidation_fraction = 0.0\nsalt = "tests"',
        'rule = "given"',
    )
)
IDS = [str(number) for number in range(12)]


@pytest.fixture
def key(tmp_path: Path) -> PseudonymKey:
    path = tmp_path / "pseudonym.key"
    path.write_bytes(bytes(range(KEY_BYTES)))
    return PseudonymKey(path)


def assembled(
    keys: list[str], names: PatientNames, study: Study = HASHED, given: list[int] | None = None
) -> ScanSet:
    images = [np.full((1, 2, 2), number, np.float32) for number in range(len(keys))]
    return ScanSet.assemble(
        images, [0] * len(keys), keys, given, study, unit="patient", pseudonymise=names
    )


def merged(key: PseudonymKey, *ids: str) -> PatientNames:
    name = min(key(each) for each in ids)
    return PatientNames(key, dict.fromkeys([key(each) for each in ids], name))


# ---- names ---------------------------------------------------------------------------------------
def test_merged_ids_have_one_name_and_the_others_their_own(key: PseudonymKey) -> None:
    names = merged(key, "1", "2")

    assert names("1") == names("2") == min(key("1"), key("2"))
    assert names("3") == key("3")
    assert key("1").hex() not in repr(names)


def test_the_same_id_is_the_same_text_exactly(key: PseudonymKey) -> None:
    # As docs/privacy.md says; blanks around an id are taken off where it is read.
    assert len({key(text) for text in ("7", "07", "a", "A")}) == 4


# ---- one unit, one part --------------------------------------------------------------------------
@given(
    keys=st.lists(st.sampled_from(IDS), min_size=1, max_size=40),
    both=st.sets(st.sampled_from(IDS), min_size=2, max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_scans_of_merged_ids_are_one_unit_in_the_first_part_that_any_is_in(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], both: set[str]
) -> None:
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_bytes(bytes(KEY_BYTES))
    key = PseudonymKey(path)
    names = merged(key, *both)

    scans = assembled(keys, names)

    person = [k for k in keys if k in both]
    order = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    for number, each in enumerate(keys):
        ids = person if each in both else [each]
        assert scans.part[number] == min(order[HASHED.split.part_of(i)] for i in ids)
        assert scans.pseudonyms[scans.patient[number]] == names(each)
    units = {"+" if each in both else each for each in keys}
    assert scans.patients == len(units) == len(scans.pseudonyms)


def test_without_merges_nothing_is_different(key: PseudonymKey) -> None:
    keys = ["b", "a", "b", "c"]

    scans = assembled(keys, PatientNames(key, {}))

    assert scans.patient.tolist() == [0, 1, 0, 2]
    assert scans.pseudonyms == (key("b"), key("a"), key("c"))


def test_merged_ids_of_two_given_parts_are_in_the_first(key: PseudonymKey) -> None:
    scans = assembled(["1", "2", "3"], merged(key, "1", "2"), GIVEN, [TEST, TRAIN, TEST])

    assert scans.part.tolist() == [TRAIN, TRAIN, TEST]


def test_an_id_that_is_given_in_two_parts_by_itself_is_refused_though_merged(
    key: PseudonymKey,
) -> None:
    with pytest.raises(ScanError, match="more than one of train, validation and test"):
        assembled(["1", "1", "2"], merged(key, "1", "2"), GIVEN, [TEST, TRAIN, TEST])


def test_parts_stay_as_they_are_where_nobody_was_merged() -> None:
    assert parts_of_units([2, 0], ["a", "b"], ["a", "b"]) == [2, 0]
    assert parts_of_units([], [], []) == []


# ---- nobody named --------------------------------------------------------------------------------
def test_a_scan_without_a_patient_is_left_out_where_the_site_says_so() -> None:
    leave_out = SourceRules(without_patient="leave-out")

    assert is_left_out("", leave_out)
    assert not is_left_out("4711", leave_out)
    assert not is_left_out("", SourceRules())


@pytest.fixture
def archive(tmp_path: Path) -> SiteRoot:
    """A site of three DICOM files, of which one does not say whose it is."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, patient in enumerate(["P1", " P2 ", ""]):
        write_scan(folder / f"{number}.dcm", random_pixels(number), patient_id=patient)
    write_list(folder, [(f"{n}.dcm", "dark") for n in range(3)], "file", "label")
    return make_site(tmp_path, scans=folder, patient_array=None)


NO_ARRAY = make_study(('group_key = "patient"\n', ""))


def test_without_a_word_of_the_site_one_scan_of_nobody_refuses_the_study(
    archive: SiteRoot,
) -> None:
    with pytest.raises(ScanError, match="not every scan in .* says whose it is") as caught:
        scans_of_patients(archive, NO_ARRAY)
    assert 'without_patient = "leave-out"' in caught.value.advice


def test_scans_of_nobody_are_left_out_and_counted_and_the_rest_is_of_patients(
    archive: SiteRoot,
) -> None:
    settings = archive.folder / "site.toml"
    text = settings.read_text()
    settings.write_text(text.replace("[scans]\n", '[scans]\nwithout_patient = "leave-out"\n'))
    site = open_site(archive.folder)

    scans = scans_of_patients(site, NO_ARRAY)
    direct = read_scans(site.scans, NO_ARRAY, rules=site.settings.scans)

    key = PseudonymKey(site.pseudonym_key)
    assert (scans.unit, len(scans), scans.patients) == ("patient", 2, 2)
    assert scans.pseudonyms == (key("P1"), key("P2"))  # blanks around an id do not count
    assert scans.refused == direct.refused == {LEFT_OUT: 1}
    assert (direct.unit, len(direct)) == ("patient", 2)


def test_where_no_scan_is_of_anybody_nothing_is_left(tmp_path: Path) -> None:
    for label in ("dark", "bright"):
        (tmp_path / label).mkdir()
        write_scan(tmp_path / label / "1.dcm", random_pixels(), patient_id="")

    with pytest.raises(ScanError, match=f"none of the 2 files .*{LEFT_OUT}: 2"):
        read_scans(
            tmp_path,
            NO_ARRAY,
            rules=SourceRules(without_patient="leave-out", layout="class-folders"),
        )


def test_another_word_than_refuse_or_leave_out_is_no_rule() -> None:
    with pytest.raises(ValidationError, match="leave-out"):
        SourceRules.model_validate({"without_patient": "ignore"})


def test_a_key_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pseudonym.key"
    path.write_bytes(b"short")

    with pytest.raises(ConfigError, match="has 5 bytes, not 32"):
        PseudonymKey(path)
