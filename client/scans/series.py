"""One series of slices → the study's tensor.

A series is one scan, however many files it has. Every file of it is as little trusted as any
other: each goes through the same guards. All headers are read first, which says in which order the
slices lie and whether one is missing (``slice_order.py``); then the slices that the study takes
are decoded one after the other, so that a series of any length needs the memory of one slice.

An enhanced multi-frame file holds its slices as frames; the same is done with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.facts import facts_of
from medfed.client.scans.functional_groups import orientation_of, pixel_spacing, position_of
from medfed.client.scans.pixels import (
    DicomScan,
    Frame,
    OpenFile,
    middle_of,
    open_suited,
    taken,
    without_traces,
)
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.client.scans.slice_order import slice_order
from medfed.client.scans.tensors import tensor_of
from medfed.client.scans.ultrasound import shown_region
from medfed.common.study_scans import Scans

MAX_SERIES_PIXELS: Final = 500_000_000
"""Largest rows × columns × samples × slices; it bounds the time, since one slice at a time is in
memory. 1,900 slices of 512 × 512."""
MAX_SLICES: Final = 10_000
SPACING_TOLERANCE: Final = 1e-3
"""By what part the pixel spacing of slices may differ."""


class _Slice(NamedTuple):
    """What must be known of a slice before it is decoded."""

    path: Path
    frame: int
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    alike: tuple[object, ...]
    """What is the same in all slices."""
    spacing: tuple[float, float] | None

    def __repr__(self) -> str:
        return "_Slice()"


def read_series(paths: Sequence[Path], scans: Scans) -> DicomScan:
    """Read the files of one series as the study's tensor.

    Args:
        paths: At least one, in any order; their content is not trusted.
        scans: What the study asks for.

    Returns:
        As ``read_dicom``: of one slice, or of all of them projected along the series.

    Raises:
        RefusedScanError: with the first rule that a file breaks, or the series: slices that
            differ in patient, size, spacing or orientation, that lie at one position, or of
            which one is missing.

    Guarantee:
        To the bit the same whatever the order of ``paths``, their names and the numbers of the
        slices. One file is in memory at a time.
    """
    return without_traces(lambda: _read(paths, scans))


def _read(paths: Sequence[Path], scans: Scans) -> DicomScan:
    slices = _slices(paths, scans)
    _check_alike(slices)
    positions = np.stack([one.position for one in slices])
    orientations = np.stack([one.orientation for one in slices])
    ordered = [slices[index] for index in slice_order(positions, orientations)]

    @lru_cache(maxsize=1)
    def opened(path: Path) -> OpenFile:
        return open_suited(path, scans)

    picture = taken(ordered, lambda one: Frame(opened(one.path), one.frame), scans)
    middle = middle_of(ordered)
    file = opened(middle.path)
    spacing = middle.spacing if scans.spacing_mm is not None else None
    tensor = tensor_of(picture.values, scans, spacing_mm=spacing, valid=picture.valid)
    facts = replace(facts_of(file.dataset, file.header), frames=len(slices))
    return DicomScan(tensor, file.patient_id, facts)


def _slices(paths: Sequence[Path], scans: Scans) -> list[_Slice]:
    slices: list[_Slice] = []
    pixels = 0
    for path in paths:
        file = open_suited(path, scans)
        dataset, header = file
        pixels += header.rows * header.columns * header.samples * header.frames
        if pixels > MAX_SERIES_PIXELS or len(slices) + header.frames > MAX_SLICES:
            raise RefusedScanError(Reason.SERIES_LIMIT)
        grey = header.colour_model.startswith("MONOCHROME")
        region = shown_region(dataset, header)
        alike = (file.patient_id, header.rows, header.columns, grey, region)
        slices += (
            _Slice(
                path,
                frame,
                position_of(dataset, frame),
                orientation_of(dataset, frame),
                alike,
                pixel_spacing(dataset, frame),
            )
            for frame in range(header.frames)
        )
    return slices


def _check_alike(slices: Sequence[_Slice]) -> None:
    first = slices[0]
    for one in slices:
        if one.alike != first.alike or not _same(one.spacing, first.spacing):
            raise RefusedScanError(Reason.MIXED_SERIES)


def _same(one: tuple[float, float] | None, other: tuple[float, float] | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(
        math.isclose(a, b, rel_tol=SPACING_TOLERANCE) for a, b in zip(one, other, strict=True)
    )
