"""Small charts as inline SVG: no script, no fonts of their own, colours from the page.

A chart is drawn for one width and is not scaled, so that its text stays readable; the page
holds a wide and a narrow one and shows the one that fits. Marks differ in shape as well as
in colour.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from medfed.common.report.content import Interval, RunReport
from medfed.common.report.scale import Scale, count_scale, share_scale
from medfed.common.report.svg import dot, line, picture, square, text, turned_text
from medfed.common.report.table import ALL_SITES
from medfed.common.report.words import METRICS, bounds, clean, figure, unit_noun

_LETTER = 8.0  # px: width of a letter at the charts' font size, on the safe side
_ROW_OF_ONE, _ROW_OF_TWO = 34, 50  # px: height of a site's row, by its marks
_TOP = 18  # px: room above the rows
_WIDE = 560  # px: from this width on, figures are written beside the marks


def forest_svg(report: RunReport, width: int) -> str:
    """Draw each site's figure with its interval: the global model, and the site alone.

    Args:
        report: Its ``sites`` and ``pooled``.
        width: Width of the drawing in px, >= 300.

    Returns:
        An ``<svg>`` element, or ``""`` if no figure was measured.
    """
    rows = [(clean(row.site), row.auroc, row.alone) for row in report.sites]
    rows += [(ALL_SITES, report.pooled, None)] if report.pooled else []
    intervals = [interval for _, *pair in rows for interval in pair if interval]
    if not intervals:
        return ""
    wide = width >= _WIDE
    longest = max(len(name) for name, *_ in rows)
    left = min(longest * _LETTER + 16, width * (0.3 if wide else 0.25))
    right = width - (170 if wide else 14)
    scale = share_scale((i.low for i in intervals), left + 8, right, most=6 if wide else 5)
    high = _ROW_OF_TWO if any(row.alone for row in report.sites) else _ROW_OF_ONE
    bottom = _TOP + high * len(rows)
    parts = [_upright(scale, bottom)]
    for place, (name, together, alone) in enumerate(rows):
        middle = _TOP + high * (place + 0.5)
        if place == len(report.sites):
            parts.append(line(0, middle - high / 2, width, middle - high / 2, "rule"))
        parts.append(_label(name, 2, middle, left - 8))
        parts += _marks(scale, middle, together, alone, width if wide else 0)
    parts.append(_ticks_below(scale, bottom))
    axis = f"{METRICS[report.metric]} on the site's own test {unit_noun(report.sites)}"
    centre = (scale.start + scale.end) / 2 if wide else width / 2
    parts.append(text(centre, bottom + 40, axis, "axis", "middle"))
    return picture(width, bottom + 48, f"{axis}: {_spoken(rows)}", parts)


def curve_svg(report: RunReport, width: int) -> str:
    """Draw the global model's figure after each round.

    Args:
        report: Its ``curve``.
        width: Width of the drawing in px, >= 300.

    Returns:
        An ``<svg>`` element, or ``""`` if the curve has fewer than two points.
    """
    if len(report.curve) < 2:
        return ""
    top, bottom, left, right = 20, 240, 56, width - 52
    up = share_scale((value for _, value in report.curve), bottom, top)
    along = count_scale((number for number, _ in report.curve), left, right)
    points = [(along.at(number), up.at(value)) for number, value in report.curve]
    parts = [line(left, up.at(tick), right, up.at(tick), "grid") for tick in up.ticks]
    parts += [text(left - 8, up.at(t) + 4, f"{t:.2f}", "tick", "end") for t in up.ticks]
    parts += [text(along.at(t), bottom + 20, f"{t:.0f}", "tick", "middle") for t in along.ticks]
    if up.low < 0.5:
        parts.append(line(left, up.at(0.5), right, up.at(0.5), "chance"))
        parts.append(text(right, up.at(0.5) - 6, "guessing", "tick", "end"))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline class="together line" points="{path}"/>')
    for (x, y), (number, value) in zip(points, report.curve, strict=True):
        parts.append(dot(x, y, 3.5, f"round {number}: {figure(value)}"))
    last = report.curve[-1]
    parts.append(text(points[-1][0] + 8, points[-1][1] + 4, figure(last[1]), "value", "start"))
    parts.append(text((left + right) / 2, bottom + 42, "round", "axis", "middle"))
    metric = METRICS[report.metric]
    axis = f"{metric}, all test {unit_noun(report.sites)}"
    parts.append(turned_text(12, (top + bottom) / 2, axis, "axis"))
    first = report.curve[0]
    spoken = (
        f"{metric} by round: from {figure(first[1])} after round {first[0]} "
        f"to {figure(last[1])} after round {last[0]}"
    )
    return picture(width, bottom + 50, spoken, parts)


def _marks(
    scale: Scale, middle: float, together: Interval | None, alone: Interval | None, width: int
) -> list[str]:
    """Draw a row's marks; with a width also their figures, at its right end."""
    parts = []
    both = together is not None and alone is not None
    for interval, shift, name in ((together, -8, "together"), (alone, 8, "alone")):
        if interval is None:
            continue
        y = middle + (shift if both else 0)
        spoken = f"{name}: {figure(interval.value)} ({bounds(interval)})"
        x = scale.at(interval.value)
        parts.append(line(scale.at(interval.low), y, scale.at(interval.high), y, f"{name} span"))
        parts.append(dot(x, y, 5, spoken) if name == "together" else square(x, y, spoken))
        if width:
            words = f"{figure(interval.value)}  ({bounds(interval)})"
            parts.append(text(width - 2, y + 4, words, "value" if shift < 0 else "tick", "end"))
    if together is None and alone is None:
        parts.append(text(scale.start + 6, middle + 4, "not measured", "tick", "start"))
    return parts


def _spoken(rows: Iterable[tuple[str, Interval | None, Interval | None]]) -> str:
    """Say a forest plot to who cannot see it."""
    said = []
    for name, *pair in rows:
        figures = [
            f"{model} {figure(interval.value)}"
            for model, interval in zip(("together", "alone"), pair, strict=True)
            if interval
        ]
        said.append(f"{name} {', '.join(figures) or 'not measured'}")
    return "; ".join(said)


def _upright(scale: Scale, bottom: float) -> str:
    """Draw the grid behind the rows, and the line of guessing if it is in sight."""
    parts = [line(scale.at(t), _TOP, scale.at(t), bottom, "grid") for t in scale.ticks]
    if scale.low < 0.5:
        x = scale.at(0.5)
        parts.append(line(x, _TOP, x, bottom, "chance"))
        parts.append(text(x, _TOP - 6, "guessing", "tick", "middle"))
    return "".join(parts)


def _ticks_below(scale: Scale, bottom: float) -> str:
    texts = (text(scale.at(t), bottom + 18, f"{t:.2f}", "tick", "middle") for t in scale.ticks)
    return "".join(texts)


def _label(name: str, x: float, middle: float, room: float) -> str:
    fits = max(3, int(room / _LETTER))
    half = (fits - 1) // 2
    shown = name if len(name) <= fits else f"{name[:half]}…{name[-half:]}"
    return f"<g><title>{escape(name)}</title>{text(x, middle + 4, shown, 'label', 'start')}</g>"
