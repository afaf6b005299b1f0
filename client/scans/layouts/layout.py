"""What every layout gives: an index of scans, made without decoding a pixel.

A layout knows one way in which scans and labels lie on disk. From a folder and a study it makes
an ``Index``: where each scan's pixels are, its class, whose it is and its part, and how many
scans or lines of a table were left out, by reason. ``read.py`` turns an index into tensors.
"""

from __future__ import annotations

import re
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
    without_patient: Literal["refuse", "leave-out"] = "refuse"
    """Scans that nothing says the patient of: ``refuse`` every study that protects patients, or
    ``leave-out`` those scans."""


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
    NO_SERIES = "its header names no series"


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
