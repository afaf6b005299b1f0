"""The server adds noised histograms, in any order, and refuses what is none."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest

from medfed.common.errors import UpdateRejectedError
from medfed.common.histogram_metrics import figure_names, histogram_figures
from medfed.common.privacy.histogram import GRID, HistogramMechanism, encode_histogram
from medfed.server.evaluation import Evaluation, EvaluationCurve, HistogramSum

Floats = npt.NDArray[np.float64]

MECHANISM = HistogramMechanism(
    bins=10, targets=(1,), noise_multiplier=2.0, histograms=1, delta=1e-4
)


def release(seed: int) -> Floats:
    """What a site with 200 patients sends: scores that tell the classes apart."""
    generator = np.random.default_rng(seed)
    scores = np.concatenate([generator.beta(2, 4, 120), generator.beta(4, 2, 80)])
    labels = np.arange(200) >= 120
    cells = np.stack([np.histogram(scores[labels == row], 10, (0, 1))[0] for row in (0, 1)])
    noise = 2.0 * generator.standard_normal((1, 2, 10))
    noised: Floats = cells[None] + np.rint(noise / GRID) * GRID
    return noised


def summed(*order: int) -> HistogramSum:
    total = HistogramSum(MECHANISM, threshold=0.5)
    for seed in order:
        total.add(f"S{seed}", encode_histogram(release(seed)))
    return total


def test_the_figures_are_those_of_the_sum_with_the_noise_of_all_sites() -> None:
    evaluation = summed(1, 2, 3).evaluation()

    expected = histogram_figures(
        release(1) + release(2) + release(3), 2.0 * math.sqrt(3), threshold=0.5
    )
    assert dict(evaluation.figures) == dict(expected)
    assert evaluation.sites == ("S1", "S2", "S3")
    assert len(evaluation.reliability[0]) == 10


def test_any_order_of_arrival_gives_the_same_bits() -> None:
    results = [summed(*order).evaluation() for order in itertools.permutations((1, 2, 3))]

    assert all(result == results[0] for result in results)


def test_more_sites_make_the_figure_more_exact() -> None:
    def width(*sites: int) -> float:
        interval = summed(*sites).evaluation().figures["auroc_noised"].interval
        assert interval is not None
        return interval.high - interval.low

    # Four times the patients: half the width, both of chance and of noise.
    assert width(1, 2, 3, 4) == pytest.approx(width(1) / 2, rel=0.3)


def test_the_threshold_of_the_study_is_used() -> None:
    def sensitivity(threshold: float) -> float:
        total = HistogramSum(MECHANISM, threshold=threshold)
        total.add("A", encode_histogram(release(1)))
        interval = total.evaluation().figures["sensitivity_noised"].interval
        assert interval is not None
        return interval.value

    assert sensitivity(0.119) > sensitivity(0.881)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_histogram_leaves_the_sum_as_it_was(bad: float) -> None:
    total = summed(1, 2)
    spoilt = release(3)
    spoilt[0, 1, 4] = bad

    with pytest.raises(UpdateRejectedError, match="site 'S3': the score histogram holds NaN"):
        total.add("S3", encode_histogram(spoilt))

    assert total.evaluation() == summed(1, 2).evaluation()
    total.add("S3", encode_histogram(release(3)))  # the site may still send its own
    assert total.evaluation() == summed(1, 2, 3).evaluation()


def test_a_site_counts_once() -> None:
    total = summed(1)

    with pytest.raises(UpdateRejectedError, match="site 'S1': a second score histogram"):
        total.add("S1", encode_histogram(release(2)))

    assert total.evaluation() == summed(1).evaluation()


def test_without_a_report_there_is_no_figure() -> None:
    assert HistogramSum(MECHANISM, threshold=0.5).evaluation() == Evaluation((), {}, ())


def test_a_curve_keeps_the_rounds_in_order_and_leaves_out_the_silent_ones() -> None:
    curve = EvaluationCurve()
    late, early = summed(1).evaluation(), summed(2).evaluation()
    curve.record(10, late)
    curve.record(5, early)
    curve.record(15, HistogramSum(MECHANISM, threshold=0.5).evaluation())

    assert list(curve.points) == [5, 10, 15]
    assert list(curve.of("auroc_noised").items()) == [
        (5, early.figures["auroc_noised"]),
        (10, late.figures["auroc_noised"]),
    ]
    assert set(late.figures) == set(figure_names(2))


def test_no_round_has_two_points() -> None:
    curve = EvaluationCurve()
    curve.record(5, summed(1).evaluation())

    with pytest.raises(ValueError, match="round 5 has been evaluated already"):
        curve.record(5, summed(2).evaluation())
