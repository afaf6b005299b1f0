"""Whole numbers by private texts, a million of them in some tens of megabytes."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np

DIGEST_BYTES: Final = 16
_HALVES: Final = np.dtype([("high", "<u8"), ("low", "<u8")])


class Said(NamedTuple):
    """What is known by one text. Private."""

    place: int
    """Number of the text among the different ones, from 0, in no order that means anything."""
    value: int
    """What was said first."""
    agreed: bool
    """Whether the same was said each time."""

    def __repr__(self) -> str:
        return "Said()"


class Lookup:
    """What is said by which text. It shows nothing of it.

    The texts are not kept, only keyed hashes of 128 bits: of a million texts two have the same
    by a chance of 1 in 10**26, and nobody can make such texts, the key being made here and told
    to no one.

    Args:
        said: Texts, and what is said by each: from -2**31 to 2**31 - 1. Private.

    Guarantee:
        21 bytes for each different text; about 70 for each pair while it is made.
    """

    def __init__(self, said: Iterable[tuple[str, int]]) -> None:
        self._key = os.urandom(32)
        hashes, numbers = bytearray(), array("i")
        for text, value in said:
            hashes += self._hash(text)
            numbers.append(value)
        digests, values = np.frombuffer(hashes, _HALVES), np.frombuffer(numbers, np.intc)
        order = np.lexsort((digests["low"], digests["high"]))  # what was said first stays first
        digests, values = digests[order], values[order]
        del hashes, numbers, order
        begins = np.ones(len(digests), np.bool_)
        begins[1:] = digests[1:] != digests[:-1]
        self._first = values[begins]
        self._agreed = np.ones(len(self._first), np.bool_)
        number = np.cumsum(begins, dtype=np.int32) - np.int32(1)
        self._agreed[number[values != self._first[number]]] = False
        self._high, self._low = digests["high"][begins], digests["low"][begins]

    def __repr__(self) -> str:
        return "Lookup()"

    def __len__(self) -> int:
        """Number of different texts."""
        return len(self._high)

    @property
    def contradictions(self) -> int:
        """Number of texts by which different things are said."""
        return int((~self._agreed).sum())

    def find(self, text: str) -> Said | None:
        """What is said by a text; None: nothing."""
        high, low = np.frombuffer(self._hash(text), _HALVES)[0]
        for place in range(int(np.searchsorted(self._high, high)), len(self)):
            if self._high[place] != high:
                break
            if self._low[place] == low:
                return Said(place, int(self._first[place]), bool(self._agreed[place]))
        return None

    def _hash(self, text: str) -> bytes:
        content = text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(content, digest_size=DIGEST_BYTES, key=self._key).digest()
