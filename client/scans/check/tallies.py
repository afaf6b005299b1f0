"""Count and sample a stream of scans in memory that does not grow with it."""

from __future__ import annotations

import hashlib
import heapq
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.facts import ScanFacts

MOST_VALUES: Final = 200
"""Different values that are counted one by one; a hostile folder may have a million."""
OTHERS: Final = "others"


class Counts:
    """How often each value of an attribute occurs, by label.

    Args:
        labels: Number of labels.
    """

    def __init__(self, labels: int) -> None:
        self._labels = labels
        self._counts: dict[str, NDArray[np.int64]] = {}

    def add(self, value: str, label: int) -> None:
        """Count one scan; an empty value is one like any other."""
        if value not in self._counts and len(self._counts) >= MOST_VALUES:
            value = OTHERS
        if value not in self._counts:
            self._counts[value] = np.zeros(self._labels, dtype=np.int64)
        self._counts[value][label] += 1

    def rows(self) -> list[tuple[str, NDArray[np.int64]]]:
        """Values with their counts ``(labels,)``, the most frequent first. Private."""
        return sorted(self._counts.items(), key=lambda row: (-int(row[1].sum()), row[0]))

    def total(self, value: str) -> int:
        """How often a value occurs."""
        return int(self._counts[value].sum()) if value in self._counts else 0

    def values(self) -> list[str]:
        """The values that say something, the most frequent first."""
        return [value for value, _ in self.rows() if value]


class Sampled(NamedTuple):
    """One scan of a sample. Private.

    Attributes:
        place: Its number in the order in which scans were looked at, from 0.
        facts: Of its header.
    """

    place: int
    facts: ScanFacts

    def __repr__(self) -> str:
        return "Sampled()"


class Sample:
    """A sample of bounded size that depends on the scans only, and not on their order.

    The scans whose keyed content hashes lowest are in it: the same folder shows the same scans
    again, and a new scan changes it by one at most.

    Args:
        size: Scans at most.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[int, int, ScanFacts]] = []
        self.seen = 0

    def add(self, place: int, content: bytes, facts: ScanFacts) -> None:
        """Offer a scan."""
        self.seen += 1
        mark = int.from_bytes(hashlib.sha256(b"sample" + content).digest()[:8], "big")
        item = (-mark, -place, facts)  # a heap gives up its smallest: the highest hash
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, item)
        elif item[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, item)

    def scans(self) -> list[Sampled]:
        """What is in it, the lowest hash first. Private."""
        return [Sampled(-place, facts) for _, place, facts in sorted(self._heap, key=_lowest)]


def _lowest(item: tuple[int, int, ScanFacts]) -> tuple[int, int]:
    return -item[0], -item[1]
