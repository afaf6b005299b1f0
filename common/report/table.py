"""Lay out the table of sites once, for the terminal and for the page.

A column is there only if someone has something to read in it.
"""

from __future__ import annotations

from typing import NamedTuple

from medfed.common.report.content import Interval, RunReport, SiteRow
from medfed.common.report.words import (
    METRICS,
    bounds,
    clean,
    delta_text,
    epsilon_text,
    figure,
    signed,
    unit_noun,
)

ALL_SITES = "all sites"


class Cell(NamedTuple):
    """What one cell says: the figure, and the small print that belongs to it (or ``""``)."""

    main: str
    detail: str = ""


class Column(NamedTuple):
    """A head, and one cell per site; ``total`` is the cell of all sites together."""

    head: Cell
    cells: list[Cell]
    total: Cell


def columns_of(report: RunReport) -> list[Column]:
    """Lay out a report's table.

    Returns:
        The columns from left to right; the first holds the sites' names, a name that is
        followed by `` *`` has something missing. Every text is clean.
    """
    sites, metric = report.sites, METRICS[report.metric]
    names = [Cell(clean(row.site) + (" *" if row.missing else "")) for row in sites]
    columns = [Column(Cell("site"), names, Cell(ALL_SITES)), *_counts(sites)]
    together = [_interval(row.auroc) for row in sites]
    columns.append(Column(Cell(metric, "together"), together, _interval(report.pooled)))
    if any(row.alone for row in sites):
        alone = [_interval(row.alone) for row in sites]
        gains = [Cell("" if row.gain is None else signed(row.gain)) for row in sites]
        columns.append(Column(Cell(metric, "alone"), alone, Cell("")))
        columns.append(Column(Cell("gain"), gains, Cell("")))
    columns.append(Column(Cell("epsilon", "at delta"), [_loss(row) for row in sites], Cell("")))
    rounds = [Cell(str(row.rounds_done)) for row in sites]
    columns.append(Column(Cell("rounds"), rounds, Cell("")))
    return columns


def _counts(sites: tuple[SiteRow, ...]) -> list[Column]:
    numbers: list[int | None] = [row.patients for row in sites]
    columns = [_count(unit_noun(sites), numbers)]
    scans = [row.scans for row in sites]
    if any(number is not None for number in scans) and scans != numbers:
        columns.append(_count("scans", scans))
    return columns


def _count(head: str, numbers: list[int | None]) -> Column:
    known = [number for number in numbers if number is not None]
    total = sum(known) if len(known) == len(numbers) else None
    return Column(Cell(head), [_number(number) for number in numbers], _number(total))


def _number(number: int | None) -> Cell:
    return Cell("not told" if number is None else f"{number:,}")


def _interval(interval: Interval | None) -> Cell:
    if interval is None:
        return Cell("", "not measured")
    return Cell(figure(interval.value), bounds(interval))


def _loss(row: SiteRow) -> Cell:
    if row.epsilon is None or row.delta is None:
        return Cell("not private")
    return Cell(epsilon_text(row.epsilon), f"at {delta_text(row.delta)}")
