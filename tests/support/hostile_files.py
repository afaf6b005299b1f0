"""Files that want to crash, hang or fill the machine that reads them, and why they are refused."""

from __future__ import annotations

import functools
import gzip
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any, Final

import imagecodecs
import jpeg_ls
import nibabel as nib
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medfed.client.scans.refusals import Reason
from tests.support.scans import random_pixels, scan_object

BIG: Final = 20_000
"""Side of a picture in pixels: 400 megapixels, where 100 are allowed."""
UNDEFINED: Final = 2**32 - 1
MIB: Final = 1 << 20


# ---- sound pieces --------------------------------------------------------------------------------
def small(form: str, mode: str = "L", **how: object) -> bytes:
    """A picture of 32 x 32 in a format of Pillow."""
    stream = io.BytesIO()
    Image.fromarray(random_pixels()).convert(mode).save(stream, form, **how)
    return stream.getvalue()


def deep() -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Grey noise of 12 bits."""
    return np.random.default_rng(1).integers(0, 4096, (32, 32)).astype(np.uint16)


def twelve_bits(**how: object) -> bytes:
    """A JPEG of 12 bits, or a lossless one."""
    return bytes(imagecodecs.jpeg_encode(deep(), bitspersample=12, **how))


def written(dataset: Dataset) -> bytes:
    """An object as a file."""
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def wrapped(stream: bytes, syntax: UID, *, twelve: bool = False, **elements: object) -> bytes:
    """A codestream as a DICOM file whose header says 32 x 32."""
    how = {"bits_stored": 12} if twelve else {}
    dataset = scan_object(deep() if twelve else random_pixels(), **how, **elements)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    return written(dataset)


def absurd(**elements: object) -> bytes:
    """A native file with some elements changed."""
    return written(scan_object(random_pixels(), **elements))


def volume() -> bytes:
    """A NIfTI volume of 16 x 16 x 4 bytes."""
    values = random_pixels(2, (16, 16, 4))
    return nib.Nifti1Image(values, np.eye(4)).to_bytes()


# ---- bombs ---------------------------------------------------------------------------------------
def jpeg_2000_bomb(stream: bytes | None = None) -> bytes:
    """Two kilobytes that ask for 400 megapixels: size and tile size are overwritten."""
    bomb = bytearray(stream or small("JPEG2000", no_jp2=True))
    siz = bomb.index(b"\xff\x51")
    struct.pack_into(">2L", bomb, siz + 6, BIG, BIG)
    struct.pack_into(">2L", bomb, siz + 22, BIG, BIG)
    return bytes(bomb)


def jpeg_bomb(stream: bytes | None = None, marker: bytes = b"\xff\xc0") -> bytes:
    """A JPEG whose frame header says 60,000 x 60,000."""
    bomb = bytearray(stream or small("JPEG"))
    struct.pack_into(">2H", bomb, bomb.index(marker) + 5, 60_000, 60_000)
    return bytes(bomb)


def rle_bomb() -> bytes:
    """Runs of 128 bytes, each from two, for 200 megabytes of a picture of one kilobyte."""
    return struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * (200 * MIB // 128)


@functools.cache
def deflate_bomb() -> bytes:
    """Three megabytes that inflate to 640, where 512 are allowed."""
    dataset = scan_object(random_pixels())
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = written(dataset)
    (length,) = struct.unpack_from("<L", whole, 140)  # of the file meta information behind it
    plain = zlib.decompress(whole[144 + length :], -zlib.MAX_WBITS)
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    pieces = [packer.compress(plain), *(packer.compress(bytes(MIB)) for _ in range(640))]
    return whole[: 144 + length] + b"".join(pieces) + packer.flush()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    checked = struct.pack(">L", zlib.crc32(kind + content))
    return struct.pack(">L", len(content)) + kind + content + checked


def png(columns: int, rows: int, packed: bytes, *before: bytes) -> bytes:
    """A grey PNG around compressed rows."""
    header = struct.pack(">2L5B", columns, rows, 8, 0, 0, 0, 0)
    pieces = (chunk(b"IHDR", header), *before, chunk(b"IDAT", packed), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def png_bomb() -> bytes:
    """A PNG of 400 megapixels, all black, a tenth of it there."""
    packer = zlib.compressobj(9)
    rows = [packer.compress(bytes(BIG + 1)) for _ in range(2_000)]
    return png(BIG, BIG, b"".join(rows) + packer.flush())


def png_text_bomb() -> bytes:
    """A small PNG with a text that inflates to 100 MiB."""
    text = b"Comment\0\0" + zlib.compress(bytes(100 * MIB))
    return png(32, 32, zlib.compress(bytes(32 * 33)), chunk(b"zTXt", text))


def short_png() -> bytes:
    """A PNG of 32 rows that holds 16, in a stream that ends as it should."""
    return png(32, 32, zlib.compress(bytes(16 * 33)))


def many_members() -> bytes:
    """A volume in 200,000 gzip members, most of them empty: each must cost no copy of the rest."""
    return gzip.compress(b"", mtime=0) * 200_000 + gzip.compress(volume(), mtime=0)[:-9]


@functools.cache
def nifti_bomb() -> bytes:
    """A volume that inflates to 640 MiB, where 512 are allowed."""
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed:
        packed.write(volume())
        for _ in range(640):
            packed.write(bytes(MIB))
    return file.getvalue()


def nifti(offset: int, kind: str, *values: float) -> bytes:
    """A volume with some numbers of its header changed."""
    changed = bytearray(volume())
    struct.pack_into(f"<{kind}", changed, offset, *values)
    return bytes(changed)


# ---- headers -------------------------------------------------------------------------------------
def nested(depth: int, *, ends: bool = False) -> bytes:
    """Sequences in sequences, none of which ends; or all do, and the picture comes behind."""
    plain = written(scan_object(random_pixels()))
    start = plain.index(b"\x08\x00\x18\x00UI")  # SOP Instance UID
    opening = struct.pack("<2H2s2xL", 0x0008, 0x0017, b"SQ", UNDEFINED)
    item = struct.pack("<2HL", 0xFFFE, 0xE000, UNDEFINED)
    closing = struct.pack("<2HL2HL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    deep_down = (opening + item) * depth
    return plain[:start] + deep_down + (closing * depth + plain[start:] if ends else b"")


def patched(marker: bytes, skip: int, new: bytes, **elements: object) -> bytes:
    """A native file with bytes behind an element's tag and type changed."""
    plain = bytearray(absurd(**elements))
    at = plain.index(marker) + len(marker) + skip
    plain[at : at + len(new)] = new
    return bytes(plain)


def private_elements(count: int) -> bytes:
    """A file with very many elements of a vendor's own."""
    plain = absurd()
    start = plain.index(b"\x10\x00\x20\x00LO")  # Patient ID
    creator = struct.pack("<2H2sH4s", 0x0009, 0x0010, b"LO", 4, b"ACME")
    one = [
        struct.pack(
            "<2H2sH2s", 0x0009 + 2 * (number // 0xF000), 0x1000 + number % 0xF000, b"LO", 2, b"x "
        )
        for number in range(count)
    ]
    return plain[:start] + creator + b"".join(one) + plain[start:]


def without_rows() -> bytes:
    """A file without Rows."""
    dataset = scan_object(random_pixels())
    del dataset.Rows
    return written(dataset)


def unknown_syntax() -> bytes:
    """A file in a transfer syntax that nobody knows."""
    return absurd().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.2.1\0", 1)


_BROKEN = {Reason.NOT_DICOM, Reason.OVERHEAD, Reason.NO_PIXELS, Reason.HEADER, Reason.DECODE}

HOSTILE: Final[dict[str, tuple[Callable[[], bytes], set[Reason]]]] = {
    # bombs
    "jpeg2000.dcm": (lambda: wrapped(jpeg_2000_bomb(), JPEG2000), {Reason.CODESTREAM}),
    "honest2000.dcm": (
        lambda: wrapped(jpeg_2000_bomb(), JPEG2000, Rows=BIG, Columns=BIG),
        {Reason.PIXEL_LIMIT},
    ),
    "htj2k.dcm": (
        lambda: wrapped(jpeg_2000_bomb(imagecodecs.htj2k_encode(random_pixels())), HTJ2K),
        {Reason.CODESTREAM},
    ),
    "jpeg.dcm": (lambda: wrapped(jpeg_bomb(), JPEGBaseline8Bit), {Reason.CODESTREAM}),
    "jpeg12.dcm": (
        lambda: wrapped(jpeg_bomb(twelve_bits(), b"\xff\xc1"), JPEGExtended12Bit, twelve=True),
        {Reason.CODESTREAM},
    ),
    "lossless.dcm": (
        lambda: wrapped(
            jpeg_bomb(twelve_bits(lossless=True), b"\xff\xc3"), JPEGLosslessSV1, twelve=True
        ),
        {Reason.CODESTREAM},
    ),
    "jls.dcm": (
        lambda: wrapped(
            jpeg_bomb(bytes(jpeg_ls.encode_array(random_pixels())), b"\xff\xf7"), JPEGLSLossless
        ),
        {Reason.CODESTREAM},
    ),
    "rle.dcm": (lambda: wrapped(rle_bomb(), RLELossless), {Reason.CODESTREAM}),
    "deflate.dcm": (deflate_bomb, {Reason.TOO_LARGE}),
    "bomb.png": (png_bomb, {Reason.PIXEL_LIMIT}),
    "text.png": (png_text_bomb, {Reason.NOT_PICTURE, Reason.DECODE}),
    "bomb.jpg": (jpeg_bomb, {Reason.PIXEL_LIMIT}),
    "bomb.nii.gz": (nifti_bomb, {Reason.TOO_LARGE}),
    "members.nii.gz": (many_members, {Reason.DECODE}),
    # absurd headers
    "rows.dcm": (lambda: absurd(Rows=65535, Columns=65535), {Reason.PIXEL_LIMIT}),
    "frames.dcm": (lambda: absurd(NumberOfFrames=2**31 - 1), {Reason.PIXEL_LIMIT}),
    "minus.dcm": (lambda: absurd(NumberOfFrames=-1), {Reason.HEADER}),
    "1A.dcm": (
        lambda: patched(b"\x28\x00\x08\x00IS", 2, b"1A", NumberOfFrames=12),
        {Reason.HEADER},
    ),
    "none.dcm": (lambda: absurd(Rows=0), {Reason.HEADER}),
    "norows.dcm": (without_rows, {Reason.HEADER}),
    "bits.dcm": (lambda: absurd(BitsStored=16), {Reason.HEADER}),
    "nobits.dcm": (lambda: absurd(BitsStored=0), {Reason.HEADER}),
    "length.dcm": (  # of a text: -1 in 16 bits
        lambda: patched(b"\x10\x00\x20\x00LO", 0, b"\xff\xff"),
        _BROKEN,
    ),
    "endless.dcm": (  # of pixel data that is not compressed: -1 in 32 bits
        lambda: patched(b"\xe0\x7f\x10\x00O", 3, b"\xff\xff\xff\xff"),
        _BROKEN,
    ),
    "vl.dcm": (  # longer than the file, and of the pixels some are missing
        lambda: patched(b"\xe0\x7f\x10\x00O", 3, struct.pack("<L", 2**31 - 2))[:-100],
        _BROKEN,
    ),
    "vlid.dcm": (  # longer than the file, of an element before the pixels
        lambda: patched(b"\x10\x00\x20\x00LO", 0, b"\xfe\x7f"),
        _BROKEN,
    ),
    "private.dcm": (lambda: private_elements(150_000), {Reason.OVERHEAD}),
    "syntax.dcm": (unknown_syntax, {Reason.SYNTAX}),
    "nested500.dcm": (lambda: nested(500), _BROKEN),
    "nested5000.dcm": (lambda: nested(5_000), _BROKEN),
    "nested100000.dcm": (lambda: nested(100_000), _BROKEN),
    "closed5000.dcm": (lambda: nested(5_000, ends=True), _BROKEN),
    "dims.nii": (lambda: nifti(40, "8h", 7, *[32767] * 7), {Reason.PIXEL_LIMIT}),
    "nodims.nii": (
        lambda: nifti(40, "8h", 3, 16, 0, 4, 1, 1, 1, 1),
        {Reason.HEADER, Reason.DECODE},
    ),
    "minus.nii": (
        lambda: nifti(40, "8h", 3, -16, -16, 4, 1, 1, 1, 1),
        {Reason.HEADER, Reason.DECODE},
    ),
    "short.nii": (lambda: nifti(40, "8h", 3, 160, 160, 4, 1, 1, 1, 1), {Reason.DECODE}),
    "offset.nii": (lambda: nifti(108, "f", 1e30), {Reason.HEADER, Reason.DECODE}),
    "type.nii": (lambda: nifti(70, "2h", 999, 7), {Reason.HEADER, Reason.DECODE, Reason.COLOUR}),
    # broken, or something else
    "cut.dcm": (lambda: absurd()[:1500], {Reason.DECODE, Reason.NO_PIXELS}),
    "empty.dcm": (lambda: b"", {Reason.NOT_DICOM}),
    "random.dcm": (lambda: random_pixels(1, (4096,)).tobytes(), {Reason.NOT_DICOM}),
    "cut.png": (lambda: small("PNG")[:300], {Reason.DECODE}),
    "short.png": (short_png, {Reason.DECODE}),
    "other.png": (lambda: small("GIF"), {Reason.NOT_PICTURE}),
    "cmyk.jpg": (lambda: small("JPEG", "CMYK"), {Reason.COLOUR}),
    "cut.jpg": (lambda: small("JPEG")[:700], {Reason.DECODE}),
    "cut.nii": (lambda: volume()[:-100], {Reason.DECODE}),  # its middle slice is there
    "cut.nii.gz": (lambda: gzip.compress(volume())[:200], {Reason.DECODE}),
    "random.nii": (lambda: random_pixels(1, (4096,)).tobytes(), {Reason.NOT_NIFTI}),
    "empty.nii.gz": (lambda: b"", {Reason.NOT_NIFTI}),
}
"""File -> its content, and why it may be refused."""
