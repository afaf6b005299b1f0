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
from medfed.common.updates import Parameters

_SCALE = float(1 << 40)
_LARGEST = float(1 << 20)


class RunningMean:
    """The weighted mean of updates, fed one by one.

    Args:
        weights: Site -> weight, from the study file (declared patients). An update never
            brings its own weight: a count is private, and a claim can be a lie.

    Guarantee:
        ``mean()`` is bit for bit the same for every order of ``add`` calls with the same
        updates. Each value is within 2^-40 (1e-12) of the exact weighted mean, divided by the
        share of the weights that took part.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
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
            UpdateRejectedError: the site was added before, or a value is beyond 2^20.
        """
        if site in self._added:
            raise UpdateRejectedError(f"site {site!r}: a second update for the same round.")
        if any(np.abs(array).max(initial=0.0) > _LARGEST for array in update.values()):
            raise UpdateRejectedError(
                f"site {site!r}: its update holds a value beyond ±2^20.",
                advice="lower the learning rate at that site or check its scans.",
            )
        share = self._shares[site]
        for name, array in update.items():
            fixed = np.rint(array.astype(np.float64) * (share * _SCALE)).astype(np.int64)
            if name in self._sum:
                self._sum[name] += fixed
            else:
                self._sum[name] = fixed
        self._added.add(site)

    def mean(self) -> Parameters:
        """The weighted mean of what was added, float64.

        Raises:
            CohortError: nothing was added.
        """
        if not self._added:
            raise CohortError("no update was accepted: there is nothing to average.")
        share = sum(self._shares[site] for site in self.sites)
        return {name: total / (_SCALE * share) for name, total in self._sum.items()}
