"""Exact figures equal scikit-learn's, and their intervals resample patients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from medfed.common.exact_metrics import Scored, auroc, figure, figure_with_interval


@given(
    scores=st.lists(st.integers(0, 5), min_size=4, max_size=60),
    seed=st.integers(0, 2**32 - 1),
)
def test_auroc_equals_scikit_learn_with_ties(scores: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).random(len(scores)) < 0.5
    labels[:2] = [True, False]  # both classes are there
    values = np.array(scores, dtype=np.float64)

    assert auroc(labels, values) == pytest.approx(roc_auc_score(labels, values), abs=1e-12)


def test_macro_figure_equals_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 3, 200)
    probabilities = generator.dirichlet(np.ones(3), 200)
    expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")

    assert figure(Scored(labels, probabilities, np.arange(200))) == pytest.approx(
        expected, abs=1e-12
    )


def test_the_positive_class_may_be_the_first() -> None:
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]])
    scored = Scored(labels, probabilities, np.arange(4))

    assert figure(scored, positive=0) == 1.0  # every first-class scan scores higher on column 0
    assert figure(scored, positive=1) == 1.0


def test_one_class_only_has_no_figure() -> None:
    scored = Scored(np.zeros(5, np.int64), np.full((5, 2), 0.5), np.arange(5))

    assert np.isnan(figure(scored))
    assert figure_with_interval(scored) is None


def noisy(scans_per_patient: int) -> Scored:
    """60 patients; the scans of a patient repeat each other."""
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 2, 60)
    score = 1 / (1 + np.exp(-(labels * 1.5 - 0.75 + generator.normal(0, 1, 60))))
    rows = np.repeat(np.arange(60), scans_per_patient)
    return Scored(labels[rows], np.stack([1 - score, score], axis=1)[rows], rows)


def test_interval_holds_the_figure_and_repeats() -> None:
    one = figure_with_interval(noisy(1))
    assert one is not None

    assert one.low < one.value < one.high
    assert one == figure_with_interval(noisy(1))


def test_repeated_scans_of_a_patient_do_not_narrow_the_interval() -> None:
    # Resampling scans instead would shrink the width by sqrt(8).
    one, eight = figure_with_interval(noisy(1)), figure_with_interval(noisy(8))
    assert one is not None and eight is not None

    assert eight.high - eight.low == pytest.approx(one.high - one.low, rel=1e-9)
    assert eight.value == pytest.approx(one.value, abs=1e-12)


def test_a_wider_level_gives_a_wider_interval() -> None:
    wide, narrow = figure_with_interval(noisy(1), level=0.99), figure_with_interval(noisy(1))
    assert wide is not None and narrow is not None

    assert wide.low < narrow.low and narrow.high < wide.high
