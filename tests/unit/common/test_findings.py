from __future__ import annotations

from itertools import product

import pytest

from medfed.common.errors import ConfigError
from medfed.common.findings import Findings, Unlabelled

LABELS = ("well", "ill")


def test_whatever_a_scan_has_it_gets_at_most_one_label_and_order_does_not_matter() -> None:
    rule = Findings(means={"ill": ("A", "B"), "well": ("C",)}).rule_for(LABELS)

    for present in product(("A", "B", "C", "D"), repeat=3):
        expected = {"A": 1, "B": 1, "C": 0}
        classes = {expected[text] for text in present if text in expected}
        found = rule.class_of(present)
        if len(classes) == 1:
            assert found == classes.pop()
        else:
            assert found is (Unlabelled.SEVERAL if classes else Unlabelled.NONE)


def test_without_a_map_a_finding_means_the_label_of_the_same_text() -> None:
    rule = Findings().rule_for(LABELS)

    assert rule.class_of(["ill"]) == 1
    assert rule.class_of(["ill", "Effusion"]) == 1  # what the study does not ask for is no matter
    assert rule.class_of(["Ill"]) is Unlabelled.NONE
    assert rule.class_of([]) is Unlabelled.NONE
    assert rule.class_of(["ill", "well"]) is Unlabelled.SEVERAL


def test_a_mapped_label_is_no_longer_meant_by_its_own_text() -> None:
    rule = Findings(means={"ill": ("Pneumonia",)}).rule_for(LABELS)

    assert rule.class_of(["ill"]) is Unlabelled.NONE
    assert rule.class_of(["well"]) == 0


def test_the_rest_takes_what_has_none_of_the_findings() -> None:
    rule = Findings(means={"ill": ("Pneumonia",)}, rest="well").rule_for(LABELS)

    assert rule.class_of([]) == 0
    assert rule.class_of(["Effusion"]) == 0
    assert rule.class_of(["Effusion", "Pneumonia"]) == 1


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("leave-out", Unlabelled.UNCERTAIN), ("positive", 1), ("negative", 0)],
)
def test_an_uncertain_finding_counts_as_the_policy_says(policy: str, expected: object) -> None:
    findings = Findings.model_validate(
        {"means": {"ill": ("Pneumonia",)}, "rest": "well", "uncertain": policy}
    )
    rule = findings.rule_for(LABELS)

    assert rule.class_of(["Effusion"], ["Pneumonia"]) == expected
    assert rule.class_of([], ["Effusion"]) == 0  # nobody asks for it


def test_an_uncertain_finding_beside_a_certain_one_of_its_label_changes_nothing() -> None:
    rule = Findings(means={"ill": ("A", "B")}).rule_for(LABELS)

    assert rule.class_of(["A"], ["B"]) == 1


def test_an_uncertain_finding_taken_as_positive_can_contradict_a_certain_one() -> None:
    rule = Findings(uncertain="positive").rule_for(LABELS)

    assert rule.class_of(["well"], ["ill"]) is Unlabelled.SEVERAL


@pytest.mark.parametrize(
    "findings", [Findings(means={"sick": ("A",)}), Findings(rest="sick"), Findings(means={"": ()})]
)
def test_a_label_that_the_study_has_not_is_refused(findings: Findings) -> None:
    with pytest.raises(ConfigError, match=r"none of the study's labels \(well, ill\)"):
        findings.rule_for(LABELS)


def test_a_finding_that_means_two_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="'A' is listed twice"):
        Findings(means={"ill": ("A",), "well": ("A",)})
    with pytest.raises(ConfigError, match="'ill' means two"):
        Findings(means={"well": ("ill",)}).rule_for(LABELS)
