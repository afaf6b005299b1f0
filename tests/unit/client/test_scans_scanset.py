from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medfed.client.scans.scanset import TEST, TRAIN, VALIDATION, ScanSet, number_in_order
from medfed.common.errors import ScanError
from tests.support.scans import HASH, study_of


def scan_set(patient: Sequence[int], part: Sequence[int] | None = None, **changes: Any) -> ScanSet:
    scans = len(patient)
    fields: dict[str, Any] = {
        "images": np.arange(scans, dtype=np.float32).reshape(scans, 1, 1, 1),
        "labels": np.arange(scans, dtype=np.int64) % 2,
        "patient": np.asarray(patient, dtype=np.int64),
        "part": np.asarray(part or [TRAIN] * scans, dtype=np.uint8),
        "unit": "patient",
    }
    return ScanSet(**(fields | changes))


@pytest.mark.parametrize("seed", range(5))
def test_every_scan_of_a_selected_patient_comes_along_and_no_other(seed: int) -> None:
    random = np.random.default_rng(seed)
    whole = scan_set(number_in_order(random.integers(0, 9, 40)).tolist())
    wanted = random.permutation(whole.patients)[:4]

    chosen = whole.select(wanted)

    kept = chosen.images[:, 0, 0, 0].astype(int)  # each image holds its own position
    assert set(kept) == set(np.flatnonzero(np.isin(whole.patient, wanted)))
    assert list(kept) == sorted(kept)
    assert chosen.patients == 4
    assert chosen.patient.tolist() == number_in_order(whole.patient[kept].tolist()).tolist()


def test_parts_share_no_scan_and_leave_none_out() -> None:
    whole = scan_set([0, 1, 0, 2], [TRAIN, TEST, TRAIN, VALIDATION])

    parts = [whole.part_of(part) for part in (TRAIN, VALIDATION, TEST)]

    assert [part.images[:, 0, 0, 0].tolist() for part in parts] == [[0.0, 2.0], [3.0], [1.0]]
    assert [part.patient.tolist() for part in parts] == [[0, 0], [0], [0]]
    assert all(part.unit == "patient" for part in parts)


def test_an_empty_part_is_a_set_without_patients() -> None:
    empty = scan_set([0, 1]).part_of(TEST)

    assert (len(empty), empty.patients) == (0, 0)
    assert len(empty.part_of(TRAIN)) == 0


def test_patients_are_numbered_by_first_appearance() -> None:
    assert number_in_order(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_a_hash_split_puts_all_scans_of_a_patient_where_the_study_says() -> None:
    study = study_of(split=HASH)
    keys = [f"patient-{n % 20}" for n in range(60)]
    image = np.zeros((1, 1, 1), dtype=np.float32)

    made = ScanSet.assemble([image] * 60, [0] * 60, keys, None, study, unit="patient")

    names = ("train", "validation", "test")
    assert [names[part] for part in made.part] == [study.split.part_of(key) for key in keys]
    assert len(set(made.part.tolist())) == 3  # the 20 keys reach all parts


def test_the_representation_tells_nothing_private() -> None:
    # Neither the 3 scans nor the 2 patients; the shape of one tensor is the study's.
    text = repr(scan_set([0, 1, 0], refused={"not a DICOM file": 4}))

    assert text == "ScanSet(unit='patient', tensor=(1, 1, 1))"


def test_a_patient_in_two_parts_is_refused() -> None:
    with pytest.raises(ScanError, match=r"1 of 2 privacy units \(patient\) have scans in more"):
        scan_set([0, 1, 0], [TRAIN, TRAIN, TEST])


def test_a_given_split_that_is_not_given_is_refused() -> None:
    image = np.zeros((1, 1, 1), dtype=np.float32)

    with pytest.raises(ScanError, match="says no split"):
        ScanSet.assemble([image], [0], ["a"], None, study_of(), unit="patient")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"images": np.zeros((2, 1, 1, 1))}, "images"),
        ({"labels": np.zeros(2, dtype=np.int32)}, "labels"),
        ({"patient": np.asarray([1, 0])}, "patient"),
        ({"patient": np.asarray([0, 2])}, "patient"),
        ({"part": np.asarray([0], dtype=np.uint8)}, "part"),
        ({"part": np.asarray([0, 3], dtype=np.uint8)}, "part"),
    ],
)
def test_arrays_that_do_not_fit_are_a_defect(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(scan_set([0, 1]), **changes)


@pytest.mark.parametrize("patients", [[0, 0], [2], [-1]])
def test_selecting_a_patient_twice_or_an_unknown_one_is_a_defect(patients: list[int]) -> None:
    with pytest.raises(ValueError, match="selected"):
        scan_set([0, 1]).select(np.asarray(patients))
