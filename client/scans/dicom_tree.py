"""Scans as a folder of DICOM files with a worklist beside them.

``worklist.csv`` names the files and their labels, one line per scan: ``file`` (path relative to
the folder, never outside it), ``label`` (one of the study's) and, where the study takes the
split as given, ``split`` (train, validation or test). Further columns are not looked at. Which
scans belong to one patient is read from the DICOM header (PatientID), used in memory to group
and to split, and not kept.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from medfed.client.scans.patients import Pseudonymise
from medfed.client.scans.pixels import DicomScan, read_dicom
from medfed.client.scans.refusals import RefusedScanError
from medfed.client.scans.scanset import PARTS, ScanSet
from medfed.common.errors import ScanError
from medfed.common.study import Study

WORKLIST: Final = "worklist.csv"
MAX_WORKLIST_BYTES: Final = 64 << 20


class Entry(NamedTuple):
    """One line of the worklist, checked. Private."""

    file: Path
    name: str
    """The file as the worklist writes it."""
    label: int
    part: int | None


def read_dicom_tree(
    folder: Path, study: Study, pseudonymise: Pseudonymise | None = None
) -> ScanSet:
    """Read the scans that a folder's worklist names.

    A file that is no usable scan is counted in ``refused`` with its reason and left out. A scan
    without PatientID is its own privacy unit; as soon as there is one, ``unit`` is ``"image"``,
    the weaker claim, though scans with an id still group by it.

    Args:
        folder: Holds ``worklist.csv`` and the files it names.
        study: Says the labels, the split and how a scan becomes a tensor.
        pseudonymise: How the ledger names patients.

    Returns:
        The scans in the worklist's order, whatever the order on disk. Private.

    Raises:
        ScanError: folder or worklist cannot be read, the worklist is empty or breaks a rule
            (with its line), no usable scan is left, or a patient is in two parts.
    """
    scans: list[DicomScan] = []
    used: list[Entry] = []
    refused: Counter[str] = Counter()
    for entry in read_worklist(folder, study):
        try:
            scans.append(read_dicom(entry.file, study.scans))
            used.append(entry)
        except RefusedScanError as error:
            refused[error.reason.value] += 1
    if not scans:
        counts = "; ".join(f"{reason}: {count}" for reason, count in sorted(refused.items()))
        raise ScanError(
            f"{folder}: none of the {refused.total()} files on the worklist is a usable scan "
            f"({counts}).",
            advice="export the scans again as DICOM images, or correct worklist.csv.",
        )
    parts = [entry.part for entry in used if entry.part is not None]
    return ScanSet.assemble(
        [scan.tensor for scan in scans],
        [entry.label for entry in used],
        [_unit_key(scan, entry) for scan, entry in zip(scans, used, strict=True)],
        parts if len(parts) == len(used) else None,
        study,
        unit="patient" if all(scan.patient_id for scan in scans) else "image",
        refused=refused,
        pseudonymise=pseudonymise,
    )


def read_worklist(folder: Path, study: Study) -> list[Entry]:
    """Read and check ``worklist.csv``; the files themselves are not opened.

    Raises:
        ScanError: it cannot be read, has no line, or a line breaks a rule. The message names
            the line and the rule, never what stands in the line.
    """
    text = _worklist_text(folder)
    reader = csv.DictReader(io.StringIO(text), strict=True)
    needed = ["file", "label"] + (["split"] if study.split.rule == "given" else [])
    try:
        header = reader.fieldnames or []
    except csv.Error:
        raise _refused(folder, "line 1: not valid CSV") from None
    missing = [column for column in needed if column not in header]
    if missing:
        raise _refused(folder, f"columns missing in its first line: {', '.join(missing)}")
    root = folder.resolve()
    entries: list[Entry] = []
    try:
        for row in reader:
            entries.append(_entry(folder, root, row, reader.line_num, study))
    except csv.Error:
        raise _refused(folder, f"line {reader.line_num}: not valid CSV") from None
    if not entries:
        raise ScanError(
            f"{folder}: {WORKLIST} names no scan.",
            advice=f"write one line per scan into it, under the columns {', '.join(needed)}.",
        )
    if len({entry.file for entry in entries}) != len(entries):
        raise _refused(folder, "a file stands on more than one line")
    return entries


def _worklist_text(folder: Path) -> str:
    try:
        names = {item.name for item in folder.iterdir()}  # a folder that may not be listed fails
        if WORKLIST not in names:
            found = "is empty" if not names else f"holds no {WORKLIST}"
            raise ScanError(
                f"{folder}: the scans folder {found}.",
                advice=f"put {WORKLIST} (columns file, label) and the DICOM files into it.",
            )
        with (folder / WORKLIST).open("rb") as file:
            content = file.read(MAX_WORKLIST_BYTES + 1)
        if len(content) > MAX_WORKLIST_BYTES:
            raise _refused(folder, f"longer than {MAX_WORKLIST_BYTES} bytes")
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ScanError(
            f"{folder}: the scans folder or its {WORKLIST} cannot be read "
            f"({type(error).__name__}).",
            advice="check the path, that this user may read it, and that the list is UTF-8 text.",
        ) from None


def _entry(folder: Path, root: Path, row: dict[str, str | None], line: int, study: Study) -> Entry:
    name, label = (row.get("file") or "").strip(), (row.get("label") or "").strip()
    if not name or "\0" in name:
        raise _refused(folder, f"line {line}: names no file")
    try:
        file = (root / name).resolve()
    except (OSError, RuntimeError):  # RuntimeError: links that lead in a circle
        raise _refused(folder, f"line {line}: its file cannot be found") from None
    if not file.is_relative_to(root) or file == root:
        raise _refused(folder, f"line {line}: its file is outside the folder")
    if label not in study.task.labels:
        allowed = ", ".join(study.task.labels)
        raise _refused(folder, f"line {line}: its label is none of the study's ({allowed})")
    part = None
    if study.split.rule == "given":
        part = PARTS.get((row.get("split") or "").strip())
        if part is None:
            raise _refused(folder, f"line {line}: its split is none of {', '.join(PARTS)}")
    return Entry(file, name, study.task.labels.index(label), part)


def _unit_key(scan: DicomScan, entry: Entry) -> str:
    """The patient id; without one a key of the scan's own, which no id can equal."""
    return scan.patient_id or f"no id: \\{entry.name}"  # a backslash cannot stand in an LO value


def _refused(folder: Path, found: str) -> ScanError:
    return ScanError(f"{folder / WORKLIST}: {found}.", advice="correct the worklist.")
