"""One frame of a checked DICOM file → its stored values.

A decoder is given no frame whose codestream was not compared with the header just before, and
no choice: ``decoders.py`` names the one that reads the transfer syntax.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

from medfed.client.scans.decoders import plugin_for
from medfed.client.scans.guards import COMPRESSED, ImageHeader, check_frame
from medfed.client.scans.refusals import Reason, RefusedScanError


def decoded_frame(dataset: Dataset, header: ImageHeader, index: int) -> NDArray[np.integer]:
    """Decode one frame of a file.

    Args:
        dataset: As ``guards.open_scan`` gives it, or what was kept of that. Private.
        header: Its checked image header.
        index: Which frame, from 0; below ``header.frames``.

    Returns:
        Stored values, ``(rows, columns)`` in the header's type, sign and unused bits put right;
        or ``(rows, columns, 3)`` as RGB. Private; new storage.

    Raises:
        IndexError: there is no such frame.
        RefusedScanError: the frame's codestream states another size than the header, its decoder
            is not installed, or it does not decode.

    Guarantee:
        One frame is decoded, whatever their number. The values are the same at all sites with
        the same version of the decoder.
    """
    if not 0 <= index < header.frames:
        raise IndexError(f"frame {index} of {header.frames}")
    syntax = dataset.file_meta.TransferSyntaxUID
    stated = check_frame(dataset, header, index)
    plugin = plugin_for(syntax, stated and stated.bits) if syntax in COMPRESSED else ""
    try:
        frame = pixel_array(dataset, index=index, decoding_plugin=plugin)
    except Exception:  # a decoder on a broken stream raises whatever it runs into
        raise RefusedScanError(Reason.DECODE) from None
    wanted = (header.rows, header.columns) + ((3,) if header.samples == 3 else ())
    if frame.shape != wanted or not np.issubdtype(frame.dtype, np.integer):
        raise RefusedScanError(Reason.DECODE)
    return frame
