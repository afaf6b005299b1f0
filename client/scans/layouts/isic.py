"""The layout of ISIC and HAM10000: a ground truth table, metadata tables, and JPEG pictures.

Ground truth (``*GroundTruth*.csv``): the picture's name without ending (``image``, ``image_name``
or ``image_id``) and either one column per diagnosis with a single 1 (``MEL``, ``NV`` …), or the
diagnosis as text (``dx``, ``diagnosis``, ``benign_malignant``); ``HAM10000_metadata.csv`` is of
the second kind. The word Training, Validation or Test in a table's name gives the part.

Whose a picture is stands in the ground truth or in ``*Metadata*.csv`` or ``*LesionGroupings*.csv``:
``patient_id``; without it pictures group by ``lesion_id``, and the unit is ``image``, because a
patient may have several lesions.

Source:
    Rotemberg, Kurtansky, Betz-Stablein, et al. A patient-centric dataset of images and metadata
    for identifying melanomas using clinical context. Scientific Data 8, 34 (2021); Tschandl,
    Rosendahl, Kittler. The HAM10000 dataset. Scientific Data 5, 180161 (2018).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from medfed.client.scans.layouts.collector import Collector
from medfed.client.scans.layouts.files import PICTURES, Named
from medfed.client.scans.layouts.layout import (
    Entry,
    Index,
    Layout,
    LineReason,
    SourceRules,
)
from medfed.client.scans.layouts.tables import Line, Table
from medfed.client.scans.scanset import PARTS, Part
from medfed.common.errors import ScanError
from medfed.common.study import Study

TRUTH: Final = re.compile(r"(?i).*groundtruth.*\.csv|ham10000_metadata(\.csv)?")
OTHERS: Final = re.compile(r"(?i).*(metadata|lesiongroupings).*\.csv")
IMAGE: Final = ("image", "image_name", "image_id")
ONE_HOT: Final = ("MEL", "NV", "BCC", "AK", "AKIEC", "BKL", "DF", "VASC", "SCC", "UNK")
TEXTS: Final = ("dx", "diagnosis", "benign_malignant")
_WORDS: Final = {"training": "train", "validation": "validation", "test": "test"}


class Whose(NamedTuple):
    """What a table says of a picture's origin; empty where it does not. Private."""

    patient: str
    lesion: str

    def __repr__(self) -> str:
        return "Whose()"


def make_index(folder: Path, study: Study, rules: SourceRules) -> Index:
    """Index the pictures that the ground truth names.

    Raises:
        ScanError: a table cannot be read or has no diagnosis, or no picture is left.
    """
    names = sorted(item.name for item in folder.iterdir())
    truths = [name for name in names if TRUTH.fullmatch(name)]
    if not truths:
        raise ScanError(
            f"{folder}: holds no ground truth table.",
            advice="put the *GroundTruth*.csv of the data set into it.",
        )
    whose: dict[str, Whose] = {}
    for name in names:
        if OTHERS.fullmatch(name) or name in truths:
            _read_whose(Table(folder / name), whose)
    collector = Collector("isic", folder, study)
    files = Named(folder.resolve(), PICTURES)
    for name in truths:
        _read_truth(Table(folder / name), part_of(name), collector, files, whose)
    index = collector.index()
    named = {one.patient for one in whose.values()}
    by_patient = all(entry.patient in named for entry in index.entries)
    return index if by_patient else replace(index, unit="image")


def part_of(name: str) -> Part | None:
    """The part that a table's name says: ``ISIC_2019_Training_GroundTruth.csv`` is training."""
    return next((PARTS[p] for word, p in _WORDS.items() if word in name.lower()), None)


def _read_whose(table: Table, whose: dict[str, Whose]) -> None:
    image = table.column(IMAGE)
    if image is None:
        return
    known: dict[Whose, Whose] = {}  # one object for all pictures of a patient
    for line in table.lines():
        before = whose.get(line.cells[image], Whose("", ""))
        patient = before.patient or line.get("patient_id")
        one = Whose(patient, before.lesion or line.get("lesion_id"))
        whose[line.cells[image]] = known.setdefault(one, one)


def _read_truth(
    table: Table,
    part: Part | None,
    collector: Collector,
    files: Named,
    whose: Mapping[str, Whose],
) -> None:
    image = table.column(IMAGE)
    columns = [c for c in (*ONE_HOT, *TEXTS) if c in table.columns]
    if image is None or not columns:
        raise table.error("its first line names no image, or no diagnosis")
    for line in table.lines():
        found = diagnoses(line, columns)
        if not line.cells[image] or not found:
            collector.refuse(LineReason.LINE)
            continue
        label = collector.label(found)
        if label is None:
            continue
        file = files.find(*(line.cells[image] + ending for ending in (*PICTURES, ".JPG", "")))
        if isinstance(file, LineReason):
            collector.refuse(file)
        else:
            key = whose.get(line.cells[image], Whose("", ""))
            collector.add(Entry(file, label, key.patient or key.lesion or None, part))


def diagnoses(line: Line, columns: Collection[str]) -> set[str]:
    """What a line says the picture shows; empty where it is contradictory or says nothing.

    Of one-hot columns exactly one must be 1 and the others 0.
    """
    hot = {c: line.cells[c] for c in columns if c in ONE_HOT}
    ones = {column for column, cell in hot.items() if cell in ("1", "1.0")}
    if hot and (len(ones) != 1 or not set(hot.values()) <= {"0", "0.0", "1", "1.0"}):
        return set()
    return ones | {line.cells[c] for c in columns if c in TEXTS and line.cells[c]}


def _fits(_folder: Path, names: Collection[str]) -> bool:
    return any(TRUTH.fullmatch(name) for name in names)


ISIC: Final = Layout("isic", "a *GroundTruth*.csv or HAM10000_metadata (ISIC)", _fits, make_index)
