"""From stored grey values to what a viewer would show, in [0, 1], 0 black.

In the order that the standard prescribes: padding out, modality transform, VOI transform,
presentation (inversion last). The scale is the range of the VOI LUT, of the window, or of the
stored bits, never the picture's own minimum and maximum: two scans stay comparable, and no
value of a tensor depends on one extreme pixel.

Source:
    DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT; window functions in C.11.2.1.2 and
    C.11.2.1.3), C.11.6 and C.7.6.3.1.2 (presentation, MONOCHROME1), C.7.5.1.1.2 (padding).
    Where the image is an enhanced multi-frame object, the transforms of its first frame stand
    in the functional groups (C.7.6.16.2).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRBigEndian

from medfed.client.scans.guards import ImageHeader, element, integer
from medfed.client.scans.refusals import Reason, RefusedScanError


class GreyPicture(NamedTuple):
    """``(rows, columns)``: values in [0, 1], and False where the pixel is padding. Private."""

    values: NDArray[np.float64]
    valid: NDArray[np.bool_] | None


class _Ranged(NamedTuple):
    """Values with the range they can take, ``low < high``."""

    values: NDArray[np.float64]
    low: float
    high: float


def shown_values(
    stored: NDArray[np.integer], dataset: Dataset, header: ImageHeader, *, window: bool
) -> GreyPicture:
    """Apply padding, modality, VOI and presentation to one decoded grey frame.

    Args:
        stored: ``(rows, columns)``, as decoded. Private.
        dataset: The file's elements.
        header: Its checked image header.
        window: Whether the header's VOI LUT or window applies; without it, or where the
            header has none, the range of the stored bits becomes [0, 1].

    Returns:
        Values in [0, 1], 0 black; padding is 0. Private.

    Raises:
        RefusedScanError: a transform in the header is not valid.
    """
    valid = _not_padding(stored, dataset, header)
    ranged = _modality(stored, dataset, header)
    shown = (_voi(ranged, dataset) if window else None) or ranged
    values = np.clip((shown.values - shown.low) / (shown.high - shown.low), 0.0, 1.0)
    if _inverted(dataset, header):
        values = 1.0 - values
    if valid is not None:
        values[~valid] = 0.0
    if not np.isfinite(values).all():
        raise RefusedScanError(Reason.GREY_SCALE)
    return GreyPicture(values, valid)


def frame_group(dataset: Dataset, name: str) -> Dataset:
    """Give the functional group of the first frame that holds ``name``, else the data set."""
    for place in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        groups = element(dataset, place)
        items = element(groups[0], name) if groups else None
        if items:
            group: Dataset = items[0]
            return group
    return dataset


def windowed(
    values: NDArray[np.float64], centre: float, width: float, function: str = "LINEAR"
) -> NDArray[np.float64]:
    """Map values through a window to [0, 1].

    Args:
        values: Any shape, in the units of the modality transform's output.
        centre: Window centre, same units.
        width: Window width, same units; at least 1 for LINEAR, else above 0.
        function: ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID``.

    Raises:
        RefusedScanError: the width or the function is none that the standard knows.

    Source:
        DICOM PS3.3 C.11.2.1.2.1 (LINEAR) and C.11.2.1.3 (SIGMOID, LINEAR_EXACT).

    Example:
        >>> windowed(np.asarray([0.0, 127.5, 255.0]), centre=128.0, width=256.0).tolist()
        [0.0, 0.5, 1.0]
    """
    if not (np.isfinite(centre) and np.isfinite(width) and width > 0):
        raise RefusedScanError(Reason.GREY_SCALE)
    if function == "SIGMOID":
        exponent = np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)
        return np.asarray(1.0 / (1.0 + np.exp(exponent)))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    if function != "LINEAR" or width < 1:
        raise RefusedScanError(Reason.GREY_SCALE)
    if width == 1:  # the standard's two bounds meet: a step
        return np.where(values > centre - 0.5, 1.0, 0.0)
    return np.clip((values - (centre - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _not_padding(
    stored: NDArray[np.integer], dataset: Dataset, header: ImageHeader
) -> NDArray[np.bool_] | None:
    if element(dataset, "PixelPaddingValue") is None:
        return None
    first = integer(dataset, "PixelPaddingValue")
    last = integer(dataset, "PixelPaddingRangeLimit", first)
    modulus = 1 << header.bits_allocated
    if header.signed:  # some writers store the signed value as an unsigned one
        first, last = ((v - modulus if v >= modulus // 2 else v) for v in (first, last))
    return (stored < min(first, last)) | (stored > max(first, last))


def _modality(stored: NDArray[np.integer], dataset: Dataset, header: ImageHeader) -> _Ranged:
    tables = element(dataset, "ModalityLUTSequence")
    if tables:
        return _lookup(stored.astype(np.float64), tables[0], dataset)
    group = frame_group(dataset, "PixelValueTransformationSequence")
    slope = _number(group, "RescaleSlope", 1.0)
    intercept = _number(group, "RescaleIntercept", 0.0)
    if not (np.isfinite(slope) and np.isfinite(intercept) and slope != 0):
        raise RefusedScanError(Reason.GREY_SCALE)
    half = 1 << (header.bits_stored - 1)
    ends = (-half, half - 1) if header.signed else (0, 2 * half - 1)
    low, high = sorted(end * slope + intercept for end in ends)
    return _Ranged(stored.astype(np.float64) * slope + intercept, low, high)


def _voi(ranged: _Ranged, dataset: Dataset) -> _Ranged | None:
    """The header's VOI LUT, else its window, the first of each; None where it has neither."""
    group = frame_group(dataset, "FrameVOILUTSequence")
    tables = element(group, "VOILUTSequence")
    if tables:
        return _lookup(ranged.values, tables[0], dataset)
    if element(group, "WindowCenter") is None or element(group, "WindowWidth") is None:
        return None
    centre, width = _number(group, "WindowCenter", 0.0), _number(group, "WindowWidth", 0.0)
    function = str(_first(element(group, "VOILUTFunction")) or "LINEAR").strip()
    return _Ranged(windowed(ranged.values, centre, width, function), 0.0, 1.0)


def _lookup(values: NDArray[np.float64], table: Dataset, dataset: Dataset) -> _Ranged:
    """Map values through a LUT item; below and above it, its first and last entry hold."""
    descriptor, data = element(table, "LUTDescriptor"), element(table, "LUTData")
    try:
        entries, first, bits = (int(v) for v in descriptor)
        entries = entries or 1 << 16  # 0 stands for 65,536
        if isinstance(data, bytes):
            wide = ">u2" if _big_endian(dataset) else "<u2"
            data = np.frombuffer(data, dtype=wide if len(data) >= 2 * entries else np.uint8)
        lut = np.asarray(data).astype(np.float64).reshape(-1)[:entries]
    except (TypeError, ValueError, OverflowError):
        raise RefusedScanError(Reason.GREY_SCALE) from None
    if lut.shape != (entries,) or not 0 < bits <= 16:
        raise RefusedScanError(Reason.GREY_SCALE)
    index = np.clip(np.rint(values) - first, 0, entries - 1).astype(np.int64)
    return _Ranged(lut[index], 0.0, float((1 << bits) - 1))


def _big_endian(dataset: Dataset) -> bool:
    return bool(dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian)


def _inverted(dataset: Dataset, header: ImageHeader) -> bool:
    shape = str(element(dataset, "PresentationLUTShape") or "").strip()
    return shape == "INVERSE" or (not shape and header.colour_model == "MONOCHROME1")


def _number(dataset: Dataset, keyword: str, default: float) -> float:
    value = _first(element(dataset, keyword))
    try:
        return default if value is None else float(value)
    except (TypeError, ValueError):
        raise RefusedScanError(Reason.GREY_SCALE) from None


def _first(value: Any) -> Any:
    """First of several values; None for none."""
    if isinstance(value, MultiValue):
        return value[0] if len(value) else None
    return value
