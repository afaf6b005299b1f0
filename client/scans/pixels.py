"""One DICOM file → the study's tensor.

Guards first (``guards.py``), then whether the study takes such a file (``suited.py``); then a frame
is decoded (``frames.py``), shown as a viewer would (``greyscale.py``, or ``colour.py``), and
brought to the study's size (``tensors.py``).

Of a file with several frames one is the scan, or one picture made of all of them: a file is one
scan whatever its length, so that a cine loop does not weigh more than a radiograph. A file that is
a slice of a series is read by ``series.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medfed.client.scans.allowed_attributes import keep_allowed
from medfed.client.scans.colour import colour_values
from medfed.client.scans.facts import ScanFacts, facts_of
from medfed.client.scans.frames import decoded_frame
from medfed.client.scans.functional_groups import pixel_spacing
from medfed.client.scans.greyscale import Scale, has_units, scale_of, shown_values
from medfed.client.scans.guards import ImageHeader, element, open_scan
from medfed.client.scans.projection import Picture, projected
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.client.scans.suited import check_suited, is_ct
from medfed.client.scans.tensors import tensor_of
from medfed.client.scans.ultrasound import shown_region
from medfed.common.study_scans import Scans

Plane = TypeVar("Plane")


class DicomScan(NamedTuple):
    """What DICOM files give: a tensor, whose it is, and how it was taken. All private."""

    tensor: NDArray[np.float32]
    patient_id: str
    """PatientID without surrounding blanks; empty where the file has none."""
    facts: ScanFacts = ScanFacts()

    def __repr__(self) -> str:
        return f"DicomScan(tensor={self.tensor.shape})"


class OpenFile(NamedTuple):
    """A file that passed the guards. Private."""

    dataset: Dataset
    """With nothing but what ``keep_allowed`` keeps."""
    header: ImageHeader

    @property
    def patient_id(self) -> str:
        """As in ``DicomScan``."""
        return str(element(self.dataset, "PatientID") or "").strip()

    def __repr__(self) -> str:
        return "OpenFile()"


class Frame(NamedTuple):
    """One frame of an open file. Private."""

    file: OpenFile
    number: int
    """Counted from 0."""

    def __repr__(self) -> str:
        return "Frame()"


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
        ``allowed_attributes.ALLOWED`` is looked at; a refusal carries nothing of the file. One
        frame at a time is in memory.
    """
    return without_traces(lambda: _read(path, scans))


def without_traces(read: Callable[[], DicomScan]) -> DicomScan:
    """Read, and raise a refusal that leads back to nothing of the file: no context, no frame."""
    refused: Reason | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's quote the file; what matters is refused
            return read()
    except RefusedScanError as error:
        refused = error.reason
    raise RefusedScanError(refused)


def open_suited(path: Path, scans: Scans) -> OpenFile:
    """Open a file that passes the guards and that the study takes.

    Raises:
        RefusedScanError: with the first rule that the file breaks.
    """
    dataset, header = open_scan(path)
    dataset = keep_allowed(dataset)  # nothing else of the file is reachable from here on
    check_suited(dataset, scans)
    return OpenFile(dataset, header)


def middle_of(planes: Sequence[Plane]) -> Plane:
    """The one in the middle; of an even number the upper."""
    return planes[len(planes) // 2]


def taken(planes: Sequence[Plane], frame_of: Callable[[Plane], Frame], scans: Scans) -> Picture:
    """Make the one picture of several frames or slices that the study takes.

    Args:
        planes: What stands for the frames, in order; at least one.
        frame_of: Opens the frame of one.
        scans: What the study asks for.

    Returns:
        The first, the middle one, or the projection of all. The window or range of the middle
        one then holds for all of them: were each shown by its own, equal values would differ.

    Raises:
        RefusedScanError: one of them cannot be shown.
    """
    if scans.take == "first":
        return _shown(frame_of(planes[0]), scans)
    if scans.take == "middle":
        return _shown(frame_of(middle_of(planes)), scans)
    scale = _scale(frame_of(middle_of(planes)), scans)
    return projected((_shown(frame_of(plane), scans, scale) for plane in planes), scans.take)


def _read(path: Path, scans: Scans) -> DicomScan:
    file = open_suited(path, scans)
    frames = range(file.header.frames)
    picture = taken(frames, lambda number: Frame(file, number), scans)
    shown = frames[0] if scans.take == "first" else middle_of(frames)
    spacing = pixel_spacing(file.dataset, shown) if scans.spacing_mm is not None else None
    tensor = tensor_of(picture.values, scans, spacing_mm=spacing, valid=picture.valid)
    return DicomScan(tensor, file.patient_id, facts_of(file.dataset, file.header))


def _scale(frame: Frame, scans: Scans) -> Scale | None:
    """How grey values become brightness; None for colour, which has no such transform."""
    dataset, header = frame.file
    grey = header.colour_model.startswith("MONOCHROME")
    return scale_of(dataset, header, scans, frame.number) if grey else None


def _shown(frame: Frame, scans: Scans, scale: Scale | None = None) -> Picture:
    """Decode a frame and show it; by its own scale, where none is given."""
    (dataset, header), number = frame
    scale = scale or _scale(frame, scans)
    if scans.intensity == "fixed" and (
        scale is None or (is_ct(dataset) and not has_units(dataset, number))
    ):
        raise RefusedScanError(Reason.NO_UNITS)
    stored = decoded_frame(dataset, header, number)[shown_region(dataset, header)]
    if scale is None:
        return Picture(colour_values(stored, dataset, header))
    return shown_values(stored, dataset, header, scale, number)
