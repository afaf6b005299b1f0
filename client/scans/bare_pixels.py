"""Pixel data without what decoders do not need: comments, unused bits, trailing bytes.

A JPEG can carry a comment or a camera's EXIF with a name and a place, a JPEG 2000 file an XML
box, a 12-bit picture an old overlay in its upper four bits. They are overwritten with zeros; the
decoded values stay the same to the bit, and so does the transfer syntax.

Source:
    JPEG: ITU-T T.81 B.1.1.3 (markers). JPEG-LS: ITU-T T.87 C. JPEG 2000: ITU-T T.800 A.4.2
    (SOT), A.9.2 (COM), annex I (boxes). DICOM PS3.5 8.1.1 (unused bits), A.4 (encapsulation).
"""

from __future__ import annotations

import re
import struct
from typing import Final

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRBigEndian, RLELossless

from medfed.client.scans.guards import NATIVE, ImageHeader, integer, native_bits
from medfed.client.scans.refusals import Reason, RefusedScanError

_MARKER: Final = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")
"""What ends entropy-coded data in JPEG (0xFF is followed by 0 there) and JPEG-LS (by < 0x80)."""
_BOXES_KEPT: Final = (b"jP  ", b"ftyp", b"jp2h", b"jp2c")


def bare_pixels(dataset: Dataset, header: ImageHeader) -> bytes:
    """Give the pixel data of a checked file without what is no part of its pictures.

    Args:
        dataset: As ``guards.open_scan`` gives it. Private.
        header: Its checked image header.

    Returns:
        Pixel data of the same transfer syntax, even in length; compressed frames are one
        fragment each. Private.

    Raises:
        RefusedScanError: the pixel data has not the structure of its transfer syntax, or an
            overlay lies inside it where it cannot be removed.

    Guarantee:
        It decodes to the same values.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in NATIVE:
        return _native(dataset, header, big_endian=syntax == ExplicitVRBigEndian)
    if _overlay_inside(dataset):
        raise RefusedScanError(Reason.DECODE)
    try:
        frames = list(generate_frames(dataset.PixelData, number_of_frames=header.frames))
        if syntax != RLELossless:
            frames = [without_comments(frame) for frame in frames]
        return encapsulate(frames)
    except Exception:  # an item structure or stream that breaks off raises whatever it runs into
        raise RefusedScanError(Reason.DECODE) from None


def without_comments(stream: bytes) -> bytes:
    """Zero the comments and application data of a JPEG, JPEG-LS or JPEG 2000 stream.

    Returns:
        As long as ``stream``.

    Raises:
        ValueError, struct.error, IndexError: the stream breaks off or is none of these.

    Example:
        >>> stream = bytes.fromhex("ffd8 fffe0006") + b"name" + bytes.fromhex("ffd9") + b"more"
        >>> without_comments(stream).hex(" ", 2)
        'ffd8 fffe 0006 0000 0000 ffd9 0000 0000'
    """
    bare = bytearray(stream)
    if stream.startswith(b"\xff\xd8"):
        _bare_jpeg(bare)
    elif stream.startswith(b"\xff\x4f"):
        _bare_codestream(bare, 0, len(bare))
    elif stream[4:8] == b"jP  ":
        _bare_boxes(bare)
    else:
        raise ValueError("neither JPEG nor JPEG 2000")
    return bytes(bare)


def _native(dataset: Dataset, header: ImageHeader, *, big_endian: bool) -> bytes:
    length = (native_bits(header) + 7) // 8
    pixels = bytes(dataset.PixelData[:length])
    unused = header.bits_allocated - header.bits_stored
    low = integer(dataset, "HighBit", header.bits_stored - 1) == header.bits_stored - 1
    if not low and _overlay_inside(dataset):
        raise RefusedScanError(Reason.DECODE)
    if unused and low:
        kind = "i" if header.signed else "u"
        order = ">" if big_endian else "<"
        values = np.frombuffer(pixels, f"{order}{kind}{header.bits_allocated // 8}")
        pixels = ((values << unused) >> unused).astype(values.dtype).tobytes()
    if length % 2 and big_endian:  # in words of two bytes the last byte stands before its filler
        return pixels[:-1] + bytes(dataset.PixelData[length - 1 : length + 1])
    return pixels + b"\0" * (length % 2)


def _overlay_inside(dataset: Dataset) -> bool:
    """Whether an overlay's bits lie in the pixel data: it has rows, and no data of its own."""
    groups = range(0x6000, 0x6100, 2)
    return any((g, 0x0010) in dataset and (g, 0x3000) not in dataset for g in groups)


def _bare_jpeg(bare: bytearray) -> None:
    at = 2
    while at < len(bare):
        marker = bare[at + 1]
        if bare[at] != 0xFF:
            raise ValueError("no marker where one must be")
        if marker == 0xD9:
            _zero(bare, at + 2, len(bare))
            return
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:  # fill, or no segment
            at += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", bare, at + 2)
        start, at = at + 4, at + 2 + length
        if marker == 0xFE or 0xE0 <= marker <= 0xEF:
            _zero(bare, min(at, start + _needed(marker, bare[start:at])), at)
        elif marker == 0xDA:
            found = _MARKER.search(bare, at)
            at = found.start() if found else len(bare)


def _needed(marker: int, segment: bytearray) -> int:
    """How many bytes of an application segment decoders use."""
    if marker == 0xE0 and segment.startswith(b"JFIF\0"):
        return 12  # what follows is a small picture: its size becomes 0
    if marker == 0xEE and segment.startswith(b"Adobe"):
        return 12
    return 5 if marker == 0xE8 and segment.startswith(b"mrfx") else 0


def _bare_codestream(bare: bytearray, start: int, end: int) -> None:
    """Zero the comments in the main header and in the header of every tile-part."""
    at, part_end = start + 2, end
    while at < end:
        (marker,) = struct.unpack_from(">H", bare, at)
        if marker == 0xFFD9:
            _zero(bare, at + 2, end)
            return
        if marker == 0xFF93:  # data up to the end of the tile-part
            at = part_end
            continue
        (length,) = struct.unpack_from(">H", bare, at + 2)
        if marker < 0xFF00 or length < 2:
            raise ValueError("no marker where one must be")
        if marker == 0xFF90:
            (size,) = struct.unpack_from(">L", bare, at + 6)
            part_end = at + size if size else bare.rindex(b"\xff\xd9", at, end)
        elif marker == 0xFF64:
            _zero(bare, at + 6, at + 2 + length)
        at += 2 + length


def _bare_boxes(bare: bytearray) -> None:
    at = 0
    while at + 8 <= len(bare):
        length, kind = struct.unpack_from(">L4s", bare, at)
        head = 8
        if length == 1:
            head, (length,) = 16, struct.unpack_from(">Q", bare, at + 8)
        end = at + length if length else len(bare)
        if end > len(bare) or end < at + head:
            raise ValueError("a box that breaks off")
        if kind == b"jp2c":
            _bare_codestream(bare, at + head, end)
        elif kind not in _BOXES_KEPT:
            _zero(bare, at + head, end)
        at = end
    _zero(bare, at, len(bare))


def _zero(bare: bytearray, start: int, end: int) -> None:
    if end > len(bare):
        raise ValueError("a segment that breaks off")
    bare[start:end] = bytes(end - start)
