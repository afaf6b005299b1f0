from __future__ import annotations

import hashlib
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.client.scans.check import measures
from medfed.client.scans.check.overview import Overview, gather
from medfed.client.scans.check.tallies import MOST_VALUES, Counts, Sample
from medfed.client.scans.facts import LookedAt, ScanFacts
from tests.support.checked import CR
from tests.support.scans import study_of

STUDY = study_of(labels=("a", "b", "c"), size=32)


def scan(number: int, *, patient: int = 0, label: int = 0, part: int = 0, **how: Any) -> LookedAt:
    name = hashlib.sha256(b"%d" % number).digest()
    facts = how.pop("facts", CR)
    values = {"content": name, "look": 7 + number} | how
    pseudonym = hashlib.sha256(b"patient %d" % patient).digest()[:16]
    return LookedAt(f"{number}.dcm", label, part, pseudonym, facts, **values)


def overview(scans: list[LookedAt], **how: Any) -> Overview:
    return gather(iter(scans), STUDY, **({"unit": "patient"} | how))


scans_drawn = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 2), st.integers(0, 2)), max_size=40
)


@given(drawn=scans_drawn)
def test_the_numbers_are_those_of_counting_one_by_one(
    drawn: list[tuple[int, int, int]],
) -> None:
    seen = overview([scan(i, patient=p, label=y, part=s) for i, (p, y, s) in enumerate(drawn)])

    every = [(y, s) for y in range(3) for s in range(3)]
    cells = Counter((y, s) for _, y, s in drawn)
    people = Counter((y, s) for _, y, s in set(drawn))
    assert [int(seen.scans[cell]) for cell in every] == [cells[cell] for cell in every]
    assert [int(seen.patients[cell]) for cell in every] == [people[cell] for cell in every]
    of_part = Counter(s for _, s in {(p, s) for p, _, s in drawn})
    assert seen.patients_of_part.tolist() == [of_part[s] for s in range(3)]
    parts_of = Counter(p for p, _ in {(p, s) for p, _, s in drawn})
    assert seen.in_several_parts == sum(count > 1 for count in parts_of.values())
    assert seen.per_patient == Counter(Counter(p for p, _, _ in drawn).values())
    assert seen.patients_in_all == len({p for p, _, _ in drawn})
    assert seen.total == len(drawn)


@settings(max_examples=30)
@given(numbers=st.permutations(range(60)), size=st.integers(1, 20))
def test_a_sample_does_not_depend_on_the_order(numbers: list[int], size: int) -> None:
    def drawn(order: list[int]) -> list[int]:
        sample = Sample(size)
        for number in order:
            sample.add(number, b"%d" % number, CR)
        return [found.place for found in sample.scans()]

    assert drawn(numbers) == drawn(sorted(numbers))
    assert len(drawn(numbers)) == size


def test_one_scan_more_changes_a_sample_by_one_at_most() -> None:
    def drawn(number: int) -> set[int]:
        sample = Sample(24)
        for place in range(number):
            sample.add(place, b"%d" % place, CR)
        return {found.place for found in sample.scans()}

    assert all(len(drawn(n) - drawn(n + 1)) <= 1 for n in range(24, 200))


def test_a_sample_is_drawn_from_all_alike() -> None:
    sample = Sample(1000)
    for place in range(10_000):
        sample.add(place, b"%d" % place, CR)

    places = [found.place for found in sample.scans()]
    # the mean of 1,000 places of 10,000: standard error 2887 / sqrt(1000) = 91; 5 of them
    assert abs(np.mean(places) - 5000) < 456


def test_values_are_counted_by_label_and_many_become_others() -> None:
    counts = Counts(2)
    for number in range(MOST_VALUES + 50):
        counts.add(f"maker {number}", number % 2)
    counts.add("maker 0", 1)

    rows = dict(counts.rows())
    assert len(rows) == MOST_VALUES + 1
    assert rows["maker 0"].tolist() == [1, 1]
    assert rows["others"].tolist() == [25, 25]
    assert counts.rows()[0][0] == "others"  # the most frequent first
    assert counts.total("maker 0") == 2 and counts.total("nobody") == 0


def test_what_headers_say_is_counted() -> None:
    risky = replace(CR, text_risk=True, burned_in="yes", modality="US", rows=16, columns=300)
    seen = overview(
        [
            scan(0, facts=replace(CR, sex="F", age_band="040Y", laterality="L")),
            scan(1, facts=risky, label=2),
            scan(2, facts=replace(CR, text_risk=True)),
            scan(3, facts=ScanFacts(), look=0),
        ],
        refused={"not a DICOM file": 3},
        left_out={"no line names the file": 2},
    )

    assert dict(seen.by["sex"].rows())["F"].tolist() == [1, 0, 0]
    assert seen.by["device"].values() == [
        "CR · Radiant Medical RM-20",
        "US · Radiant Medical RM-20",
    ]
    assert seen.by["bits"].total("12 bits") == 3
    assert (seen.burned_in, seen.text_risk, seen.flat) == (1, 2, 1)
    assert [found.place for found in seen.blank.scans()] == [3]
    assert seen.smaller == 1  # 16 rows, where the study has 32; a size not known is not small
    assert seen.sides == {2048: 2, 512: 1, 0: 1}
    assert (seen.refused, seen.left_out) == ({"not a DICOM file": 3}, {"no line names the file": 2})


def test_what_is_kept_of_a_scan_takes_some_thirty_bytes() -> None:
    def many(number: int) -> Iterator[LookedAt]:
        facts = [replace(CR, model=f"model {n}") for n in range(1000)]
        for place in range(number):
            yield scan(place, patient=place // 2, label=place % 3, facts=facts[place % 1000])

    def kept(number: int) -> int:
        tracemalloc.start()
        seen = gather(many(number), STUDY, unit="patient")
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert seen.total == number
        return size

    # 27 bytes of marks; arrays grow by an eighth ahead
    assert (kept(30_000) - kept(10_000)) / 20_000 < 35


def test_contents_that_differ_at_their_end_only_are_different() -> None:
    # the cache names the pictures of one file by 32 bytes of the file and 8 of the picture
    seen = overview([scan(n, content=bytes(32) + bytes([n])) for n in range(5)])

    assert len(np.unique(seen.marks.content)) == 5


def test_an_empty_folder_gives_zeros() -> None:
    seen = overview([])

    assert (seen.total, seen.patients_in_all, seen.in_several_parts) == (0, 0, 0)
    assert seen.scans.shape == seen.patients.shape == (3, 3)


# ---- distributions -------------------------------------------------------------------------------
def test_ages_are_shown_from_the_youngest_to_the_oldest_with_their_gaps() -> None:
    counts = Counts(1)
    for band in ("020Y", "040Y", "040Y", "", "others"):
        counts.add(band, 0)

    assert measures.ages(counts) == [("20–29", 1), ("30–39", 0), ("40–49", 2), ("–", 1)]
    assert measures.ages(Counts(1)) == []


@pytest.mark.parametrize(
    ("found", "bars"),
    [
        ({}, []),
        ({1: 5, 3: 2}, [("1", 5), ("2", 0), ("3", 2)]),
        ({1: 5, 7: 1, 12: 2}, [("1–5", 5), ("6–10", 1), ("11–20", 2)]),
        ({60: 2, 500: 1}, [("1–5", 0), ("6–10", 0), ("11–20", 0), ("21–50", 0), ("over 50", 3)]),
    ],
)
def test_patients_are_counted_by_their_scans(
    found: dict[int, int], bars: list[tuple[str, int]]
) -> None:
    assert measures.scans_per_patient(found) == bars


def test_sizes_are_shown_from_the_smallest_to_the_largest() -> None:
    assert measures.sides({512: 3, 2048: 1, 0: 2}) == [
        ("to 512", 3),
        ("to 1024", 0),
        ("to 2048", 1),
        ("other", 2),
    ]
    assert measures.sides({0: 4}) == []
