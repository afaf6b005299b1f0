"""What a study may take from a site's patients in all: the terms that an approval reserves.

A study releases for up to three purposes, each from patients of its own part: updates from the
training patients, score histograms from the validation and from the test patients. The terms
name the cost of one release and how many there may be, from the study file alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from medfed.common.privacy.accounting import Spend
from medfed.common.privacy.mechanism import (
    EvaluatedPart,
    histogram_mechanism,
    histograms_of,
    mechanism_for,
)
from medfed.common.study import Site, Study

Purpose = Literal["train", "validation", "test"]
"""What a release is for; also the part of the patients it is made from."""


PURPOSES: tuple[Purpose, ...] = ("train", "validation", "test")
EVALUATED_PARTS: tuple[EvaluatedPart, ...] = ("validation", "test")


class Term(NamedTuple):
    """What one purpose may cost. Public.

    Attributes:
        cost: Of one release; None without privacy.
        releases: How many there may be, >= 1.
    """

    cost: Spend | None
    releases: int

    def spent(self, releases: int) -> Spend | None:
        """The cost of some releases together; None without privacy."""
        return self.cost and self.cost._replace(steps=self.cost.steps * releases)


Terms = Mapping[Purpose, Term]


def terms_of(study: Study, site: Site) -> Terms:
    """Derive a site's terms from the study.

    Raises:
        ConfigError: as ``mechanism_for``.
    """
    rounds = study.training.rounds
    if not study.private:
        return {"train": Term(None, rounds)}
    m = mechanism_for(study, site)
    cost = Spend(m.noise_multiplier, m.sampling_rate, m.steps_per_round)
    terms: dict[Purpose, Term] = {"train": Term(cost, rounds)}
    for part in EVALUATED_PARTS:
        if histograms_of(study, part):
            histograms = histogram_mechanism(study, part)
            terms[part] = Term(histograms.spend, histograms.histograms)
    return terms
