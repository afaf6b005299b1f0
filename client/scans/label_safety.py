"""Whether a label could name a patient: an identifier of the set occurs in it.

Capitals, blanks and punctuation do not count, so that ``P-0017`` is found in ``p 0017 left``. A
name must be a whole word of the label, else no set with a patient Norma could have the label
"normal"; what holds a digit, or is written without blanks between words as Chinese is, may stand
anywhere in it once it has four characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import Final

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from medfed.client.scans.guards import element
from medfed.client.scans.layouts.dicom_headers import KEYWORDS
from medfed.client.scans.refusals import RefusedScanError

NUMBERS: Final = (
    "PatientID",
    "OtherPatientIDs",
    "PatientBirthDate",
    "AccessionNumber",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
)
NAMES: Final = (
    "PatientName",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "ReferringPhysicianName",
)
ANYWHERE_FROM: Final = 4
"""Characters from which an identifier may stand anywhere in a label."""

_WORD: Final = re.compile(r"[^\W_]+")
_WITHOUT_BLANKS: Final = re.compile("[\u0e00-\u0eff\u2e80-\U0003ffff]|\\d")
"""A digit, or a letter of a script without blanks between words."""


@dataclass(frozen=True)
class Identity:
    """What a file said of itself before it was cleaned. Private.

    Attributes:
        keys: Column of a worklist -> what it is matched by.
        identifiers: What must not occur in a label, as ``identifier_in`` gives it.
    """

    keys: Mapping[str, str] = field(repr=False)
    identifiers: frozenset[str] = field(repr=False)


def identity_of(dataset: Dataset) -> Identity:
    """Read what identifies a file and its patient; what is no value of its type is passed over."""
    keys = {join: _text(dataset, keyword) for join, keyword in KEYWORDS.items()}
    found = {
        one
        for keyword in NUMBERS
        for text in _texts(dataset, keyword)
        for one in identifier_in(text)
    }
    for keyword in NAMES:
        for text in _texts(dataset, keyword):
            words = [word for word in _words(text) if len(word) > 1]  # an initial names nobody
            found |= {*words, *map("".join, permutations(words[:3], 2))}
    return Identity(keys, frozenset(found))


def identifier_in(text: str) -> set[str]:
    """The identifier that a text is: without capitals, blanks and punctuation."""
    plain = _plain(text)
    return {plain} if plain else set()


class SafeLabels:
    """Labels, and which of them an identifier occurs in."""

    def __init__(self) -> None:
        self._plain: dict[str, tuple[str, frozenset[str]]] = {}
        self._unsafe: set[str] = set()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._plain) + len(self._unsafe)

    @property
    def unsafe(self) -> int:
        """In how many an identifier occurs."""
        return len(self._unsafe)

    def add(self, label: str) -> None:
        """Take a label; identifiers are held against it from now on."""
        if label not in self._unsafe and label not in self._plain:
            self._plain[label] = (_plain(label), frozenset(_words(label)))

    def hold_against(self, identifiers: Iterable[str]) -> None:
        """Look for identifiers, as ``Identity`` has them, in all labels."""
        for identifier in identifiers:
            anywhere = len(identifier) >= ANYWHERE_FROM and _WITHOUT_BLANKS.search(identifier)
            for label, (plain, words) in list(self._plain.items()):
                if identifier in (plain if anywhere else words) or identifier == plain:
                    self._unsafe.add(label)
                    del self._plain[label]

    def is_safe(self, label: str) -> bool:
        """Whether no identifier occurs in a label."""
        return label in self._plain


def _plain(text: str) -> str:
    return "".join(_words(text))


def _words(text: str) -> Iterator[str]:
    return (word.casefold() for word in _WORD.findall(text))


def _texts(dataset: Dataset, keyword: str) -> list[str]:
    try:
        value = element(dataset, keyword)
    except RefusedScanError:
        return []
    several = value if isinstance(value, MultiValue) else [value]
    return [str(one) for one in several if one is not None]


def _text(dataset: Dataset, keyword: str) -> str:
    return "\\".join(_texts(dataset, keyword)).strip(" \0")
