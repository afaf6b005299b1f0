"""One DICOM file → the study's tensor.

Guards first (``guards.py``), then the first frame is decoded, shown as a viewer would
(``greyscale.py``, or colour below), and brought to the study's size (``tensors.py``).

Of a file with several frames the **first frame** is the scan: a file is one scan whatever its
length, so that a cine loop does not weigh more than a radiograph.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from medfed.client.scans.allowed_attributes import keep_allowed
from medfed.client.scans.greyscale import frame_group, shown_values
from medfed.client.scans.guards import COMPRESSED, ImageHeader, element, open_scan
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.client.scans.tensors import tensor_of
from medfed.common.study_scans import Scans

BARRED_DECODERS: Final = ("gdcm",)
"""Decoders never used even where installed: gdcm ends the whole process on a broken stream."""


class DicomScan(NamedTuple):
    """What a DICOM file gives: its tensor and whose it is. Both private."""

    tensor: NDArray[np.float32]
    patient_id: str
    """PatientID without surrounding blanks; empty where the file has none."""

    def __repr__(self) -> str:
        return f"DicomScan(tensor={self.tensor.shape})"


def read_dicom(path: Path, scans: Scans) -> DicomScan:
    """Read one DICOM file as the study's tensor.

    Args:
        path: A file; its content is not trusted.
        scans: What the study asks for.

    Returns:
        Tensor ``(channels, rows, columns)``, float32, and the patient id. Private: the id is
        for grouping in memory and is not to be stored.

    Raises:
        RefusedScanError: with the first rule that the file breaks.

    Guarantee:
        An 8-bit picture without window, rescale or padding gives ``value / 255`` before
        size and normalisation, to the bit what an ``.npz`` picture gives. Of the header only
        ``allowed_attributes.ALLOWED`` is looked at; a refusal carries nothing of the file.
    """
    read = _read(path, scans)
    if isinstance(read, Reason):  # raised here: no context, no frame that holds the file
        raise RefusedScanError(read)
    return read


def pixel_spacing(dataset: Dataset) -> tuple[float, float] | None:
    """Distance between rows and between columns, in mm; None where the file does not say.

    A projection image is measured at the detector (Imager Pixel Spacing) wherever the file
    says that, because its Pixel Spacing may or may not be calibrated to the patient, and the
    two must not be mixed in one study.

    Source:
        DICOM PS3.3 10.7.1.1 (Pixel Spacing), 10.7.1.3 (its calibration type).
    """
    place = dataset
    if element(dataset, "ImagerPixelSpacing") is None:
        place = frame_group(dataset, "PixelMeasuresSequence")
    for keyword in ("ImagerPixelSpacing", "PixelSpacing", "NominalScannedPixelSpacing"):
        value = element(place, keyword)
        if value is not None:
            try:
                down, across = (float(step) for step in value)
            except (TypeError, ValueError):
                raise RefusedScanError(Reason.SPACING) from None
            return down, across
    return None


def _read(path: Path, scans: Scans) -> DicomScan | Reason:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's quote the file; what matters is refused
            dataset, header = open_scan(path)
            dataset = keep_allowed(dataset)  # nothing else of the file is reachable from here on
            patient_id = str(element(dataset, "PatientID") or "").strip()
            return DicomScan(_tensor(dataset, header, scans), patient_id)
    except RefusedScanError as error:
        return error.reason


def _tensor(dataset: Dataset, header: ImageHeader, scans: Scans) -> NDArray[np.float32]:
    stored, valid = _first_frame(dataset, header), None
    if header.colour_model.startswith("MONOCHROME"):
        window = scans.intensity != "stored"
        values, valid = shown_values(stored, dataset, header, window=window)
    else:
        values = _colour(stored, dataset, header)
    spacing = pixel_spacing(dataset) if scans.spacing_mm is not None else None
    return tensor_of(values, scans, spacing_mm=spacing, valid=valid)


def _first_frame(dataset: Dataset, header: ImageHeader) -> NDArray[np.integer]:
    """Decode frame 1: ``(rows, columns)``, or ``(rows, columns, 3)`` as RGB."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in COMPRESSED and not _can_decode(syntax):
        raise RefusedScanError(Reason.NO_DECODER)
    try:
        frame = pixel_array(dataset, index=0)
    except Exception:  # a decoder on a broken stream raises whatever it runs into
        raise RefusedScanError(Reason.DECODE) from None
    wanted = (header.rows, header.columns) + ((3,) if header.samples == 3 else ())
    if frame.shape != wanted or not np.issubdtype(frame.dtype, np.integer):
        raise RefusedScanError(Reason.DECODE)
    return frame


def _can_decode(syntax: str) -> bool:
    decoder = get_decoder(syntax)
    for name in BARRED_DECODERS:
        if name in decoder.available_plugins:
            decoder.remove_plugin(name)
    return bool(decoder.is_available)


def _colour(
    stored: NDArray[np.integer], dataset: Dataset, header: ImageHeader
) -> NDArray[np.float64]:
    """RGB in [0, 1], ``(rows, columns, 3)``; a palette is looked up."""
    bits = header.bits_stored
    if header.colour_model == "PALETTE COLOR":
        stored, bits = _palette(stored, dataset)
    return np.clip(stored / float((1 << bits) - 1), 0.0, 1.0)


def _palette(stored: NDArray[np.integer], dataset: Dataset) -> tuple[NDArray[np.integer], int]:
    descriptor = element(dataset, "RedPaletteColorLookupTableDescriptor")
    try:
        entries, first, bits = (int(v) for v in descriptor)
        inside = np.clip(stored, first, first + (entries or 1 << 16) - 1)
        looked_up = apply_color_lut(inside, dataset)[:, :, :3]
    except Exception:  # descriptor and data are not trusted; pydicom raises many kinds
        raise RefusedScanError(Reason.COLOUR) from None
    return looked_up, min(bits, 8 * looked_up.dtype.itemsize)
