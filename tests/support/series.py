"""Series of slices as DICOM files, and enhanced objects that hold a series in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage

from medfed.simulations.dicom_objects import derived_uid, write_object
from tests.support.scans import scan_object, study_of

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CT = 'intensity = "fixed"\nwindow = { center = 0, width = 2001 }\n'
"""From -1000 to 1000 Hounsfield units."""


def ct_scans(scans: str = "", size: int = 8) -> Any:
    """The ``[scans]`` table of a study of CT slices."""
    return study_of(size=size, scans=CT + scans).scans


def ct_series(take: str = "middle", size: int = 8) -> Any:
    """The ``[scans]`` table of a study of CT series."""
    return ct_scans(f'series = true\ntake = "{take}"', size)


def item(**elements: Any) -> Dataset:
    """An item of a sequence."""
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def hounsfield(value: float, side: int = 8) -> NDArray[np.uint16]:
    """A slice of one value, as a scanner stores it under intercept -1024."""
    return np.full((side, side), value + 1024, dtype=np.uint16)


def ct_slice(
    pixels: NDArray[np.uint16], z: float, *, series: str = "1", number: int = 1, **elements: Any
) -> Dataset:
    """An axial CT slice at a height, in mm."""
    described: dict[str, Any] = {
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelSpacing": [0.5, 0.5],
        "ImagePositionPatient": [-100.0, -120.0, z],
        "ImageOrientationPatient": list(AXIAL),
        "InstanceNumber": number,
    }
    dataset = scan_object(pixels, bits_stored=12, **(described | elements))
    _name(dataset, CTImageStorage, f"{series} {z} {number}")
    dataset.SeriesInstanceUID = derived_uid("series", series)
    return dataset


def write_series(
    folder: Path, heights: Sequence[float], values: Sequence[float], **elements: Any
) -> list[Path]:
    """Write a slice of one value, in Hounsfield units, at each height; give their paths."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number, (z, value) in enumerate(zip(heights, values, strict=True)):
        paths.append(folder / f"{number:03}.dcm")
        write_object(ct_slice(hounsfield(value), z, number=number + 1, **elements), paths[-1])
    return paths


def enhanced_ct(
    frames: Sequence[NDArray[np.uint16]],
    heights: Sequence[float],
    intercepts: Sequence[float],
    **elements: Any,
) -> Dataset:
    """An enhanced CT object whose frames have a height and a rescale intercept each."""
    groups = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[-100.0, -120.0, z])],
            PixelValueTransformationSequence=[
                item(RescaleSlope=1, RescaleIntercept=intercept, RescaleType="HU")
            ],
        )
        for z, intercept in zip(heights, intercepts, strict=True)
    ]
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=list(AXIAL))],
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.5])],
    )
    dataset = scan_object(
        frames[0],
        bits_stored=12,
        Modality="CT",
        ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        NumberOfFrames=len(frames),
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=groups,
        **elements,
    )
    dataset.PixelData = b"".join(frame.astype("<u2").tobytes() for frame in frames)
    _name(dataset, EnhancedCTImageStorage, "enhanced")
    dataset.SeriesInstanceUID = derived_uid("series", "enhanced")
    return dataset


def _name(dataset: Dataset, sop_class: UID, name: str) -> None:
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.SOPInstanceUID = derived_uid("slice", name)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
