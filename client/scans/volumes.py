"""One NIfTI file → the study's tensor.

Of a volume **one slice** is the scan: a file is one scan whatever its length. It is the middle
axial slice, seen as DICOM shows an axial slice: the patient's right on the left, the front on
top. Of several volumes in a file, the first.

The file is not trusted: what it inflates to is bounded by what its header says, and that by a
limit. ``nibabel`` reads it, which comes with the extra ``nifti``.

Source:
    The NIfTI-1 data format, https://nifti.nimh.nih.gov/nifti-1 (header, affine: x grows to the
    right, y to the front, z to the head).
"""

from __future__ import annotations

import importlib
import warnings
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.guards import MAX_FILE_BYTES, MAX_PIXELS, read_bounded
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.client.scans.tensors import tensor_of
from medfed.common.errors import ScanError
from medfed.common.study_scans import Scans

HEADERS: Final = {348: "Nifti1Image", 540: "Nifti2Image"}
"""Size of the header, which is its first number -> nibabel's class."""
GZIP: Final = b"\x1f\x8b"


def need_nibabel() -> Any:
    """Give the module.

    Raises:
        ScanError: it is not installed.
    """
    try:
        return importlib.import_module("nibabel")
    except ImportError:
        raise ScanError(
            "NIfTI files need the package nibabel, which is not installed.",
            advice="install it: pip install 'medfed[nifti]'.",
        ) from None


def read_volume(path: Path, scans: Scans, frame: int | None = None) -> NDArray[np.float32]:
    """Read one slice of a NIfTI file as the study's tensor.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file; its content is not trusted.
        scans: What the study asks for. Only ``intensity = "percentile"`` takes values of any
            range; the others take unsigned integers of 8 or 16 bits without scaling.
        frame: The slice, from the feet; None: the middle one.

    Returns:
        ``(channels, rows, columns)``, float32. Private.

    Raises:
        RefusedScanError: with the first rule that the file breaks.
        ScanError: nibabel is not installed.
    """
    nibabel = need_nibabel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            volume = _volume(nibabel, _inflated(read_bounded(path)))
            plane, spacing = _axial(nibabel, volume, frame)
        except RefusedScanError:
            raise
        except Exception:  # a broken file raises whatever it runs into
            raise RefusedScanError(Reason.DECODE) from None
    values = np.asarray(plane, dtype=np.float64)
    valid = np.isfinite(values)
    values = np.where(valid, values, 0.0)
    if scans.intensity != "percentile":
        values = values / _stored_range(volume)
    return tensor_of(values, scans, spacing_mm=spacing, valid=None if valid.all() else valid)


def _inflated(content: bytes) -> bytes:
    if content[:2] != GZIP:
        return content
    pieces, length = [], 0
    while content:
        inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        piece = inflater.decompress(content, MAX_FILE_BYTES + 1 - length)
        length += len(piece)
        if length > MAX_FILE_BYTES:
            raise RefusedScanError(Reason.TOO_LARGE)
        if not inflater.eof:
            raise RefusedScanError(Reason.DECODE)
        pieces.append(piece)
        content = inflater.unused_data
    return b"".join(pieces)


def _volume(nibabel: Any, content: bytes) -> Any:
    size = content[:4]
    kind = HEADERS.get(int.from_bytes(size, "little")) or HEADERS.get(int.from_bytes(size, "big"))
    if kind is None:
        raise RefusedScanError(Reason.NOT_NIFTI)
    volume = getattr(nibabel, kind).from_bytes(content)
    shape = volume.shape
    if not 2 <= len(shape) <= 7 or 0 in shape:
        raise RefusedScanError(Reason.HEADER)
    if int(np.prod([int(side) for side in shape], dtype=object)) > MAX_PIXELS:
        raise RefusedScanError(Reason.PIXEL_LIMIT)
    if volume.get_data_dtype().kind not in "iuf":
        raise RefusedScanError(Reason.COLOUR)
    return volume


def _axial(
    nibabel: Any, volume: Any, frame: int | None
) -> tuple[NDArray[np.generic], tuple[float, float]]:
    """One slice ``(rows, columns)``, and the distance between its rows and columns in mm."""
    axes = nibabel.orientations.io_orientation(volume.affine)[:3]
    if not np.isfinite(axes).all():
        raise RefusedScanError(Reason.HEADER)
    across, along, up = (int(np.flatnonzero(axes[:, 0] == world)[0]) for world in range(3))
    shape = (*volume.shape, 1)[:3]
    middle = shape[up] // 2 if axes[up, 1] > 0 else (shape[up] - 1) // 2
    wanted = middle if frame is None else (frame if axes[up, 1] > 0 else shape[up] - 1 - frame)
    if not 0 <= wanted < shape[up]:
        raise RefusedScanError(Reason.HEADER)
    picked: list[int | slice] = [slice(None)] * 3 + [0] * (len(volume.shape) - 3)
    picked[up] = wanted
    plane = np.asarray(volume.dataobj[tuple(picked[: len(volume.shape)])])
    if along > across:
        plane = plane.T
    if axes[along, 1] > 0:  # grows to the front, which is on top
        plane = plane[::-1]
    if axes[across, 1] > 0:  # grows to the right, which is on the left
        plane = plane[:, ::-1]
    steps = [float(step) for step in volume.header.get_zooms()[:3]]
    return plane, (steps[along], steps[across])


def _stored_range(volume: Any) -> float:
    """The largest value that the stored type holds, where that says anything about brightness."""
    stored = volume.get_data_dtype()
    scaling = (volume.dataobj.slope, volume.dataobj.inter)  # the loaded header has them no more
    if stored.kind != "u" or stored.itemsize > 2 or scaling != (1.0, 0.0):
        raise RefusedScanError(Reason.GREY_SCALE)
    return float((1 << 8 * int(stored.itemsize)) - 1)
