"""Write a check as one HTML file that needs nothing else, and the names it speaks of beside it."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Final

from medfed.client.scans.check import sections
from medfed.client.scans.check.copies import Pictures
from medfed.client.scans.check.examine import Examination
from medfed.client.scans.check.style import CHECK_STYLE
from medfed.client.scans.facts import LookedAt
from medfed.common.report.markup import safe
from medfed.common.report.style import STYLE
from medfed.common.trust.private_files import write_private

NAMES: Final = "files.csv"
MOST_NAMES: Final = 100_000
"""Lines of ``files.csv``."""
_HEAD: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
"""


def page_html(found: Examination, pictures: Pictures, when: datetime) -> str:
    """Draw the whole page.

    Args:
        found: What the check found.
        pictures: Gives the tensors of some scans by their places.
        when: The time that the page names.

    Returns:
        An HTML document. Private: it shows scans and counts, no name and no id.

    Guarantee:
        Every text is escaped, and a policy in the page forbids a browser to load or run anything.
        The same scans and time give the same page.
    """
    overview = found.overview
    parts = (
        sections.banner(found),
        sections.tiles(overview),
        sections.findings(found.remarks),
        sections.labels(overview),
        sections.how_taken(overview),
        sections.left_out(overview),
        sections.distributions(overview, pictures),
        sections.sheets(found, pictures),
        sections.making(overview, when),
    )
    title = safe(f"medfed scans check: {overview.study.name}")
    return (
        f"{_HEAD}<title>{title}</title>\n<style>{STYLE}{CHECK_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(parts)}</main>\n</body>\n</html>\n"
    )


def write_page(html: str, path: Path) -> None:
    """Write the page, readable by its owner only; an older one is replaced in one step.

    Raises:
        ConfigError: it cannot be written.
    """
    write_private(path, html.encode("utf-8", "replace"), replace=True)


def write_names(found: Examination, looked: Iterable[LookedAt], path: Path) -> bool:
    """Name the files that the page speaks of, in a table that only its owner may read.

    Args:
        found: What the check found.
        looked: The same scans in the same order once more.
        path: Where to; an older table is replaced.

    Returns:
        Whether there was anything to name; where not, an older table is removed.

    Raises:
        ConfigError: it cannot be written.
    """
    reasons = _by_place(found)
    if not reasons and not found.overview.text_risk and not found.overview.flat:
        path.unlink(missing_ok=True)
        return False
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(["reason", "group", "file", "picture"])
    left = MOST_NAMES
    for place, scan in enumerate(looked):
        for reason, group in [*reasons.get(place, ()), *_own(scan)][:left]:
            lines.writerow([reason, group, scan.file, "" if scan.frame is None else scan.frame])
            left -= 1
    write_private(path, text.getvalue().encode("utf-8", "surrogateescape"), replace=True)
    return True


def _by_place(found: Examination) -> dict[int, list[tuple[str, int | str]]]:
    """Place -> the copies in which a scan takes part, each with a number that its twin shares."""
    reasons: dict[int, list[tuple[str, int | str]]] = defaultdict(list)
    for kind, twins in found.copies.of.items():
        for group, pair in enumerate(twins.pairs.tolist(), 1):
            for place in pair:
                reasons[place].append((kind.value, group))
    return reasons


def _own(scan: LookedAt) -> list[tuple[str, int | str]]:
    own = []
    if scan.facts.burned_in == "yes":
        own.append("header says that text is burned in")
    elif scan.facts.text_risk:
        own.append("may have text in the picture")
    if scan.look == 0:
        own.append("shows one even grey")
    return [(reason, "") for reason in own]
