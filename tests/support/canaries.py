"""A canary in every attribute that the confidentiality profile names: what comes out, leaked."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from dicomanonymizer.dicom_anonymization_databases import (
    dicomfields_2023,
    dicomfields_2024b,
    dicomfields_2026c,
)
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

EDITIONS = (dicomfields_2023, dicomfields_2024b, dicomfields_2026c)
"""Table E.1-1 of three years: an attribute that one of them forgot is still tested."""
NEST = ("SharedFunctionalGroupsSequence", "FrameAnatomySequence", "AnatomicRegionSequence")
"""Three sequences that the profile keeps, each in the one before."""
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass
class Canaries:
    """The canaries that were set free.

    Attributes:
        texts: Attribute and place → the bytes to look for, at least five of them.
    """

    texts: dict[str, bytes] = field(default_factory=dict)
    _taken: set[bytes] = field(default_factory=set)

    def plant(self, dataset: Dataset, place: str) -> None:
        """Give every attribute of the table a canary of its own, and some that are in no table."""
        for tag in table_tags():
            vr = dictionary_VR(tag) if dictionary_has_tag(tag) else "LO"
            self._plant(dataset, tag, vr, place)
        for group in (0x5000, 0x5002, 0x6000, 0x6002):  # curves and overlays
            self._plant(dataset, (group << 16) + 0x3000, "OW", place)
            self._plant(dataset, (group << 16) + 0x4000, "LT", place)
            self._plant(dataset, (group << 16) + 0x1500, "LO", place)
        for tag, vr in PRIVATE_AND_UNKNOWN.items():
            self._plant(dataset, tag, vr, place)

    def text(self, name: str) -> str:
        """A new canary to be put somewhere by hand."""
        return self._new("UT", name)[0]

    def leaks(self, content: bytes) -> list[str]:
        """Which of them are in some bytes, as they are, in UTF-16 or in the other byte order."""
        return [
            name
            for name, text in self.texts.items()
            if text in content
            or text[::-1] in content
            or text.decode("latin-1").encode("utf-16-le") in content
        ]

    def _plant(self, dataset: Dataset, tag: int, vr: str, place: str) -> None:
        name = f"{place} ({tag >> 16:04X},{tag & 0xFFFF:04X}) {vr}"
        if vr == "SQ":
            item = Dataset()
            for keyword, inner in (("CodeMeaning", "LO"), ("ReferencedSOPInstanceUID", "UI")):
                if keyword == "CodeMeaning" and tag in ENTERED:  # no attribute of the table
                    continue
                setattr(item, keyword, self._new(inner, f"{name} {keyword}")[0])
            item.PatientName = self._new("PN", f"{name} PatientName")[0]
            dataset[tag] = DataElement(tag, "SQ", Sequence([item]))
            return
        dataset[tag] = DataElement(tag, vr, self._new(vr, name)[0])

    def _new(self, vr: str, name: str) -> tuple[Any, bytes]:
        assert name not in self.texts, name
        number = len(self.texts) + 1
        value, text = _canary(vr, number)
        assert text not in self._taken, (name, text)
        self._taken.add(text)
        self.texts[name] = text
        return value, text


PRIVATE_AND_UNKNOWN = {
    0x00090010: "LO",  # private creator
    0x00091001: "LT",
    0x00091002: "SQ",
    0x00291110: "OB",  # without a creator
    0x00080003: "LO",  # in no dictionary
    0x00104321: "UN",
    0x00041130: "CS",  # FileSetID, of a directory
    0x00080041: "LO",  # DataSetSubtype, retired
    0x00180039: "CS",  # TherapyDescription, retired
    0x00143050: "OB",  # DarkCurrentCounts: bytes that are no table of colours
    0x00287FE0: "UT",  # PixelDataProviderURL, not in the table: free text
    0x00100033: "LO",  # PatientBirthDateInAlternativeCalendar, not in the table
    0x00189810: "TM",  # a type of value that it is not
}
ENTERED = {(tag[0] << 16) + tag[1] for edition in EDITIONS for tag in edition.X_Z_U_STAR_TAGS}
"""Sequences that the profile keeps and cleans."""


def table_tags() -> list[int]:
    """Every attribute of the table, of all editions, but file meta and commands."""
    pairs = {tag for edition in EDITIONS for tag in edition.ALL_TAGS if len(tag) == 2}
    tags = sorted((tag[0] << 16) + tag[1] for tag in pairs)
    return [tag for tag in tags if tag >> 16 not in (0x0000, 0x0002)]


def nested(innermost: Dataset) -> Dataset:
    """An item of NEST[0] that holds ``innermost`` three sequences deep."""
    for keyword in NEST[:0:-1]:
        around = Dataset()
        setattr(around, keyword, Sequence([innermost]))
        innermost = around
    return innermost


def plant_in_meta(meta: FileMetaDataset, canaries: Canaries, place: str) -> None:
    """Canaries in the file meta information."""
    meta.SourceApplicationEntityTitle = canaries.text(f"{place} source")
    meta.SendingApplicationEntityTitle = canaries.text(f"{place} sender")
    meta.PrivateInformationCreatorUID = "1.2.3.999999"
    meta.PrivateInformation = canaries.text(f"{place} private").encode()


def _canary(vr: str, number: int) -> tuple[Any, bytes]:
    """A valid value of a type, and the bytes that stand for it in a file."""
    word = f"CNRY{number:05}"
    match vr:
        case "UI":
            text = f"1.2.999.{number}.7"
        case "IS":
            text = f"{700_000_000 + number}"
        case "DS":
            text = f"7.{number:05}99"
        case "DA":
            text = f"{1700 + number % 97}{1 + number // 97 % 12:02}{1 + number // 1164 % 28:02}"
        case "TM":
            text = f"113355.{number:06}"
        case "DT":
            text = f"17760704113355.{number:06}"
        case "AS":
            text = f"{_LETTERS[number // 2600 % 26]}{number % 2600:04}"
        case "US" | "SS":
            numbers = [0x5A01 + number % 9999, 0x4B02, 0x3C03 + number // 9999, 0x2D04]
            return numbers, struct.pack("<4H", *numbers)
        case "UL" | "SL":
            numbers = [0x5A010203 + number, 0x4B020304]
            return numbers, struct.pack("<2L", *numbers)
        case "FL" | "FD":
            numbers_ = [float(number) + 0.34375, 7.0625]
            return numbers_, struct.pack("<2f" if vr == "FL" else "<2d", *numbers_)
        case "AT":
            return [0x77770000 + number, 0x77770001], struct.pack("<2HH", 0x7777, number, 0x7777)
        case "OB" | "OW" | "UN" | "OF" | "OD" | "OL" | "OV":
            return f"{word}-bytes--".encode(), f"{word}-bytes".encode()
        case _:
            text = word
    return text, text.encode()
