"""What a person is told about a run: plain values, no drawing and no computing.

Whoever ran the study fills a ``RunReport``; ``terminal.py``, ``page.py`` and ``as_json.py``
show it. A report is made to be read by others, so every value in it must be fit for its
reader: exact counts and exact figures only for simulated or public scans, declared or
released numbers for a deployed run. Nothing here checks that; the one who fills it answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Outcome = Literal["finished", "incomplete", "failed", "stopped"]
"""How a run ended: as planned; without a site or a round; with an error; by a person."""

Metric = Literal["auroc", "macro_auroc"]
"""Two classes, or the mean over one-against-the-rest for more. Both exact, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and the interval that holds it.

    Attributes:
        value: The figure, in [0, 1].
        low: Lower end, finite; may lie below 0 if the method that made it allows.
        high: Upper end, finite, >= ``low``.
        level: How often such an interval holds the true figure, in (0, 1).

    Raises:
        ValueError: a value lies outside its range.
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    def __post_init__(self) -> None:
        _check_share("value", self.value)
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"low and high must be finite and in order: {self.low}, {self.high}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must be in (0, 1), got {self.level!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRow:
    """One site's line.

    Attributes:
        site: Name of the site in the study; public.
        patients: Privacy units at the site, >= 0. A deployed run writes the declared, rounded
            number of the study file (public); the exact number is private to the site and
            stands here only for simulated or public scans.
        scans: Scans at the site; the same care as ``patients``. None if nobody may know.
        unit: What one neighbour adds or removes, in the singular: ``"patient"``, ``"image"``,
            ``"photograph"``; public.
        auroc: The global model on this site's own test patients, in the report's metric. Exact,
            hence private unless the scans are simulated or public. None if not measured.
        alone: A model trained at this site alone, on the same test patients; as ``auroc``.
        epsilon: Privacy loss of one unit of this site, >= 0, finite, over all that the site
            released; 0 if nothing was. None if the run trained without privacy. Public.
        delta: Failure probability that ``epsilon`` refers to, in (0, 1); None as ``epsilon``.
        rounds_done: Rounds whose update of this site entered the model, >= 0; public.
        missing: Why something of this site is missing, or ``""``; fit for every reader.

    Raises:
        ValueError: a value lies outside its range.
    """

    site: str
    patients: int
    unit: str
    rounds_done: int
    scans: int | None = None
    auroc: Interval | None = None
    alone: Interval | None = None
    epsilon: float | None = None
    delta: float | None = None
    missing: str = ""

    def __post_init__(self) -> None:
        if min(self.patients, self.rounds_done, self.scans or 0) < 0:
            raise ValueError(f"site {self.site!r}: patients, scans and rounds_done must be >= 0")
        if (self.epsilon is None) != (self.delta is None):
            raise ValueError(f"site {self.site!r}: epsilon means nothing without its delta")
        if self.epsilon is not None and not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ValueError(f"site {self.site!r}: epsilon must be finite and >= 0")
        if self.delta is not None and not 0 < self.delta < 1:
            raise ValueError(f"site {self.site!r}: delta must be in (0, 1), got {self.delta!r}")

    @property
    def gain(self) -> float | None:
        """Figure of the global model minus that of the site alone, or None."""
        if self.auroc is None or self.alone is None:
            return None
        return self.auroc.value - self.alone.value


@dataclass(frozen=True, slots=True)
class NoisedFigure:
    """A figure computed from noised histograms of scores. Public.

    Attributes:
        name: Ends in ``_noised``: ``"auroc_noised"``.
        interval: The figure with its interval, which counts noise and patients; None: hidden.
        reason: Why it is hidden, else ``""``.

    Raises:
        ValueError: the name does not end in ``_noised``.
    """

    name: str
    interval: Interval | None
    reason: str = ""

    def __post_init__(self) -> None:
        if not self.name.endswith("_noised"):
            raise ValueError(f"a figure from noised histograms must say so, got {self.name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisedEvaluation:
    """What the sites together said of one model, each on its own patients. Noised, so public.

    Attributes:
        part: ``"validation"`` or ``"test"``: whose scans.
        round: The round that the model came out of, >= 1.
        sites: Sites that reported; the figures are about their patients alone.
        epsilon: What the study's histograms cost each patient of the part in all, at ``delta``.
        delta: In (0, 1).
        figures: In the order in which they are shown; empty if no site reported.
    """

    part: Literal["validation", "test"]
    round: int
    sites: tuple[str, ...]
    epsilon: float
    delta: float
    figures: tuple[NoisedFigure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """One run, as its reader needs it. All of it is shown; none of it is checked for privacy.

    Attributes:
        title: What was run: ``"medfed demo"``.
        headline: One line that says the result and names every lost site and skipped round.
        outcome: How the run ended.
        study_name: Name in the study file.
        study_digest: Digest of its canonical form, in hex.
        purpose: What the study is for, from the study file.
        metric: Which figure every ``Interval``, ``curve`` and ``seeds`` holds.
        network: Name of the network.
        device: Where it was trained: ``"cpu"``, ``"cuda (NVIDIA ...)"``.
        randomness: ``"secret"``, or a text that says that it was seeded and must stay at home.
        privacy_statement: The guarantee in one or two sentences, with unit and relation.
        sites: Every site of the study, also a lost one, in the study's order.
        model_path: Where the model lies; ``""`` if there is none.
        page_path: Where the HTML page lies; ``""`` if there is none.
        pooled: The global model on the test patients of all sites together.
        curve: Pairs ``(round, figure)`` of the global model on the pooled test patients, rounds
            from 1 (0 is the untrained model), ascending. Empty if not measured.
        evaluations: What the sites said of the model, from noised histograms.
        preparation: Pairs of a name and a line: which scans were taken, how they were prepared
            and varied; from the study file.
        notes: Warnings, one sentence each: ``"the scans have no patient ids: ..."``.
        seconds: Wall time per phase, in s; phases follow each other and do not overlap.
        seeds: Pairs ``(seed, pooled figure)`` if the study was repeated. The other fields are
            those of the first pair.

    Raises:
        ValueError: a figure is outside [0, 1], a time negative, or the curve not ascending.
    """

    title: str
    headline: str
    outcome: Outcome
    study_name: str
    study_digest: str
    purpose: str
    metric: Metric
    network: str
    device: str
    randomness: str
    privacy_statement: str
    sites: tuple[SiteRow, ...]
    model_path: str = ""
    page_path: str = ""
    pooled: Interval | None = None
    curve: tuple[tuple[int, float], ...] = ()
    evaluations: tuple[NoisedEvaluation, ...] = ()
    preparation: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    seeds: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        for name, pairs in (("curve", self.curve), ("seeds", self.seeds)):
            for _, value in pairs:
                _check_share(name, value)
        rounds = [number for number, _ in self.curve]
        if any(number < 0 for number in rounds) or rounds != sorted(set(rounds)):
            raise ValueError(f"curve: rounds must be >= 0 and ascending, got {rounds}")
        if not all(math.isfinite(spent) and spent >= 0 for spent in self.seconds.values()):
            raise ValueError(f"seconds must be finite and >= 0, got {dict(self.seconds)}")
        object.__setattr__(self, "seconds", MappingProxyType(dict(self.seconds)))

    @property
    def secret(self) -> bool:
        """True if the noise came from secret randomness, as a release demands."""
        return self.randomness == "secret"


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:  # also refuses NaN
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")
