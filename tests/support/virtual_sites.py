"""Scans without files, for tests of what happens after reading."""

from __future__ import annotations

import numpy as np

from medfed.client.scans.scanset import TEST, TRAIN, ScanSet


def bright_and_dark(
    patients: int, *, scans_each: int = 1, seed: int = 0, test_share: float = 0.0, side: int = 28
) -> ScanSet:
    """Patients whose scans have a brighter left half if their label is 1.

    Half, because a network with GroupNorm does not see the brightness of a whole scan.
    """
    generator = np.random.default_rng(seed)
    label = np.arange(patients) % 2
    patient = np.repeat(np.arange(patients, dtype=np.int64), scans_each)
    noise = generator.normal(0.5, 0.1, (len(patient), 1, side, side))
    noise[:, :, :, : side // 2] += 0.1 * label[patient][:, None, None, None]
    tested = generator.random(patients) < test_share
    return ScanSet(
        images=noise.astype(np.float32),
        labels=label[patient].astype(np.int64),
        patient=patient,
        part=np.where(tested, TEST, TRAIN)[patient].astype(np.uint8),
        unit="patient",
    )
