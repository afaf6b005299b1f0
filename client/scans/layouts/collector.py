"""Gathers an index line by line, a million of them in some tens of megabytes."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterable
from enum import StrEnum
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.layouts.layout import Entry, Index, LayoutName, LineReason, nothing_left
from medfed.client.scans.layouts.packed import Packed
from medfed.common.findings import Unlabelled
from medfed.common.study import Study


def pack_entries(entries: Iterable[Entry] = ()) -> Packed[Entry]:
    """Keep entries in little memory, in their order."""
    packed: Packed[Entry] = Packed(_columns, _entries)
    for entry in entries:
        packed.append(entry)
    return packed


def _columns(entries: list[Entry]) -> dict[str, Any]:
    return dict(zip(Entry._fields, zip(*entries, strict=True), strict=True))


def _entries(columns: dict[str, Any]) -> Iterable[Entry]:
    columns["others"] = map(tuple, columns["others"])
    return map(Entry._make, zip(*columns.values(), strict=True))


class Collector:
    """Gathers an index line by line.

    Args:
        layout: Its name.
        folder: The scans folder.
        study: Its labels, and which findings mean which.

    Guarantee:
        Some tens of bytes for each entry; some hundreds for those that are added more than once,
        while they are sorted out.
    """

    def __init__(self, layout: LayoutName, folder: Path, study: Study) -> None:
        self._layout, self._folder = layout, folder
        self._rule = study.task.findings.rule_for(study.task.labels)
        self._entries, self._hashes = pack_entries(), array("q")
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
        """Take a scan; ``settle`` sees to it that each is there once."""
        self._entries.append(entry)
        self._hashes.append(hash((entry.file, entry.frame)))

    def settle(self) -> int:
        """Keep one of equal entries; of those that contradict each other, none.

        Returns:
            How many are left out and counted: repeated, or contradicting each other.
        """
        twice = _places_of_repeated(self._hashes)
        dropped = self._repeated(twice) if len(twice) else set()
        if dropped:
            kept = [at not in dropped for at in range(len(self._entries))]
            self._entries = pack_entries(compress(self._entries, kept))
            self._hashes = array("q", compress(self._hashes, kept))
        return len(dropped)

    def _repeated(self, places: NDArray[np.intp]) -> set[int]:
        """Count, among entries of which some have the same hash, those to leave out."""
        first: dict[tuple[str, int | None], tuple[int, Entry]] = {}
        dropped: set[int] = set()
        for at in places.tolist():
            entry = self._entries[at]
            before, same = first.setdefault((entry.file, entry.frame), (at, entry))
            if at == before:
                continue
            dropped.add(at)
            if before not in dropped and same == entry:
                self.refuse(LineReason.REPEATED)
            else:
                self.refuse(LineReason.CONTRADICTION, 1 if before in dropped else 2)
                dropped.add(before)
        return dropped

    def index(self, unit: str = "patient") -> Index:
        """What was gathered, each scan once.

        Raises:
            ScanError: no scan is left.
        """
        self.settle()
        if not self._entries:
            raise nothing_left(self._folder, self.refused)
        return Index(self._layout, self._folder, self._entries, dict(self.refused), unit)


def _places_of_repeated(hashes: array[int]) -> NDArray[np.intp]:
    """Where those stand that are there more than once, in their order."""
    given = np.frombuffer(hashes, np.int64)
    ordered = np.sort(given)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(twice):
        return np.zeros(0, np.intp)
    nearest = np.searchsorted(twice, given).clip(max=len(twice) - 1)
    return np.flatnonzero(twice[nearest] == given)
