"""Figures of one noised score histogram, each with an interval that holds the true figure.

A histogram here is two rows over the same bins: patients of the class in question (``positive``)
and the others (``negative``), each cell with independent Gaussian noise of known standard
deviation. Noised counts may be negative and are no whole numbers.

Where a figure is a ratio, its interval is Fieller's: all values theta for which the *numerator
minus theta times the denominator*, which has mean 0 at the true theta, is within 1.96 of its
standard deviations at that theta. That stays right where the denominator is noisy and where the
figure is close to 0 or 1 (it becomes Wilson's interval where the noise vanishes). The standard
deviation counts both the noise and the finite number of patients. Several scans of one patient
are treated as if they were independent, which can only make intervals wider.

Average precision and calibration error are no ratios; their noise is repeated by drawing
(seeded: all of this is computed from released numbers, nothing here protects anybody).

Source:
    Fieller. Some Problems in Interval Estimation. JRSS B 1954.
    Wilson. Probable Inference, the Law of Succession, and Statistical Inference. JASA 1927.
    Hanley, McNeil. The Meaning and Use of the Area under a ROC Curve. Radiology 1982.
    DeLong, DeLong, Clarke-Pearson. Comparing the Areas under ... ROC Curves. Biometrics 1988.
    Newcombe. Confidence Intervals for an Effect Size Measure Based on the Mann-Whitney Statistic,
    part 2. Statistics in Medicine 2006 (the variance at theta instead of at the estimate).
    Boyd, Eng, Page. Area under the Precision-Recall Curve. ECML PKDD 2013 (binomial variance).
    Wang, Carreira-Perpinan. Projection onto the Probability Simplex. 2013.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medfed.common.privacy.score_bins import middles

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
"""How often an interval is meant to hold the true figure."""

_Z = 1.959964  # two-sided 95 % of a normal distribution
_THETAS = np.linspace(0.0, 1.0, 1001)
_DRAWS = 200
_CANDIDATES = 61  # calibration errors that are tried
_MOST_GROUPS = 10  # of neighbouring bins, in a calibration error


class Estimate(NamedTuple):
    """A figure in [0, 1] and the ends of its interval, ``low <= value <= high``."""

    value: float
    low: float
    high: float


class Noised(NamedTuple):
    """A two-row histogram with noise. Public.

    Attributes:
        positive: (bins,), patients of the class in question; its sum must be > 0.
        negative: (bins,), the other patients; its sum must be > 0.
        noise_std: Standard deviation of the noise on every cell, in patients, >= 0.
    """

    positive: Floats
    negative: Floats
    noise_std: float

    @property
    def middles(self) -> Floats:
        """The score that stands for each bin."""
        return np.array(middles(len(self.positive)))

    def denoised(self) -> tuple[Floats, Floats]:
        """The nearest rows without negative counts and with the same sums."""
        return on_simplex(self.positive), on_simplex(self.negative)


def on_simplex(noised: Floats) -> Floats:
    """Project rows (..., bins) with positive sums onto non-negative counts with the same sums."""
    total = noised.sum(-1, keepdims=True)
    ordered = -np.sort(-noised, axis=-1)
    excess = (np.cumsum(ordered, -1) - total) / np.arange(1, noised.shape[-1] + 1)
    last = np.count_nonzero(ordered > excess, axis=-1)[..., None] - 1
    counts: Floats = np.maximum(noised - np.take_along_axis(excess, last, -1), 0.0)
    return counts


def auroc(h: Noised) -> Estimate:
    """Area under the ROC curve; two patients in one bin count half."""
    p, n, variance = float(h.positive.sum()), float(h.negative.sum()), h.noise_std**2
    beaten, beaten_by = _below(h.negative), p - _below(h.positive)
    wins = float(h.positive @ beaten)
    # Noise: the product's variance, of which the doubly noised part would be counted twice.
    bins, theta = len(h.positive), _THETAS
    pairs = bins * bins * (theta**2 - theta) + bins * (bins - 1) / 2 + bins / 4
    single = sum(
        row @ row - 2 * theta * total * row.sum() + bins * (theta * total) ** 2
        for row, total in ((beaten, n), (beaten_by, p))
    )
    noise = np.maximum(variance * single - variance**2 * pairs, variance**2 * pairs)
    return _fieller(wins, p * n, noise + (p * n) ** 2 * _auroc_sampling(h, p, n))


def _auroc_sampling(h: Noised, p: float, n: float) -> Floats:
    """Variance by the finite number of patients at each theta: the larger of two formulas.

    Hanley's and McNeil's knows only the area, and is right close to 1; DeLong's knows the
    distribution of the scores, and is right where it is far from bell-shaped.
    """
    theta = _THETAS
    more = (p + n) / 2 - 1
    by_area = theta * (1 - theta) * (1 + more * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
    positive, negative = h.denoised()
    beaten, beaten_by = _below(negative) / n, (p - _below(positive)) / p
    area = positive @ beaten / p
    spread = positive @ (beaten - area) ** 2 / p**2 + negative @ (beaten_by - area) ** 2 / n**2
    return np.maximum(np.maximum(by_area, 0.0) / (p * n), spread)


def _below(row: Floats) -> Floats:
    """Patients in lower bins, and half of those in the same."""
    sums: Floats = np.cumsum(row) - row / 2
    return sums


def share_from(row: Floats, first: int, noise_std: float) -> Estimate:
    """Share of a row's patients in bin ``first`` and above: a sensitivity, if the row is positive.

    Args:
        row: (bins,), noised, sum > 0.
        first: In ``[0, bins]``.
        noise_std: As in `Noised`.
    """
    above, total, theta = float(row[first:].sum()), float(row.sum()), _THETAS
    noise = noise_std**2 * ((len(row) - first) * (1 - theta) ** 2 + first * theta**2)
    return _fieller(above, total, noise + total * theta * (1 - theta))


def brier(h: Noised) -> Estimate:
    """Mean squared distance between score and truth, with each score at its bin's middle."""
    losses = np.concatenate([(1 - h.middles) ** 2, h.middles**2])
    cells = np.concatenate([h.positive, h.negative])
    counts, theta = np.concatenate(h.denoised()), _THETAS

    def squares(weights: Floats) -> Floats:
        """Weighted sum of ``(loss - theta)^2``."""
        by_theta: Floats = (
            weights @ losses**2 - 2 * theta * (weights @ losses) + theta**2 * weights.sum()
        )
        return by_theta

    variance = h.noise_std**2 * squares(np.ones_like(losses)) + squares(counts)
    return _fieller(float(cells @ losses), float(cells.sum()), variance)


def _fieller(numerator: float, denominator: float, variance: Floats) -> Estimate:
    """The ratio and all theta whose ``numerator - theta * denominator`` is near enough to 0."""
    return _interval(
        numerator / denominator, np.abs(numerator - _THETAS * denominator), np.sqrt(variance)
    )


def _interval(value: float, distance: Floats, std: Floats) -> Estimate:
    """The hull of all theta within 1.96 standard deviations, one step wider on both sides."""
    value = min(1.0, max(0.0, value))
    near = np.flatnonzero(distance <= _Z * std)
    ends = near[[0, -1]] if len(near) else np.array([round(value * (len(_THETAS) - 1))] * 2)
    low, high = np.clip(ends + [-1, 1], 0, len(_THETAS) - 1)
    return Estimate(value, min(value, float(_THETAS[low])), max(value, float(_THETAS[high])))


def average_precision(h: Noised) -> Estimate:
    """Area under the precision-recall curve, as average precision: patients of one bin are ties.

    Projected to non-negative counts, corrected by the bias that the noise shows when it is drawn
    again and, because that correction is itself uncertain, with an interval that is wider by it
    on both sides.
    """
    p, bins = float(h.positive.sum()), len(h.positive)
    counts = np.concatenate(h.denoised())
    generator = np.random.default_rng(0)
    patients = generator.multinomial(max(1, round(counts.sum())), counts / counts.sum(), _DRAWS)
    drawn = patients + h.noise_std * generator.standard_normal((_DRAWS, 2 * bins))
    usable = np.minimum(_least_row(patients, bins), _least_row(drawn, bins)) > 0.0
    value = float(_average_precision(counts))
    if not usable.any():
        return Estimate(value, 0.0, 1.0)
    rows = drawn[usable].reshape(-1, 2, bins)
    again = _average_precision(on_simplex(rows).reshape(-1, 2 * bins))
    bias = float((again - _average_precision(patients[usable].astype(np.float64))).mean())
    value = min(1.0, max(0.0, value - bias))
    distance = np.maximum(np.abs(value - _THETAS) - abs(bias), 0.0)
    binomial = _THETAS * (1 - _THETAS) / p
    return _interval(value, distance, np.sqrt(np.maximum(float(again.var()), binomial)))


def _least_row(cells: npt.NDArray[np.number], bins: int) -> Floats:
    """The smaller of the sums of positive and negative cells, of (draws, 2 bins)."""
    smaller: Floats = cells.reshape(-1, 2, bins).sum(2).min(1).astype(np.float64)
    return smaller


def _average_precision(cells: Floats) -> Floats:
    """Average precision of counts (..., 2 bins), positive ones first: recall steps x precision."""
    positive, negative = np.split(cells, 2, axis=-1)
    hits = np.cumsum(positive[..., ::-1], -1)
    called = hits + np.cumsum(negative[..., ::-1], -1)
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    area: Floats = (positive[..., ::-1] * precision).sum(-1) / positive.sum(-1)
    return area


def calibration_error(h: Noised) -> Estimate:
    """Expected calibration error over at most 10 groups of neighbouring bins.

    The mean distance between score and truth of a group, weighted by its patients. A sum of
    absolute values, so noise alone makes it large; the estimate is the true error under which
    what was seen is the median. How the true error is spread over the groups is unknown: the
    lower end is for one group that has it all, which shows best, the upper end for groups that
    share it as their uncertainties do, which shows least.
    """
    patients = float(h.positive.sum() + h.negative.sum())
    gaps, std = _gaps(h)
    seen = float(np.abs(gaps).sum())
    reach = 3.0 * float(std.sum())
    least, most = (min(1.0, max(0.0, (seen + way) / patients)) for way in (-reach, reach))
    tried = np.linspace(least, most, _CANDIDATES)
    errors = np.random.default_rng(0).standard_normal((_DRAWS, len(gaps))) * std

    def quantile(spread: Floats, q: float) -> Floats:
        """Of what is seen at each true error, where ``spread`` says how groups share it."""
        true = tried[:, None, None] * (patients * spread / spread.sum())
        by_error: Floats = np.quantile(np.abs(true + errors).sum(-1), q, axis=1)
        return by_error

    one_group = (np.arange(len(gaps)) == np.abs(gaps).argmax()).astype(np.float64)
    value = tried[_first(quantile(np.abs(gaps) + 1e-12, 0.5) >= seen)]
    low = tried[max(_first(quantile(one_group, 0.975) >= seen) - 1, 0)]
    high = tried[::-1][max(_first(quantile(std + 1e-12, 0.025)[::-1] <= seen) - 1, 0)]
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


def _gaps(h: Noised) -> tuple[Floats, Floats]:
    """Per group: patients who are positive minus those the scores promise, and its deviation."""
    positive, negative = h.denoised()
    weights = np.stack([1 - h.middles, -h.middles])
    cells = np.stack([h.positive, h.negative])
    variance = (h.noise_std**2 + np.stack([positive, negative])) * weights**2
    starts = _group_starts(len(h.positive))
    gaps = np.add.reduceat((cells * weights).sum(0), starts)
    std: Floats = np.sqrt(np.add.reduceat(variance.sum(0), starts))
    return gaps, std


def _group_starts(bins: int) -> npt.NDArray[np.int64]:
    """First bins of at most 10 groups of nearly equal width."""
    groups = min(bins, _MOST_GROUPS)
    return np.arange(groups, dtype=np.int64) * bins // groups


def _first(holds: npt.NDArray[np.bool_]) -> int:
    """The first candidate that holds; the last one if none does."""
    return int(holds.argmax()) if holds.any() else len(holds) - 1
