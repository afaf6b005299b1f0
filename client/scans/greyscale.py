"""From stored grey values to what a viewer would show, in [0, 1], 0 black.

In the order that the standard prescribes: padding out, modality transform, VOI transform,
presentation (inversion last). The scale is the range of the VOI LUT, of the window, or of the
stored bits, never the picture's own minimum and maximum: two scans stay comparable, and no
value of a tensor depends on one extreme pixel. Where the study fixes a window, that window takes
the place of the header's VOI transform.

Source:
    DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT; window functions in C.11.2.1.2 and
    C.11.2.1.3), C.11.6 and C.7.6.3.1.2 (presentation, MONOCHROME1), C.7.5.1.1.2 (padding).
    Where the image is an enhanced multi-frame object, the transforms of a frame stand in its
    functional groups (C.7.6.16.2).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRBigEndian

from medfed.client.scans.functional_groups import frame_group
from medfed.client.scans.guards import ImageHeader, element, integer
from medfed.client.scans.projection import Picture
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.common.study_scans import Scans

Values = NDArray[np.float64]
Scale = Callable[[Values], Values]
"""From values of the modality transform, any shape, to [0, 1]; each value by itself."""

PIXELS_PER_LEVEL: Final = 2
"""A look-up table is worth its making where there are so many pixels for each of its entries."""
BLOCK: Final = 1 << 15
"""Pixels looked up at once: so many indices stay in the processor's cache."""


class _Modality(NamedTuple):
    """The modality transform, each value by itself, and the range of what it gives."""

    apply: Scale
    low: float
    high: float


def shown_values(
    stored: NDArray[np.integer],
    dataset: Dataset,
    header: ImageHeader,
    scale: Scale,
    frame: int = 0,
) -> Picture:
    """Apply padding, modality, VOI and presentation to one decoded grey frame.

    Args:
        stored: ``(rows, columns)``, as decoded; may be a part of the frame. Private.
        dataset: The file's elements.
        header: Its checked image header.
        scale: The VOI transform, as ``scale_of`` gives it, of this frame or of another.
        frame: Which frame it is, counted from 0.

    Returns:
        Values in [0, 1], 0 black; padding is 0. Private.

    Raises:
        RefusedScanError: a transform in the header is not valid.
    """
    modality, inverted = _modality(dataset, header, frame), _inverted(dataset, header)

    def shown(values: NDArray[np.integer]) -> Values:
        scaled = scale(modality.apply(values.astype(np.float64)))
        return 1.0 - scaled if inverted else scaled

    values = each(stored, shown)
    valid = _not_padding(stored, dataset, header)
    if valid is not None:
        values[~valid] = 0.0
    if not np.isfinite(values).all():
        raise RefusedScanError(Reason.GREY_SCALE)
    return Picture(values, valid)


def scale_of(dataset: Dataset, header: ImageHeader, scans: Scans, frame: int = 0) -> Scale:
    """Give how values of the modality transform become brightness, for one frame.

    Args:
        dataset: The file's elements.
        header: Its checked image header.
        scans: What the study asks for.
        frame: Which frame, counted from 0.

    Returns:
        The study's window where it fixes one. Else the header's VOI LUT or window, the first of
        each, where the study wants it and there is one; else the range of the stored bits
        becomes [0, 1].

    Raises:
        RefusedScanError: a transform in the header is not valid.
    """
    if scans.window is not None:
        return study_window(scans.window.center, scans.window.width)
    voi = None if scans.intensity == "stored" else _voi(dataset, frame)
    if voi is not None:
        return voi
    modality = _modality(dataset, header, frame)
    return partial(_between, low=modality.low, high=modality.high)


def study_window(center: float, width: float) -> Scale:
    """Give a study's window; one of width 1 or less is taken exactly, not as a step."""
    function = "LINEAR" if width > 1 else "LINEAR_EXACT"
    return partial(windowed, centre=center, width=width, function=function)


def has_units(dataset: Dataset, frame: int = 0) -> bool:
    """Whether a frame has a modality transform, so that its values mean something."""
    group = frame_group(dataset, "PixelValueTransformationSequence", frame)
    rescaled = element(group, "RescaleSlope") is not None
    return rescaled or bool(element(dataset, "ModalityLUTSequence"))


def windowed(values: Values, centre: float, width: float, function: str = "LINEAR") -> Values:
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


def each(stored: NDArray[np.integer], mapping: Callable[[NDArray[np.integer]], Values]) -> Values:
    """Map every stored value; where many pixels share few values, by a table of them.

    Args:
        stored: Any shape, not empty. Private.
        mapping: Maps an array of any shape, each value by itself.

    Guarantee:
        To the bit what ``mapping(stored)`` gives; new storage.
    """
    low, high = int(stored.min()), int(stored.max())
    if (high - low + 1) * PIXELS_PER_LEVEL > stored.size:
        return mapping(stored)
    table, flat = mapping(np.arange(low, high + 1)), stored.reshape(-1)
    mapped = np.empty(flat.size)
    for start in range(0, flat.size, BLOCK):
        part = slice(start, start + BLOCK)
        table.take(np.subtract(flat[part], low, dtype=np.intp), out=mapped[part], mode="clip")
    return mapped.reshape(stored.shape)


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


def _modality(dataset: Dataset, header: ImageHeader, frame: int) -> _Modality:
    tables = element(dataset, "ModalityLUTSequence")
    if tables:
        lut = _Lut.of(tables[0], dataset)
        return _Modality(lut.entry, 0.0, lut.top)
    group = frame_group(dataset, "PixelValueTransformationSequence", frame)
    slope = _number(group, "RescaleSlope", 1.0)
    intercept = _number(group, "RescaleIntercept", 0.0)
    if not (np.isfinite(slope) and np.isfinite(intercept) and slope != 0):
        raise RefusedScanError(Reason.GREY_SCALE)
    half = 1 << (header.bits_stored - 1)
    ends = (-half, half - 1) if header.signed else (0, 2 * half - 1)
    low, high = sorted(end * slope + intercept for end in ends)
    return _Modality(partial(_rescaled, slope=slope, intercept=intercept), low, high)


def _rescaled(values: Values, slope: float, intercept: float) -> Values:
    return values * slope + intercept


def _between(values: Values, low: float, high: float) -> Values:
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def _voi(dataset: Dataset, frame: int) -> Scale | None:
    """The header's VOI LUT, else its window, the first of each; None where it has neither."""
    group = frame_group(dataset, "FrameVOILUTSequence", frame)
    tables = element(group, "VOILUTSequence")
    if tables:
        return _Lut.of(tables[0], dataset).share
    if element(group, "WindowCenter") is None or element(group, "WindowWidth") is None:
        return None
    centre, width = _number(group, "WindowCenter", 0.0), _number(group, "WindowWidth", 0.0)
    function = str(_first(element(group, "VOILUTFunction")) or "LINEAR").strip()
    return partial(windowed, centre=centre, width=width, function=function)


class _Lut(NamedTuple):
    """A LUT item; below and above it, its first and last entry hold."""

    entries: Values
    first: int
    top: float

    @classmethod
    def of(cls, table: Dataset, dataset: Dataset) -> _Lut:
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
        return cls(lut, first, float((1 << bits) - 1))

    def entry(self, values: Values) -> Values:
        """The entry of each value."""
        last = len(self.entries) - 1
        index = np.clip(np.rint(values) - self.first, 0, last).astype(np.int64)
        return np.asarray(self.entries[index])

    def share(self, values: Values) -> Values:
        """The entry of each value, of the greatest that its bits can hold."""
        return _between(self.entry(values), 0.0, self.top)


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
