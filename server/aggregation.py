"""Add updates into one running sum, the same bits whatever the order of arrival.

Floating-point addition depends on the order; the order in which hospitals answer is chance.
So each weighted update is rounded to a multiple of 2^-40 and added as a 64-bit integer, which
is exact and commutative. One update is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from medfed.common.errors import CohortError, UpdateRejectedError
from medfed.common.updates import Parameters, shapes_of

_SCALE = float(1 << 40)
_LARGEST = float(1 << 20)


class RunningMean:
    """The weighted mean of updates, fed one by one.

    Args:
        weights: Site -> weight, from the study file (declared patients). An update never
            brings its own weight: a count is private, and a claim can be a lie.

    Guarantee:
        ``mean()`` is bit for bit the same for every order of ``add`` calls with the same
        updates. Each value is within ``n * 2^-41`` of the exact weighted mean of the n sites
        added, divided by the share of the weights that took part, plus float64 rounding
        (``n * 2^-50`` of the largest value). A refused update leaves no trace.

    Raises:
        ValueError: no weights, or one that is not positive.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        if not weights or min(weights.values()) <= 0:
            raise ValueError(f"weights must be positive, one per site, got {dict(weights)!r}")
        total = sum(weights.values())
        self._shares = {site: weight / total for site, weight in sorted(weights.items())}
        self._added: set[str] = set()
        self._sum: dict[str, npt.NDArray[np.int64]] = {}

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites added so far, sorted."""
        return tuple(sorted(self._added))

    def add(self, site: str, update: Parameters) -> None:
        """Add one site's update.

        Args:
            site: A site of the study, not added before.
            update: Finite float arrays, all calls with the same names and shapes.

        Raises:
            UpdateRejectedError: the site is not in the study or was added before, the update's
                names or shapes are not those of the first, or a value is NaN or beyond 2^20.
        """
        self._check(site, update)
        share = self._shares[site]
        for name, array in update.items():
            fixed = np.rint(array.astype(np.float64) * (share * _SCALE)).astype(np.int64)
            if name in self._sum:
                self._sum[name] += fixed
            else:
                self._sum[name] = fixed
        self._added.add(site)

    def _check(self, site: str, update: Parameters) -> None:
        if site not in self._shares:
            raise UpdateRejectedError(f"site {site!r}: not in the study, it has no weight.")
        if site in self._added:
            raise UpdateRejectedError(f"site {site!r}: a second update for the same round.")
        if self._added and shapes_of(update) != shapes_of(self._sum):
            raise UpdateRejectedError(f"site {site!r}: an update of other names or shapes.")
        # "not <=" and not ">": NaN compares false with everything
        if not all(np.abs(array).max(initial=0.0) <= _LARGEST for array in update.values()):
            raise UpdateRejectedError(
                f"site {site!r}: its update holds NaN or a value beyond ±2^20.",
                advice="lower the learning rate at that site or check its scans.",
            )

    def mean(self) -> Parameters:
        """The weighted mean of what was added, float64.

        Raises:
            CohortError: nothing was added.
        """
        if not self._added:
            raise CohortError("no update was accepted: there is nothing to average.")
        share = sum(self._shares[site] for site in self.sites)
        return {name: total / (_SCALE * share) for name, total in self._sum.items()}
