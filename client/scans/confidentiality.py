"""The basic confidentiality profile of DICOM PS3.15, applied to every level of a data set.

The table E.1-1 says for some 650 attributes what becomes of them. Here it is applied to every
item of every sequence (the libraries that ship it stop at the first level). What it does not name
is kept only if it can hold no name; private elements, overlays, curves, unknown, retired and
malformed elements go.

    X remove   Z empty   D dummy   U new UID   C keep the sequence, clean its items

Where the table leaves a choice to the kind of object (X/Z, X/D, Z/D, X/Z/D), the object stays
valid: Z for X/Z, D for the others.

Source:
    DICOM PS3.15 annex E, table E.1-1 (edition 2026c, as in dicom-anonymizer); option "modified
    dates": E.3.6. Codes of the method: PS3.16 CID 7050.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from typing import Any, Final

from pydicom.datadict import dictionary_is_retired
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from medfed.client.scans.confidentiality_table import (
    BULK,
    EDITION,
    NUMBERS,
    PIXEL_DATA,
    SHIFTED,
    actions,
    holds_no_name,
    is_standard,
    known,
)
from medfed.client.scans.export_names import ExportNames

_DUMMY_DATE: Final = {"DA": "19000101", "DT": "19000101000000", "TM": "000000", "AS": "000Y"}
_DUMMY_TEXT: Final = "ANONYMIZED"


class Profile:
    """The profile with one key's names.

    Args:
        names: Gives new UIDs and patient names.
        shift_dates: Whether ``SHIFTED`` stay, moved by the patient's days; else all dates go.

    Raises:
        ConfigError: the extra ``deid`` is not installed.
    """

    def __init__(self, names: ExportNames, *, shift_dates: bool = False) -> None:
        self._names, self._shift_dates = names, shift_dates
        self._actions = actions()

    def apply(self, dataset: Dataset, *, patient: str) -> Dataset:
        """Clean one object.

        Args:
            dataset: All elements of a file. Private; left as it is.
            patient: Whose it is, by new name; becomes PatientID.

        Returns:
            A new data set without file meta information. It says what was done to it. Pixel
            data is taken over as it is.

        Guarantee:
            No value of an attribute of table E.1-1 is in the result, at any depth, but dates
            that were asked for, moved.
        """
        days = self._names.shift_days(patient) if self._shift_dates else 0
        clean = self._cleaned(dataset, days)
        if "PixelData" in dataset:
            clean[PIXEL_DATA] = dataset[PIXEL_DATA]
        clean.PatientID = patient
        self._say_what_was_done(clean)
        return clean

    def _cleaned(self, dataset: Dataset, days: int) -> Dataset:
        clean = Dataset()
        for tag in sorted(dataset.keys()):
            try:
                element = self._element(dataset[tag], days)
            except Exception:  # no value of its type, whatever pydicom ran into: it goes
                continue
            if element is not None:
                clean[tag] = element
        return clean

    def _element(self, element: DataElement, days: int) -> DataElement | None:
        """What becomes of one element; None: it goes."""
        tag = int(element.tag)
        action = self._actions.get(tag)
        if days and tag in SHIFTED and (moved := _moved(element, days)) is not None:
            return DataElement(tag, element.VR, moved)
        if action is None:
            return self._unlisted(element, days)
        if not known(element):
            return None
        if action == "Z":
            return DataElement(tag, element.VR, [] if element.VR == "SQ" else None)
        if action == "D":
            return self._dummy(element)
        if action == "U":
            return self._new_uids(element)
        return self._items(element, days) if action == "C" else None

    def _unlisted(self, element: DataElement, days: int) -> DataElement | None:
        """An element that the table does not name: kept if it can hold no name."""
        if not known(element) or dictionary_is_retired(int(element.tag)):
            return None
        if element.VR == "SQ":
            return self._items(element, days)
        if element.VR == "UI":
            return self._new_uids(element)
        return element if holds_no_name(element) else None

    def _items(self, element: DataElement, days: int) -> DataElement:
        items = [self._cleaned(item, days) for item in element.value]
        return DataElement(element.tag, "SQ", Sequence(items))

    def _new_uids(self, element: DataElement) -> DataElement | None:
        """Replace UIDs, but those that the standard itself defines."""
        if element.VR != "UI":
            return None
        uids = [uid if is_standard(uid) else self._names.uid(uid) for uid in _each(element)]
        return DataElement(element.tag, "UI", uids)

    def _dummy(self, element: DataElement) -> DataElement:
        """A value of the same type that says nothing; of a sequence, its first item in dummies."""
        vr = str(element.VR)
        if vr == "SQ":
            kept = [e for item in element.value[:1] for e in item if known(e)]
            item = Dataset()
            for inner in kept:
                item[inner.tag] = self._dummy(inner)
            return DataElement(element.tag, "SQ", Sequence([item] if kept else []))
        if vr == "UI":
            return DataElement(element.tag, "UI", self._names.uid("dummy"))
        return DataElement(element.tag, vr, _dummy_value(vr))

    def _say_what_was_done(self, clean: Dataset) -> None:
        codes = [("113100", "Basic Application Confidentiality Profile")]
        if self._shift_dates:
            codes.append(
                ("113107", "Retain Longitudinal Temporal Information Modified Dates Option")
            )
        clean.PatientIdentityRemoved = "YES"
        clean.LongitudinalTemporalInformationModified = (
            "MODIFIED" if self._shift_dates else "REMOVED"
        )
        clean.DeidentificationMethod = f"medfed: PS3.15 basic profile, table {EDITION}"
        clean.DeidentificationMethodCodeSequence = Sequence(_code(*code) for code in codes)


def _each(element: DataElement) -> Iterable[str]:
    value = element.value
    several = value if isinstance(value, MultiValue) else [value]
    return [str(one) for one in several if one]


def _moved(element: DataElement, days: int) -> str | None:
    """A date moved; None where it is none. Of a date with a time only the day stays."""
    match = re.match(r"(\d{4})(\d{2})(\d{2})", str(element.value or ""))
    if match is None or element.VR not in ("DA", "DT"):
        return None
    try:
        moved = datetime.date(*map(int, match.groups())) + datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return moved.strftime("%Y%m%d")


def _dummy_value(vr: str) -> Any:
    if vr in _DUMMY_DATE:
        return _DUMMY_DATE[vr]
    if vr in BULK or vr == "UN":
        return bytes(8)
    if vr in NUMBERS:
        return 0
    return "http://anonymized.invalid" if vr == "UR" else _DUMMY_TEXT


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code
