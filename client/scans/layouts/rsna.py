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

from medfed.client.scans.layouts.files import Named
from medfed.client.scans.layouts.layout import (
    Collector,
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
    for patient, detailed in _classes(folder).items():
        if patient in found:
            found[patient] |= detailed
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


def _targets(folder: Path, collector: Collector) -> dict[str, set[str]]:
    """Patient -> ``1`` if any of the patient's lines says so, else ``0``."""
    table = Table(folder / TABLE)
    table.need("patientId", "Target")
    found: dict[str, set[str]] = {}
    for line in table.lines():
        patient, target = line.cells["patientId"], line.cells["Target"]
        if not patient or target not in ("0", "1"):
            collector.refuse(LineReason.LINE)
        elif found.setdefault(patient, {target}) == {"0"}:
            found[patient] = {target}
    return found


def _classes(folder: Path) -> dict[str, set[str]]:
    if not (folder / CLASSES).exists():
        return {}
    table = Table(folder / CLASSES)
    table.need("patientId", "class")
    found: dict[str, set[str]] = {}
    for line in table.lines():
        found.setdefault(line.cells["patientId"], set()).add(line.cells["class"])
    return found


def _fits(_folder: Path, names: Collection[str]) -> bool:
    return TABLE in names


RSNA: Final = Layout("rsna", f"{TABLE} (RSNA pneumonia)", _fits, make_index)
