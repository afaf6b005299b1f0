"""What a check says of the pictures: text in them, how they were taken, what goes with a label."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.check.overview import Overview
from medfed.client.scans.check.remark import Remark, Severity
from medfed.client.scans.check.tallies import Counts
from medfed.client.scans.check.wording import age, plural, share, verb
from medfed.common.report.words import clean

MANY_SMALL: Final = 0.01
"""Share of scans smaller than the study's pictures from which on it is pointed out."""
GOES_WITH: Final = 0.5
"""Cramér's V between label and an attribute from which on it is pointed out ..."""
GOES_MEASURED: Final = 100
"""... among so many scans."""
CONFOUNDERS: Final = {"device": "device", "view": "view", "age_band": "age", "sex": "sex"}
_SHOWN: Final = 4  # values of an attribute that a sentence names


def pictures_remarks(overview: Overview) -> Iterator[Remark]:
    """Say what the pictures are, and what a model may learn in place of the finding."""
    yield from _text(overview)
    yield from _empty(overview)
    yield from _mixture(overview)
    yield from _confounders(overview)


def _text(overview: Overview) -> Iterator[Remark]:
    burned, other = overview.burned_in, overview.text_risk - overview.burned_in
    step = "Look at the sheet of such pictures; files.csv beside the page names the files."
    if burned:
        yield Remark(
            Severity.LOOK,
            "burned-in-text",
            f"Of {plural(burned, 'scan')} the header says that text is burned into the picture: a "
            "name may be legible, and a model may learn to read.",
            step,
        )
    if other:
        yield Remark(
            Severity.LOOK,
            "text-risk",
            f"{plural(other, 'scan')} {verb(other, 'is', 'are')} of a kind that often has text in "
            "the picture (ultrasound, photographs, screen shots, secondary captures).",
            step,
        )
    if not overview.text_risk:
        yield Remark(Severity.FINE, "text-risk", "No header speaks of text in a picture.")


def _empty(overview: Overview) -> Iterator[Remark]:
    flat, smaller = overview.flat, overview.smaller
    rows, columns = overview.study.scans.size
    if flat:
        yield Remark(
            Severity.LOOK,
            "flat",
            f"{plural(flat, 'scan')} {verb(flat, 'shows', 'show')} one even grey and nothing else, "
            "as the study prepares them.",
            "Look at the files (files.csv beside the page names them) and at the study's window.",
        )
    if smaller > MANY_SMALL * overview.total:
        yield Remark(
            Severity.LOOK,
            "smaller",
            f"{plural(smaller, 'scan')} ({share(smaller, overview.total)}) "
            f"{verb(smaller, 'is', 'are')} smaller than the study's {rows} × {columns} pixels, and "
            "would be enlarged.",
            "Use the original files if these are previews.",
        )


def _mixture(overview: Overview) -> Iterator[Remark]:
    asked = overview.study.scans
    for name, noun, chosen in (
        ("modality", "modalities", asked.modalities),
        ("view", "views", asked.views),
    ):
        counts = overview.by[name]
        values = counts.values()
        if len(values) > 1 and chosen is None:
            shown = [f"{value} {share(counts.total(value), overview.total)}" for value in values]
            listed = ", ".join(shown[:_SHOWN]) + (" …" if len(shown) > _SHOWN else "")
            yield Remark(
                Severity.LOOK,
                f"several-{noun}",
                f"The scans are of {len(values)} {noun} ({listed}), and the study takes all.",
                f"If it means only some of them, ask the coordinator to say so (scans.{noun}).",
            )


def _confounders(overview: Overview) -> Iterator[Remark]:
    labels = [clean(label) for label in overview.study.task.labels]
    for name, noun in CONFOUNDERS.items():
        counts = overview.by[name]
        if association(counts) < GOES_WITH:
            continue
        value, high, low, shares = _starkest(counts)
        shown = (age(value) if name == "age_band" else value) or "not said"
        yield Remark(
            Severity.LOOK,
            f"label-goes-with-{noun}",
            f"The label goes with the {noun}: “{shown}” is {share(shares[high], 1)} of "
            f"“{labels[high]}” and {share(shares[low], 1)} of “{labels[low]}”. A model may learn "
            f"the {noun} in the place of the finding.",
            "Ask how the two groups were collected; tell the coordinator if it cannot be mended.",
        )


def association(counts: Counts) -> float:
    """Cramér's V between a label and an attribute: 0 (none) to 1; 0 where too few were measured.

    Source:
        Cramér, H. Mathematical Methods of Statistics. 1946, chapter 21.
    """
    table = np.array([row for _, row in counts.rows()], dtype=np.float64)
    if table.sum() < GOES_MEASURED:
        return 0.0
    table = table[:, table.sum(axis=0) > 0]
    if min(table.shape) < 2:
        return 0.0
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    squares = float(((table - expected) ** 2 / expected).sum())
    return float(np.sqrt(squares / table.sum() / (min(table.shape) - 1)))


def _starkest(counts: Counts) -> tuple[str, int, int, NDArray[np.float64]]:
    """The value whose share differs most between two labels, the two labels, and its shares."""
    rows = counts.rows()
    table = np.array([row for _, row in rows], dtype=np.float64)
    there = np.flatnonzero(table.sum(axis=0))
    shares = table / np.maximum(table.sum(axis=0), 1)
    spread = shares[:, there].max(axis=1) - shares[:, there].min(axis=1)
    value = int(spread.argmax())
    of = shares[value]
    return rows[value][0], int(there[of[there].argmax()]), int(there[of[there].argmin()]), of
