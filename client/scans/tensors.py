"""From grey or colour values in [0, 1] to the tensor that a study asks for.

The one place where size, channels and normalisation are decided, so that the same picture
gives the same bits whether it came as DICOM or out of an ``.npz``. Every constant comes from
the study; the only number taken from the picture is its own percentile, where the study asks
for it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.common.study_scans import Scans

LUMINANCE: Final = np.asarray([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the luminance (ITU-R BT.601)."""
MAX_SIDE: Final = 16_384
"""Largest side, in pixels, that resampling to a spacing may produce before the crop."""


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
            left out of the percentiles. Private.

    Returns:
        ``(channels, rows, columns)``, float32, ``(value - mean) / std``. One channel from
        colour is the luminance; three channels from grey are three copies. Pixels added around
        a smaller picture are black. Private.

    Raises:
        RefusedScanError: the study sets a spacing and the picture has none, or a senseless one.

    Guarantee:
        A picture of the study's size keeps its values; resizing has no overshoot.
    """
    if scans.intensity == "percentile":
        values = _stretched(values, valid)
    planes = [np.asarray(plane, dtype=np.float32) for plane in _channels(values, scans.channels)]
    if scans.spacing_mm is None:
        sized = [_resized(plane, scans.size) for plane in planes]
    else:
        scale = _scaled_size(planes[0].shape, spacing_mm, scans.spacing_mm)
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


def _channels(values: NDArray[np.float64], channels: int) -> list[NDArray[np.float64]]:
    if values.ndim == 2:
        return [values] * channels
    if channels == 1:
        return [values @ LUMINANCE]
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
