"""The few SVG elements that the charts are made of. Every text is escaped here.

A ``kind`` names the CSS classes that give an element its look (``style.py``); places are in px.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Draw a straight line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def dot(x: float, y: float, radius: float, title: str) -> str:
    """Draw a disc, the mark of the global model."""
    return (
        f'<circle class="together mark" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
        f"<title>{escape(title)}</title></circle>"
    )


def square(x: float, y: float, title: str) -> str:
    """Draw a square, the mark of a site alone."""
    return (
        f'<rect class="alone mark" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8">'
        f"<title>{escape(title)}</title></rect>"
    )


def text(x: float, y: float, words: str, kind: str, anchor: str) -> str:
    """Write a text; ``anchor`` is ``start``, ``middle`` or ``end``."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def turned_text(x: float, y: float, words: str, kind: str) -> str:
    """Write a text that reads upwards, with its middle at a place."""
    place = f'text-anchor="middle" transform="translate({x:.1f} {y:.1f}) rotate(-90)"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def picture(width: int, height: float, spoken: str, parts: Iterable[str]) -> str:
    """Put parts into a drawing; ``spoken`` tells it to who cannot see it."""
    return (
        f'<svg role="img" aria-label="{escape(spoken)}" width="{width}" height="{height:.0f}" '
        f'viewBox="0 0 {width} {height:.0f}">{"".join(parts)}</svg>'
    )
