from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medfed.client.scans.check.about_pictures import association
from medfed.client.scans.check.copies import Copies, Kind, Twins
from medfed.client.scans.check.overview import Overview
from medfed.client.scans.check.remark import Remark, Severity
from medfed.client.scans.check.remarks import headline, remarks_on
from medfed.client.scans.check.tallies import Counts
from medfed.client.scans.facts import ScanFacts
from medfed.common.study import Study, parse_study
from tests.support.checked import CR, Folder, healthy, noise, troubled
from tests.support.scans import study_of
from tests.support.sites import STUDY

NONE = Copies()


def site(
    counts: dict[tuple[int, int], int],
    *,
    study: Study | None = None,
    facts: ScanFacts | None = None,
    **how: Any,
) -> Overview:
    """Patients with one scan each, by label and part; their pictures are all alike."""
    made = Folder(study or study_of(size=32))
    for (label, part), number in counts.items():
        for _ in range(number):
            made.add(noise(1), patient=f"{len(made.scans)}", label=label, part=part)
            if facts is not None:
                made.scans[-1] = made.scans[-1]._replace(facts=facts)
    return made.overview(**how)


EVEN = {(0, 0): 50, (1, 0): 50, (0, 2): 30, (1, 2): 30}


def remark(kind: str, overview: Overview, copies: Copies = NONE, **how: Any) -> Remark:
    (chosen,) = [said for said in remarks_on(overview, copies, **how) if said.kind == kind]
    return chosen


def kinds(overview: Overview, copies: Copies = NONE, **how: Any) -> set[str]:
    """What needs care."""
    said = remarks_on(overview, copies, **how)
    return {one.kind for one in said if one.severity is not Severity.FINE}


def twins(kind: Kind, count: int) -> Copies:
    return Copies({kind: Twins(count, np.empty((0, 2), dtype=np.int64))})


# ---- property ------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [healthy, troubled])
def test_every_remark_that_needs_care_has_a_next_step_and_the_gravest_come_first(
    make: Callable[..., Folder],
) -> None:
    said = make(side=32).examined(declared=5).remarks

    order = [list(Severity).index(one.severity) for one in said]
    assert order == sorted(order)
    assert all(one.next_step for one in said if one.severity is not Severity.FINE)
    assert all(one.text[0].isupper() or one.text[0].isdigit() for one in said)
    assert all(one.text.endswith(".") for one in said)
    assert len({one.kind for one in said if one.kind != "label-too-few"}) == len(
        [one for one in said if one.kind != "label-too-few"]
    )


# ---- examples ------------------------------------------------------------------------------------
def test_a_healthy_site_is_ready() -> None:
    overview = site(EVEN)
    said = remarks_on(overview, NONE, declared=100)

    assert {one.severity for one in said} == {Severity.FINE}
    assert (
        headline(overview, said)
        == "160 scans of 160 patients are ready for study tiny; nothing needs care."
    )


def test_the_sentence_at_the_head_counts_what_stops_or_needs_a_look() -> None:
    overview = site(EVEN, refused={"not a DICOM file": 1})
    light = remarks_on(overview, NONE)
    grave = remarks_on(overview, twins(Kind.PARTS, 2))

    assert headline(overview, light).endswith("once somebody has looked at 1 thing.")
    assert headline(overview, grave) == (
        "Not ready for study tiny: 1 thing must be put right first."
    )


@pytest.mark.parametrize(
    ("kind", "unit", "severity", "words"),
    [
        (Kind.PARTS, "patient", "stop", "2 pictures stand in more than one of train"),
        (Kind.PARTS, "image", "stop", "2 pictures stand in more than one of train"),
        (Kind.PATIENTS, "patient", "stop", "under two patients: one person under two numbers"),
        (Kind.PATIENTS, "field", "stop", "under two fields"),
        (Kind.PATIENTS, "image", "look", "2 pictures stand more than once, and weigh double."),
        (Kind.LABELS, "patient", "look", "two different labels"),
        (Kind.REPEATED, "patient", "look", "twice among the scans of one patient"),
        (Kind.NEAR_PARTS, "patient", "look", "2 pairs of pictures in two parts look nearly"),
        (Kind.NEAR_PATIENTS, "patient", "look", "2 pairs of pictures of two patients look"),
    ],
)
def test_copies_are_told_by_who_shares_them(
    kind: Kind, unit: str, severity: str, words: str
) -> None:
    said = remarks_on(site(EVEN, unit=unit), twins(kind, 2))

    (one,) = [one for one in said if "cop" in one.kind]
    assert one.severity == severity
    assert words in one.text
    assert "files.csv" in one.next_step


def test_one_copy_is_told_in_the_singular_and_a_lower_bound_as_such() -> None:
    one = twins(Kind.PATIENTS, 1)
    assert "1 picture stands under" in remark("copies-across-patients", site(EVEN), one).text
    many = Copies(one.of, more=True)
    assert remark("copies-across-patients", site(EVEN), many).text.startswith("At least 1 picture")


@pytest.mark.parametrize(
    ("refused", "severity"), [(0, "fine"), (1, "look"), (159, "look"), (160, "stop")]
)
def test_half_of_the_files_refused_stops(refused: int, severity: str) -> None:
    overview = site(EVEN, refused={"not a DICOM file": refused} if refused else {})

    assert remark("refused", overview).severity == severity


def test_the_most_frequent_reason_is_named() -> None:
    overview = site(EVEN, refused={"a": 1, "b": 3}, left_out={"c": 2, "d": 1})

    said = remark("refused", overview)
    assert said.text.startswith("4 of 164 listed scans (2 %) cannot be used") and "b." in said.text
    assert "3 scans or lines" in remark("left-out", overview).text
    assert "c." in remark("left-out", overview).text


def test_patients_in_two_parts_stop() -> None:
    made = Folder(study_of(size=32))
    made.add(noise(1), patient="P", part=0)
    made.add(noise(2), patient="P", part=2)

    said = remark("patients-in-several-parts", made.overview())
    assert said.severity is Severity.STOP
    assert said.text.startswith("1 patient has scans")


@pytest.mark.parametrize(("private", "severity"), [(True, "stop"), (False, "look")])
def test_scans_of_nobody_stop_a_study_that_protects_patients(private: bool, severity: str) -> None:
    study = parse_study(STUDY) if private else study_of(size=32)

    assert remark("patient-ids", site(EVEN, study=study, unit="image")).severity == severity


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        ({(0, 0): 50, (1, 0): 50}, {"nothing-to-test-on"}),
        ({(0, 2): 50, (1, 2): 50}, {"nothing-to-train-on"}),
        ({(0, 0): 50, (0, 2): 50}, {"label-missing"}),
        ({(0, 0): 50, (1, 0): 19, (0, 2): 30, (1, 2): 12}, {"label-too-few"}),
        ({(0, 0): 50, (1, 0): 20, (0, 2): 30, (1, 2): 10}, set()),
        ({(0, 0): 50, (1, 0): 50, (0, 2): 30, (1, 2): 9}, {"label-too-few-to-test"}),
        ({(0, 0): 199, (1, 0): 20, (0, 2): 90, (1, 2): 10}, set()),
        ({(0, 0): 200, (1, 0): 20, (0, 2): 90, (1, 2): 10}, {"unbalanced"}),
        ({(0, 0): 50, (1, 0): 50, (0, 2): 34, (1, 2): 66}, {"parts-differ"}),  # 50 % and 34 %
        ({(0, 0): 50, (1, 0): 50, (0, 2): 36, (1, 2): 64}, set()),
        ({(0, 0): 50, (1, 0): 50, (0, 2): 15, (1, 2): 34}, set()),  # 49 are too few to say
    ],
)
def test_labels_that_miss_or_differ_are_told(
    counts: dict[tuple[int, int], int], found: set[str]
) -> None:
    assert kinds(site(counts)) == found


def test_many_scans_of_few_patients_count_as_unbalanced_too() -> None:
    made = Folder(study_of(size=32))
    for number in range(300):
        made.add(noise(1), patient=f"P{number % 30}", label=0)
    for number in range(30):
        made.add(noise(1), patient=f"Q{number}", label=1)

    said = remark("unbalanced", made.overview())
    assert said.severity is Severity.LOOK
    assert "10.0 scans of “normal” to one of “opacity”" in said.text


@pytest.mark.parametrize(
    ("declared", "told"),
    [(None, False), (99, False), (100, False), (80, False), (79, True), (101, True)],
)
def test_a_number_of_patients_other_than_declared_is_told(declared: int | None, told: bool) -> None:
    # 100 to train on; up to 1.25 times the declared number is rounding
    assert ("declared" in kinds(site(EVEN), declared=declared)) is told


def test_a_delta_above_one_over_the_patients_is_told() -> None:
    study = parse_study(STUDY.replace("delta = 1e-3", "delta = 2e-2"))  # 100 to train on

    assert kinds(site(EVEN, study=study)) == {"delta"}


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (replace(CR, burned_in="yes", text_risk=True), {"burned-in-text"}),
        (replace(CR, text_risk=True), {"text-risk"}),
        (replace(CR, rows=31), {"smaller"}),
        (replace(CR, rows=0, columns=0), set()),
    ],
)
def test_what_the_pictures_are_is_told(facts: ScanFacts, found: set[str]) -> None:
    assert kinds(site(EVEN, facts=facts)) == found


def test_several_views_are_told_unless_the_study_chooses() -> None:
    def mixed(study: Study) -> set[str]:
        made = Folder(study)
        for number in range(160):
            facts = replace(CR, view="PA" if number % 2 else "LL")
            part = 0 if number < 80 else 2
            made.add(noise(1), patient=f"{number}", label=number // 2 % 2, part=part, facts=facts)
        return kinds(made.overview())

    assert mixed(study_of(size=32)) == {"several-views"}
    assert mixed(study_of(size=32, scans='views = ["PA", "LL"]')) == set()


def test_a_device_that_goes_with_the_label_is_told() -> None:
    made = Folder(study_of(size=32))
    for number in range(160):
        label, part = number % 2, 0 if number < 80 else 2
        facts = replace(CR, model="RM-20" if label else "RM-40")
        made.add(noise(1), patient=f"{number}", label=label, part=part, facts=facts)

    said = remark("label-goes-with-device", made.overview())
    assert said.severity is Severity.LOOK
    assert "100 % of “opacity” and 0 % of “normal”" in said.text
    assert "RM-20" in said.text


def test_flat_scans_are_told() -> None:
    made = healthy(side=32)
    made.add(np.full((1, 32, 32), 0.5), patient="flat", label=0)

    assert remark("flat", made.overview()).text.startswith("1 scan shows one even grey")


# ---- Cramér's V ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ([[50, 50], [50, 50]], 0.0),
        ([[100, 0], [0, 100]], 1.0),
        # chi-squared of [[30, 10], [20, 40]] is 16.667 (50 * 8 / 24 = 100 * (1200 - 200)^2 /
        # (40 * 60 * 50 * 50)); V = sqrt(16.667 / 100) = 0.408
        ([[30, 10], [20, 40]], 0.408),
        ([[40, 9], [9, 40]], 0.0),  # 98 scans: too few
        ([[100, 0], [50, 0]], 0.0),  # one label only
        ([[100, 100]], 0.0),  # one value only
        ([], 0.0),
    ],
)
def test_association_of_known_tables(table: list[list[int]], expected: float) -> None:
    counts = Counts(2)
    for value, row in enumerate(table):
        for label, number in enumerate(row):
            for _ in range(number):
                counts.add(str(value), label)

    assert association(counts) == pytest.approx(expected, abs=5e-4)
