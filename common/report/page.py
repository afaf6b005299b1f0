"""Write a report as one HTML file that needs nothing else: no network, no script, no fonts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from medfed.common.files import write_atomically
from medfed.common.report import results, sections
from medfed.common.report.content import RunReport
from medfed.common.report.markup import safe
from medfed.common.report.style import STYLE

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
"""


def page_html(report: RunReport) -> str:
    """Draw the whole page.

    Returns:
        An HTML document. The same report gives the same text.

    Guarantee:
        Every text of the report is escaped, and a policy in the page forbids a browser to load
        or run anything, so that a name in a report cannot act on its reader.
    """
    parts = (
        sections.banner(report),
        sections.tiles(report),
        sections.problems(report),
        results.site_table(report),
        results.forest(report),
        results.curve(report),
        sections.evaluations(report),
        sections.privacy(report),
        sections.making(report),
        sections.glossary(),
    )
    return document(f"{report.title}: {report.study_name}", parts)


def document(title: str, parts: Iterable[str]) -> str:
    """Make an HTML document in the house look of pieces of HTML.

    Args:
        title: Words; escaped here.
        parts: What stands on the page, one below the other.

    Guarantee:
        A policy in the page forbids a browser to load or run anything.
    """
    return (
        f"{_HEAD}<title>{safe(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(parts)}</main>\n</body>\n</html>\n"
    )


def write_page(report: RunReport, path: Path) -> None:
    """Write the page to a file, readable by its owner only.

    Args:
        report: What to show.
        path: Where to; its folder exists. An older page is replaced in one step.

    Raises:
        OSError: the disk is full or the folder cannot be written; an older page is unchanged.
    """
    write_atomically(path, page_html(report).encode())
