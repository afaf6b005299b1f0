"""What a report says about privacy: whose epsilon it is, and what per image would have hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medfed.client.scans.scanset import TEST, TRAIN, ScanSet
from medfed.common.privacy.accounting import Spend, epsilon
from medfed.common.privacy.image_level import patient_epsilon
from medfed.common.report.words import epsilon_text
from medfed.common.study import Study
from medfed.simulations.experiment import Plan, run_experiment, source_notes
from medfed.simulations.simulate import use_threads
from medfed.simulations.sources import Source, together
from tests.support.sites import make_study

SPEND = Spend(1.0, 8 / 40, 4)  # of the study of these tests: 2 rounds of 2 steps, 8 of 40 patients
DELTA = 1e-3


def scans_of(*counts: int, part: int = TRAIN, unit: str = "patient") -> ScanSet:
    """Patients with so many scans; each second one is bright on its left half."""
    patient = np.repeat(np.arange(len(counts)), counts)
    label = patient % 2
    images = np.random.default_rng(0).normal(0.5, 0.1, (len(patient), 1, 28, 28))
    images[:, :, :, :14] += 0.1 * label[:, None, None, None]
    return ScanSet(
        images=images.astype(np.float32),
        labels=label.astype(np.int64),
        patient=patient.astype(np.int64),
        part=np.full(len(patient), part, dtype=np.uint8),
        unit=unit,
    )


def own_source(sites: dict[str, ScanSet]) -> Source:
    return Source(None, sites, scans_of(1, 1, part=TEST))


def notes(study: Study, sites: dict[str, ScanSet]) -> str:
    return " ".join(source_notes(study, own_source(sites), sites))


def test_the_stated_epsilon_is_that_of_the_patient_with_ten_scans(tmp_path: Path) -> None:
    use_threads(1)
    study = make_study(("scans_per_patient = 1", "scans_per_patient = 4"))
    tested = scans_of(1, 1, 1, 1, part=TEST)
    pooled = together([scans_of(10, *[2] * 23), tested])

    report = run_experiment(
        study,
        Source(pooled, {}, tested),
        Plan(),
        out=tmp_path,
        title="test",
        progress=lambda *step: None,
    )

    assert dict(report.preparation)["Varied"] == "no"
    stated = epsilon(*SPEND, DELTA)
    hidden = patient_epsilon(SPEND, DELTA, 10)
    assert hidden > 5 * stated
    assert all(row.epsilon == stated for row in report.sites)
    assert report.privacy_statement.startswith("For every patient, ")
    assert f"epsilon {epsilon_text(stated)} at delta 0.001" in report.privacy_statement
    assert (
        "One patient here has 10 scans and is protected as one: clipping each image by "
        f"itself, with the same noise, would have stated the same epsilon {epsilon_text(stated)} "
        f"and given that patient epsilon {epsilon_text(hidden)}."
    ) in report.notes


def test_a_study_that_flips_left_and_right_is_noted() -> None:
    flips = make_study(("[split]", "[augmentation]\nflip_left_right = true\n[split]"))

    assert "flip_left_right mirrors" in notes(flips, {name: scans_of(1) for name in "AB"})
    assert "flip" not in notes(make_study(), {name: scans_of(1) for name in "AB"})


def test_only_training_scans_count() -> None:
    sites = {
        "A": together([scans_of(2, 1), scans_of(30, part=TEST)]),
        "B": scans_of(1, 3),
    }

    assert "has 3 scans" in notes(make_study(), sites)


def test_the_comparison_is_made_at_the_site_of_the_patient_with_most_scans() -> None:
    study = make_study(('name = "A"\ndeclared_patients = 40', 'name = "A"\ndeclared_patients = 80'))

    at_a = notes(study, {"A": scans_of(1, 5), "B": scans_of(4, 1)})
    at_either = notes(study, {"A": scans_of(1, 5), "B": scans_of(5, 1)})

    # Site A has steps of 8 among 80, half the rate; of two equal sites the costlier one is told.
    assert f"stated the same epsilon {epsilon_text(epsilon(1.0, 0.1, 4, DELTA))} " in at_a
    assert f"stated the same epsilon {epsilon_text(epsilon(*SPEND, DELTA))} " in at_either


def test_a_group_that_is_not_called_patient_is_named() -> None:
    scans = scans_of(1, 3, unit="eye owner")
    sites = {"A": scans, "B": scans}
    text = " ".join(source_notes(make_study(), Source(None, sites, scans), sites))

    assert "One eye owner here has 3 scans" in text and "given that eye owner eps" in text


def test_more_scans_than_can_be_accounted_are_a_lower_bound() -> None:
    study = make_study(("noise_multiplier = 1.0", "noise_multiplier = 2000.0"))
    many = ScanSet(
        images=np.zeros((1200, 1, 1, 1), dtype=np.float32),
        labels=np.zeros(1200, dtype=np.int64),
        patient=np.zeros(1200, dtype=np.int64),
        part=np.full(1200, TRAIN, dtype=np.uint8),
        unit="patient",
    )

    text = notes(study, {"A": many, "B": scans_of(1)})

    assert "has 1200 scans" in text and "given that patient epsilon at least " in text


def test_where_floating_point_ends_there_is_no_bound() -> None:
    study = make_study(("noise_multiplier = 1.0", "noise_multiplier = 0.05"))

    assert "given that patient no bound." in notes(study, {"A": scans_of(8), "B": scans_of(1)})


@pytest.mark.parametrize("private", [True, False])
def test_where_nothing_is_hidden_nothing_is_said(private: bool) -> None:
    study = make_study()
    if not private:
        study = study.model_copy(
            update={"privacy": study.privacy.model_copy(update={"mode": "none"})}
        )
    several = scans_of(1, 1) if private else scans_of(3, 3)

    assert "clipping each image" not in notes(study, {"A": several, "B": several})
