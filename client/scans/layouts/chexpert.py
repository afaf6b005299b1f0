"""The layout of CheXpert: ``train.csv``, ``valid.csv``, ``test.csv`` and JPEG pictures by path.

``Path`` is ``…/train/patient00001/study1/view1_frontal.jpg``; the patient is read from it. Each
finding has a column: 1 it is there, 0 it is not, -1 it may be (what that counts as, says the
study's ``findings.uncertain``), blank: not mentioned, which counts as not there.

Source:
    Irvin, Rajpurkar, Ko, et al. CheXpert: A Large Chest Radiograph Dataset with Uncertainty
    Labels and Expert Comparison. AAAI 2019. https://arxiv.org/abs/1901.07031 (table 1 and
    section 3.1: the policies ignore, zeros and ones).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from medfed.client.scans.layouts.collector import Collector
from medfed.client.scans.layouts.files import Inside
from medfed.client.scans.layouts.layout import (
    Entry,
    Index,
    Layout,
    LineReason,
    SourceRules,
)
from medfed.client.scans.layouts.tables import Line, Table
from medfed.client.scans.scanset import TEST, TRAIN, VALIDATION, Part
from medfed.common.study import Study

TABLES: Final = {"train.csv": TRAIN, "valid.csv": VALIDATION, "test.csv": TEST}
FINDINGS: Final = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
_STATES: Final = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "": 0, "-1": -1, "-1.0": -1}
_PATIENT: Final = re.compile(r"patient\d+")


def make_index(folder: Path, study: Study, rules: SourceRules) -> Index:
    """Index the pictures that the tables name.

    Raises:
        ScanError: a table cannot be read or has no column of a finding, or no picture is left.
    """
    collector = Collector("chexpert", folder, study)
    inside = Inside(folder.resolve())
    for name, part in TABLES.items():
        if (folder / name).exists() or name == "train.csv":
            table = Table(folder / name)
            table.need("Path")
            columns = [finding for finding in FINDINGS if finding in table.columns]
            if not columns:
                table.need(FINDINGS[0])
            for line in table.lines():
                _take(line, columns, collector, inside, part)
    return collector.index()


def _take(
    line: Line, columns: Collection[str], collector: Collector, inside: Inside, part: Part
) -> None:
    steps = [step for step in line.cells["Path"].replace("\\", "/").split("/") if step]
    patient = next((step for step in steps if _PATIENT.fullmatch(step)), None)
    states = {column: _STATES.get(line.cells[column]) for column in columns}
    if patient is None or None in states.values():
        return collector.refuse(LineReason.LINE)
    label = collector.label(
        [column for column, state in states.items() if state == 1],
        [column for column, state in states.items() if state == -1],
    )
    if label is None:
        return None
    file = _below(inside, steps)
    if isinstance(file, LineReason):
        return collector.refuse(file)
    view = line.get("AP/PA") or line.get("Frontal/Lateral")
    return collector.add(Entry(file, label, patient, part, view=view))


def _below(inside: Inside, steps: list[str]) -> str | LineReason:
    """The file; paths may begin with the data set's own name, which the folder may have or not."""
    file = inside.find("/".join(steps))
    if isinstance(file, LineReason):
        return file
    if len(steps) > 1 and not (inside.root / steps[0]).exists():
        return inside.find("/".join(steps[1:]))
    return file


def _fits(folder: Path, names: Collection[str]) -> bool:
    if "train.csv" not in names:
        return False
    with (folder / "train.csv").open("rb") as file:
        first = file.readline(10_000).decode("utf-8", "replace")
    return "Path" in first and any(finding in first for finding in FINDINGS)


CHEXPERT: Final = Layout("chexpert", "train.csv with a column Path (CheXpert)", _fits, make_index)
