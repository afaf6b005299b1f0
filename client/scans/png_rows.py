"""Whether a PNG file holds every row of its picture.

A decoder that is given less than the header promises leaves the rest black and may say nothing:
Pillow does so where the compressed data ends early but properly, as a program writes it that was
stopped and closed its file. A picture half of which is black by accident must not be a scan.

Source:
    W3C, Portable Network Graphics (PNG) Specification, third edition: 7.2 (scanlines), 8
    (interlacing), 10 (compression), 11.2.1 (IHDR), 11.2.3 (IDAT).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Colour type -> samples per pixel."""
WHOLE: Final = ((0, 0, 1, 1),)
ADAM7: Final = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""Per pass: first column and row, steps between columns and between rows."""
_PIECE: Final = 1 << 20


def holds_every_row(content: bytes, columns: int, rows: int) -> bool:
    """Whether the image data of a PNG file inflates to as much as its picture takes.

    Args:
        content: The whole file; not trusted.
        columns: Of the picture, as its decoder understands the file.
        rows: Likewise.

    Returns:
        False too where the header is not the file's first chunk or states another size.

    Raises:
        zlib.error, struct.error: the data is damaged, or a chunk breaks off.

    Guarantee:
        No more is inflated than the picture takes, and of that one MiB is held at a time.
    """
    size, kind, width, height, depth, colour, _, _, interlaced = struct.unpack_from(
        ">L4s2L5B", content, len(SIGNATURE)
    )
    if (size, kind, width, height) != (13, b"IHDR", columns, rows) or colour not in SAMPLES:
        return False
    missing = _raw_bytes(width, height, depth * SAMPLES[colour], interlaced=bool(interlaced))
    inflater = zlib.decompressobj()
    for packed in _image_data(content):
        left = bytes(packed)
        while left and missing > 0:
            missing -= len(inflater.decompress(left, min(_PIECE, missing)))
            if inflater.eof:
                return missing == 0
            left = inflater.unconsumed_tail
    return missing == 0


def _image_data(content: bytes) -> Iterator[memoryview]:
    """The image data chunks, which stand one behind the other."""
    at, began = len(SIGNATURE), False
    view = memoryview(content)
    while at + 8 <= len(content):
        size, kind = struct.unpack_from(">L4s", content, at)
        if kind == b"IDAT":
            began = True
            yield view[at + 8 : at + 8 + size]
        elif began:
            return
        at += 12 + size


def _raw_bytes(width: int, height: int, pixel_bits: int, *, interlaced: bool) -> int:
    """Bytes of a picture before compression: each row has one more, its filter."""
    total = 0
    for left, top, across, down in ADAM7 if interlaced else WHOLE:
        columns = -(-(width - left) // across)
        rows = -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * pixel_bits // 8))
    return total
