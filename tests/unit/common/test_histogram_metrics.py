"""Figures from noised histograms: their intervals hold the truth, and without noise they are exact.

The truth is that of the population the patients are drawn from, with its scores in bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

from medfed.common.exact_metrics import auroc as exact_auroc
from medfed.common.histogram_estimates import on_simplex
from medfed.common.histogram_metrics import (
    NoisedFigure,
    figure_names,
    histogram_figures,
    reliability_curve,
)
from medfed.common.privacy.histogram import GRID, bin_of
from medfed.common.privacy.score_bins import LOG_ODDS
from medfed.common.privacy.score_bins import middles as score_middles
from medfed.common.report.content import Interval

Floats = npt.NDArray[np.float64]


def bell(middle: float, width: float, bins: int) -> Floats:
    """Shares per bin of scores whose logit is normally distributed."""
    logits = LOG_ODDS * (2 * np.arange(1, bins) / bins - 1)
    below = [0.5 * (1 + math.erf((x - middle) / width / math.sqrt(2))) for x in logits]
    return np.diff(np.array([0.0, *below, 1.0]))


def population(kind: str, prevalence: float, bins: int) -> Floats:
    """Probability of each cell, (2, bins): others, then patients of the class."""
    positive, negative = {
        "good": (bell(1.5, 1.2, bins), bell(-1.5, 1.2, bins)),
        "nearly perfect": (bell(3.0, 1.0, bins), bell(-3.0, 1.0, bins)),
        "chance": (bell(0.3, 0.3, bins), bell(0.3, 0.3, bins)),
        "two kinds of positives": (
            0.6 * bell(3.0, 0.7, bins) + 0.4 * bell(-1.0, 0.6, bins),
            bell(-1.0, 0.6, bins),
        ),
    }[kind]
    return np.stack([(1 - prevalence) * negative, prevalence * positive])


def plain(cells: Floats) -> dict[str, float]:
    """The figures of exact shares or counts (2, bins), written a second time and naively."""
    negative, positive = cells
    bins = len(positive)
    middles = np.array(score_middles(bins))
    p, n = positive.sum(), negative.sum()
    wins = sum(
        positive[i] * negative[j] * (1.0 if j < i else 0.5 if j == i else 0.0)
        for i in range(bins)
        for j in range(bins)
    )
    recall = [positive[i:].sum() / p for i in range(bins)] + [0.0]
    precision = [
        positive[i:].sum() / max(1e-300, positive[i:].sum() + negative[i:].sum())
        for i in range(bins)
    ]
    gaps = positive * (1 - middles) - negative * middles
    edges = [bins * group // min(bins, 10) for group in range(min(bins, 10) + 1)]
    return {
        "auroc_noised": wins / (p * n),
        "pr_auc_noised": sum((recall[i] - recall[i + 1]) * precision[i] for i in range(bins)),
        "sensitivity_noised": positive[bins // 2 :].sum() / p,
        "specificity_noised": negative[: bins // 2].sum() / n,
        "brier_noised": (positive @ (1 - middles) ** 2 + negative @ middles**2) / (p + n),
        "calibration_error_noised": sum(
            abs(gaps[a:b].sum()) for a, b in zip(edges, edges[1:], strict=False)
        )
        / (p + n),
    }


def shown(figures: Mapping[str, NoisedFigure], name: str) -> Interval:
    interval = figures[name].interval
    assert interval is not None, figures[name].reason
    return interval


def noised(counts: Floats, std: float, generator: np.random.Generator) -> Floats:
    return counts + std * generator.standard_normal(counts.shape)


# ---- the intervals hold the truth ----------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "patients", "prevalence", "bins", "noise_std"),
    [
        ("good", 250, 0.4, 10, 2.0),  # few patients, much noise
        ("nearly perfect", 100, 0.5, 10, 0.5),  # figures at their ends, little noise
        ("two kinds of positives", 2000, 0.5, 40, 5.0),  # many bins, no bell-shaped scores
        ("nearly perfect", 5000, 0.1, 10, 3.0),  # hardly any uncertainty: no coarse grid may show
    ],
)
def test_at_least_nine_in_ten_95_percent_intervals_hold_the_truth(
    kind: str, patients: int, prevalence: float, bins: int, noise_std: float
) -> None:
    share = population(kind, prevalence, bins)
    truth = plain(share)
    generator = np.random.default_rng(7)
    held: dict[str, list[bool]] = {name: [] for name in truth}
    for _ in range(200):
        counts = generator.multinomial(patients, share.ravel()).reshape(2, bins)
        figures = histogram_figures(noised(counts, noise_std, generator)[None], noise_std)
        for name, true in truth.items():
            interval = shown(figures, name)
            held[name].append(interval.low - 1e-12 <= true <= interval.high + 1e-12)

    # At a true coverage of 95 %, 200 draws fall below 90 % once in 700.
    assert {name: np.mean(each) for name, each in held.items() if np.mean(each) < 0.9} == {}


def test_intervals_are_not_wide_for_nothing() -> None:
    # 2000 patients, half positive, no noise: Hanley and McNeil give AUROC 0.956 a standard error
    # of 0.0046, Wilson a sensitivity of 0.894 one of 0.0097.
    share = population("good", 0.5, 20)
    figures = histogram_figures((2000 * share)[None], 0.0)

    widths = {name: shown(figures, name).high - shown(figures, name).low for name in figures}

    assert widths["auroc_noised"] == pytest.approx(2 * 1.96 * 0.0046, rel=0.25)
    assert widths["sensitivity_noised"] == pytest.approx(2 * 1.96 * 0.0097, rel=0.1)
    assert widths["brier_noised"] < 0.02
    assert widths["calibration_error_noised"] < 0.07


def test_more_noise_makes_every_interval_wider() -> None:
    counts = (2000 * population("good", 0.4, 10))[None]

    quiet, loud = histogram_figures(counts, 1.0), histogram_figures(counts, 20.0)

    for name in quiet:
        a, b = shown(quiet, name), shown(loud, name)
        assert b.high - b.low > 1.2 * (a.high - a.low), name


def test_the_middle_of_many_noised_figures_is_the_true_one() -> None:
    counts = 1000 * population("good", 0.4, 20)
    truth = plain(counts)
    generator = np.random.default_rng(3)
    drawn = [histogram_figures(noised(counts, 3.0, generator)[None], 3.0) for _ in range(100)]

    for name, true in truth.items():
        middle = np.mean([shown(figures, name).value for figures in drawn])
        assert middle == pytest.approx(true, abs=0.016), name  # a tenth of the intervals' width


# ---- without noise they are the exact figures ----------------------------------------------------
@given(
    hnp.arrays(np.float64, (2, 10), elements=st.integers(0, 30).map(float)).filter(
        lambda cells: bool((cells.sum(1) > 0).all())
    )
)
@settings(deadline=None, max_examples=30)
def test_without_noise_the_values_are_the_exact_ones_in_bins(cells: Floats) -> None:
    truth = plain(cells)

    figures = histogram_figures(cells[None], 0.0)

    for name in set(truth) - {"calibration_error_noised"}:
        assert shown(figures, name).value == pytest.approx(truth[name], abs=1e-9), name
    assert shown(figures, "calibration_error_noised").value <= (
        truth["calibration_error_noised"] + 0.05  # candidates are that far apart for two patients
    )


def test_with_fine_bins_they_agree_with_the_exact_metrics() -> None:
    generator = np.random.default_rng(5)
    positive = generator.random(1500) < 0.3
    scores = 1 / (1 + np.exp(-generator.normal(np.where(positive, 0.8, -0.8), 1.0)))
    cells = np.stack(
        [np.bincount(bin_of(scores[positive == row], 200), minlength=200) for row in (False, True)]
    ).astype(np.float64)

    figures = histogram_figures(cells[None], 0.0)

    # Bins 0.1 wide in log-odds: a score moves by 0.0125 at most, 1 pair in 100 or so is a tie.
    assert shown(figures, "auroc_noised").value == pytest.approx(
        exact_auroc(positive, scores), abs=1e-3
    )
    assert shown(figures, "pr_auc_noised").value == pytest.approx(
        average_precision_score(positive, scores), abs=1e-2
    )
    assert shown(figures, "brier_noised").value == pytest.approx(
        float(np.mean((scores - positive) ** 2)), abs=1e-3
    )
    assert shown(figures, "sensitivity_noised").value == pytest.approx(
        float(np.mean(scores[positive] >= 0.5)), abs=1e-12
    )
    assert shown(figures, "specificity_noised").value == pytest.approx(
        float(np.mean(scores[~positive] < 0.5)), abs=1e-12
    )


def test_the_threshold_is_the_one_asked_for() -> None:
    counts = np.array([[[40.0, 30, 20, 10, 0], [0, 10, 20, 30, 40]]])

    figures = histogram_figures(counts, 0.0, threshold=0.881)

    # Bins 3 and 4 of 5 begin at log-odds of 2, a score of 0.8808: 70 of 100 positives, and 90
    # of 100 others below.
    assert shown(figures, "sensitivity_noised").value == pytest.approx(0.7)
    assert shown(figures, "specificity_noised").value == pytest.approx(0.9)


def test_scores_that_promise_what_happens_have_no_calibration_error() -> None:
    middles = np.array(score_middles(20))
    counts = np.stack([1000 * (1 - middles), 1000 * middles])

    interval = shown(histogram_figures(counts[None], 5.0), "calibration_error_noised")

    assert (interval.low, interval.value) == (0.0, 0.0)
    assert interval.high < 0.05


# ---- several classes -----------------------------------------------------------------------------
def test_with_more_classes_each_figure_is_the_mean_of_one_against_the_rest() -> None:
    targets = np.stack([500 * population(kind, 0.3, 10) for kind in ("good", "chance", "good")])

    merged = histogram_figures(targets, 1.0)
    alone = [histogram_figures(pair[None], 1.0) for pair in targets]

    assert tuple(merged) == figure_names(3)
    for name, figure in merged.items():
        parts = [shown(figures, name.removeprefix("macro_")) for figures in alone]
        assert figure.interval is not None
        for end in ("value", "low", "high"):
            mean = np.mean([getattr(part, end) for part in parts])
            assert getattr(figure.interval, end) == pytest.approx(mean)


def test_every_name_says_that_the_figure_is_noised() -> None:
    for classes in (2, 8):
        assert all(name.endswith("_noised") for name in figure_names(classes))
        assert all(name.startswith("macro_") == (classes == 8) for name in figure_names(classes))


# ---- suppression ---------------------------------------------------------------------------------
def with_positives(count: float) -> Floats:
    """1000 others and as many positives as said, in 4 bins."""
    return np.array([[[250.0] * 4, [count / 4] * 4]])


def test_a_figure_whose_noised_count_is_drowned_is_not_shown_and_says_why() -> None:
    # The sum of 4 cells with noise 2 has noise 4; five of those are 20 patients.
    drowned = histogram_figures(with_positives(19.6), 2.0)
    carried = histogram_figures(with_positives(20.4), 2.0)

    assert {name for name, figure in drowned.items() if figure.interval is None} == {
        "auroc_noised",
        "pr_auc_noised",
        "sensitivity_noised",
    }
    assert drowned["auroc_noised"].reason == (
        "the noised count of positive patients is 20, below 5 standard deviations of its noise (20)"
    )
    assert all(figure.interval is not None and not figure.reason for figure in carried.values())


def test_nothing_is_shown_of_noise_alone() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        figures = histogram_figures(noised(np.zeros((1, 2, 10)), 3.0, generator), 3.0)
        assert all(figure.interval is None and figure.reason for figure in figures.values())


def test_an_empty_histogram_without_noise_shows_nothing_either() -> None:
    assert all(f.interval is None for f in histogram_figures(np.zeros((1, 2, 10)), 0.0).values())


def test_one_drowned_class_of_several_is_named() -> None:
    targets = np.concatenate([with_positives(500), with_positives(3), with_positives(500)])

    figures = histogram_figures(targets, 2.0)

    assert figures["macro_auroc_noised"].interval is None
    assert figures["macro_auroc_noised"].reason.startswith("class 1: the noised count of positive")
    assert figures["macro_specificity_noised"].interval is not None


# ---- the reliability curve -----------------------------------------------------------------------
def test_a_reliability_curve_shows_the_share_of_positives_in_each_bin() -> None:
    counts = np.array([[[90.0, 50, 0], [10, 50, 1]]])

    (curve,) = reliability_curve(counts, 2.0)

    assert [point.score for point in curve] == pytest.approx([0.00127, 0.5, 0.99873], abs=1e-5)
    first, second, third = (point.observed for point in curve)
    assert first.interval is not None and first.interval.value == pytest.approx(0.1)
    assert second.interval is not None and second.interval.low < 0.5 < second.interval.high
    assert third.interval is None and "patients of this bin is 1, below" in third.reason


# ---- any input -----------------------------------------------------------------------------------
@given(
    # Multiples of the grid, as `decode_histogram` demands of every cell.
    hnp.arrays(np.int64, (2, 2, 6), elements=st.integers(-(2**44), 2**44)).map(lambda a: a * GRID),
    st.sampled_from([0.0, 1e-9, 1.0, 1e5]),
)
@settings(deadline=None, max_examples=60)
def test_any_noised_counts_give_figures_in_order_or_a_reason(cells: Floats, std: float) -> None:
    for figure in histogram_figures(cells, std).values():
        if figure.interval is None:
            assert figure.reason
        else:
            interval = figure.interval
            assert 0.0 <= interval.low <= interval.value + 1e-12
            assert interval.value <= interval.high + 1e-12 <= 1.0 + 2e-12


@given(
    hnp.arrays(np.float64, (3, 7), elements=st.floats(-100, 100)).filter(
        lambda rows: bool((rows.sum(1) > 1e-3).all())
    )
)
@settings(deadline=None)
def test_denoised_counts_are_not_negative_and_keep_their_sum(rows: Floats) -> None:
    counts = on_simplex(rows)

    assert counts.min() >= 0.0
    np.testing.assert_allclose(counts.sum(1), rows.sum(1), atol=1e-9)


def test_denoising_takes_the_same_from_each_count_that_is_left() -> None:
    # 5 + 3 - 1 - 1 = 6 must remain: taking 1 from each of 5 and 3 leaves 4 and 2.
    assert on_simplex(np.array([5.0, -1.0, 3.0, -1.0])).tolist() == [4.0, 0.0, 2.0, 0.0]


def test_the_same_histogram_gives_the_same_figures() -> None:
    cells = noised(np.full((1, 2, 10), 30.0), 2.0, np.random.default_rng(1))

    assert histogram_figures(cells, 2.0) == histogram_figures(cells, 2.0)


@pytest.mark.parametrize(
    ("cells", "std", "threshold", "message"),
    [
        (np.zeros((2, 10)), 1.0, 0.5, r"\(targets, 2, bins\)"),
        (np.zeros((1, 3, 10)), 1.0, 0.5, r"\(targets, 2, bins\)"),
        (np.full((1, 2, 10), np.nan), 1.0, 0.5, "finite"),
        (np.zeros((1, 2, 10)), -1.0, 0.5, "noise_std"),
        (np.zeros((1, 2, 10)), math.inf, 0.5, "noise_std"),
        (np.zeros((1, 2, 10)), 1.0, 0.55, "threshold 0.55 is no edge of 10 bins"),
    ],
)
def test_what_is_no_histogram_is_refused(
    cells: Floats, std: float, threshold: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        histogram_figures(cells, std, threshold=threshold)
