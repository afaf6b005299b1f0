"""Add up the sites' noised score histograms and say how good a model is.

The server sees noised histograms only. It adds them; the figures of the sum are more exact than
those of any site, because patients add up and noise grows with the square root of the sites.
A site that reports falsely can bend the figures as it can bend the model: a histogram is bounded
in form, not in truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from medfed.common.errors import UpdateRejectedError
from medfed.common.histogram_metrics import (
    NoisedFigure,
    ReliabilityPoint,
    histogram_figures,
    reliability_curve,
)
from medfed.common.privacy.histogram import HistogramMechanism, decode_histogram


@dataclass(frozen=True)
class Evaluation:
    """What the reporting sites' histograms say about one model. Public.

    Attributes:
        sites: Who reported, sorted; the figures are about their patients alone.
        figures: Name, ending in ``_noised`` -> figure. Empty if no site reported.
        reliability: Per class in question the reliability curve; empty if no site reported.
    """

    sites: tuple[str, ...]
    figures: Mapping[str, NoisedFigure]
    reliability: tuple[tuple[ReliabilityPoint, ...], ...]


class HistogramSum:
    """The sum of one model's histograms of one part, as they arrive.

    Args:
        mechanism: The part's mechanism, the same at every site.
        threshold: From which score a patient is called positive; the study's.

    Guarantee:
        The same histograms give the same bits in any order of arrival. Memory does not grow
        with the number of sites, but for their names.
    """

    def __init__(self, mechanism: HistogramMechanism, *, threshold: float) -> None:
        self._mechanism = mechanism
        self._threshold = threshold
        self._sum = np.zeros(mechanism.shape)
        self._sites: set[str] = set()

    def add(self, site: str, payload: bytes) -> None:
        """Check one site's histogram and add it.

        Args:
            site: Who sent it; the transport has verified that.
            payload: The wire form.

        Raises:
            UpdateRejectedError: not a histogram of this study, or the site's second one for this
                model. The sum is as before.
        """
        if site in self._sites:
            raise UpdateRejectedError(
                f"site {site!r}: a second score histogram of the same model; allowed: one.",
                advice="nothing to do: the first one counts.",
            )
        histogram = decode_histogram(payload, self._mechanism, who=f"site {site!r}")
        self._sum += histogram
        self._sites.add(site)

    def evaluation(self) -> Evaluation:
        """Compute the figures of what arrived so far."""
        if not self._sites:
            return Evaluation((), MappingProxyType({}), ())
        noise_std = self._mechanism.noise_std * math.sqrt(len(self._sites))
        figures = histogram_figures(self._sum, noise_std, threshold=self._threshold)
        return Evaluation(
            sites=tuple(sorted(self._sites)),
            figures=MappingProxyType(dict(figures)),
            reliability=reliability_curve(self._sum, noise_std),
        )


class EvaluationCurve:
    """How the model's figures went over the rounds; every point of it was paid for."""

    def __init__(self) -> None:
        self._points: dict[int, Evaluation] = {}

    def record(self, round_: int, evaluation: Evaluation) -> None:
        """Keep the evaluation of the model after a round.

        Raises:
            ValueError: the round has one already (a defect: it would be paid twice).
        """
        if round_ in self._points:
            raise ValueError(f"round {round_} has been evaluated already")
        self._points[round_] = evaluation

    @property
    def points(self) -> Mapping[int, Evaluation]:
        """Round -> evaluation, by rising round."""
        return MappingProxyType(dict(sorted(self._points.items())))

    def of(self, name: str) -> Mapping[int, NoisedFigure]:
        """Round -> one figure; rounds that no site reported are left out.

        Args:
            name: A name of ``medfed.common.histogram_metrics.figure_names``.
        """
        return MappingProxyType(
            {
                round_: evaluation.figures[name]
                for round_, evaluation in self.points.items()
                if evaluation.figures
            }
        )
