"""The charts of a check as inline SVG, in the look of the run report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.check.measures import Bars
from medfed.common.report.svg import line, picture, text
from medfed.common.report.words import clean

FULL: Final = 800
"""Width on a screen and on paper, px."""
HALF: Final = 380
"""Width of one of two beside each other, px."""
SLIM: Final = 340
"""Width on a telephone, px."""
MOST_LABELS: Final = 8
"""Labels whose brightness is drawn."""
_LETTER: Final = 7.6  # px per letter of a tick, on the safe side
_HIGH: Final = 120  # px: the tallest bar
_ROW: Final = 62  # px per label


def bars_svg(bars: Bars, width: int, axis: str) -> str:
    """Draw counts as upright bars with their numbers above.

    Args:
        bars: Words and numbers.
        width: Of the drawing, px.
        axis: What the words are.

    Returns:
        An ``<svg>`` element, or ``""`` if there are no bars.
    """
    if not bars:
        return ""
    highest = max(1, *(number for _, number in bars))
    step = (width - 8) / len(bars)
    bar, bottom, top = min(56.0, step * 0.72), _HIGH + 26.0, 26.0
    stride = _stride([words for words, _ in bars], step)
    parts = [line(4, bottom, width - 4, bottom, "rule")]
    for place, (words, number) in enumerate(bars):
        middle = 4 + step * (place + 0.5)
        high = (bottom - top) * number / highest
        parts.append(_bar(middle - bar / 2, bottom - high, bar, high, f"{words}: {number:,}"))
        if number and len(_short(number)) * _LETTER <= step:
            parts.append(text(middle, bottom - high - 6, _short(number), "tick", "middle"))
        if place % stride == 0:
            parts.append(text(middle, bottom + 18, words, "tick", "middle"))
    parts.append(text(width / 2, bottom + 40, axis, "axis", "middle"))
    spoken = "; ".join(f"{words}: {number:,}" for words, number in bars)
    return picture(width, bottom + 48, f"{axis}: {spoken}", parts)


def brightness_svg(
    levels: Mapping[int, NDArray[np.float64]], labels: Sequence[str], width: int
) -> str:
    """Draw the distribution of brightness of each label, one below the other on one axis.

    Args:
        levels: Label -> share of its pixels per class from black to white.
        labels: Names of all labels.
        width: Of the drawing, px.

    Returns:
        An ``<svg>`` element, or ``""`` if nothing was measured.
    """
    chosen = sorted(levels)[:MOST_LABELS]
    if not chosen:
        return ""
    left = min(max(len(labels[label]) for label in chosen) * 8.0 + 16, width * 0.3)
    # a border of pure black may be most of a picture: what lies between decides the height
    highest = max(float(np.sort(levels[label])[-2]) for label in chosen) or 1.0
    parts, right = [], width - 4
    for row, label in enumerate(chosen):
        base = _ROW * (row + 1)
        parts.append(line(left, base, right, base, "rule"))
        parts.append(_name(clean(labels[label]), base - _ROW / 2 + 8, left - 10))
        heights = np.minimum(levels[label] / highest, 1.12) * (_ROW - 14)
        parts.append(_steps(heights, left, right, base))
    bottom = _ROW * len(chosen)
    parts.append(text(left, bottom + 18, "black", "tick", "start"))
    parts.append(text(right, bottom + 18, "white", "tick", "end"))
    spoken = "; ".join(
        f"{labels[label]}: mean {_mean(levels[label]):.0%} of white" for label in chosen
    )
    return picture(width, bottom + 26, f"Brightness of pixels: {clean(spoken)}", parts)


def share_svg(share: float) -> str:
    """Draw a share of 1 as a small bar for a cell of a table; the cell says it in words."""
    return (
        '<svg class="share" aria-hidden="true" viewBox="0 0 100 6" preserveAspectRatio="none">'
        f'<rect class="rest" width="100" height="6"/><rect width="{100 * share:.1f}" height="6"/>'
        "</svg>"
    )


def _bar(x: float, y: float, width: float, height: float, title: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="bar" {place} rx="2"><title>{escape(title)}</title></rect>'


def _steps(heights: NDArray[np.float64], left: float, right: float, base: float) -> str:
    """Draw a histogram as one outline."""
    wide = (right - left) / len(heights)
    points = [f"{left:.1f},{base}"]
    for place, height in enumerate(heights.tolist()):
        x = left + wide * place
        points += [f"{x:.1f},{base - height:.1f}", f"{x + wide:.1f},{base - height:.1f}"]
    return f'<polygon class="levels" points="{" ".join(points)} {right:.1f},{base}"/>'


def _name(name: str, y: float, room: float) -> str:
    fits = max(3, int(room / 8))
    short = name if len(name) <= fits else f"{name[: fits - 1]}…"
    return f"<g><title>{escape(name)}</title>{text(2, y, short, 'label', 'start')}</g>"


def _mean(levels: NDArray[np.float64]) -> float:
    return float(levels @ (np.arange(len(levels)) + 0.5) / len(levels))


def _short(number: int) -> str:
    """Say a number in few letters: ``3,494``, ``12k``, ``1.2M``."""
    if number < 10_000:
        return f"{number:,}"
    return f"{number / 1000:.0f}k" if number < 999_500 else f"{number / 1e6:.1f}M"


def _stride(words: Sequence[str], step: float) -> int:
    """Label every so many bars, so that the words do not touch."""
    longest = max(len(word) for word in words) * _LETTER + 6
    return max(1, math.ceil(longest / step))
