"""Long lists of scans and names in little memory: a million of them in some tens of megabytes.

A list of Python objects costs hundreds of bytes per scan. Here a list is kept in blocks, each as
compressed JSON: the names in a folder resemble each other, and 10 to 25 bytes are left of each.
What was last looked at is unpacked, so going through a list in its order is quick.
"""

from __future__ import annotations

import heapq
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Generic, TypeVar, overload

Item = TypeVar("Item")

BLOCK: Final = 128
"""Items packed together: more save little memory, and one in the middle takes longer to find."""
RUN: Final = 16_384
"""Names sorted together."""
_FASTEST: Final = 1  # level of compression; the best one saves a tenth more in twice the time


class Packed(Sequence[Item], Generic[Item]):
    """A list that is only ever added to.

    Args:
        rows: From items to what JSON can write: lists, texts, whole numbers, None.
        items: Back, from what JSON reads.

    Guarantee:
        Gives back what was added, texts that are not valid Unicode (names of files) included. Its
        representation shows nothing of it.
    """

    def __init__(
        self,
        rows: Callable[[list[Item]], Any] = list,
        items: Callable[[Any], Iterable[Item]] = list,
    ) -> None:
        self._rows, self._items = rows, items
        self._blocks: list[bytes] = []
        self._last: list[Item] = []
        self._open: tuple[int, list[Item]] = (-1, [])

    def append(self, item: Item) -> None:
        """Add one at the end."""
        self._last.append(item)
        if len(self._last) == BLOCK:
            text = json.dumps(self._rows(self._last), ensure_ascii=False, separators=(",", ":"))
            self._blocks.append(zlib.compress(text.encode("utf-8", "surrogatepass"), _FASTEST))
            self._last = []

    def __len__(self) -> int:
        return len(self._blocks) * BLOCK + len(self._last)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | list[Item]:
        places = range(len(self))[place]  # as a list has it: from the end, and IndexError
        if isinstance(places, range):
            return [self[one] for one in places]
        number, within = divmod(places, BLOCK)
        if number == len(self._blocks):
            return self._last[within]
        if self._open[0] != number:
            self._open = (number, self._unpacked(number))
        return self._open[1][within]

    def __iter__(self) -> Iterator[Item]:
        for number in range(len(self._blocks)):
            yield from self._unpacked(number)
        yield from self._last

    def __repr__(self) -> str:
        return "Packed()"

    def _unpacked(self, number: int) -> list[Item]:
        text = zlib.decompress(self._blocks[number]).decode("utf-8", "surrogatepass")
        return list(self._items(json.loads(text)))


class SortedNames(Iterable[str]):
    """Names in order, however many: short runs of them are sorted, packed, and merged."""

    def __init__(self) -> None:
        self._runs: list[Packed[str]] = []
        self._last: list[str] = []

    def add(self, name: str) -> None:
        """Take one; the same may come again."""
        self._last.append(name)
        if len(self._last) == RUN:
            run: Packed[str] = Packed()
            for one in sorted(self._last):
                run.append(one)
            self._runs.append(run)
            self._last = []

    def __iter__(self) -> Iterator[str]:
        last = sorted(self._last)
        return heapq.merge(*self._runs, last) if self._runs else iter(last)
