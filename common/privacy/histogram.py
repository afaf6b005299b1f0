"""The noised score histogram: how a site says how good a model is on its patients.

A histogram counts patients by true class and by score. Each patient has total weight 1, spread
evenly over its scans, so that adding or removing one patient moves the histogram by at most 1
in L2 norm, however many scans the patient has; Gaussian noise on *every* cell hides that move.
With more than two classes there is one histogram per class, that class against the rest; one
patient then moves all K of them together by at most sqrt(K).

Weights, noise and sums are whole multiples of a grid of 2^-24. So ``exact + noise`` is computed
without rounding: what leaves is the rounded Gaussian mechanism and nothing of a float's low bits
tells the exact value. Sums over sites are exact too, whatever the order of arrival.

This module holds what server and site must agree on: sizes, cost and the wire form. It draws no
noise (``client/evaluation.py``) and computes no figure (``common/histogram_metrics.py``).

Source:
    Dwork, Roth. The Algorithmic Foundations of Differential Privacy. 2014 (section 3.3,
    histograms; appendix A, the Gaussian mechanism).
    Mironov. On Significance of the Least Significant Bits for Differential Privacy. CCS 2012
    (why the noise is rounded to a grid).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as _load
from safetensors.numpy import save as _save

from medfed.common.errors import UpdateRejectedError
from medfed.common.privacy.accounting import Spend
from medfed.common.privacy.score_bins import inner_edges
from medfed.common.updates import HEADER_BYTES

Floats = npt.NDArray[np.float64]

GRID = 2.0**-24
"""Every weight, every noise value and every released cell is a whole multiple of this."""

NEGATIVE, POSITIVE = 0, 1
"""Rows of a histogram: patients of the other classes, patients of the class in question."""

_LARGEST_CELL = 2.0**28  # patients; far above any site, and sums below 2^29 are exact on the grid
_NAME = "histogram"


@dataclass(frozen=True)
class HistogramMechanism:
    """One part's histograms: their size, noise and cost. Every field is public.

    Attributes:
        bins: Score bins, equally wide in log-odds, >= 1.
        targets: Class indices, one histogram each: the positive class alone with two classes,
            else every class.
        noise_multiplier: Standard deviation of the noise over the sensitivity, > 0.
        histograms: How many releases of this size the study's whole schedule makes, >= 1.
        delta: Failure probability that every epsilon of the study refers to.
    """

    bins: int
    targets: tuple[int, ...]
    noise_multiplier: float
    histograms: int
    delta: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(targets, 2, bins)``; the middle axis is `NEGATIVE`, `POSITIVE`."""
        return len(self.targets), 2, self.bins

    @property
    def sensitivity(self) -> float:
        """Most that one patient, added or removed, moves the whole array in L2 norm."""
        return math.sqrt(len(self.targets))

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on every cell, in patients."""
        return self.noise_multiplier * self.sensitivity

    @property
    def spend(self) -> Spend:
        """What one release costs each patient of the part: one Gaussian step, all sampled."""
        return Spend(self.noise_multiplier, sampling_rate=1.0, steps=1)

    @property
    def whole_spend(self) -> Spend:
        """What the study's whole schedule of these histograms costs each patient of the part."""
        return Spend(self.noise_multiplier, sampling_rate=1.0, steps=self.histograms)


def bin_of(scores: Floats, bins: int) -> npt.NDArray[np.int64]:
    """Find each score's bin; bins are equally wide in log-odds (``score_bins.py``).

    Args:
        scores: In [0, 1], not NaN; beyond the ends the end bin is taken.
        bins: >= 1.

    Returns:
        int64, in ``[0, bins)``. As private as the scores.

    Guarantee:
        ``score >= inner_edges(bins)[k - 1]`` in float64 exactly where the bin is k or above.

    Example:
        >>> bin_of(np.array([0.0, 0.1, 0.5, 0.9, 1.0]), bins=10).tolist()
        [0, 3, 5, 6, 9]
    """
    return np.searchsorted(np.array(inner_edges(bins)), scores, side="right")


def encode_histogram(noised: Floats) -> bytes:
    """Write a noised histogram in wire form: safetensors, float64, one array.

    Guarantee:
        The same values give the same bytes.
    """
    return bytes(_save({_NAME: np.asarray(noised, dtype="<f8", order="C")}))


def decode_histogram(data: bytes, mechanism: HistogramMechanism, *, who: str) -> Floats:
    """Read the wire form and check it against what the study asks for.

    Args:
        data: The message.
        mechanism: Says the shape.
        who: The sender, for messages.

    Returns:
        float64, ``mechanism.shape``; finite, on the grid. Public, because it is noised.

    Raises:
        UpdateRejectedError: too large, malformed, another name, shape or type, or a value that
            no honest site sends: not finite, larger than 2^28 patients, off the grid.
    """
    limit = 8 * math.prod(mechanism.shape) + HEADER_BYTES
    if len(data) > limit:
        raise _rejected(who, f"{len(data)} bytes", f"at most {limit}")
    try:
        arrays = _load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _rejected(who, "bytes that are no safetensors file", "safetensors") from error
    if set(arrays) != {_NAME}:
        raise _rejected(who, f"{len(arrays)} arrays with other names", f"one, {_NAME!r}")
    array = arrays[_NAME]
    if array.shape != mechanism.shape or array.dtype != np.float64:
        found = f"{array.dtype} {array.shape}"
        raise _rejected(who, found, f"float64 {mechanism.shape}")
    if not np.isfinite(array).all():
        raise _rejected(who, "NaN or infinity", "finite numbers")
    if np.abs(array).max() > _LARGEST_CELL:
        raise _rejected(who, "a cell beyond 2^28 patients", "counts of patients with noise")
    if (np.rint(array / GRID) * GRID != array).any():
        raise _rejected(who, "a value off the grid", "multiples of 2^-24")
    return np.asarray(array, dtype=np.float64)


def _rejected(who: str, found: str, allowed: str) -> UpdateRejectedError:
    return UpdateRejectedError(
        f"{who}: the score histogram holds {found}; allowed: {allowed}.",
        advice="check that both sides run the same medfed version and study.",
    )
