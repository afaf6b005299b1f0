"""The picture size that a compressed codestream itself states.

Decoders obey the codestream, not the DICOM header around it: two kilobytes of JPEG 2000 can
ask for 400 megapixels under a header that says 64 × 64. So the two are compared first.

Source:
    JPEG: ITU-T T.81 B.2.2 (frame header). JPEG-LS: ITU-T T.87 C.2.2. JPEG 2000: ITU-T T.800
    A.5.1 (SIZ marker), annex I (JP2 boxes). RLE: DICOM PS3.5 annex G (PackBits).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_SIZ = b"\xff\x4f\xff\x51"
"""Start of codestream and size marker, always the first two of JPEG 2000."""
_JP2 = bytes.fromhex("0000000c 6a502020 0d0a870a")
"""Signature box, always the first of a JPEG 2000 file."""
_MAX_BOXES = 64
"""Boxes looked at before the codestream; a JP2 file has about four."""


class CodestreamSize(NamedTuple):
    """What the first frame header of a codestream says."""

    rows: int
    columns: int
    components: int
    bits: int
    """Per sample; the most of any component."""


def codestream_size(stream: bytes) -> CodestreamSize | None:
    """Read the size and depth from a JPEG, JPEG-LS or JPEG 2000 codestream.

    Returns:
        None when the stream does not state it before its entropy-coded data, or where its
        decoder looks for it.

    Example:
        >>> codestream_size(bytes.fromhex("ffd8 ffc0 000b 08 0002 0003 01 011100 ffd9"))
        CodestreamSize(rows=2, columns=3, components=1, bits=8)
    """
    try:
        if stream.startswith(_SIZ):
            return _from_siz_marker(stream, 0)
        if stream.startswith(_JP2):
            return _from_siz_marker(stream, _codestream_start(stream))
        return _from_frame_header(stream) if stream.startswith(b"\xff\xd8") else None
    except struct.error:  # the stream ends inside a marker
        return None


def rle_bound_bytes(rows: int, columns: int, samples: int, bits_allocated: int) -> int:
    """Most bytes that a sensible RLE frame of this size can have.

    PackBits costs at most one byte more than each 128; writers round segments up and start
    runs anew at each row, so twice the pixels and two bytes per row and segment are generous.
    A longer frame would inflate up to 64-fold beyond what the header says.
    """
    segments = samples * max(1, bits_allocated // 8)
    return 64 + segments * (2 * rows * columns + 2 * rows + 2)


def _codestream_start(stream: bytes) -> int:
    """Walk a JP2 file's boxes to the codestream, as decoders do; its end if there is none.

    A SIZ marker in another box, such as ``uuid``, is nobody's size.
    """
    at = len(_JP2)
    for _ in range(_MAX_BOXES):
        length, kind = struct.unpack_from(">L4s", stream, at)
        head = 8
        if length == 1:  # the length follows in 64 bits
            head, (length,) = 16, struct.unpack_from(">Q", stream, at + 8)
        if kind == b"jp2c":
            return at + head
        if length < head:  # 0, to the end of the file, is for the codestream alone
            break
        at += length
        if at > len(stream):
            break
    return len(stream)


def _from_siz_marker(stream: bytes, at: int) -> CodestreamSize | None:
    if stream[at : at + 4] != _SIZ:
        return None
    columns, rows, left, top = struct.unpack_from(">4L", stream, at + 8)
    (components,) = struct.unpack_from(">H", stream, at + 40)
    depths = stream[at + 42 : at + 42 + 3 * components : 3]
    if len(depths) != components or not depths:
        return None
    bits = max((depth & 0x7F) + 1 for depth in depths)
    return CodestreamSize(rows - top, columns - left, components, bits)


def _from_frame_header(stream: bytes) -> CodestreamSize | None:
    """Walk the markers to the frame header: SOF0 … SOF15, or SOF55 of JPEG-LS."""
    at = 2
    while at + 4 <= len(stream):
        marker = stream[at + 1]
        if stream[at] != 0xFF or marker == 0xFF:
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD9:  # markers without a length
            at += 2
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, rows, columns, components = struct.unpack_from(">BHHB", stream, at + 4)
            return CodestreamSize(rows, columns, components, bits)
        elif marker == 0xDA:  # the scan begins and no frame header came
            return None
        else:
            at += 2 + int(struct.unpack_from(">H", stream, at + 2)[0])
    return None
