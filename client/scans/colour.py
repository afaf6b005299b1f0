"""From stored colour values to red, green and blue in [0, 1].

Source:
    DICOM PS3.3 C.7.6.3.1.2 (photometric interpretation), C.7.6.3.1.5 and C.7.9 (palettes).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from medfed.client.scans.guards import ImageHeader, element
from medfed.client.scans.refusals import Reason, RefusedScanError


def colour_values(
    stored: NDArray[np.integer], dataset: Dataset, header: ImageHeader
) -> NDArray[np.float64]:
    """Give a decoded colour frame, or one of a palette, as red, green and blue.

    Args:
        stored: ``(rows, columns, 3)`` as RGB, or ``(rows, columns)`` of a palette. Private.
        dataset: The file's elements.
        header: Its checked image header.

    Returns:
        ``(rows, columns, 3)`` in [0, 1]. Private.

    Raises:
        RefusedScanError: the palette is not valid.
    """
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
