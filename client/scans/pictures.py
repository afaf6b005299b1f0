"""One PNG or JPEG file → the study's tensor.

The file is not trusted: its size and the size of its picture are looked at before a decoder
touches it, no format but these two is tried, and a PNG must hold every row that it promises. A grey
PNG of 16 bits keeps them, of a colour one the upper 8 are taken; a photograph is turned as its EXIF
orientation says; what is transparent is black; a colour profile (ICC) is not applied. Of several
pictures in a file the first is the scan, as it is of several frames.
"""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medfed.client.scans.guards import MAX_PIXELS, read_bounded
from medfed.client.scans.png_rows import holds_every_row
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.client.scans.tensors import tensor_of
from medfed.common.study_scans import Scans

FORMATS: Final = ("PNG", "JPEG")
SIXTEEN_BITS: Final = ("I;16", "I;16B", "I")
"""Pillow's names for what a grey PNG of 16 bits becomes."""
EIGHT_BITS: Final = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")

logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)  # at DEBUG it writes down EXIF


def read_picture(path: Path, scans: Scans) -> NDArray[np.float32]:
    """Read one picture file as the study's tensor.

    Args:
        path: A file; its content is not trusted.
        scans: What the study asks for.

    Returns:
        ``(channels, rows, columns)``, float32. Private.

    Raises:
        RefusedScanError: with the first rule that the file breaks; so too where the study sets a
            spacing, which pictures do not have.

    Guarantee:
        An 8-bit picture gives ``value / 255`` before size and normalisation, to the bit what an
        ``.npz`` or DICOM picture gives. No picture above ``MAX_PIXELS`` samples is decoded.
    """
    content = read_bounded(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's quote the file; what matters is refused
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except Image.DecompressionBombError:
            raise RefusedScanError(Reason.PIXEL_LIMIT) from None
        except Exception:  # a broken file raises whatever it runs into
            raise RefusedScanError(Reason.NOT_PICTURE) from None
        samples = 4 if _may_be_transparent(image) else len(image.getbands())
        if image.width * image.height * samples > MAX_PIXELS:
            raise RefusedScanError(Reason.PIXEL_LIMIT)
        try:
            if image.format == "PNG" and not holds_every_row(content, *image.size):
                raise RefusedScanError(Reason.DECODE)
            values = _values(ImageOps.exif_transpose(image))
        except RefusedScanError:
            raise
        except Exception:  # as above
            raise RefusedScanError(Reason.DECODE) from None
    return tensor_of(values, scans)


def _values(image: Image.Image) -> NDArray[np.float64]:
    """Grey ``(rows, columns)`` or colour ``(rows, columns, 3)`` in [0, 1]."""
    if image.mode in SIXTEEN_BITS:
        return np.clip(np.asarray(image, dtype=np.float64) / 65535.0, 0.0, 1.0)
    if image.mode not in EIGHT_BITS:
        raise RefusedScanError(Reason.COLOUR)
    if _may_be_transparent(image):
        seen = np.asarray(image.convert("RGBA")) / 255.0
        return np.asarray(seen[:, :, :3] * seen[:, :, 3:], dtype=np.float64)
    if image.mode == "1":
        return np.asarray(image, dtype=np.float64)
    return np.asarray(image.convert("RGB") if image.mode == "P" else image) / 255.0


def _may_be_transparent(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in ("LA", "PA", "RGBA")


def stored_size(path: Path) -> tuple[int, int, int]:
    """Rows, columns and bits per sample of a picture that ``read_picture`` has read. Private."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as there
        with Image.open(path, formats=FORMATS) as image:
            return image.height, image.width, 16 if image.mode in SIXTEEN_BITS else 8
