"""The few HTML pieces that the sections are made of.

Two kinds of text: *words* are plain and escaped here; *inner* is HTML that already is.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from medfed.common.report.words import clean


def safe(words: str) -> str:
    """Clean and escape a text from outside."""
    return escape(clean(words))


def section(title: str, inner: str) -> str:
    """Put HTML under a title."""
    return f"<section><h2>{safe(title)}</h2>{inner}</section>\n"


def paragraphs(inners: Iterable[str], kind: str = "") -> str:
    """Make each piece of HTML a paragraph, of one CSS class if one is named."""
    attribute = f' class="{kind}"' if kind else ""
    return "".join(f"<p{attribute}>{inner}</p>" for inner in inners)


def terms(entries: Iterable[tuple[str, str]], kind: str = "") -> str:
    """List pairs of words and HTML."""
    attribute = f' class="{kind}"' if kind else ""
    listed = "".join(f"<dt>{safe(name)}</dt><dd>{inner}</dd>" for name, inner in entries)
    return f"<dl{attribute}>{listed}</dl>"


def chart(full: str, slim: str, caption: str) -> str:
    """Show the drawing that fits the window, with words below it."""
    return (
        f'<figure><div class="chart"><div class="full">{full}</div>'
        f'<div class="slim">{slim}</div></div><figcaption>{safe(caption)}</figcaption></figure>'
    )
