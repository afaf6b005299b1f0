"""Which scans of an index a study takes, by the view that the data set's table says.

Here and not where files are read, because a table may change when the file does not. The header
of a DICOM file says its own view, which is looked at with the rest of it (``suited.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from medfed.client.scans.layouts.files import ARRAYS, PICTURES, VOLUMES, has_ending
from medfed.client.scans.layouts.layout import Entry, Index
from medfed.client.scans.refusals import Reason


def of_views(index: Index, views: Collection[str] | None) -> Index:
    """Leave out, and count, scans of another view, and files that say none and have no header.

    Args:
        index: Private.
        views: That the study takes, in capitals; None: any.
    """
    if views is None:
        return index
    entries = [entry for entry in index.entries if _may_be(entry, views)]
    refused = Counter(index.refused)
    if len(entries) < len(index.entries):
        refused[Reason.VIEW.value] += len(index.entries) - len(entries)
    return replace(index, entries=entries, refused=dict(refused))


def _may_be(entry: Entry, views: Collection[str]) -> bool:
    said = entry.view.strip().upper()
    headed = not has_ending(entry.file, (*PICTURES, *VOLUMES, *ARRAYS))
    return said in views if said else headed
