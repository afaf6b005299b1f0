"""One NIfTI file → the study's tensor.

Of a volume **one picture** is the scan: a file is one scan whatever its length. It is the middle
axial slice, or all axial slices projected onto one, seen as DICOM shows an axial slice: the
patient's right on the left, the front on top. Of several volumes in a file, the first.

The file is not trusted: what it inflates to is bounded by what its header says, and that by a
limit. ``nibabel`` reads it, which comes with the extra ``nifti``.

Source:
    The NIfTI-1 data format, https://nifti.nimh.nih.gov/nifti-1 (header, affine: x grows to the
    right, y to the front, z to the head).
"""

from __future__ import annotations

import gzip
import importlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.greyscale import Scale, study_window
from medfed.client.scans.guards import MAX_FILE_BYTES, MAX_PIXELS, read_bounded
from medfed.client.scans.projection import Picture, projected
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.client.scans.tensors import tensor_of
from medfed.common.errors import ScanError
from medfed.common.study_scans import Scans

HEADERS: Final = {348: "Nifti1Image", 540: "Nifti2Image"}
"""Size of the header, which is its first number -> nibabel's class."""
SLAB: Final = 32
"""Slices read at once: across the order in which a file stores them, a slice costs as much as all
of them."""
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
    """Read a NIfTI file as the study's tensor.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file; its content is not trusted.
        scans: What the study asks for. ``take`` says which slice, or which projection along the
            axial axis; ``"first"`` is the middle one too, the lowest being mostly air. Only
            ``intensity = "percentile"`` and ``"fixed"`` take values of any range; the others
            take unsigned integers of 8 or 16 bits without scaling.
        frame: A slice, counted from the feet, whatever the study takes; None: as it says.

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
            axial = _Axial.of(nibabel, volume)
            picture = _taken(axial, _scale(volume, scans), scans, frame)
        except RefusedScanError:
            raise
        except Exception:  # a broken file raises whatever it runs into
            raise RefusedScanError(Reason.DECODE) from None
    return tensor_of(picture.values, scans, spacing_mm=axial.spacing_mm, valid=picture.valid)


def _taken(axial: _Axial, scale: Scale, scans: Scans, frame: int | None) -> Picture:
    if frame is None and scans.take in ("maximum", "mean"):
        slices = axial.slices(0, axial.depth)
        return projected((_shown(plane, scale) for plane in slices), scans.take)
    wanted = axial.depth // 2 if frame is None else frame
    return _shown(next(axial.slices(wanted, wanted + 1)), scale)


def _shown(plane: NDArray[np.generic], scale: Scale) -> Picture:
    """Scale a slice; what is not finite shows nothing."""
    values = np.asarray(plane, dtype=np.float64)
    valid = np.isfinite(values)
    values = np.where(valid, scale(np.where(valid, values, 0.0)), 0.0)
    return Picture(values, None if valid.all() else valid)


def _scale(volume: Any, scans: Scans) -> Scale:
    """How the file's values become brightness; ``tensors.py`` does it for percentiles."""
    if scans.window is not None:
        return study_window(scans.window.center, scans.window.width)
    largest = 1.0 if scans.intensity == "percentile" else _stored_range(volume)
    return lambda values: values / largest


def _inflated(content: bytes) -> bytes:
    if content[:2] != GZIP:
        return content
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        inflated = file.read(MAX_FILE_BYTES + 1)
    if len(inflated) > MAX_FILE_BYTES:
        raise RefusedScanError(Reason.TOO_LARGE)
    return inflated


def _volume(nibabel: Any, content: bytes) -> Any:
    size = content[:4]
    kind = HEADERS.get(int.from_bytes(size, "little")) or HEADERS.get(int.from_bytes(size, "big"))
    if kind is None:
        raise RefusedScanError(Reason.NOT_NIFTI)
    volume = getattr(nibabel, kind).from_bytes(content)
    shape = volume.shape
    if not 2 <= len(shape) <= 7 or 0 in shape:
        raise RefusedScanError(Reason.HEADER)
    values = int(np.prod([int(side) for side in shape], dtype=object))
    if values > MAX_PIXELS:
        raise RefusedScanError(Reason.PIXEL_LIMIT)
    if volume.get_data_dtype().kind not in "iuf":
        raise RefusedScanError(Reason.COLOUR)
    if len(content) < volume.dataobj.offset + values * volume.get_data_dtype().itemsize:
        raise RefusedScanError(Reason.DECODE)  # cut off, though perhaps not in the slice wanted
    return volume


class _Axial(NamedTuple):
    """A volume by its axial slices, ``(rows, columns)`` each."""

    volume: Any
    across: int
    along: int
    up: int
    """The axes that run from side to side, from back to front, and from feet to head."""
    forward: tuple[bool, bool, bool]
    """Of each axis, whether it grows to the right, the front, the head."""

    @classmethod
    def of(cls, nibabel: Any, volume: Any) -> _Axial:
        axes = nibabel.orientations.io_orientation(volume.affine)[:3]
        if not np.isfinite(axes).all():
            raise RefusedScanError(Reason.HEADER)
        places = [int(np.flatnonzero(axes[:, 0] == world)[0]) for world in range(3)]
        across, along, up = places
        right, front, head = (bool(axes[place, 1] > 0) for place in places)
        return cls(volume, across, along, up, (right, front, head))

    @property
    def depth(self) -> int:
        """Number of slices."""
        return int((*self.volume.shape, 1)[:3][self.up])

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """Distance between rows, and between columns."""
        steps = [float(step) for step in self.volume.header.get_zooms()[:3]]
        return steps[self.along], steps[self.across]

    def slices(self, start: int, stop: int) -> Iterator[NDArray[np.generic]]:
        """Slices counted from the feet; a few are read at a time."""
        if not 0 <= start < stop <= self.depth:
            raise RefusedScanError(Reason.HEADER)
        for first in range(start, stop, SLAB):
            yield from map(self._seen, self._read(first, min(first + SLAB, stop)))

    def _read(self, start: int, stop: int) -> NDArray[np.generic]:
        """``(slices, …)``, from the feet; of several volumes in the file the first."""
        dimensions = len(self.volume.shape)
        picked: list[int | slice] = [slice(None)] * 3 + [0] * (dimensions - 3)
        head = self.forward[2]
        picked[self.up] = (
            slice(start, stop) if head else slice(self.depth - stop, self.depth - start)
        )
        slab = np.asarray(self.volume.dataobj[tuple(picked[:dimensions])])
        slab = np.moveaxis(slab.reshape((*slab.shape, 1)[:3]), self.up, 0)
        return slab if head else slab[::-1]

    def _seen(self, plane: NDArray[np.generic]) -> NDArray[np.generic]:
        """Turn a slice so that the front is on top and the patient's right on the left."""
        right, front, _ = self.forward
        if self.along > self.across:
            plane = plane.T
        if front:
            plane = plane[::-1]
        return plane[:, ::-1] if right else plane


def _stored_range(volume: Any) -> float:
    """The largest value that the stored type holds, where that says anything about brightness."""
    stored = volume.get_data_dtype()
    scaling = (volume.dataobj.slope, volume.dataobj.inter)  # the loaded header has them no more
    if stored.kind != "u" or stored.itemsize > 2 or scaling != (1.0, 0.0):
        raise RefusedScanError(Reason.GREY_SCALE)
    return float((1 << 8 * int(stored.itemsize)) - 1)
