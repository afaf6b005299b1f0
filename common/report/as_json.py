"""A report for machines: the same values under keys that stay."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from medfed.common.report.content import RunReport

FORMAT = 1
"""Raised when a key changes its name or meaning; a new key does not raise it."""


def report_json(report: RunReport) -> str:
    """Write a report as JSON.

    Returns:
        One object, indented, ASCII, ending in a newline. Keys are ``format`` and the names of
        ``RunReport``, ``SiteRow`` and ``Interval``; what is unknown is ``null``. Per site
        ``gain`` and ``neighbours`` (the relation its epsilon refers to) are added. Every
        number has all its digits.

    Guarantee:
        The same report gives the same bytes.
    """
    sites = [
        {**_plain(row), "gain": row.gain, "neighbours": f"add-or-remove one {row.unit}"}
        for row in report.sites
    ]
    return json.dumps({"format": FORMAT, **_plain(report), "sites": sites}, indent=2) + "\n"


def _plain(value: Any) -> Any:
    """Turn dataclasses and mappings into dictionaries, tuples into lists."""
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return value
