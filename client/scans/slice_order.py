"""In which order the slices of a series lie in the patient, and whether all of them are there.

Slices are put in order by their position along the normal of their plane and never by their
number: the number says when a slice was made or sent, and not where it lies.

Source:
    DICOM PS3.3 C.7.6.2.1.1 (Image Position and Image Orientation, in mm and direction cosines; x
    grows to the patient's left, y to the back, z to the head).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.refusals import Reason, RefusedScanError

TOLERANCE: Final = 0.01
"""By what part of the median step a step between slices may differ from it."""
SAME_MM: Final = 1e-4
"""Slices no further apart lie at one place."""
DIRECTION_TOLERANCE: Final = 1e-3
"""Of a direction cosine."""
FARTHEST_MM: Final = 1e5


def slice_order(
    positions: NDArray[np.float64], orientations: NDArray[np.float64]
) -> NDArray[np.intp]:
    """Put slices in order, and refuse what is no evenly spaced stack.

    Args:
        positions: ``(slices, 3)``, Image Position (Patient), in mm. At least one. Private.
        orientations: ``(slices, 6)``, Image Orientation (Patient).

    Returns:
        Indices of the slices, ``(slices,)``, from the lowest along the normal: for axial slices
        from the feet to the head.

    Raises:
        RefusedScanError: a position or orientation is none, slices are not parallel, two lie at
            one place, or a step between neighbours differs from the median step by more than
            ``TOLERANCE``, as it does where a slice is missing.

    Guarantee:
        Independent of the order in which the slices are given. A stack that is sheared, as by a
        tilted gantry, is even where its steps are.

    Example:
        >>> z = np.asarray([5.0, 0.0, 2.5])
        >>> positions = np.stack([0 * z, 0 * z, z], axis=1)
        >>> slice_order(positions, np.tile([1.0, 0, 0, 0, 1, 0], (3, 1))).tolist()
        [1, 2, 0]
    """
    normal = _normal(orientations)
    if not (np.abs(positions) <= FARTHEST_MM).all():  # NaN is not either
        raise RefusedScanError(Reason.POSITION)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    if len(order) == 1:
        return order
    gaps = np.diff(along[order])
    if gaps.min() <= SAME_MM:
        raise RefusedScanError(Reason.SAME_POSITION)
    steps = np.diff(positions[order], axis=0)
    deviations = np.abs(steps - np.median(steps, axis=0)).max(axis=1)
    if deviations.max() > TOLERANCE * float(np.median(gaps)):
        raise RefusedScanError(Reason.SLICE_MISSING)
    return order


def _normal(orientations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the one plane in which all slices lie; points to the head for axial slices."""
    first = orientations[0]
    rows, columns = first[:3], first[3:]
    if not (np.abs(orientations) <= 2).all():  # NaN is not either
        raise RefusedScanError(Reason.POSITION)
    square = np.asarray([rows @ rows - 1, columns @ columns - 1, rows @ columns])
    if np.abs(square).max() > TOLERANCE:
        raise RefusedScanError(Reason.POSITION)
    if np.abs(orientations - first).max() > DIRECTION_TOLERANCE:
        raise RefusedScanError(Reason.MIXED_SERIES)
    return np.cross(rows, columns)
