"""Carry a worklist's labels over to de-identified files, under their new names.

A label is somebody's free text and may name the patient. It is kept, as it is, only where it is
one of a few different texts, as the words of a finding are, and no identifier of a patient of the
set occurs in it (``label_safety.py``). Of the worklist nothing else is kept but the split. What is
left out is counted.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from medfed.client.scans.label_safety import Identity, SafeLabels, identifier_in
from medfed.client.scans.layouts.dicom_worklist import COLUMNS, WORKLIST
from medfed.client.scans.layouts.layout import Join
from medfed.client.scans.layouts.tables import Line, Table
from medfed.client.scans.scanset import PARTS

MAX_LABELS: Final = 100
"""Most different labels; with more they are a text for each patient and not a finding."""
MAX_LABEL_LENGTH: Final = 64


class LabelNote(StrEnum):
    """Why a file or a label is not in the new worklist; the value is what the admin reads."""

    NO_COLUMNS = f"{WORKLIST}: no column for labels, or none that files can be matched by"
    TOO_MANY = f"{WORKLIST}: more than {MAX_LABELS} different labels, none of them kept"
    NO_LINE = "files that no line names"
    CONTRADICTION = "files whose lines contradict each other"
    NO_LABEL = "lines without a label"
    NO_SPLIT = f"lines whose split is none of {', '.join(PARTS)}"
    ODD = f"lines with a label of more than {MAX_LABEL_LENGTH} characters or not printable"
    IDENTIFIER = "labels left out: an identifier of a patient of the set occurs in them"


class _Line(NamedTuple):
    """What a worklist says of a file."""

    label: str
    split: str


class _Columns(NamedTuple):
    """Which columns of a worklist mean what."""

    join: Join
    key: str
    label: str
    split: str | None
    identifying: list[str]


class CleanLabels:
    """The labels of a folder on their way to the clean one. Private; it shows nothing of itself.

    Args:
        source: The folder, resolved. Without a ``worklist.csv`` in it nothing is carried over.
        target: The folder of the clean files. Lines of a ``worklist.csv`` that an earlier run
            left there stay, unless a file of this run takes their place.
        label_column: What the column of labels is called.

    Attributes:
        notes: Reason -> number of files, lines or labels that were left out.

    Raises:
        ScanError: the worklist cannot be read as a table.
    """

    def __init__(self, source: Path, target: Path, label_column: str = "label") -> None:
        self.notes: Counter[str] = Counter()
        self._source = source
        self._join: Join | None = None
        self._lines: dict[str, _Line | None] = {}
        self._earlier: dict[str, _Line | None] = {}
        self._clean: dict[str, _Line | None] = {}
        self._labels = SafeLabels()
        if (source / WORKLIST).is_file():
            self._read(source / WORKLIST, label_column)
        if self._join is not None and (target / WORKLIST).is_file():
            self._read_earlier(target / WORKLIST)
        if len(self._labels) > MAX_LABELS:
            self.notes[LabelNote.TOO_MANY] += 1
            self._join = None

    def take(self, path: Path, was: Identity, clean_name: str) -> None:
        """Give a clean file the label of the file it was made of.

        Args:
            path: The source file.
            was: What it said of itself; held against all labels.
            clean_name: Path of the clean file below its folder.
        """
        if self._join is None:
            return
        self._labels.hold_against(was.identifiers)
        if self._join == "file":
            key = path.relative_to(self._source).as_posix()
        else:
            key = was.keys[self._join]
        if not key or key not in self._lines:
            self.notes[LabelNote.NO_LINE] += 1
            return
        line = self._lines[key]
        if self._clean.setdefault(clean_name, line) != line:  # a second copy of the file
            self._clean[clean_name] = line = None
        if line is None:
            self.notes[LabelNote.CONTRADICTION] += 1

    def content(self) -> bytes | None:
        """The worklist of the clean files: ``file,label`` and, where all have one, ``split``.

        Returns:
            None where no file has a label, nor had one in an earlier run.
        """
        if self._join is None:
            return None
        clean = self._earlier | self._clean
        self.notes[LabelNote.IDENTIFIER] += self._labels.unsafe
        lines = sorted(
            (name, *line)
            for name, line in clean.items()
            if line is not None and self._labels.is_safe(line.label)
        )
        width = 3 if all(split for *_, split in lines) else 2
        text = io.StringIO(newline="")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("file", "label", "split")[:width])
        rows.writerows(line[:width] for line in lines)
        return text.getvalue().encode() if clean else None

    def _read(self, path: Path, label_column: str) -> None:
        columns = _columns(Table(path), label_column)
        if columns is None:
            self.notes[LabelNote.NO_COLUMNS] += 1
            return
        self._join = columns.join
        for line in Table(path).lines():
            said, key = self._line(line, columns), self._key(line.cells[columns.key])
            if said is not None and self._lines.setdefault(key, said) != said:
                self._lines[key] = None
        for line in Table(path).lines():  # once more: now all labels are known
            for column in columns.identifying:
                self._labels.hold_against(identifier_in(line.cells[column]))

    def _line(self, line: Line, columns: _Columns) -> _Line | None:
        label = line.cells[columns.label]
        split = line.cells[columns.split] if columns.split else ""
        if not label:
            self.notes[LabelNote.NO_LABEL] += 1
        elif len(label) > MAX_LABEL_LENGTH or not label.isprintable():
            self.notes[LabelNote.ODD] += 1
        elif split and split not in PARTS:
            self.notes[LabelNote.NO_SPLIT] += 1
        else:
            return self._said(label, split)
        return None

    def _said(self, label: str, split: str) -> _Line:
        if len(self._labels) <= MAX_LABELS:  # one too many is enough to know
            self._labels.add(label)
        return _Line(label, split)

    def _key(self, text: str) -> str:
        if self._join != "file":
            return text
        path = Path(os.path.normpath(self._source / text.replace("\\", "/").replace("\0", "")))
        return path.relative_to(self._source).as_posix() if self._source in path.parents else ""

    def _read_earlier(self, path: Path) -> None:
        """Take over the lines that an earlier run wrote."""
        columns = _columns(Table(path), "label")
        if columns is None or columns.join != "file":
            return
        for line in Table(path).lines():
            said = self._line(line, columns)
            if said is not None:
                self._earlier[line.cells[columns.key]] = said


def _columns(table: Table, label_column: str) -> _Columns | None:
    """Find the columns; None where there is no label, or nothing to match files by."""
    found: dict[Join, str] = {}
    for join, names in COLUMNS.items():
        if column := table.column(names):
            found[join] = column
    label = table.column([label_column])
    if not found or label is None:
        return None
    join, key = next(iter(found.items()))
    patient = table.column(["patient"])
    identifying = [column for join, column in found.items() if join != "file"]
    identifying += [patient] if patient else []
    return _Columns(join, key, label, table.column(["split"]), identifying)
