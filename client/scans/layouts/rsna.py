"""The layout of the RSNA pneumonia challenge: ``stage_2_train_labels.csv`` and DICOM files.

Columns: ``patientId``, which is also the file's name, and ``Target`` (1 or 0), among the corners
of boxes: a picture with several boxes has several lines, and one line with 1 suffices. The
findings are ``1`` and ``0``, as the table writes them, and, where
``stage_2_detailed_class_info.csv`` lies beside it, its ``class`` (``Normal``, ``Lung Opacity``,
``No Lung Opacity / Not Normal``). A study maps them: ``findings.means``. There is no split.

Source:
    Shih, Wu, Halabi, et al. Augmenting the NIH Chest Radiograph Dataset with Expert Annotations
    of Possible Pneumonia. Radiology: Artificial Intelligence 1(1), 2019.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from medfed.client.scans.layouts.collector import Collector
from medfed.client.scans.layouts.files import Named
from medfed.client.scans.layouts.layout import (
    Entry,
    Index,
    Layout,
    LineReason,
    SourceRules,
)
from medfed.client.scans.layouts.tables import Table
from medfed.common.study import Study

TABLE: Final = "stage_2_train_labels.csv"
CLASSES: Final = "stage_2_detailed_class_info.csv"
_ENDINGS: Final = (".dcm", ".png", ".jpg")


def make_index(folder: Path, study: Study, rules: SourceRules) -> Index:
    """Index the pictures that the table names, each once.

    Raises:
        ScanError: a table cannot be read, or no picture is left.
    """
    collector = Collector("rsna", folder, study)
    found = _targets(folder, collector)
    _add_classes(folder, found)
    files = Named(folder.resolve(), _ENDINGS)
    for patient, texts in found.items():
        label = collector.label(texts)
        if label is None:
            continue
        file = files.find(*(patient + ending for ending in _ENDINGS))
        if isinstance(file, LineReason):
            collector.refuse(file)
        else:
            collector.add(Entry(file, label, patient))
    return collector.index()


def _targets(folder: Path, collector: Collector) -> dict[str, frozenset[str]]:
    """Patient -> ``1`` if any of the patient's lines says so, else ``0``."""
    table = Table(folder / TABLE)
    table.need("patientId", "Target")
    texts = {target: frozenset({target}) for target in ("0", "1")}  # one object for all patients
    found: dict[str, frozenset[str]] = {}
    for line in table.lines():
        patient, target = line.cells["patientId"], line.cells["Target"]
        if not patient or target not in texts:
            collector.refuse(LineReason.LINE)
        elif found.setdefault(patient, texts[target]) == texts["0"]:
            found[patient] = texts[target]
    return found


def _add_classes(folder: Path, found: dict[str, frozenset[str]]) -> None:
    """Add each patient's classes, where their table is there."""
    if not (folder / CLASSES).exists():
        return
    table = Table(folder / CLASSES)
    table.need("patientId", "class")
    known: dict[frozenset[str], frozenset[str]] = {}
    for line in table.lines():
        patient = line.cells["patientId"]
        if patient in found:
            both = found[patient] | {line.cells["class"]}
            found[patient] = known.setdefault(both, both)


def _fits(_folder: Path, names: Collection[str]) -> bool:
    return TABLE in names


RSNA: Final = Layout("rsna", f"{TABLE} (RSNA pneumonia)", _fits, make_index)
