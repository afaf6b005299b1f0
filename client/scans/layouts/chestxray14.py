"""The layout of NIH ChestX-ray14: ``Data_Entry_2017.csv`` and PNG pictures in any folders.

Columns: ``Image Index`` (file name), ``Finding Labels`` (separated by ``|``, or ``No Finding``),
``Patient ID``, ``View Position``. ``train_val_list.txt`` and ``test_list.txt``, where they are,
give the parts; they know no validation patients, so all that is not test is training.

Source:
    Wang, Peng, Lu, et al. ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks. CVPR
    2017. https://arxiv.org/abs/1705.02315
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from medfed.client.scans.layouts.files import PICTURES, Named
from medfed.client.scans.layouts.layout import (
    Collector,
    Entry,
    Index,
    Layout,
    LineReason,
    SourceRules,
)
from medfed.client.scans.layouts.tables import Line, Table, read_text
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
    files, parts = Named(folder.resolve(), PICTURES), _parts(folder)
    for line in table.lines():
        _take(line, collector, files, parts if study.split.rule == "given" else {})
    return collector.index()


def _take(line: Line, collector: Collector, files: Named, parts: Mapping[str, Part]) -> None:
    name, patient = line.cells["Image Index"], line.cells["Patient ID"]
    found = {text.strip() for text in line.cells["Finding Labels"].split("|")} - {""}
    if not (name and patient and found):
        return collector.refuse(LineReason.LINE)
    if parts and name not in parts:
        return collector.refuse(LineReason.NO_PART)
    label = collector.label(found)
    if label is None:
        return None
    file = files.find(name)
    if isinstance(file, LineReason):
        return collector.refuse(file)
    view = line.get("View Position")
    return collector.add(Entry(file, label, patient, parts.get(name), view=view))


def _parts(folder: Path) -> dict[str, Part]:
    """Picture -> part; empty where there are no lists."""
    parts: dict[str, Part] = {}
    for name, part in LISTS.items():
        if (folder / name).exists():
            listed = {text.strip() for text in read_text(folder / name).splitlines()} - {""}
            if not listed.isdisjoint(parts):
                raise ScanError(
                    f"{folder}: {len(listed & parts.keys())} pictures are on both of "
                    f"{', '.join(LISTS)}.",
                    advice="correct the lists.",
                )
            parts |= dict.fromkeys(listed, part)
    return parts


def _fits(_folder: Path, names: Collection[str]) -> bool:
    return any(name in names for name in TABLES)


CHESTXRAY14: Final = Layout(
    "chestxray14", "Data_Entry_2017.csv (NIH ChestX-ray14)", _fits, make_index
)
