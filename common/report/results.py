"""The parts of the page that show figures: the table of sites and the two charts."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from medfed.common.report.charts import curve_svg, forest_svg
from medfed.common.report.content import RunReport
from medfed.common.report.markup import chart, paragraphs, safe, section
from medfed.common.report.table import Cell, Column, columns_of
from medfed.common.report.words import METRICS, levels, relation, seeds_text, unit_noun

_FULL, _SLIM = 800, 340  # px: the two widths a chart is drawn for
_HINTS = {
    "together": "The model that all sites trained together",
    "alone": "A model trained with this site's scans only, tested on the same patients",
    "gain": "Together minus alone: above 0, joining paid off for this site",
    "epsilon": "The limit on what can be learnt about one patient; smaller is more private",
    "rounds": "Rounds in which this site's contribution entered the model",
}
_KEYS = {
    "together": '<circle class="together mark" cx="15" cy="6" r="5"/>',
    "alone": '<rect class="alone mark" x="11" y="2" width="8" height="8"/>',
}


def site_table(report: RunReport) -> str:
    """Show the table of sites and say how to read it."""
    if not report.sites:
        return section("Site by site", "<p>No site took part.</p>")
    columns = columns_of(report)
    heads = "".join(_head(column.head) for column in columns)
    body = "".join(_row(columns, cells) for cells in zip(*(c.cells for c in columns), strict=True))
    total = _row(columns, [column.total for column in columns], "total")
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}{total}</tbody></table>"
    reading = paragraphs((safe(line) for line in _reading(report)), "soft")
    return section("Site by site", table + reading)


def forest(report: RunReport) -> str:
    """Draw the figures of the table, if there are any."""
    full = forest_svg(report, _FULL)
    if not full:
        return ""
    metric, alone = METRICS[report.metric], any(row.alone for row in report.sites)
    legend = _key("together", "model of all sites together")
    legend += _key("alone", "model of this site alone") if alone else ""
    overlap = "; where the two lines of a site overlap, the difference may be chance"
    caption = (
        f"Mark: {metric}, further right is better. Line: its {levels(report)} interval"
        f"{overlap if alone else ''}. The axis begins just below the lowest value."
    )
    drawn = chart(full, forest_svg(report, _SLIM), caption)
    title = "Together or alone?" if alone else f"{metric} at each site"
    return section(title, paragraphs([legend], "legend") + drawn)


def curve(report: RunReport) -> str:
    """Draw how the model learnt, if that was measured."""
    full = curve_svg(report, _FULL)
    if not full:
        return ""
    caption = (
        f"{METRICS[report.metric]} of the global model on the test {unit_noun(report.sites)} of "
        "all sites, after each round that was measured. The axis begins just below the lowest "
        "value."
    )
    return section("How the model learnt", chart(full, curve_svg(report, _SLIM), caption))


def _reading(report: RunReport) -> list[str]:
    unit, lines = unit_noun(report.sites), []
    if level := levels(report):
        lines.append(
            f"{METRICS[report.metric]}, with its {level} interval in small print, on each site's "
            f"own test {unit}: none of them was used in training."
        )
    if any(row.epsilon is not None for row in report.sites):
        lines.append(f"Epsilon is stated for the relation “{relation(report.sites)}”.")
    if any(row.missing for row in report.sites):
        lines.append("* Something is missing at this site: see above.")
    return [*lines, *filter(None, [seeds_text(report)])]


def _head(head: Cell) -> str:
    small = f"<small>{_hinted(head.detail)}</small>" if head.detail else ""
    return f'<th scope="col">{_hinted(head.main)}{small}</th>'


def _hinted(words: str) -> str:
    """Give a word its explanation as a tooltip, if there is one."""
    hint = _HINTS.get(words)
    return f'<abbr title="{escape(hint)}">{safe(words)}</abbr>' if hint else safe(words)


def _row(columns: list[Column], cells: Iterable[Cell], kind: str = "") -> str:
    (_, name), *rest = zip(columns, cells, strict=True)
    data = "".join(_data(column.head, cell) for column, cell in rest)
    attribute = f' class="{kind}"' if kind else ""
    return f'<tr{attribute}><th scope="row">{safe(name.main)}</th>{data}</tr>'


def _data(head: Cell, cell: Cell) -> str:
    named = safe(" ".join(part for part in head if part))
    tone = {"+": "good", "−": "bad"}.get(cell.main[:1], "")
    main = safe(cell.main)
    if cell.detail or tone:
        main = f'<strong class="{tone}">{main}</strong>' if cell.main else ""
    small = f"<small>{safe(cell.detail)}</small>" if cell.detail else ""
    inner = f"<span>{main}{small}</span>" if main or small else ""
    return f'<td data-head="{named}">{inner}</td>'


def _key(name: str, words: str) -> str:
    span = f'<line class="{name} span" x1="2" y1="6" x2="28" y2="6"/>'
    mark = f'<svg aria-hidden="true" viewBox="0 0 30 12">{span}{_KEYS[name]}</svg>'
    return f"<span>{mark}{safe(words)}</span>"
