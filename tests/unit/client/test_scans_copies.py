from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medfed.client.scans.check import copies as copies_module
from medfed.client.scans.check.copies import Copies, Kind, find_copies
from tests.support.checked import Folder, chest, noise
from tests.support.scans import study_of


def folder() -> Folder:
    return Folder(study_of(size=32))


def found(made: Folder) -> Copies:
    return find_copies(made.overview().marks, made.pictures)


def counts(copies: Copies) -> dict[Kind, int]:
    return {kind: copies.count(kind) for kind in Kind if copies.count(kind)}


def again(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same picture with another brightness and a little noise."""
    noise_ = np.random.default_rng(5).normal(0, 0.003, tensor.shape)
    return (0.9 * tensor + 0.03 + noise_).astype(np.float32)


# ---- property: as comparing all pairs would find ------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(
    drawn=st.lists(
        st.tuples(*(st.integers(0, n) for n in (5, 3, 1, 2)), st.booleans()), max_size=24
    )
)
def test_equal_pictures_are_those_that_comparing_all_finds(
    drawn: list[tuple[int, int, int, int, bool]],
) -> None:
    made = folder()
    for picture, patient, label, part, named in drawn:
        name = f"file {picture}" if named else ""  # else the same picture in a file of its own
        made.add(noise(picture), patient=f"{patient}", label=label, part=part, content=name)

    by_picture: dict[int, list[tuple[int, int, int]]] = {}
    for picture, patient, label, part, _ in drawn:
        by_picture.setdefault(picture, []).append((patient, label, part))
    several = {Kind.PARTS: 0, Kind.PATIENTS: 0, Kind.LABELS: 0, Kind.REPEATED: 0}
    for scans in by_picture.values():
        patients, labels, parts = (len(set(values)) > 1 for values in zip(*scans, strict=True))
        several[Kind.PARTS] += parts
        several[Kind.PATIENTS] += patients and not parts
        several[Kind.LABELS] += labels
        several[Kind.REPEATED] += any(a[0] == b[0] for a, b in combinations(scans, 2))
    # One patient in two parts is refused as such and is no copy under two patients.
    copies = found(made)
    assert {kind: copies.count(kind) for kind in several} == several
    assert not copies.more


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(2, 200))
def test_looks_within_two_bits_are_those_that_comparing_all_finds(seed: int, number: int) -> None:
    random = np.random.default_rng(seed)
    looks = random.integers(1, 2**63, max(2, number // 4), dtype=np.uint64)
    looks = random.choice(looks, number)
    for _ in range(3):  # flip up to three bits of each
        flips = np.uint64(1) << random.integers(0, 64, number, dtype=np.uint64)
        looks = looks ^ np.where(random.random(number) < 0.4, flips, np.uint64(0))

    pairs, more = copies_module._alike(looks)

    near = [
        (a, b)
        for a, b in combinations(range(number), 2)
        if (int(looks[a]) ^ int(looks[b])).bit_count() <= 2
    ]
    assert list(map(tuple, pairs.tolist())) == near
    assert not more


# ---- examples ------------------------------------------------------------------------------------
def test_a_picture_in_train_and_test_is_found_though_its_files_differ() -> None:
    made = folder()
    for number in range(20):
        made.add(noise(number), patient=f"P{number}")
    made.add(noise(3), patient="P3 by another number", part=2)

    copies = found(made)

    assert counts(copies) == {Kind.PARTS: 1}
    assert copies.of[Kind.PARTS].pairs.tolist() == [[3, 20]]


def test_a_picture_that_was_saved_again_is_found_across_parts_and_across_patients() -> None:
    made = Folder(study_of(size=96))
    for number in range(30):
        made.add(chest(number), patient=f"P{number}")
    made.add(again(chest(3)), patient="Q", part=2)
    made.add(again(chest(4)), patient="R", part=0)

    copies = found(made)

    assert counts(copies) == {Kind.NEAR_PARTS: 1, Kind.NEAR_PATIENTS: 1}
    assert copies.of[Kind.NEAR_PARTS].pairs.tolist() == [[3, 30]]
    assert copies.of[Kind.NEAR_PATIENTS].pairs.tolist() == [[4, 31]]


def test_scans_of_one_patient_may_look_alike() -> None:
    made = folder()
    made.add(noise(1), patient="P")
    made.add(again(noise(1)), patient="P")

    assert counts(found(made)) == {}


def test_equal_looks_with_other_pixels_are_no_copies() -> None:
    made = folder()
    made.add(noise(1), patient="P")
    made.add(noise(2), patient="Q", part=2)
    made.scans[1] = made.scans[1]._replace(look=made.scans[0].look)

    assert counts(found(made)) == {}


def test_flat_pictures_are_not_called_copies_of_each_other() -> None:
    made = folder()
    for number in range(5):
        made.add(np.full((1, 32, 32), number // 2 / 5), patient=f"P{number}", part=number % 3)

    assert counts(found(made)) == {}


def test_many_flat_pictures_are_not_compared_with_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = folder()
    for number in range(20):  # 190 pairs
        made.add(np.full((1, 32, 32), number / 20), patient=f"P{number}")
    monkeypatch.setattr(copies_module, "MOST_CONFIRMED", 10)

    assert not found(made).more


def test_a_picture_counts_once_however_often_it_stands() -> None:
    made = folder()
    for number in range(10):
        made.add(noise(1), patient=f"P{number}", label=number % 2)

    assert counts(found(made)) == {Kind.PATIENTS: 1, Kind.LABELS: 1}


def test_where_more_is_alike_than_is_compared_the_counts_are_lower_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = folder()
    for number in range(40):
        made.add(noise(1), patient=f"P{number}")
    monkeypatch.setattr(copies_module, "MOST_CONFIRMED", 10)

    copies = found(made)

    assert copies.more
    assert copies.count(Kind.PATIENTS) == 1


def test_a_million_looks_of_one_kind_do_not_mean_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies_module, "MOST_COMPARED", 100_000)
    looks = np.arange(1, 100_001, dtype=np.uint64)  # all agree in two bands of three

    pairs, more = copies_module._alike(looks)

    assert more
    assert len(pairs) < 400_000
    assert all(a < b for a, b in pairs[:100].tolist())
    assert all(tuple(a) < tuple(b) for a, b in pairwise(pairs[:100].tolist()))


def test_no_scan_gives_no_copy() -> None:
    assert counts(found(folder())) == {}
    one = folder()
    one.add(noise(1), patient="P")
    assert counts(found(one)) == {}


def test_copies_show_nothing_of_themselves() -> None:
    made = folder()
    made.add(noise(1), patient="P")
    made.add(noise(1), patient="Q")

    copies = found(made)
    assert repr(copies.of[Kind.PATIENTS]) == "Twins()"
    assert "pairs" not in repr(copies)
