"""The tables of a check as HTML: labels by part, devices, attributes, reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from medfed.client.scans.check.charts import share_svg
from medfed.client.scans.check.overview import Overview
from medfed.client.scans.check.tallies import Counts
from medfed.client.scans.check.wording import plural, share
from medfed.client.scans.scanset import PARTS
from medfed.common.report.markup import safe
from medfed.common.report.words import clean

MOST_ROWS: Final = 12
"""Rows of a table; the rest is one more."""
LABEL_COLUMNS: Final = 4
"""With more labels a table of values says the total only."""
ATTRIBUTES: Final = {
    "view": "view",
    "laterality": "side",
    "body_part": "body part",
    "sex": "sex",
    "bits": "stored",
}
UNSAID: Final = "not said"


class Cell(NamedTuple):
    """What a cell says, the small print below it, and a share to draw or None."""

    main: str
    small: str = ""
    bar: float | None = None


def table(
    caption: str,
    heads: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Cell]]],
    kind: str = "values",
) -> str:
    """Write a table whose first column names the rows."""
    head = "".join(f'<th scope="col">{safe(words)}</th>' for words in heads)
    body = "".join(
        f'<tr><th scope="row">{safe(name)}</th>'
        + "".join(_cell(words, cell) for words, cell in zip(heads[1:], cells, strict=True))
        + "</tr>"
        for name, cells in rows
    )
    named = f"<caption>{safe(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table class="{kind}">{named}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def labels_table(overview: Overview) -> str:
    """Show patients and scans of each label in each part."""
    patients, scans = overview.patients, overview.scans
    parts = [part for part, name in enumerate(PARTS) if scans[:, part].any()]
    names = list(PARTS)
    rows = []
    for label, name in enumerate(overview.study.task.labels):
        cells = [
            Cell(
                f"{patients[label, part]:,}",
                f"{plural(int(scans[label, part]), 'scan')}, "
                f"{share(int(scans[label, part]), int(scans[:, part].sum()))}",
                scans[label, part] / max(1, scans[:, part].sum()),
            )
            for part in parts
        ]
        every = int(scans[label].sum())
        cells.append(Cell(f"{every:,}", share(every, overview.total), every / overview.total))
        rows.append((name, cells))
    total = [
        Cell(f"{overview.patients_of_part[part]:,}", plural(int(scans[:, part].sum()), "scan"))
        for part in parts
    ]
    rows.append(("all", [*total, Cell(f"{overview.total:,}")]))
    heads = ["label", *(f"{names[part]}: {overview.units}" for part in parts), "scans in all"]
    return table("", heads, rows, "labels")


def devices_table(overview: Overview) -> str:
    """Show modality, manufacturer and model, by label where these are few."""
    return values_table("modality and device", overview.by["device"], overview)


def attribute_tables(overview: Overview) -> list[str]:
    """Small tables of what headers say besides; none for what is the same of all scans."""
    return [
        values_table(title, overview.by[name], overview, by_label=False)
        for name, title in ATTRIBUTES.items()
        if len(overview.by[name].rows()) > 1
    ]


def single_values(overview: Overview) -> list[tuple[str, str]]:
    """What all scans have in common: title and value."""
    rows = {title: overview.by[name].rows() for name, title in ATTRIBUTES.items()}
    return [(title, of[0][0]) for title, of in rows.items() if len(of) == 1 and of[0][0]]


def values_table(
    head: str,
    counts: Counts,
    overview: Overview,
    *,
    by_label: bool = True,
) -> str:
    """Show how often each value of an attribute occurs."""
    labels = [clean(label) for label in overview.study.task.labels]
    by_label = by_label and len(labels) <= LABEL_COLUMNS
    of_label = np.maximum(overview.scans.sum(axis=1), 1)
    rows = []
    found = counts.rows()
    if len(found) > MOST_ROWS:
        rest = np.sum([row for _, row in found[MOST_ROWS - 1 :]], axis=0)
        others = f"{len(found) - MOST_ROWS + 1} others"
        found = [*found[: MOST_ROWS - 1], (others, rest)]
    for value, row in found:
        number = int(row.sum())
        whole = number / overview.total
        cells = [Cell(f"{number:,}", share(number, overview.total), whole)]
        if by_label:
            shares = row / of_label
            cells += [
                Cell(share(int(n), int(of)), "", float(part))
                for n, of, part in zip(row, of_label, shares, strict=True)
            ]
        rows.append((value or UNSAID, cells))
    heads = [head, "scans", *([f"of {label}" for label in labels] if by_label else [])]
    return table("", heads, rows)


def reasons_table(caption: str, noun: str, reasons: Mapping[str, int]) -> str:
    """Show what was refused or left out, by reason; empty where nothing was."""
    if not reasons:
        return ""
    whole = sum(reasons.values())
    rows = [
        (reason, [Cell(f"{count:,}", "", count / whole)])
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    ]
    return table(caption, ["reason", noun], rows)


def _cell(head: str, cell: Cell) -> str:
    small = f"<small>{safe(cell.small)}</small>" if cell.small else ""
    bar = "" if cell.bar is None else share_svg(cell.bar)
    return f'<td data-head="{safe(head)}"><span>{safe(cell.main)}{small}</span>{bar}</td>'
