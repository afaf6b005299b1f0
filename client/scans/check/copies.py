"""Find pictures that stand more than once, without comparing all pairs.

Equal pictures are found by sorting: by the content's name, and, because one picture can lie in
two files that differ elsewhere, by look and then by pixels. Nearly equal ones have looks that
differ in at most two bits: cut into three bands, two such looks agree in at least one band
(pigeonhole), so only scans that share a band are compared. What the looks suggest, the pixels
must confirm.

Memory: some 100 bytes per scan while it runs, whatever the scans are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.check.overview import Marks

NEAR_BITS: Final = 2
"""Looks that differ in so many bits at most may be of nearly the same picture."""
NEAR_CORRELATION: Final = 0.985
"""Pixels of two pictures correlate at least so much if they are nearly the same. Of 17 million
pairs of different chest radiographs of 28 x 28 pixels those that pass the looks reach 0.974;
pictures that were compressed, resized or brightened again stay above 0.99."""
BANDS: Final = ((0, 22), (22, 21), (43, 21))
"""First bit and width of each band."""
MOST_COMPARED: Final = 50_000_000
"""Looks compared at most; beyond, the counts are lower bounds."""
MOST_CONFIRMED: Final = 20_000
"""Pairs, and scans of one look, whose pixels are compared at most; beyond, likewise."""
KEPT: Final = 5_000
"""Pairs of a kind that are kept to be named."""
_BLOCK: Final = 128

Pictures = Callable[[Sequence[int]], NDArray[np.float32]]
"""Places of scans, in the order in which they were looked at -> their tensors
``(scans, channels, rows, columns)``. Private."""
Pairs = NDArray[np.int64]
"""``(pairs, 2)``: places."""


class Kind(StrEnum):
    """Who shares a picture."""

    PARTS = "same picture in two parts"
    PATIENTS = "same picture under two patients"
    LABELS = "same picture with two labels"
    REPEATED = "same picture twice of one patient"
    NEAR_PARTS = "nearly the same picture in two parts"
    NEAR_PATIENTS = "nearly the same picture under two patients"


class Twins(NamedTuple):
    """The copies of one kind. Private.

    Attributes:
        number: Of pictures that stand more than once; of nearly equal ones, of pairs.
        pairs: ``(pairs, 2)``: places of two scans of each, the first ``KEPT``.
    """

    number: int
    pairs: Pairs

    def __repr__(self) -> str:
        return "Twins()"


@dataclass(frozen=True, repr=False)
class Copies:
    """All copies among a site's scans. Private.

    Attributes:
        of: Kind -> its copies. A picture counts as in two parts, else under two patients, else
            as repeated; with two labels it counts there too.
        more: Whether there may be more than were counted.
    """

    of: Mapping[Kind, Twins] = field(default_factory=dict)
    more: bool = False

    def count(self, kind: Kind) -> int:
        """How many there are of a kind."""
        return self.of[kind].number if kind in self.of else 0


def find_copies(marks: Marks, pictures: Pictures) -> Copies:
    """Find pictures that stand more than once, exactly or nearly.

    Args:
        marks: Of all scans.
        pictures: Gives the tensors of some of them.

    Guarantee:
        Every pair of scans with equal content is found, and, unless ``more`` says so, every pair
        with equal tensors, and every pair of two patients whose looks differ in at most
        ``NEAR_BITS`` bits and whose pixels correlate by ``NEAR_CORRELATION``. Flat pictures, whose
        look is 0, are compared by content only.
    """
    picture, more = _pictures_apart(marks, pictures)
    of = dict(_same(marks, picture))
    near, more_near = _near(marks, picture, pictures)
    crossing = marks.part[near[:, 0]] != marks.part[near[:, 1]]
    for kind, chosen in ((Kind.NEAR_PARTS, crossing), (Kind.NEAR_PATIENTS, ~crossing)):
        of[kind] = Twins(int(chosen.sum()), near[chosen][:KEPT])
    return Copies(of, more or more_near)


# ---- equal pictures ------------------------------------------------------------------------------
def _pictures_apart(marks: Marks, pictures: Pictures) -> tuple[NDArray[np.int64], bool]:
    """Number the distinct pictures: scan -> the first scan that shows the same; and if unsure."""
    _, first, inverse = np.unique(marks.content, return_index=True, return_inverse=True)
    picture = first[inverse]
    looks = marks.look[first]
    asked = first[_shared(looks) & (looks != 0)]
    more = len(asked) > MOST_CONFIRMED
    asked = np.sort(asked)[:MOST_CONFIRMED]
    digests = [
        hashlib.sha256(tensor.tobytes()).digest()
        for tensors in _read(pictures, asked)
        for tensor in tensors
    ]
    seen: dict[bytes, int] = {}
    same = np.arange(len(marks))
    for place, digest in zip(asked.tolist(), digests, strict=True):
        same[place] = seen.setdefault(digest, place)
    showing: NDArray[np.int64] = same[picture]
    return showing, more


def _shared(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which values occur more than once."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] > 1)


def _same(marks: Marks, picture: NDArray[np.int64]) -> Iterator[tuple[Kind, Twins]]:
    """Sort the equal pictures by who shares them."""
    places = np.flatnonzero(_shared(picture.astype(np.uint64)))
    picture = picture[places]
    parts = _spread(places, picture, marks.part)
    patients = _spread(places, picture, marks.patient)
    patients = patients[~np.isin(_of(picture, places, patients), _of(picture, places, parts))]
    yield Kind.PARTS, _twins(parts)
    yield Kind.PATIENTS, _twins(patients)
    yield Kind.LABELS, _twins(_spread(places, picture, marks.label))
    yield Kind.REPEATED, _twins(_repeats(places, picture, marks.patient))


def _of(picture: NDArray[np.int64], places: NDArray[np.int64], pairs: Pairs) -> NDArray[np.int64]:
    """The picture that each pair shows."""
    return picture[np.searchsorted(places, pairs[:, 0])]


def _spread(places: NDArray[np.int64], picture: NDArray[np.int64], value: NDArray[Any]) -> Pairs:
    """Of each picture whose scans have more than one value, one scan of the lowest and highest."""
    order = np.lexsort((places, value[places], picture))
    sorted_picture = picture[order]
    first = np.flatnonzero(np.append(True, sorted_picture[1:] != sorted_picture[:-1])[: len(order)])
    last = np.append(first[1:], len(order))[: len(first)] - 1
    pairs = np.stack([places[order[first]], places[order[last]]], axis=1)
    several: NDArray[np.bool_] = value[pairs[:, 0]] != value[pairs[:, 1]]
    return pairs[several]


def _repeats(
    places: NDArray[np.int64], picture: NDArray[np.int64], patient: NDArray[np.uint64]
) -> Pairs:
    """Of each picture that one patient has twice, two such scans."""
    order = np.lexsort((places, patient[places], picture))
    here, following = order[:-1], order[1:]
    equal = picture[here] == picture[following]
    equal &= patient[places[here]] == patient[places[following]]
    pairs = np.stack([places[here[equal]], places[following[equal]]], axis=1)
    _, first = np.unique(picture[here[equal]], return_index=True)
    return pairs[first]


def _twins(pairs: Pairs) -> Twins:
    return Twins(len(pairs), pairs[np.argsort(pairs[:, 0], kind="stable")][:KEPT])


# ---- nearly equal pictures -----------------------------------------------------------------------
def _near(marks: Marks, picture: NDArray[np.int64], pictures: Pictures) -> tuple[Pairs, bool]:
    """Pairs of distinct pictures of two patients that look alike and are; and if there may be more.

    Those in two parts come first.
    """
    places = np.unique(picture)
    places = places[marks.look[places] != 0]
    pairs, more = _alike(marks.look[places])
    pairs = places[pairs]
    pairs = pairs[marks.patient[pairs[:, 0]] != marks.patient[pairs[:, 1]]]
    crossing = marks.part[pairs[:, 0]] != marks.part[pairs[:, 1]]
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0], ~crossing))]
    more = more or len(pairs) > MOST_CONFIRMED
    pairs = pairs[:MOST_CONFIRMED]
    kept = [
        _correlation(left, right) >= NEAR_CORRELATION
        for left, right in zip(
            _read(pictures, pairs[:, 0]), _read(pictures, pairs[:, 1]), strict=True
        )
    ]
    return pairs[np.concatenate(kept)] if kept else pairs, more


def _alike(looks: NDArray[np.uint64]) -> tuple[Pairs, bool]:
    """All pairs, first index lower, whose looks differ in at most ``NEAR_BITS`` bits."""
    found, compared, more = [], 0, False
    for start, width in BANDS:
        band = (looks >> np.uint64(start)) & np.uint64((1 << width) - 1)
        order = np.argsort(band, kind="stable")
        band, here, lag = band[order], np.arange(len(order)), 0
        while len(here):  # pairs at a growing distance in the sorted order, while the band is equal
            lag += 1
            here = here[: np.searchsorted(here, len(order) - lag)]
            here = here[band[here] == band[here + lag]]
            compared += len(here)
            if compared > MOST_COMPARED:
                more = True
                break
            left, right = order[here], order[here + lag]
            close = _bits(looks[left] ^ looks[right]) <= NEAR_BITS
            found.append(np.stack([left[close], right[close]], axis=1))
    pairs = np.sort(np.concatenate(found), axis=1) if found else np.empty((0, 2), dtype=np.int64)
    return np.unique(pairs, axis=0).reshape(-1, 2), more


def _bits(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many bits are set."""
    bits = np.unpackbits(values[:, None].view(np.uint8), axis=1)
    return np.asarray(bits.sum(axis=1, dtype=np.int64))


def _correlation(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Pearson's correlation of pictures, one by one; 0 with a flat one."""
    a, b = (side.reshape(len(side), -1).astype(np.float64) for side in (left, right))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / np.where(norm > 0, norm, np.inf))


def _read(pictures: Pictures, places: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(places), _BLOCK):
        yield pictures(places[start : start + _BLOCK].tolist())
