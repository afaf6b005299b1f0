"""The distributions that a check draws: brightness, size, age, scans per patient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.check.copies import Pictures
from medfed.client.scans.check.overview import SIDES, Overview
from medfed.client.scans.check.tallies import Counts
from medfed.client.scans.check.wording import age
from medfed.common.study_scans import Scans

LEVELS: Final = 32
"""Classes of brightness from black to white."""
MEASURED: Final = 64
"""Scans of a label whose brightness is measured, at most."""
_SEVERAL: Final = ((5, "1–5"), (10, "6–10"), (20, "11–20"), (50, "21–50"))

UNSAID: Final = "–"
"""What stands below a bar of scans whose age no header says."""

Bars = list[tuple[str, int]]
"""Words and numbers, in the order in which they are drawn."""


def brightness(overview: Overview, pictures: Pictures) -> Mapping[int, NDArray[np.float64]]:
    """Measure the brightness of a sample of each label.

    Returns:
        Label -> share of the pixels per class of brightness, ``(LEVELS,)``, sum 1. Private.
    """
    result = {}
    for label in range(overview.study.classes):
        samples = [s for (of, _), s in sorted(overview.samples.items()) if of == label]
        places = [scan.place for sample in samples for scan in sample.scans()]
        if places:
            result[label] = _levels(pictures(places[:: -(-len(places) // MEASURED)]), overview)
    return result


def _levels(tensors: NDArray[np.float32], overview: Overview) -> NDArray[np.float64]:
    scans: Scans = overview.study.scans
    values = np.clip(tensors.mean(axis=1) * scans.std + scans.mean, 0.0, 1.0)
    counts, _ = np.histogram(values, bins=LEVELS, range=(0.0, 1.0))
    return np.asarray(counts / counts.sum())


def ages(counts: Counts) -> Bars:
    """Scans by decade of age, gaps included; empty where no header says an age."""
    bands = [f"{years:03}Y" for years in range(0, 100, 10)]
    told = sorted(value for value in counts.values() if value in bands)
    if not told:
        return []
    first, last = bands.index(told[0]), bands.index(told[-1])
    bars = [(age(band), counts.total(band)) for band in bands[first : last + 1]]
    unknown = counts.total("")
    return bars + ([(UNSAID, unknown)] if unknown else [])


def sides(found: Mapping[int, int]) -> Bars:
    """Scans by the longer side in pixels, from the smallest class that occurs to the largest."""
    there = [side for side in SIDES if found.get(side)]
    if not there:
        return []
    between = SIDES[SIDES.index(there[0]) : SIDES.index(there[-1]) + 1]
    bars = [(f"to {side}", found.get(side, 0)) for side in between]
    larger = found.get(0, 0)
    return bars + ([("other", larger)] if larger else [])


def scans_per_patient(found: Mapping[int, int]) -> Bars:
    """Patients by their number of scans; one by one where no patient has many."""
    most = max(found, default=0)
    if most <= 8:
        return [(str(number), found.get(number, 0)) for number in range(1, most + 1)]
    bars, below = [], 0
    for end, words in (*_SEVERAL, (most, "over 50")):
        count = sum(n for size, n in found.items() if below < size <= end)
        bars.append((words, count))
        below = end
        if end >= most:
            break
    return bars
