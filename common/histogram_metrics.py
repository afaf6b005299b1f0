"""How good a model is, from the noised score histograms of hospitals.

What comes in is a release, or a sum of releases: nothing computed here costs any further privacy.
A figure made this way ends in ``_noised``; exact ones (``exact_metrics.py``) never do. Each has an
interval that counts the noise and the finite number of patients (``histogram_estimates.py``).

Every patient counts once, however many scans it has; scores are known to the width of a bin. A
figure that the noise drowns is not shown: that is decided on the noised counts alone, for
honesty's sake, since privacy does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medfed.common.histogram_estimates import (
    LEVEL,
    Estimate,
    Noised,
    auroc,
    average_precision,
    brier,
    calibration_error,
    share_from,
)
from medfed.common.privacy.score_bins import bin_from, middles
from medfed.common.report.content import Interval

Floats = npt.NDArray[np.float64]

SUPPRESSED_BELOW = 5.0
"""A count below this many standard deviations of its noise carries no figure."""


@dataclass(frozen=True)
class NoisedFigure:
    """One figure, or why there is none. Public.

    Attributes:
        interval: The figure with its 95 % interval; None if suppressed.
        reason: Why it is suppressed, else ``""``.
    """

    interval: Interval | None
    reason: str = ""


@dataclass(frozen=True)
class ReliabilityPoint:
    """One bin of a reliability curve. Public.

    Attributes:
        score: Middle of the bin: the share of positive patients that the scores promise.
        observed: The share that is positive, with its interval; or why it is not shown.
    """

    score: float
    observed: NoisedFigure


def figure_names(classes: int) -> tuple[str, ...]:
    """Names of the figures of a task, in the order of `histogram_figures`.

    Example:
        >>> figure_names(2)[0], figure_names(3)[0]
        ('auroc_noised', 'macro_auroc_noised')
    """
    return tuple(("" if classes == 2 else "macro_") + f"{name}_noised" for name in _FIGURES)


def histogram_figures(
    noised: Floats, noise_std: float, *, threshold: float = 0.5
) -> Mapping[str, NoisedFigure]:
    """Compute all figures of a noised histogram.

    Args:
        noised: (targets, 2, bins): one histogram per class in question (one only with two
            classes); in the middle the patients of the other classes, then those of the class.
            Finite, on the grid of ``privacy/histogram.py``; may be negative. Public.
        noise_std: Standard deviation of the noise on every cell, in patients, >= 0. For a sum
            over n sites ``sqrt(n)`` times that of one.
        threshold: A patient is called positive from this score on; an edge of a bin.

    Returns:
        ``auroc_noised``, ``pr_auc_noised`` (average precision), ``sensitivity_noised``,
        ``specificity_noised``, ``brier_noised`` and ``calibration_error_noised``. With more
        than two classes each is the mean over the classes, one against the rest, and named
        ``macro_...``; the ends of its interval are the means of the classes' ends, which is
        wide enough however the classes depend on each other.

    Raises:
        ValueError: another shape, values that are not finite, or a threshold that is no edge.

    Guarantee:
        Without noise the values are the exact figures of the patients' scores rounded to the
        middles of their bins, but for the calibration error, which, unlike the textbook one, is
        not made larger by the finite number of patients. The same input gives the same result.

    Example:
        >>> counts = np.array([[[90.0, 10, 0, 0, 0], [0, 0, 0, 20, 80]]])
        >>> figures = histogram_figures(counts, 0.5, threshold=0.881)
        >>> figures["sensitivity_noised"].interval.value
        1.0
    """
    _check(noised, noise_std)
    first = _first_bin(threshold, noised.shape[2])
    rows = [_figures_of(Noised(pair[1], pair[0], noise_std), first) for pair in noised]
    merged = [_mean(column) for column in zip(*rows, strict=True)]
    return dict(zip(figure_names(2 if len(noised) == 1 else 3), merged, strict=True))


def reliability_curve(noised: Floats, noise_std: float) -> tuple[tuple[ReliabilityPoint, ...], ...]:
    """Compute, per class in question and bin, the share of patients who are positive.

    Args:
        noised: As for `histogram_figures`.
        noise_std: As for `histogram_figures`.

    Returns:
        Per target one point per bin, by rising score.
    """
    _check(noised, noise_std)
    scores = middles(int(noised.shape[2]))
    return tuple(
        tuple(
            ReliabilityPoint(score, _observed(cells, noise_std))
            for score, cells in zip(scores, pair.T, strict=True)
        )
        for pair in noised
    )


def _observed(cells: Floats, noise_std: float) -> NoisedFigure:
    reason = _too_noisy("patients of this bin", float(cells.sum()), noise_std * 2**0.5)
    return NoisedFigure(None, reason) if reason else _shown(share_from(cells, 1, noise_std))


_POSITIVES, _NEGATIVES, _ALL = "positive patients", "negative patients", "patients"

_FIGURES: Mapping[str, tuple[tuple[str, ...], Callable[[Noised, int], Estimate]]] = {
    "auroc": ((_POSITIVES, _NEGATIVES), lambda h, _: auroc(h)),
    "pr_auc": ((_POSITIVES, _NEGATIVES), lambda h, _: average_precision(h)),
    "sensitivity": ((_POSITIVES,), lambda h, first: share_from(h.positive, first, h.noise_std)),
    "specificity": ((_NEGATIVES,), lambda h, first: _specificity(h, first)),
    "brier": ((_ALL,), lambda h, _: brier(h)),
    "calibration_error": ((_ALL,), lambda h, _: calibration_error(h)),
}
"""Figure -> the counts it rests on, and how it is computed."""


def _specificity(h: Noised, first: int) -> Estimate:
    value, low, high = share_from(h.negative, first, h.noise_std)
    return Estimate(1.0 - value, 1.0 - high, 1.0 - low)


def _figures_of(h: Noised, first: int) -> Iterator[NoisedFigure]:
    positive, negative = float(h.positive.sum()), float(h.negative.sum())
    std = h.noise_std * float(len(h.positive)) ** 0.5
    reasons = {
        _POSITIVES: _too_noisy(_POSITIVES, positive, std),
        _NEGATIVES: _too_noisy(_NEGATIVES, negative, std),
        _ALL: _too_noisy(_ALL, positive + negative, std * 2**0.5),
    }
    for needed, compute in _FIGURES.values():
        reason = "; ".join(filter(None, (reasons[name] for name in needed)))
        yield NoisedFigure(None, reason) if reason else _shown(compute(h, first))


def _too_noisy(what: str, count: float, std: float) -> str:
    """Why a noised count carries no figure, or ``""``. It tells only released numbers."""
    if count > 0.0 and count >= SUPPRESSED_BELOW * std:
        return ""
    return (
        f"the noised count of {what} is {count:.0f}, below {SUPPRESSED_BELOW:.0f} standard "
        f"deviations of its noise ({SUPPRESSED_BELOW * std:.0f})"
    )


def _shown(estimate: Estimate) -> NoisedFigure:
    return NoisedFigure(Interval(*estimate, LEVEL))


def _mean(figures: Sequence[NoisedFigure]) -> NoisedFigure:
    """The figure itself, or the mean over classes; suppressed where one class is."""
    for target, figure in enumerate(figures):
        if figure.interval is None:
            of_class = f"class {target}: " if len(figures) > 1 else ""
            return NoisedFigure(None, of_class + figure.reason)
    shown = [figure.interval for figure in figures if figure.interval is not None]
    ends = np.array([(i.value, i.low, i.high) for i in shown]).mean(axis=0)
    return _shown(Estimate(*ends.tolist()))


def _check(noised: Floats, noise_std: float) -> None:
    """Refuse what is no histogram."""
    if noised.ndim != 3 or noised.shape[0] < 1 or noised.shape[1] != 2 or noised.shape[2] < 2:
        raise ValueError(f"a histogram is (targets, 2, bins), got shape {noised.shape}")
    if not np.isfinite(noised).all():
        raise ValueError("a histogram must be finite")
    if not (np.isfinite(noise_std) and noise_std >= 0.0):
        raise ValueError(f"noise_std must be finite and >= 0, got {noise_std!r}")


def _first_bin(threshold: float, bins: int) -> int:
    """The first bin at or above the threshold."""
    first = bin_from(threshold, bins)
    if first is None:
        raise ValueError(f"threshold {threshold!r} is no edge of {bins} bins")
    return first
