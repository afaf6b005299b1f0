"""The layout of NIH ChestX-ray14: ``Data_Entry_2017.csv`` and PNG pictures in any folders.

Columns: ``Image Index`` (file name), ``Finding Labels`` (separated by ``|``, or ``No Finding``),
``Patient ID``, ``View Position``. ``train_val_list.txt`` and ``test_list.txt``, where they are,
give the parts; they know no validation patients, so all that is not test is training.

Source:
    Wang, Peng, Lu, et al. ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks. CVPR
    2017. https://arxiv.org/abs/1705.02315
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from medfed.client.scans.layouts.collector import Collector
from medfed.client.scans.layouts.files import PICTURES, Named
from medfed.client.scans.layouts.layout import (
    Entry,
    Index,
    Layout,
    LineReason,
    SourceRules,
)
from medfed.client.scans.layouts.lookup import Lookup
from medfed.client.scans.layouts.tables import Line, Table, opened
from medfed.client.scans.scanset import TEST, TRAIN, Part
from medfed.common.errors import ScanError
from medfed.common.study import Study

TABLES: Final = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTS: Final = {"train_val_list.txt": TRAIN, "test_list.txt": TEST}


def make_index(folder: Path, study: Study, rules: SourceRules) -> Index:
    """Index the pictures that the table names.

    Raises:
        ScanError: the table or a list cannot be read, a picture is on both lists, or none is
            left.
    """
    table = Table(folder / next((name for name in TABLES if (folder / name).exists()), TABLES[-1]))
    table.need("Image Index", "Finding Labels", "Patient ID")
    collector = Collector("chestxray14", folder, study)
    files = Named(folder.resolve(), PICTURES)
    parts = _parts(folder)  # also where they are not asked for: they may be wrong
    for line in table.lines():
        _take(line, collector, files, parts if study.split.rule == "given" else None)
    return collector.index()


def _take(line: Line, collector: Collector, files: Named, parts: Lookup | None) -> None:
    name, patient = line.cells["Image Index"], line.cells["Patient ID"]
    found = {text.strip() for text in line.cells["Finding Labels"].split("|")} - {""}
    if not (name and patient and found):
        return collector.refuse(LineReason.LINE)
    listed = parts.find(name) if parts else None
    if parts and listed is None:
        return collector.refuse(LineReason.NO_PART)
    label = collector.label(found)
    if label is None:
        return None
    file = files.find(name)
    if isinstance(file, LineReason):
        return collector.refuse(file)
    view = line.get("View Position")
    part = None if listed is None else listed.value
    return collector.add(Entry(file, label, patient, part, view=view))


def _parts(folder: Path) -> Lookup | None:
    """Picture -> part; None where there are no lists."""
    parts = Lookup(_listed(folder))
    if parts.contradictions:
        raise ScanError(
            f"{folder}: {parts.contradictions} pictures are on both of {', '.join(LISTS)}.",
            advice="correct the lists.",
        )
    return parts if len(parts) else None


def _listed(folder: Path) -> Iterator[tuple[str, Part]]:
    for name, part in LISTS.items():
        if (folder / name).exists():
            with opened(folder / name) as lines:
                yield from ((text, part) for line in lines if (text := line.strip()))


def _fits(_folder: Path, names: Collection[str]) -> bool:
    return any(name in names for name in TABLES)


CHESTXRAY14: Final = Layout(
    "chestxray14", "Data_Entry_2017.csv (NIH ChestX-ray14)", _fits, make_index
)
