"""From grey or colour values in [0, 1] to the tensor that a study asks for.

The one place where size, channels and normalisation are decided, so that the same picture
gives the same bits whether it came as DICOM or out of an ``.npz``. Every constant comes from
the study; what is taken from the picture itself (its percentiles, its noise, its outline, its
histograms) is taken where the study asks for it, and from that picture alone.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medfed.client.scans.enhance import denoised, equalised, luminance
from medfed.client.scans.masks import box_of
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.common.study_scans import Scans

MOST_DENOISED: Final = 2048 * 2048
"""Largest picture, in pixels, that non-local means works on (about 5 s); a larger one is made
smaller first. Every study's tensor is a quarter of that or less."""
MOST_FILTERED: Final = 4096 * 4096
"""The same for the median and for CLAHE: more would take the memory of a child that decodes."""
MAX_SIDE: Final = 16_384
"""Largest side, in pixels, that resampling to a spacing may produce before the crop."""


class _Picture(NamedTuple):
    """What the steps hand on: values, what of them is no padding, and their spacing. Private."""

    values: NDArray[np.float64]
    valid: NDArray[np.bool_] | None
    spacing_mm: tuple[float, float] | None


def tensor_of(
    values: NDArray[np.float64],
    scans: Scans,
    *,
    spacing_mm: tuple[float, float] | None = None,
    valid: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Turn one picture into the study's tensor.

    Args:
        values: ``(rows, columns)`` or ``(rows, columns, 3)``, in [0, 1], 0 black. Private.
        scans: What the study asks for.
        spacing_mm: Distance between rows and between columns, in mm; needed where the study
            sets a spacing.
        valid: ``(rows, columns)``, False where a pixel shows nothing of the patient (padding):
            left out of the percentiles, background for the crop, black where the scan is
            denoised or equalised. Private.

    Returns:
        ``(channels, rows, columns)``, float32, ``(value - mean) / std``. One channel from
        colour is the luminance; three channels from grey are three copies. Pixels added around
        a smaller picture are black. Private.

    Raises:
        RefusedScanError: the study sets a spacing and the picture has none, or a senseless one.
        ScanError: the study denoises, crops or equalises, and a package for it is missing.

    Guarantee:
        A picture of the study's size keeps its values, where the study neither stretches nor
        enhances; nothing has an overshoot. The same picture gives the same tensor, whatever was
        read before it.
    """
    if scans.intensity == "percentile":
        values = _stretched(values, valid)
    if scans.channels == 1:
        values = luminance(values)
    picture = _enhanced(_Picture(values, valid, spacing_mm), scans)
    planes = [
        np.asarray(plane, dtype=np.float32) for plane in _channels(picture.values, scans.channels)
    ]
    if scans.spacing_mm is None:
        sized = [_resized(plane, scans.size) for plane in planes]
    else:
        scale = _scaled_size(planes[0].shape, picture.spacing_mm, scans.spacing_mm)
        sized = [_cropped_or_padded(_resized(plane, scale), scans.size) for plane in planes]
    tensor = (np.stack(sized) - np.float32(scans.mean)) / np.float32(scans.std)
    return tensor.astype(np.float32, copy=False)


def _stretched(values: NDArray[np.float64], valid: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """Map the 0.5 % and 99.5 % quantile to 0 and 1, clipped; a flat picture becomes black."""
    seen = values if valid is None else values[valid]
    low, high = np.percentile(seen, [0.5, 99.5]) if seen.size else (0.0, 0.0)
    if not high > low:
        return np.zeros_like(values)
    stretched = np.clip((values - low) / (high - low), 0.0, 1.0)
    if valid is not None:
        stretched[~valid] = 0.0
    return stretched


def _enhanced(picture: _Picture, scans: Scans) -> _Picture:
    """Denoise, crop and equalise, in this order, what the study asks for.

    A crop changes neither values nor spacing.
    """
    if scans.denoise != "none":
        median = scans.denoise == "median"
        picture = _at_most(picture, MOST_FILTERED if median else MOST_DENOISED)
        picture = _blackened(picture._replace(values=denoised(picture.values, scans.denoise)))
    if scans.crop != "none":
        box = box_of(picture.values, picture.valid, scans.crop)
        valid = None if picture.valid is None else box.of(picture.valid)
        picture = picture._replace(values=box.of(picture.values), valid=valid)
    if scans.clahe_clip is not None:
        picture = _at_most(picture, MOST_FILTERED)
        picture = _blackened(picture._replace(values=equalised(picture.values, scans.clahe_clip)))
    return picture


def _at_most(picture: _Picture, pixels: int) -> _Picture:
    """The same field of view in at most so many pixels; spacing as it becomes by that."""
    rows, columns = picture.values.shape[:2]
    if rows * columns <= pixels:
        return picture
    shrink = (pixels / (rows * columns)) ** 0.5
    size = max(1, int(rows * shrink)), max(1, int(columns * shrink))
    planes = [_resized(p.astype(np.float32), size) for p in _channels(picture.values, 1)]
    values = planes[0] if len(planes) == 1 else np.stack(planes, axis=2)
    valid, spacing = picture.valid, picture.spacing_mm
    if valid is not None:
        valid = _resized(valid.astype(np.float32), size) > 0.5
    if spacing is not None:
        spacing = spacing[0] * rows / size[0], spacing[1] * columns / size[1]
    return _Picture(values.astype(np.float64), valid, spacing)


def _blackened(picture: _Picture) -> _Picture:
    """With black padding."""
    if picture.valid is None or picture.valid.all():
        return picture
    seen = picture.valid if picture.values.ndim == 2 else picture.valid[:, :, None]
    return picture._replace(values=np.where(seen, picture.values, 0.0))


def _channels(values: NDArray[np.float64], channels: int) -> list[NDArray[np.float64]]:
    """The three planes of colour, or so many copies of grey."""
    if values.ndim == 2:
        return [values] * channels
    return [values[:, :, index] for index in range(3)]


def _resized(plane: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize by area-aware (antialiased) linear interpolation; the same size is left alone."""
    if plane.shape == size:
        return plane
    picture = Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(picture, dtype=np.float32)


def _scaled_size(
    shape: tuple[int, ...], spacing_mm: tuple[float, float] | None, wanted_mm: float
) -> tuple[int, int]:
    """Rows and columns of the same field of view at the wanted spacing."""
    if spacing_mm is None or not all(np.isfinite(step) and step > 0 for step in spacing_mm):
        raise RefusedScanError(Reason.SPACING)
    sides = [side * step / wanted_mm for side, step in zip(shape, spacing_mm, strict=True)]
    if max(sides) > MAX_SIDE:
        raise RefusedScanError(Reason.SPACING)
    rows, columns = (max(1, round(side)) for side in sides)
    return rows, columns


def _cropped_or_padded(plane: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Keep the centre; what is missing is 0. An odd surplus goes to the end."""
    result = np.zeros(size, dtype=np.float32)
    source, target = [], []
    for have, want in zip(plane.shape, size, strict=True):
        take = min(have, want)
        source.append(slice((have - take) // 2, (have - take) // 2 + take))
        target.append(slice((want - take) // 2, (want - take) // 2 + take))
    result[tuple(target)] = plane[tuple(source)]
    return result
