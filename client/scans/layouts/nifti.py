"""NIfTI volumes with a table, as BIDS has them: ``participants.tsv`` and ``sub-…`` folders.

``participants.tsv`` gives each participant's label (column ``label``, else ``diagnosis``, else
``group``, or the one that ``scans.label_column`` in ``site.toml`` names) and, where the study
takes the split as given, ``split``. Every volume below ``sub-01/`` is a scan of participant
``sub-01``, who is the patient; its suffix (``T1w``) is its modality. Of a volume one slice is the
scan (``volumes.py``).

Source:
    The Brain Imaging Data Structure specification, https://bids-specification.readthedocs.io
    (participants file; file name entities and suffixes).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from medfed.client.scans.layouts.collector import Collector
from medfed.client.scans.layouts.files import VOLUMES, has_ending, walk
from medfed.client.scans.layouts.layout import (
    Entry,
    Index,
    Layout,
    LineReason,
    SourceRules,
)
from medfed.client.scans.layouts.tables import Line, Table
from medfed.client.scans.scanset import PARTS
from medfed.client.scans.volumes import need_nibabel
from medfed.common.study import Study

TABLE: Final = "participants.tsv"
LABEL_COLUMNS: Final = ("label", "diagnosis", "group")


def make_index(folder: Path, study: Study, rules: SourceRules) -> Index:
    """Index the volumes of the participants.

    Raises:
        ScanError: the table cannot be read, lacks a column, gives a split that is none; nibabel
            is not installed; or no volume is left.
    """
    need_nibabel()
    table = Table(folder / TABLE)
    wanted = (rules.label_column,) if rules.label_column else LABEL_COLUMNS
    column = table.column(wanted)
    if column is None:
        table.need("participant_id", wanted[0])
    given = study.split.rule == "given"
    table.need("participant_id", *(["split"] if given else []))
    collector = Collector("nifti", folder, study)
    volumes = _volumes(folder.resolve())
    seen: set[str] = set()
    for line in table.lines():
        name = line.cells["participant_id"]
        subject = name if name.startswith("sub-") else f"sub-{name}"
        if not name:
            collector.refuse(LineReason.LINE)
            continue
        seen.add(subject)
        part = _part(table, line) if given else None
        _take(subject, line.cells[column or ""], part, volumes.get(subject, []), collector)
    unnamed = sum(len(files) for subject, files in volumes.items() if subject not in seen)
    if unnamed:
        collector.refuse(LineReason.NO_LINE, unnamed)
    return collector.index()


def _take(
    subject: str, text: str, part: int | None, files: list[str], collector: Collector
) -> None:
    if not files:
        return collector.refuse(LineReason.NOT_THERE)
    for file in files:
        label = collector.label([text])
        if label is not None:
            modality = file.rpartition("/")[2].partition(".")[0].rpartition("_")[2]
            collector.add(Entry(file, label, subject, part, modality=modality))
    return None


def _part(table: Table, line: Line) -> int:
    part = PARTS.get(line.cells["split"])
    if part is None:
        raise table.error(f"line {line.number}: its split is none of {', '.join(PARTS)}")
    return part


def _volumes(root: Path) -> dict[str, list[str]]:
    """Subject -> its volumes; derivatives and other folders are not looked at."""
    found: dict[str, list[str]] = {}
    for file in walk(root):
        subject = file.partition("/")[0]
        if subject.startswith("sub-") and "/" in file and has_ending(file, VOLUMES):
            found.setdefault(subject, []).append(file)
    return found


def _fits(_folder: Path, names: Collection[str]) -> bool:
    return TABLE in names


NIFTI: Final = Layout("nifti", f"{TABLE} (NIfTI volumes as in BIDS)", _fits, make_index)
