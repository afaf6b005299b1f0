"""Where a frame of a file says what it is: its functional groups, or the file itself.

In an enhanced multi-frame object what may differ between frames stands in a sequence with an item
for each frame, and what they share in another. Everywhere else the elements stand in the data set.

Source:
    DICOM PS3.3 C.7.6.16 (multi-frame functional groups), 10.7.1.1 and 10.7.1.3 (pixel spacing).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medfed.client.scans.guards import element
from medfed.client.scans.refusals import Reason, RefusedScanError


def frame_group(dataset: Dataset, name: str, frame: int = 0) -> Dataset:
    """Give the functional group ``name`` of a frame, counted from 0; else the data set.

    Raises:
        RefusedScanError: the file has groups for some of its frames, and none for this one.
    """
    for place, item in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        groups = element(dataset, place)
        if not groups:
            continue
        if item >= len(groups):
            raise RefusedScanError(Reason.HEADER)
        items = element(groups[item], name)
        if items:
            group: Dataset = items[0]
            return group
    return dataset


def pixel_spacing(dataset: Dataset, frame: int = 0) -> tuple[float, float] | None:
    """Distance between rows and between columns, in mm; None where the file does not say.

    A projection image is measured at the detector (Imager Pixel Spacing) wherever the file
    says that, because its Pixel Spacing may or may not be calibrated to the patient, and the
    two must not be mixed in one study.

    Raises:
        RefusedScanError: it is no pair of numbers.
    """
    place = dataset
    if element(dataset, "ImagerPixelSpacing") is None:
        place = frame_group(dataset, "PixelMeasuresSequence", frame)
    for keyword in ("ImagerPixelSpacing", "PixelSpacing", "NominalScannedPixelSpacing"):
        value = element(place, keyword)
        if value is not None:
            try:
                down, across = (float(step) for step in value)
            except (TypeError, ValueError):
                raise RefusedScanError(Reason.SPACING) from None
            return down, across
    return None


def position_of(dataset: Dataset, frame: int = 0) -> NDArray[np.float64]:
    """Where the centre of a frame's first pixel lies, ``(3,)``, in mm, in the patient. Private.

    Raises:
        RefusedScanError: the file does not say, or nothing that is a place.
    """
    group = frame_group(dataset, "PlanePositionSequence", frame)
    return _numbers(group, "ImagePositionPatient", 3)


def orientation_of(dataset: Dataset, frame: int = 0) -> NDArray[np.float64]:
    """Directions of a frame's rows and columns, ``(6,)``, in the patient.

    Raises:
        RefusedScanError: the file does not say.
    """
    group = frame_group(dataset, "PlaneOrientationSequence", frame)
    return _numbers(group, "ImageOrientationPatient", 6)


def _numbers(group: Dataset, keyword: str, count: int) -> NDArray[np.float64]:
    try:
        numbers = np.asarray([float(n) for n in element(group, keyword) or ()], dtype=np.float64)
    except (TypeError, ValueError):
        raise RefusedScanError(Reason.POSITION) from None
    if numbers.shape != (count,):
        raise RefusedScanError(Reason.POSITION)
    return numbers
