"""Scans as a check sees them, made by hand: healthy sites, sites with troubles, colour."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.check.examine import Examination, examine
from medfed.client.scans.check.overview import Overview, gather
from medfed.client.scans.facts import LookedAt, ScanFacts, look_of
from medfed.common.study import Study
from medfed.simulations.phantoms import FIELD_MM
from medfed.simulations.thorax import Pose, Thorax, draw
from tests.support.scans import study_of

CR = ScanFacts(
    modality="CR",
    manufacturer="Radiant Medical",
    model="RM-20",
    view="PA",
    body_part="CHEST",
    burned_in="no",
    rows=2048,
    columns=2048,
    bits=12,
)
AGES = ("020Y", "030Y", "040Y", "050Y", "060Y", "070Y", "080Y")


@dataclass
class Folder:
    """Scans that a test makes one by one, with their tensors."""

    study: Study
    scans: list[LookedAt] = field(default_factory=list)
    tensors: list[NDArray[np.float32]] = field(default_factory=list)

    def add(
        self,
        tensor: NDArray[np.float32],
        *,
        patient: str,
        label: int = 0,
        part: int = 0,
        content: str = "",
        facts: ScanFacts = CR,
    ) -> None:
        """One scan; its content is its own unless named."""
        number = len(self.scans)
        self.tensors.append(np.asarray(tensor, dtype=np.float32))
        self.scans.append(
            LookedAt(
                f"{number:05d}.dcm",
                label,
                part,
                hashlib.sha256(patient.encode()).digest()[:16],
                facts,
                hashlib.sha256((content or f"content {number}").encode()).digest(),
                look_of(self.tensors[-1]),
            )
        )

    def pictures(self, places: Sequence[int]) -> NDArray[np.float32]:
        """As a cache gives them."""
        shape = (self.study.scans.channels, *self.study.scans.size)
        return np.stack([self.tensors[p] for p in places]) if len(places) else np.empty((0, *shape))

    def overview(self, **how: Any) -> Overview:
        """Its scans in numbers."""
        return gather(iter(self.scans), self.study, **({"unit": "patient"} | how))

    def examined(self, *, declared: int | None = None, **how: Any) -> Examination:
        """Check it."""
        return examine(self.overview(**how), self.pictures, declared=declared)


def noise(seed: int, side: int = 32, channels: int = 1) -> NDArray[np.float32]:
    """A picture that looks like no other."""
    return np.random.default_rng(seed).random((channels, side, side), dtype=np.float32)


def chest(seed: int, *, opacity: bool = False, side: int = 96) -> NDArray[np.float32]:
    """A drawn chest radiograph in [0, 1]."""
    random = np.random.default_rng([7, seed])
    drawn = draw(Thorax.of(random, opacity=opacity), Pose.of(random), side, FIELD_MM)
    grainy = np.clip(drawn + random.normal(0, 0.02, drawn.shape), 0, 1)
    return grainy.astype(np.float32)[None]


def healthy(patients: int = 120, *, side: int = 96) -> Folder:
    """A site where nothing needs care: 120 patients, about two scans each, both labels alike."""
    folder = Folder(study_of(size=side))
    random = np.random.default_rng(1)
    for patient in range(patients):
        label, part = patient % 2, 0 if patient % 4 < 2 else 2 if patient % 8 < 4 else 1
        facts = replace(
            CR,
            sex="FM"[int(random.integers(2))],
            age_band=AGES[int(random.integers(len(AGES)))],
            model=("RM-20", "RM-40")[int(random.integers(2))],
        )
        for scan in range(1 + patient % 3):
            folder.add(
                chest(10 * patient + scan, opacity=bool(label), side=side),
                patient=f"P{patient}",
                label=label,
                part=part,
                facts=facts,
            )
    return folder


def troubled(*, side: int = 96) -> Folder:
    """A site with copies, burned-in text, several views and devices that go with the label."""
    folder = healthy(140, side=side)
    for number, scan in enumerate(folder.scans):
        facts = scan.facts
        if scan.label == 1:
            facts = replace(facts, manufacturer="Old & Sons", model="Portable <1>", view="AP")
        if number % 9 == 0:
            facts = replace(facts, burned_in="yes", text_risk=True)
            written = np.tile([1, 1, 0, 1, 0, 0, 1, 0], side // 14)[: side // 2]
            folder.tensors[number][0, 4:9, 4 : 4 + len(written)] = written
        if number % 17 == 0:
            facts = replace(facts, modality="US", text_risk=True, rows=60, columns=80, bits=8)
        folder.scans[number] = scan._replace(facts=facts, look=look_of(folder.tensors[number]))
    _spoil(folder)
    return folder


def _spoil(folder: Folder) -> None:
    """Add copies of every kind, and scans that show nothing."""
    tensors = folder.tensors
    random = np.random.default_rng(3)
    for number in range(4):
        folder.add(tensors[number], patient=f"copy {number}", label=number % 2, part=2)
        folder.add(tensors[20 + number], patient=f"twin {number}", label=1, part=0)
        again = np.clip(0.9 * tensors[40 + number] + 0.05, 0, 1)
        again = again + random.normal(0, 0.002, again.shape)
        folder.add(again, patient=f"saved {number}", label=0, part=2)
    patient = folder.scans[60].patient
    folder.add(tensors[60], patient="", label=folder.scans[60].label, part=folder.scans[60].part)
    folder.scans[-1] = folder.scans[-1]._replace(patient=patient)
    for number in range(3):
        folder.add(np.full_like(tensors[0], 0.4), patient=f"flat {number}", label=0)
