"""How numbers and ideas are said, the same on the terminal and on the page.

Texts that come from outside (names, paths, purposes) pass ``clean`` before they are shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from medfed.common.report.content import (
    Interval,
    Metric,
    NoisedEvaluation,
    NoisedFigure,
    Outcome,
    RunReport,
    SiteRow,
)

OUTCOMES: dict[Outcome, str] = {
    "finished": "Finished as planned",
    "incomplete": "Finished, but not as planned",
    "failed": "Failed",
    "stopped": "Stopped",
}

METRICS: dict[Metric, str] = {"auroc": "AUROC", "macro_auroc": "macro-AUROC"}

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "AUROC",
        "How well the model tells sick from healthy: the chance that a randomly chosen scan with "
        "the finding gets a higher score than one without. 1 is perfect, 0.5 is guessing. "
        "Macro-AUROC is its mean over all classes, each against the rest.",
    ),
    (
        "Interval",
        "Test patients are few, so a figure is uncertain. Were the test repeated with other "
        "patients, a 95 % interval would hold the true figure 95 times in 100.",
    ),
    ("Site", "One hospital taking part. Its scans never leave it."),
    (
        "Global model",
        "The one model that all sites trained together, by exchanging changes of its weights "
        "instead of scans.",
    ),
    (
        "Alone",
        "For comparison: the same network trained with the scans of one site only, and tested "
        "on the same patients.",
    ),
    (
        "Round",
        "One cycle: sites receive the model, train it on their own scans, and send back the "
        "change of its weights, which the server averages.",
    ),
    (
        "Judged at the sites",
        "Each site scores its own validation or test patients and reports only counts with noise "
        "added; the figures are computed from these, and their intervals allow for the noise.",
    ),
    (
        "Epsilon (ε)",
        "The limit on what anyone can learn about one patient from all that a site released. "
        "Smaller is more private; 0 reveals nothing. It compares two data sets that differ by "
        "adding or removing one patient (or what the table names instead).",
    ),
    (
        "Delta (δ)",
        "The small probability with which the limit epsilon may fail to hold: 1e-4 is 1 in 10,000.",
    ),
)
"""Terms and their plain meaning, in the order in which a reader meets them."""


NOISED_NAMES = {
    "auroc": "AUROC",
    "pr_auc": "PR-AUC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}


def noised_name(name: str) -> str:
    """Say the name of a noised figure: ``macro_auroc_noised`` as ``macro AUROC``."""
    bare = name.removesuffix("_noised")
    macro = "macro " if bare.startswith("macro_") else ""
    bare = bare.removeprefix("macro_")
    return macro + NOISED_NAMES.get(bare, bare)


def evaluation_head(evaluation: NoisedEvaluation) -> str:
    """Say what an evaluation is of, and what it costs."""
    sites = ", ".join(evaluation.sites) or "no site"
    return (
        f"{evaluation.part} patients after round {evaluation.round} ({sites}; their epsilon "
        f"{epsilon_text(evaluation.epsilon)} at delta {delta_text(evaluation.delta)})"
    )


def noised_text(figure_: NoisedFigure) -> str:
    """Say a figure from noised histograms: ``0.953 (0.931-0.975)``, or why it is hidden."""
    if figure_.interval is None:
        return f"not shown: {figure_.reason}"
    return f"{figure(figure_.interval.value)} ({bounds(figure_.interval)})"


def clean(text: str) -> str:
    """Make a text from outside safe to show on one line.

    Returns:
        The text with every white-space character as a space and what else is not printable
        (terminal escapes, direction marks, broken UTF-8) as the replacement character.
    """
    spaced = "".join(" " if c.isspace() else c for c in text)
    return "".join(c if c.isprintable() else "\ufffd" for c in spaced)


def figure(value: float) -> str:
    """Say a figure in [0, 1] to three digits: ``0.953``."""
    return f"{value:.3f}"


def bounds(interval: Interval) -> str:
    """Say an interval's ends, with a dash: ``0.931–0.970``."""
    return f"{figure(interval.low)}–{figure(interval.high)}"


def signed(difference: float) -> str:
    """Say a difference with its sign: ``+0.041``, ``−0.003``; ``0.000`` if it rounds to nothing."""
    text = f"{difference:+.3f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def epsilon_text(epsilon: float) -> str:
    """Say an epsilon to three digits, never smaller than it is.

    Example:
        >>> epsilon_text(7.941), epsilon_text(0.01231), epsilon_text(8.0), epsilon_text(0.0)
        ('7.95', '0.0124', '8.00', '0')
    """
    if epsilon == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(epsilon)))
    steps = math.ceil(epsilon * 10**decimals * (1 - 1e-12))  # 8.0 must not become 8.01
    return f"{steps / 10**decimals:.{decimals}f}"


def delta_text(delta: float) -> str:
    """Say a probability as a power of ten: ``1e-4``, ``2.5e-5``."""
    digits, exponent = f"{delta:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def duration(seconds: float) -> str:
    """Say a time: ``4.2 s``, ``3 min 12 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def units(sites: Iterable[SiteRow]) -> list[str]:
    """List the privacy units that occur, each once, in order."""
    return list(dict.fromkeys(clean(row.unit) for row in sites))


def unit_noun(sites: Iterable[SiteRow]) -> str:
    """Name the privacy units in the plural: ``patients``; ``units`` if sites differ."""
    kinds = units(sites)
    return f"{kinds[0]}s" if len(kinds) == 1 else "units"


def relation(sites: Iterable[SiteRow]) -> str:
    """Name the neighbouring relation: ``add-or-remove one patient``."""
    return "add-or-remove one " + (" or one ".join(units(sites)) or "patient")


def levels(report: RunReport) -> str:
    """Say the level of the report's intervals: ``95 %``; ``""`` if it has none."""
    shown = [report.pooled, *(i for row in report.sites for i in (row.auroc, row.alone))]
    found = dict.fromkeys(f"{interval.level * 100:g} %" for interval in shown if interval)
    return " or ".join(found)


def seeds_text(report: RunReport) -> str:
    """Say mean and spread over the seeds; ``""`` unless there are several."""
    values = [value for _, value in report.seeds]
    if len(values) < 2:
        return ""
    mean = figure(math.fsum(values) / len(values))
    return (
        f"Repeated with {len(values)} seeds: mean {METRICS[report.metric]} {mean}, "
        f"lowest {figure(min(values))}, highest {figure(max(values))}. "
        f"Everything else shown is of seed {report.seeds[0][0]}."
    )
