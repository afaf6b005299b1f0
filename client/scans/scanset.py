"""The scans of one site (or of one simulated site), checked and in memory.

Everything here but the shape of one tensor and the kind of privacy unit is private: pixels,
labels, who belongs together, and every count. Patient identifiers are not kept; a patient is a
running number that means nothing outside this object, and, at a site with a ledger, a keyed
pseudonym that means something only there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.cache_records import CachedTensors
from medfed.client.scans.patients import Pseudonymise, parts_of_units
from medfed.common.errors import ScanError
from medfed.common.study import Study


class Part(IntEnum):
    """What a patient's scans are for."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


TRAIN: Final = Part.TRAIN
VALIDATION: Final = Part.VALIDATION
TEST: Final = Part.TEST
PARTS: Final[Mapping[str, Part]] = {part.name.lower(): part for part in Part}
"""``train``, ``validation``, ``test`` → part, as studies and worklists write them."""


class Pictures(Protocol):
    """Tensors of scans, in memory or in the site's cache."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(scans, channels, rows, columns)``; the first is private."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32."""

    @property
    def ndim(self) -> int:
        """Four."""

    def __len__(self) -> int:
        """Number of scans. Private."""

    def __getitem__(self, scans: NDArray[np.int64], /) -> NDArray[np.float32]:
        """Read some scans, by their places, in this order."""


@dataclass(frozen=True, eq=False, repr=False)
class ScanSet:
    """Scans with their labels, privacy units and parts.

    Attributes:
        images: ``(scans, channels, rows, columns)``, float32, normalised as the study says: an
            array, or a cache's tensors, which are read when they are asked for. Private.
        labels: ``(scans,)``, int64, class index. Private.
        patient: ``(scans,)``, int64, index of the privacy unit, ``0 .. patients - 1`` in order
            of first appearance. Private.
        part: ``(scans,)``, uint8: ``TRAIN``, ``VALIDATION`` or ``TEST``. Private.
        unit: What the privacy unit is: ``"patient"``; ``"image"`` where (some of) the scans
            carry no patient id, so that a scan may be its own unit; or the name of the group
            key. Public.
        refused: Reason → number of files left out when the set was read. Private; told to
            the site's admin only. Empty in a selection.
        pseudonyms: Patient index → the name by which the site's ledger knows the patient.
            Private. Empty where there is no ledger (simulation).

    Raises:
        ScanError: a patient has scans in more than one part.
        ValueError: shapes, dtypes or indices do not fit together (a defect, not bad data).

    Guarantee:
        No patient is in two parts. The representation shows nothing private.
    """

    images: Pictures
    labels: NDArray[np.int64]
    patient: NDArray[np.int64]
    part: NDArray[np.uint8]
    unit: str
    refused: Mapping[str, int] = field(default_factory=dict)
    pseudonyms: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        _check_arrays(self)
        lowest = np.full(self.patients, len(PARTS), dtype=np.uint8)
        highest = np.zeros(self.patients, dtype=np.uint8)
        np.minimum.at(lowest, self.patient, self.part)
        np.maximum.at(highest, self.patient, self.part)
        if (lowest != highest).any():
            raise ScanError(
                f"{int((lowest != highest).sum())} of {self.patients} privacy units "
                f"({self.unit}) have scans in more than one of train, validation and test; "
                "each must be in exactly one.",
                advice="correct the split by patient, not by scan, or let the study split "
                'with rule = "hash".',
            )

    def __repr__(self) -> str:
        return f"ScanSet(unit={self.unit!r}, tensor={self.images.shape[1:]})"

    def __len__(self) -> int:
        """Number of scans. Private."""
        return len(self.labels)

    @property
    def patients(self) -> int:
        """Number of privacy units. Private."""
        return int(self.patient.max()) + 1 if len(self.patient) else 0

    def part_of(self, part: int) -> ScanSet:
        """Give the scans of one part, in this order, with the patients numbered anew.

        Args:
            part: ``TRAIN``, ``VALIDATION`` or ``TEST``.

        Returns:
            A set with new storage; all of it private, as here. It may be empty.

        Raises:
            ValueError: there is no such part.
        """
        return self._chosen(self.part == Part(part))

    def select(self, patients: NDArray[np.int64]) -> ScanSet:
        """Give all scans of the named patients, in this order, numbered anew.

        Args:
            patients: Indices of privacy units, any order, each at most once. Private.

        Returns:
            A set with new storage; all of it private. Its patient 0 is the one whose scan
            comes first here, whatever the order of ``patients``.

        Raises:
            ValueError: an index is repeated or is none of this set's.
        """
        chosen = np.asarray(patients, dtype=np.int64)
        if len(np.unique(chosen)) != chosen.size:
            raise ValueError("a patient is selected twice")
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < self.patients):
            raise ValueError("a selected patient is not in this set")
        return self._chosen(np.isin(self.patient, chosen))

    def pseudonyms_in(self, part: int) -> frozenset[bytes]:
        """The patients of one part, by the names that the site's ledger knows. Private."""
        if not self.pseudonyms:
            return frozenset()
        chosen = np.unique(self.patient[self.part == Part(part)])
        return frozenset(self.pseudonyms[patient] for patient in chosen)

    def only(self, eligible: Collection[bytes] | None) -> ScanSet:
        """Give the scans of patients whom the ledger lets take part.

        Args:
            eligible: Their pseudonyms; None: everyone. Private.

        Returns:
            A set with new storage, or this one.
        """
        if eligible is None:
            return self
        named = [index for index, name in enumerate(self.pseudonyms) if name in eligible]
        return self.select(np.asarray(named, dtype=np.int64))

    def _chosen(self, keep: NDArray[np.bool_]) -> ScanSet:
        chosen = self.patient[keep].tolist()
        names = self.pseudonyms
        return ScanSet(
            images=_chosen(self.images, keep),
            labels=self.labels[keep],
            patient=number_in_order(chosen),
            part=self.part[keep],
            unit=self.unit,
            pseudonyms=tuple(names[p] for p in dict.fromkeys(chosen)) if names else (),
        )

    @classmethod
    def assemble(
        cls,
        images: Sequence[NDArray[np.float32]] | CachedTensors,
        labels: Sequence[int],
        keys: Sequence[str],
        given: Sequence[int] | None,
        study: Study,
        *,
        unit: str,
        refused: Mapping[str, int] | None = None,
        pseudonymise: Pseudonymise | None = None,
    ) -> Self:
        """Join what a layout read into a set: number the patients and split them.

        Args:
            images: One tensor ``(channels, rows, columns)`` per scan, or a cache's. Private. At
                least one.
            labels: Class index per scan. Private.
            keys: The privacy unit's key per scan (a patient id, for example). Private; used to
                group and to split, and not kept. Keys of one name are one privacy unit; its part
                is the first of train, validation and test that any of them is in.
            given: The part per scan, where the data set says it; used under
                ``rule = "given"`` only.
            study: Its split rule decides.
            unit: See the class.
            refused: See the class.
            pseudonymise: Names the patients for the ledger; None: they get no names.

        Raises:
            ScanError: the study takes the split as given and the data set gives none, or a
                patient is in two parts.
        """
        if study.split.rule == "hash":
            by_key = {key: PARTS[study.split.part_of(key)] for key in dict.fromkeys(keys)}
            parts: Sequence[int] = [by_key[key] for key in keys]
        elif given is not None:
            parts = given
        else:
            raise ScanError(
                f'study {study.name!r} takes the split as given (split.rule = "given"), and '
                "this data set says no split.",
                advice='add the split to the data set, or use rule = "hash" in the study.',
            )
        names = {key: pseudonymise(key) for key in dict.fromkeys(keys)} if pseudonymise else {}
        units = [names[key] for key in keys] if names else keys
        return cls(
            images=images if isinstance(images, CachedTensors) else np.stack(images),
            labels=np.asarray(labels, dtype=np.int64),
            patient=number_in_order(units),
            part=np.asarray(parts_of_units(parts, keys, units), dtype=np.uint8),
            unit=unit,
            refused=dict(refused or {}),
            pseudonyms=tuple(dict.fromkeys(names.values())),
        )


def _chosen(images: Pictures, keep: NDArray[np.bool_]) -> Pictures:
    """Some of the tensors; those of a cache without reading one."""
    if isinstance(images, CachedTensors):
        return images.chosen(keep)
    return images[np.flatnonzero(keep)]


def number_in_order(keys: Iterable[object]) -> NDArray[np.int64]:
    """Number keys 0, 1, 2 … by first appearance: ``["b", "a", "b"]`` gives ``[0, 1, 0]``."""
    numbers: dict[object, int] = {}
    return np.asarray([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _check_arrays(scans: ScanSet) -> None:
    expected = {"images": np.float32, "labels": np.int64, "patient": np.int64, "part": np.uint8}
    for name, dtype in expected.items():
        array = getattr(scans, name)
        if array.dtype != dtype or array.ndim != (4 if name == "images" else 1):
            raise ValueError(f"{name}: dtype {array.dtype} with {array.ndim} dimensions")
        if len(array) != len(scans.labels):
            raise ValueError(f"{name}: its length differs from that of labels")
    if not np.array_equal(scans.patient, number_in_order(scans.patient.tolist())):
        raise ValueError("patient: not numbered from 0 in order of first appearance")
    if scans.pseudonyms and len(set(scans.pseudonyms)) != scans.patients:
        raise ValueError("pseudonyms: not one for each patient")
    if len(scans.part) and scans.part.max() > TEST:
        raise ValueError("part: a value is none of TRAIN, VALIDATION and TEST")
