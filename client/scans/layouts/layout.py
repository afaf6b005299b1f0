"""What every layout gives: an index of scans, made without decoding a pixel.

A layout knows one way in which scans and labels lie on disk. From a folder and a study it makes
an ``Index``: where each scan's pixels are, its class, whose it is and its part, and how many
scans or lines of a table were left out, by reason. ``read.py`` turns an index into tensors.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import AfterValidator

from medfed.common.errors import ScanError
from medfed.common.findings import Unlabelled
from medfed.common.strict_toml import StrictTable
from medfed.common.study import Study

LayoutName = Literal[
    "dicom-worklist",
    "chestxray14",
    "chexpert",
    "rsna",
    "isic",
    "medmnist",
    "nifti",
    "class-folders",
]
Join = Literal["file", "sop_uid", "series_uid", "study_uid", "accession", "patient_id"]


def _check_patient_rule(value: str) -> str:
    if value != "parent":
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"is no regular expression ({error.msg})") from None
        if groups != 1:
            raise ValueError('must be "parent", or a regular expression with one (group)')
    return value


class SourceRules(StrictTable):
    """What a site says about its own scans where their layout leaves it open.

    It stands in ``site.toml`` and not in a study: else the next study could count the site's
    patients anew by asking for another patient rule.
    """

    layout: LayoutName | None = None
    """Unset: by what lies in the folder."""
    patient: Annotated[str, AfterValidator(_check_patient_rule)] | None = None
    """In class folders, who the patient is: ``parent``, the folder in which the picture lies; or
    a regular expression whose one group, found in the file's name, is the patient."""
    join: Join | None = None
    """The worklist's column by which files and lines are matched; unset: the first of these."""
    label_column: str | None = None
    """The column of the label, where it is not called ``label``."""


class LineReason(StrEnum):
    """Why a scan or a line is not in the index; the value is what the admin reads."""

    LINE = "line of the table incomplete or not valid"
    OUTSIDE = "named file is outside the folder"
    NOT_THERE = "no file belongs to the line"
    SAME_NAME = "more than one file has the name"
    REPEATED = "stands on more than one line"
    CONTRADICTION = "its lines contradict each other"
    NO_LINE = "no line names the file"
    NO_PATIENT = "no patient by the site's patient rule"
    NO_PART = "in none of the lists of parts"


class Entry(NamedTuple):
    """One scan of an index. Private."""

    file: str
    """Path below the index's folder, with ``/``."""
    label: int
    patient: str | None = None
    """Key of the privacy unit. None: the file's header says it, or nothing does."""
    part: int | None = None
    """As the data set gives it."""
    frame: int | None = None
    """Which picture of the file; None: the one that the reader of such files takes."""
    view: str = ""
    modality: str = ""
    others: tuple[str, ...] = ()
    """The other files of a series; ``file`` is the first of them."""

    def __repr__(self) -> str:
        return "Entry()"


@dataclass(frozen=True, repr=False)
class Index:
    """The scans of a folder, before any pixel is read.

    Attributes:
        layout: Name of the layout.
        folder: What the entries' paths are relative to.
        entries: In the order of the table, or of the names. Each scan once. Private.
        refused: Reason -> number of scans or lines left out. Private; for the site's admin.
        unit: What the privacy unit is if every scan has a key: ``"patient"``, the name of a
            group array, or ``"image"`` where the keys are no patients.

    Guarantee:
        Independent of the order on disk; every path leads to inside the folder.
    """

    layout: LayoutName
    folder: Path
    entries: Sequence[Entry]
    refused: Mapping[str, int]
    unit: str = "patient"


MakeIndex = Callable[[Path, Study, SourceRules], Index]


@dataclass(frozen=True)
class Layout:
    """One way in which scans lie on disk.

    Attributes:
        name: As ``scans.layout`` in ``site.toml`` names it.
        sign: What it is recognised by, for people.
        fits: From a folder and the names in it: whether it looks like this layout.
        index: Makes the index. Raises ScanError where the folder or a table cannot be read or
            contradicts the study; the message names lines, never their content.
    """

    name: LayoutName
    sign: str
    fits: Callable[[Path, Collection[str]], bool]
    index: MakeIndex


class Collector:
    """Gathers an index line by line.

    Args:
        layout: Its name.
        folder: The scans folder.
        study: Its labels, and which findings mean which.
    """

    def __init__(self, layout: LayoutName, folder: Path, study: Study) -> None:
        self._layout, self._folder = layout, folder
        self._rule = study.task.findings.rule_for(study.task.labels)
        self._entries: dict[tuple[str, int | None], Entry] = {}
        self._contradicted: set[tuple[str, int | None]] = set()
        self.refused: Counter[str] = Counter()

    def refuse(self, reason: StrEnum, count: int = 1) -> None:
        """Count scans or lines that are left out."""
        self.refused[reason.value] += count

    def label(self, present: Collection[str], uncertain: Collection[str] = ()) -> int | None:
        """The class of a scan by its findings; None, and counted, where it has none."""
        found = self._rule.class_of(present, uncertain)
        if isinstance(found, Unlabelled):
            self.refuse(found)
            return None
        return found

    def add(self, entry: Entry) -> None:
        """Take a scan. The same again is counted; lines that contradict each other all drop out."""
        place = (entry.file, entry.frame)
        first = self._entries.get(place)
        if place in self._contradicted:
            self.refuse(LineReason.CONTRADICTION)
        elif first is None:
            self._entries[place] = entry
        elif first == entry:
            self.refuse(LineReason.REPEATED)
        else:
            self._contradicted.add(place)
            del self._entries[place]
            self.refuse(LineReason.CONTRADICTION, 2)

    def index(self, unit: str = "patient") -> Index:
        """What was gathered.

        Raises:
            ScanError: no scan is left.
        """
        if not self._entries:
            raise nothing_left(self._folder, self.refused)
        entries = list(self._entries.values())
        return Index(self._layout, self._folder, entries, dict(self.refused), unit)


_ADVICE: Final[Mapping[str, str]] = {
    Unlabelled.NONE.value: "let the study say which finding means which label (findings.means), or "
    "use its labels in the table.",
    LineReason.NOT_THERE.value: "put the files that the table names into the folder.",
    LineReason.NO_PATIENT.value: "correct scans.patient in site.toml.",
}


def nothing_left(folder: Path, refused: Mapping[str, int]) -> ScanError:
    """The error that no scan of a folder can be used; with the reasons counted."""
    counts = "; ".join(f"{reason}: {count}" for reason, count in sorted(refused.items()))
    most = max(refused, key=lambda reason: refused[reason], default="")
    return ScanError(
        f"{folder}: none of the {sum(refused.values())} files or lines is a usable scan "
        f"({counts or 'there are none'}).",
        advice=_ADVICE.get(most, "repair or export the scans again, or correct their table."),
    )
