"""Figures from labels and scores that may be seen: at a site's own desk, or on public data.

Nothing computed here may leave a site as it is: these figures are exact. What leaves is
computed from noised histograms. Intervals resample *patients*, not scans: the scans of one
patient are not independent.

Source:
    Bradley, Efron & Tibshirani. An Introduction to the Bootstrap. 1993 (percentile interval).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medfed.common.report.content import Interval

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_RESAMPLES = 1000


class Scored(NamedTuple):
    """Scans with a decision each. Private.

    Attributes:
        labels: int64 (scans,), class index.
        probabilities: float64 (scans, classes), rows sum to 1.
        patient: int64 (scans,), index of the patient.
    """

    labels: Ints
    probabilities: Floats
    patient: Ints


def auroc(labels: npt.NDArray[np.bool_], scores: Floats) -> float:
    """Area under the ROC curve: the chance that a positive scan scores above a negative one.

    Args:
        labels: bool (scans,), True for the positive class.
        scores: (scans,), larger means more positive; ties count half.

    Returns:
        In [0, 1]; NaN where one class is absent.

    Example:
        >>> auroc(np.array([False, True, True]), np.array([0.1, 0.1, 0.9]))
        0.75
    """
    return float(_weighted_auroc(labels, scores, np.ones((1, len(labels))))[0])


def figure(scored: Scored, *, positive: int = 1) -> float:
    """The study's figure: AUROC with two classes, else the mean of one-against-rest AUROCs."""
    return float(_figures(scored, positive, np.ones((1, len(scored.labels))))[0])


def figure_with_interval(
    scored: Scored, *, positive: int = 1, level: float = 0.95
) -> Interval | None:
    """The study's figure with a percentile bootstrap interval over patients.

    Args:
        scored: The scans; private.
        positive: Index of the positive class in a two-class task.
        level: Coverage, in (0, 1).

    Returns:
        Value and bounds; None where a class is absent. Private, unless the scans are public.
        The resampling is seeded, so the same scans give the same interval.
    """
    patients = int(scored.patient.max()) + 1 if len(scored.patient) else 0
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(patients, np.full(patients, 1 / max(1, patients)), _RESAMPLES)
    resampled = _figures(scored, positive, drawn[:, scored.patient].astype(np.float64))
    value = figure(scored, positive=positive)
    usable = resampled[np.isfinite(resampled)]
    if not (np.isfinite(value) and len(usable)):
        return None
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(usable, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high), level)


def _figures(scored: Scored, positive: int, weights: Floats) -> Floats:
    """The figure under each row of scan weights (rows, scans)."""
    classes = scored.probabilities.shape[1]
    if classes == 2:
        chosen = scored.labels == positive
        return _weighted_auroc(chosen, scored.probabilities[:, positive], weights)
    each = [
        _weighted_auroc(scored.labels == c, scored.probabilities[:, c], weights)
        for c in range(classes)
    ]
    mean: Floats = np.mean(each, axis=0)
    return mean


def _weighted_auroc(positive: npt.NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """AUROC under each row of weights, ties counting half: the weighted Mann-Whitney statistic."""
    if not len(scores):
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    first = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)
    up = np.add.reduceat(weights[:, order] * positive[order], first, axis=1)
    down = np.add.reduceat(weights[:, order] * ~positive[order], first, axis=1)
    below = np.cumsum(down, axis=1) - down
    with np.errstate(invalid="ignore", divide="ignore"):
        area: Floats = (up * (below + down / 2)).sum(1) / (up.sum(1) * down.sum(1))
    return area
