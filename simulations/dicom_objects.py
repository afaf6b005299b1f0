"""Write pictures as DICOM files whose bytes depend on nothing but the arguments.

Shared by the phantoms and by the wrapper of ``.npz`` data sets. Identifiers come from a digest,
dates are fixed, and the file is Explicit VR Little Endian, so that the same call gives the same
bytes with the same pydicom (which writes its version into the file).

Source:
    DICOM PS3.3 A.2 (Computed Radiography), A.26 (Digital X-Ray), A.8.1 (Secondary Capture);
    PS3.5 B.2 (UIDs under 2.25, from a UUID).
"""

from __future__ import annotations

import csv
import hashlib
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from medfed.client.scans.layouts.dicom_worklist import WORKLIST

IMPLEMENTATION: Final = UID("2.25.207343715043939447221740875220053806905")
"""Our Implementation Class UID, from a random UUID drawn once."""
FIXED_DATE: Final = "20200101"
FIXED_TIME: Final = "000000"


def derived_uid(*parts: object) -> UID:
    """Make a UID from a digest: the same parts give the same UID, others another.

    Example:
        >>> derived_uid("seed", 0) == derived_uid("seed", 0)
        True
    """
    digest = hashlib.sha256("|".join(str(part) for part in parts).encode()).digest()
    return UID(f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}")


def image_object(
    pixels: NDArray[np.uint8] | NDArray[np.uint16],
    *,
    sop_class: UID,
    instance: UID,
    study: UID,
    series: UID,
    patient_id: str,
    bits_stored: int,
    colour_model: str,
) -> Dataset:
    """Make a DICOM image object with the modules that every image has.

    Args:
        pixels: Stored values, ``(rows, columns)``, or ``(rows, columns, 3)`` as RGB.
        sop_class: Which kind of image.
        instance: SOP instance UID.
        study: Study instance UID (DICOM's study: one examination).
        series: Series instance UID.
        patient_id: At most 64 characters, no backslash.
        bits_stored: Bits used of each stored value.
        colour_model: Photometric interpretation.

    Raises:
        ValueError: the patient id is no DICOM long string.
    """
    if len(patient_id) > 64 or "\\" in patient_id or not patient_id.isprintable():
        raise ValueError("a PatientID has at most 64 printable characters and no backslash")
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = instance
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = IMPLEMENTATION
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, instance
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.StudyDate, dataset.StudyTime = FIXED_DATE, FIXED_TIME
    for keyword in ("AccessionNumber", "ReferringPhysicianName", "StudyID", "Manufacturer"):
        setattr(dataset, keyword, "")
    dataset.PatientName = ""
    dataset.PatientID = patient_id
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.PatientOrientation = ""
    _set_pixels(dataset, pixels, bits_stored, colour_model)
    return dataset


def _set_pixels(
    dataset: Dataset,
    pixels: NDArray[np.uint8] | NDArray[np.uint16],
    bits_stored: int,
    colour_model: str,
) -> None:
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = colour_model
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits_stored, bits_stored - 1
    dataset.PixelRepresentation = 0
    content = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"


def write_object(dataset: Dataset, path: Path) -> None:
    """Write a data set as a DICOM file, replacing what is there."""
    dataset.save_as(path, enforce_file_format=True, overwrite=True)


def write_worklist(folder: Path, rows: Iterable[Mapping[str, str]], columns: list[str]) -> None:
    """Write ``worklist.csv`` whole or not at all.

    Written last, it also says that the files it names are complete: call ``drop_worklist``
    before the first of them is written.
    """
    partial = folder / f".{WORKLIST}.partial"
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, folder / WORKLIST)


def drop_worklist(folder: Path) -> None:
    """Remove an earlier ``worklist.csv``, so that a half-written folder reads as empty."""
    (folder / WORKLIST).unlink(missing_ok=True)
