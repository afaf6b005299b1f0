"""Pictures in one folder per class: ``opacity/17_3.png``, or ``train/opacity/17_3.png``.

The folder's name is the finding. Who the patient is says the site's patient rule
(``scans.patient`` in ``site.toml``); without one each picture is its own privacy unit, and the
unit is ``image``, the weaker claim. DICOM files (``.dcm``) are taken too where ``site.toml``
names this layout; their headers say whose they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from itertools import islice
from pathlib import Path
from typing import Final

from medfed.client.scans.layouts.collector import Collector
from medfed.client.scans.layouts.files import PICTURES, has_ending, walk
from medfed.client.scans.layouts.layout import (
    Entry,
    Index,
    Layout,
    LineReason,
    SourceRules,
)
from medfed.client.scans.scanset import PARTS
from medfed.common.study import Study

PART_FOLDERS: Final = {**PARTS, "val": PARTS["validation"], "valid": PARTS["validation"]}
"""Name of a top folder, in small letters -> the part that its pictures are."""
LOOKED_AT: Final = 1000
"""Files looked at to see whether there are pictures in folders."""

PatientOf = Callable[[str], str | None]
"""Path of a picture -> its patient; None: the rule finds none. Both private."""


def make_index(folder: Path, study: Study, rules: SourceRules) -> Index:
    """Index the pictures below a folder.

    Raises:
        ScanError: no picture has a label.
    """
    collector = Collector("class-folders", folder, study)
    patient_of = patient_rule(rules.patient)
    for file in walk(folder.resolve()):
        folders = file.split("/")[:-1]
        part = PART_FOLDERS.get(folders[0].lower()) if len(folders) > 1 else None
        classed = folders[1:] if part is not None else folders
        picture = has_ending(file, PICTURES)
        if not classed or not (picture or has_ending(file, (".dcm",))):
            continue
        patient = patient_of(file) if picture and patient_of else None
        if picture and patient_of and not patient:
            collector.refuse(LineReason.NO_PATIENT)
            continue
        label = collector.label([classed[0]])
        if label is not None:
            collector.add(Entry(file, label, patient, part))
    return collector.index()


def patient_rule(rule: str | None) -> PatientOf | None:
    r"""Make a function of a patient rule; None where there is no rule.

    Example:
        >>> patient_rule(r"^person(\d+)_")("opacity/person17_virus_3.png")
        '17'
        >>> patient_rule("parent")("opacity/P17/3.png")
        'P17'
    """
    if rule is None:
        return None
    if rule == "parent":
        return lambda path: path.split("/")[-2]
    pattern = re.compile(rule)

    def found(path: str) -> str | None:
        match = pattern.search(path.rpartition("/")[2])
        return None if match is None else match.group(1)

    return found


def _fits(folder: Path, _names: Collection[str]) -> bool:
    files = islice(walk(Path(os.path.realpath(folder))), LOOKED_AT)
    return any("/" in file and has_ending(file, PICTURES) for file in files)


CLASS_FOLDERS: Final = Layout(
    "class-folders", "PNG or JPEG pictures in one folder per class", _fits, make_index
)
