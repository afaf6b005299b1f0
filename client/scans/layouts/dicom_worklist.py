"""Scans as a folder of files with a worklist beside them: what most hospitals have.

``worklist.csv`` gives the labels, one line per scan, study, series or patient:

=============  ==================================================================================
``file``       path below the folder, or instead of it one of
``sop_uid``    SOP Instance UID,
``series_uid`` Series Instance UID,
``study_uid``  Study Instance UID,
``accession``  Accession Number or
``patient_id`` Patient ID, by which the DICOM files anywhere below the folder are found
``label``      one of the study's labels, or a finding that the study maps to one
``split``      train, validation or test, where the study takes the split as given
``patient``    whose the scan is; looked at for pictures and NIfTI volumes only
=============  ==================================================================================

Which DICOM files belong to one patient is read from their headers (PatientID), used in memory to
group and to split, and not kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from medfed.client.scans.layouts.collector import Collector
from medfed.client.scans.layouts.dicom_headers import files_by
from medfed.client.scans.layouts.files import PICTURES, VOLUMES, Inside, has_ending
from medfed.client.scans.layouts.layout import (
    Entry,
    Index,
    Join,
    Layout,
    LineReason,
    SourceRules,
)
from medfed.client.scans.layouts.lookup import Lookup
from medfed.client.scans.layouts.tables import Line, Table
from medfed.client.scans.scanset import PARTS
from medfed.common.errors import ScanError
from medfed.common.findings import LabelRule, Unlabelled
from medfed.common.study import Study

WORKLIST: Final = "worklist.csv"
COLUMNS: Final[Mapping[Join, tuple[str, ...]]] = {
    "file": ("file",),
    "sop_uid": ("sop_uid", "SOPInstanceUID"),
    "series_uid": ("series_uid", "SeriesInstanceUID"),
    "study_uid": ("study_uid", "StudyInstanceUID"),
    "accession": ("accession", "AccessionNumber"),
    "patient_id": ("patient_id",),
}
"""What files and lines are matched by -> how its column may be called."""

_PARTS: Final = len(PARTS) + 1  # and none


class _Columns(NamedTuple):
    """Which columns of a worklist mean what."""

    join: Join
    key: str
    label: str
    split: str | None
    patient: str | None


class _Row(NamedTuple):
    """One line, checked. Private."""

    line: int
    key: str
    label: int
    part: int | None
    patient: str | None

    def __repr__(self) -> str:
        return f"_Row(line={self.line})"


def make_index(folder: Path, study: Study, rules: SourceRules) -> Index:
    """Read and check the worklist; files are opened only to match them by their headers.

    Raises:
        ScanError: the list cannot be read, names no scan, or a line breaks a rule.
    """
    table = _opened(folder)
    columns = _columns(table, study, rules)
    rule = study.task.findings.rule_for(study.task.labels)
    rows = _rows(table, columns, rule, study)
    collector = Collector("dicom-worklist", folder, study)
    if columns.join == "file":
        _add_named(table, folder.resolve(), rows, collector)
    else:
        _add_matched(folder, columns.join, rows, collector)
    return collector.index()


def _opened(folder: Path) -> Table:
    try:
        return Table(folder / WORKLIST)
    except ScanError:
        if not (folder / WORKLIST).exists():
            raise ScanError(
                f"{folder}: the scans folder holds no {WORKLIST}.",
                advice=f"put {WORKLIST} (columns file, label) and the DICOM files into it.",
            ) from None
        raise


def _columns(table: Table, study: Study, rules: SourceRules) -> _Columns:
    allowed = COLUMNS if rules.join is None else {rules.join: COLUMNS[rules.join]}
    found = {join: column for join in allowed if (column := table.column(COLUMNS[join]))}
    label = table.column([rules.label_column or "label"])
    split = table.column(["split"]) if study.split.rule == "given" else None
    missing: list[str] = [] if found else [rules.join or "file"]
    missing += [] if label else [rules.label_column or "label"]
    missing += ["split"] if study.split.rule == "given" and split is None else []
    if missing or label is None:
        others = ", ".join(join for join in COLUMNS if join != "file")
        raise table.error(
            f"columns missing in its first line: {', '.join(missing)}"
            + (f" (instead of file: {others})" if "file" in missing else "")
        )
    join, key = next(iter(found.items()))
    return _Columns(join, key, label, split, table.column(["patient"]))


def _rows(table: Table, columns: _Columns, rule: LabelRule, study: Study) -> Iterator[_Row]:
    line = None
    for line in table.lines():
        yield _row(table, line, columns, rule, study)
    if line is None:
        raise table.error(
            "names no scan",
            advice=f"write one line per scan into it, under the columns {columns.key}, label.",
        )


def _row(table: Table, line: Line, columns: _Columns, rule: LabelRule, study: Study) -> _Row:
    key = line.cells[columns.key]
    if not key or "\0" in key:
        raise table.error(f"line {line.number}: names no {columns.join}")
    label = rule.class_of([line.cells[columns.label]])
    if isinstance(label, Unlabelled):
        allowed = ", ".join(study.task.labels)
        raise table.error(f"line {line.number}: its label is none of the study's ({allowed})")
    part = None
    if columns.split is not None:
        part = PARTS.get(line.cells[columns.split])
        if part is None:
            raise table.error(f"line {line.number}: its split is none of {', '.join(PARTS)}")
    patient = line.cells[columns.patient] if columns.patient else ""
    return _Row(line.number, key, label, part, patient or None)


def _add_named(table: Table, root: Path, rows: Iterable[_Row], collector: Collector) -> None:
    """Take the files that the lines name; whether they are there shows when they are read."""
    inside = Inside(root)
    for row in rows:
        file = inside.find(row.key)
        if file is LineReason.OUTSIDE:
            raise table.error(f"line {row.line}: its file is outside the folder")
        if isinstance(file, LineReason):
            raise table.error(f"line {row.line}: its file cannot be found")
        headed = not has_ending(file, (*PICTURES, *VOLUMES))
        collector.add(Entry(file, row.label, None if headed else row.patient, row.part))
    if collector.settle():
        raise table.error("a file stands on more than one line")


def _add_matched(folder: Path, join: Join, rows: Iterable[_Row], collector: Collector) -> None:
    """Give each DICOM file below the folder the label of the line that its header belongs to."""
    lines = Lookup((row.key, _together(row.label, row.part)) for row in rows)
    used = np.zeros(len(lines), np.bool_)
    for file, key in files_by(folder.resolve(), join):
        said = lines.find(key)
        if said is None:
            collector.refuse(LineReason.NO_LINE)
            continue
        used[said.place] = True
        if said.agreed:
            label, part = _apart(said.value)
            collector.add(Entry(file, label, None, part))
        else:
            collector.refuse(LineReason.CONTRADICTION)
    if unused := len(used) - int(used.sum()):
        collector.refuse(LineReason.NOT_THERE, unused)


def _together(label: int, part: int | None) -> int:
    """Label and part as one number."""
    return label * _PARTS + (_PARTS - 1 if part is None else part)


def _apart(number: int) -> tuple[int, int | None]:
    label, part = divmod(number, _PARTS)
    return label, None if part == _PARTS - 1 else part


def _fits(_folder: Path, names: Collection[str]) -> bool:
    return WORKLIST in names


DICOM_WORKLIST: Final = Layout(
    "dicom-worklist", f"{WORKLIST} beside DICOM files", _fits, make_index
)
