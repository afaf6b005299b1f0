"""What a site's scans are, in numbers: gathered in one pass over a stream of any length.

All of it is private and for the site's admin only. Of a scan itself some 30 bytes are kept, to
find copies by (``copies.py``); everything else is counted.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.check.tallies import Counts, Sample
from medfed.client.scans.facts import LookedAt, ScanFacts
from medfed.client.scans.scanset import PARTS
from medfed.common.study import Study

SAMPLE: Final = 64
"""Scans per label and part that are drawn on and measured."""
ATTRIBUTES: Final = (
    "modality",
    "device",
    "view",
    "laterality",
    "body_part",
    "sex",
    "age_band",
    "bits",
)
"""Attributes of ``ScanFacts`` that are counted by label; ``device`` with its modality."""
SIDES: Final = (64, 128, 256, 512, 1024, 2048, 4096)
"""Upper ends of the classes of size, by the longer side in pixels."""


@dataclass(frozen=True, repr=False)
class Marks:
    """What is kept of each scan. Private.

    Attributes:
        patient: ``(scans,)``, uint64: 64 bits of the pseudonym, hashed.
        content: ``(scans,)``, uint64: likewise of the content's keyed name.
        look: ``(scans,)``, uint64.
        label: ``(scans,)``, int16.
        part: ``(scans,)``, int8.
    """

    patient: NDArray[np.uint64]
    content: NDArray[np.uint64]
    look: NDArray[np.uint64]
    label: NDArray[np.int16]
    part: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.look)


@dataclass(frozen=True, repr=False)
class Overview:
    """A site's usable scans in numbers. Private.

    Attributes:
        study: What they were read for.
        unit: What the privacy unit is; ``"image"`` where scans carry no patient id.
        marks: For finding copies.
        scans: ``(labels, parts)``: number of scans.
        patients: ``(labels, parts)``: privacy units with such a scan.
        patients_of_part: ``(parts,)``.
        patients_in_all: Privacy units.
        in_several_parts: Privacy units with scans in more than one part.
        per_patient: Scans of a unit -> number of such units.
        by: Attribute -> its values by label.
        sides: Upper end of a class of size -> scans; 0: larger than all, or not known.
        smaller: Scans with fewer rows or columns than the study's pictures.
        burned_in: Scans whose header says that text is burned in.
        text_risk: Scans of kinds that often have text in the picture.
        flat: Scans that show nothing.
        samples: ``(label, part)`` -> scans to look at.
        risky: Scans that may have text in them.
        blank: Scans that show nothing.
        refused: Reason -> files that are no usable scan.
        left_out: Reason -> scans or lines that are not in the index.
    """

    study: Study
    unit: str
    marks: Marks
    scans: NDArray[np.int64]
    patients: NDArray[np.int64]
    patients_of_part: NDArray[np.int64]
    patients_in_all: int
    in_several_parts: int
    per_patient: Mapping[int, int]
    by: Mapping[str, Counts]
    sides: Mapping[int, int]
    smaller: int
    burned_in: int
    text_risk: int
    flat: int
    samples: Mapping[tuple[int, int], Sample]
    risky: Sample
    blank: Sample
    refused: Mapping[str, int]
    left_out: Mapping[str, int]

    @property
    def total(self) -> int:
        """Usable scans."""
        return len(self.marks)

    @property
    def units(self) -> str:
        """The privacy units in the plural: ``patients``."""
        return f"{self.unit}s"


def gather(
    looked: Iterable[LookedAt],
    study: Study,
    *,
    unit: str,
    refused: Mapping[str, int] | None = None,
    left_out: Mapping[str, int] | None = None,
) -> Overview:
    """Count what there is.

    Args:
        looked: Every usable scan once, in the order that numbers them. Private.
        study: Its labels and picture size.
        unit: What the privacy unit is.
        refused: Reason -> files that are no usable scan.
        left_out: Reason -> scans or lines that are not in the index.

    Guarantee:
        Besides some 30 bytes per scan the memory taken does not depend on their number, nor on
        what their headers say.
    """
    tally = _Tally(study)
    for place, scan in enumerate(looked):
        tally.add(place, scan)
    marks = tally.marks()
    patients, of_part, several, per_patient = _patients(marks, study.classes)
    return Overview(
        study=study,
        unit=unit,
        marks=marks,
        scans=_crossed(marks.label, marks.part, study.classes),
        patients=patients,
        patients_of_part=of_part,
        patients_in_all=sum(per_patient.values()),
        in_several_parts=several,
        per_patient=per_patient,
        by=tally.by,
        sides=tally.sides,
        smaller=tally.smaller,
        burned_in=tally.burned_in,
        text_risk=tally.risky.seen,
        flat=tally.blank.seen,
        samples=tally.samples,
        risky=tally.risky,
        blank=tally.blank,
        refused=dict(refused or {}),
        left_out=dict(left_out or {}),
    )


class _Tally:
    """What is counted scan by scan."""

    def __init__(self, study: Study) -> None:
        self._size = study.scans.size
        self._marks = (array("Q"), array("Q"), array("Q"), array("h"), array("b"))
        self.by = {name: Counts(study.classes) for name in ATTRIBUTES}
        self.sides: Counter[int] = Counter()
        self.smaller = self.burned_in = 0
        self.samples: dict[tuple[int, int], Sample] = {}
        self.risky, self.blank = Sample(SAMPLE), Sample(SAMPLE)

    def add(self, place: int, scan: LookedAt) -> None:
        values = (_mark(scan.patient), _mark(scan.content), scan.look, scan.label, scan.part)
        for marks, value in zip(self._marks, values, strict=True):
            marks.append(value)
        self._count(scan.facts, scan.label)
        sample = self.samples.setdefault((scan.label, scan.part), Sample(SAMPLE))
        sample.add(place, scan.content, scan.facts)
        if scan.facts.text_risk:
            self.risky.add(place, scan.content, scan.facts)
        if scan.look == 0:
            self.blank.add(place, scan.content, scan.facts)

    def _count(self, facts: ScanFacts, label: int) -> None:
        for name, counts in self.by.items():
            counts.add(_value(facts, name), label)
        longer = max(facts.rows, facts.columns)
        self.sides[next((side for side in SIDES if 0 < longer <= side), 0)] += 1
        rows, columns = self._size
        self.smaller += 0 < facts.rows < rows or 0 < facts.columns < columns
        self.burned_in += facts.burned_in == "yes"

    def marks(self) -> Marks:
        patient, content, look, label, part = self._marks
        return Marks(
            np.frombuffer(patient, dtype=np.uint64),
            np.frombuffer(content, dtype=np.uint64),
            np.frombuffer(look, dtype=np.uint64),
            np.frombuffer(label, dtype=np.int16),
            np.frombuffer(part, dtype=np.int8),
        )


def _value(facts: ScanFacts, attribute: str) -> str:
    if attribute == "device":
        return " · ".join(filter(None, (facts.modality, facts.device)))
    if attribute == "bits":
        return f"{facts.bits} bits" if facts.bits else ""
    return str(getattr(facts, attribute))


def _mark(name: bytes) -> int:
    """64 bits of a name, all of which count: names of one file's pictures begin alike."""
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def _crossed(label: NDArray[np.int16], part: NDArray[np.int8], labels: int) -> NDArray[np.int64]:
    """How many there are by label and part."""
    flat = label.astype(np.int64) * len(PARTS) + part
    return np.bincount(flat, minlength=labels * len(PARTS)).reshape(labels, len(PARTS))


def _patients(
    marks: Marks, labels: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], int, dict[int, int]]:
    """Units by label and part, by part, in several parts, and by their number of scans."""
    cell = marks.label.astype(np.int64) * len(PARTS) + marks.part
    order = np.lexsort((cell, marks.patient))
    patient, cell = marks.patient[order], cell[order]
    another = np.append(True, patient[1:] != patient[:-1])[: len(patient)]
    fresh = another | np.append(True, cell[1:] != cell[:-1])[: len(cell)]
    by_cell = np.bincount(cell[fresh], minlength=labels * len(PARTS)).reshape(labels, len(PARTS))
    number = np.cumsum(another) - 1
    units = int(number[-1]) + 1 if len(number) else 0
    present = np.zeros((units, len(PARTS)), dtype=bool)
    present[number, cell % len(PARTS)] = True
    sizes, counts = np.unique(np.bincount(number, minlength=units), return_counts=True)
    per_patient = {int(size): int(count) for size, count in zip(sizes, counts, strict=True)}
    return by_cell, present.sum(axis=0), int((present.sum(axis=1) > 1).sum()), per_patient
