"""From an index of files to one whose scans are series of slices.

Which series a file is of says its header (Series Instance UID); what is no DICOM file, as a NIfTI
volume, stays a scan of its own, and so does an enhanced multi-frame file, which holds a whole
series. Whether the slices make a series is seen when they are read (``series.py``).

Source:
    DICOM PS3.3 C.7.3.1 (general series), A.36 and A.38 (enhanced MR and CT).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from pydicom import uid as uids

from medfed.client.scans.layouts.dicom_headers import header_values
from medfed.client.scans.layouts.files import ARRAYS, PICTURES, VOLUMES, has_ending
from medfed.client.scans.layouts.layout import Entry, Index, LineReason

MULTI_FRAME: Final = (
    uids.EnhancedCTImageStorage,
    uids.EnhancedMRImageStorage,
    uids.EnhancedPETImageStorage,
    uids.LegacyConvertedEnhancedCTImageStorage,
    uids.LegacyConvertedEnhancedMRImageStorage,
    uids.LegacyConvertedEnhancedPETImageStorage,
)


def by_series(index: Index) -> Index:
    """Join the files of each series into one scan.

    Args:
        index: Of files. Private.

    Returns:
        An index with one entry for each series, at the place of the first of its files: ``file``
        is the first by name, ``others`` are the rest by name. Left out, and counted by file, are
        files without a series, and series whose files have different labels, patients or parts.
        Private.

    Guarantee:
        Independent of the order of ``index.entries`` but for the order of the result.
    """
    groups: dict[tuple[str, bool], list[Entry]] = {}
    refused = Counter(index.refused)
    for entry in index.entries:
        key = _key(index.folder, entry)
        if key is None:
            refused[LineReason.NO_SERIES.value] += 1
        else:
            groups.setdefault(key, []).append(entry)
    entries = []
    for files in groups.values():
        joined = _joined(files)
        if joined is None:
            refused[LineReason.CONTRADICTION.value] += len(files)
        else:
            entries.append(joined)
    return replace(index, entries=entries, refused=dict(refused))


def _key(folder: Path, entry: Entry) -> tuple[str, bool] | None:
    """The series of a file, or the file itself where it is a scan of its own; None: neither."""
    own = f"{entry.file}\0{entry.frame}", False
    if entry.frame is not None or has_ending(entry.file, (*PICTURES, *VOLUMES, *ARRAYS)):
        return own
    found = header_values(folder / entry.file, ["SeriesInstanceUID", "SOPClassUID"])
    if found is None or found[1] in MULTI_FRAME:  # what is no DICOM file is refused when it is read
        return own
    return (found[0], True) if found[0] else None


def _joined(files: Sequence[Entry]) -> Entry | None:
    """One entry for all files; None where they contradict each other."""
    first, *others = sorted(files, key=lambda entry: entry.file)
    for other in others:
        if (other.label, other.patient, other.part) != (first.label, first.patient, first.part):
            return None
    views, modalities = ({getattr(e, name) for e in files} for name in ("view", "modality"))
    return first._replace(
        others=tuple(entry.file for entry in others),
        view=first.view if len(views) == 1 else "",
        modality=first.modality if len(modalities) == 1 else "",
    )
