"""One ``.npz`` of pictures and labels: MedMNIST, or plain ``images`` and ``labels``.

Labels are class indices of shape ``(N,)`` or ``(N, 1)``. See ``npz.py`` for the arrays.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from medfed.client.scans.layouts.collector import pack_entries
from medfed.client.scans.layouts.files import ARRAYS, has_ending
from medfed.client.scans.layouts.layout import (
    Entry,
    Index,
    Layout,
    SourceRules,
)
from medfed.client.scans.npz import index_pictures
from medfed.common.errors import ScanError
from medfed.common.study import Study


def make_index(source: Path, study: Study, rules: SourceRules) -> Index:
    """Index the pictures of an ``.npz`` file, or of the only one in a folder.

    Raises:
        ScanError: as ``index_pictures``; or the study asks for a spacing.
    """
    path = source if has_ending(source.name, ARRAYS) else _only_one(source)
    if study.scans.spacing_mm is not None:
        raise ScanError(
            f"{path}: study {study.name!r} resamples to {study.scans.spacing_mm} mm, and the "
            "pictures of an .npz have no pixel spacing.",
            advice="leave scans.spacing_mm out of the study, or use DICOM files.",
        )
    found = index_pictures(path, study)
    parts: Sequence[int | None] = found.parts or [None] * len(found.labels)
    entries = pack_entries(
        Entry(path.name, label, key, part, frame=number)
        for number, (label, key, part) in enumerate(
            zip(found.labels, found.keys, parts, strict=True)
        )
    )
    return Index("medmnist", path.parent, entries, {}, found.unit)


def _only_one(folder: Path) -> Path:
    found = sorted(item for item in folder.iterdir() if has_ending(item.name, ARRAYS))
    if len(found) != 1:
        raise ScanError(
            f"{folder}: holds {len(found)} .npz files, not one.",
            advice="give the path of the .npz file.",
        )
    return found[0]


def _fits(_folder: Path, names: Collection[str]) -> bool:
    return sum(has_ending(name, ARRAYS) for name in names) == 1


MEDMNIST: Final = Layout("medmnist", "one .npz of arrays (MedMNIST)", _fits, make_index)
