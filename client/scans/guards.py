"""What is checked about a DICOM file before a decoder may touch its pixels.

A file comes from outside and may be broken or hostile: two kilobytes can ask a decoder for
two gigabytes. The cheap checks stand first: the size of the file, the magic word, the transfer
syntax; a deflated data set is inflated up to a limit; what is not pixel data is parsed up to a
limit; then the image header; then, for compressed pixels, the size that the *codestream* of the
first frame states, because decoders obey it and not the header; the other frames' is compared
when they are decoded. Decoding in a child process with its own limits is not done here.

Source:
    DICOM PS3.10 section 7.1 (preamble, prefix, file meta information); PS3.5 section 8.2
    and annex A (transfer syntaxes).
"""

from __future__ import annotations

import io
import logging
import stat
import zlib
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydicom import uid as uids
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset, read_partial

from medfed.client.scans.codestream import CodestreamSize, codestream_size, rle_bound_bytes
from medfed.client.scans.refusals import Reason, RefusedScanError

MAX_FILE_BYTES: Final = 512 << 20
"""Largest file, as stored and as inflated."""
MAX_OVERHEAD_BYTES: Final = 4 << 20
"""Most that is parsed of a file besides its pixel data; see ``_Metered``."""
MAX_PIXELS: Final = 100_000_000
"""Largest rows × columns × samples × frames."""
NATIVE: Final = frozenset(
    {
        uids.ImplicitVRLittleEndian,
        uids.ExplicitVRLittleEndian,
        uids.ExplicitVRBigEndian,
        uids.DeflatedExplicitVRLittleEndian,
    }
)
COMPRESSED: Final = frozenset(
    {
        uids.RLELossless,
        uids.JPEGBaseline8Bit,
        uids.JPEGExtended12Bit,
        uids.JPEGLossless,
        uids.JPEGLosslessSV1,
        uids.JPEGLSLossless,
        uids.JPEGLSNearLossless,
        uids.JPEG2000Lossless,
        uids.JPEG2000,
        uids.HTJ2KLossless,
        uids.HTJ2KLosslessRPCL,
        uids.HTJ2K,
    }
)
COLOUR_MODELS: Final[dict[str, int]] = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
}
"""Photometric interpretation → samples per pixel."""

_PIXEL_DATA: Final = 0x7FE00010

logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # its warnings quote the file


class ImageHeader(NamedTuple):
    """The checked image elements of one file."""

    rows: int
    columns: int
    samples: int
    frames: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    colour_model: str


def open_scan(path: Path) -> tuple[Dataset, ImageHeader]:
    """Read a DICOM file and check all that can be checked without decoding its pixels.

    Args:
        path: A file; its content is not trusted.

    Returns:
        The data set (private) and its checked image header. The first compressed frame agrees
        with the header in size; native pixels are long enough.

    Raises:
        RefusedScanError: with the first rule that the file breaks.

    Guarantee:
        Nothing larger than ``MAX_FILE_BYTES`` is read or inflated, of what is not pixel data
        no more than ``MAX_OVERHEAD_BYTES`` is parsed, and no header passes that asks for more
        than ``MAX_PIXELS``.
    """
    content = read_bounded(path)
    if content[128:132] != b"DICM":
        raise RefusedScanError(Reason.NOT_DICOM)
    dataset = _parsed(content)
    for table in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if table in dataset:  # it could send the decoder to another frame than the checked one
            del dataset[table]
    header = checked_header(dataset)
    _check_pixels(dataset, header)
    return dataset, header


def checked_header(dataset: Dataset) -> ImageHeader:
    """Give the image elements after checking that they describe a picture of bounded size.

    Raises:
        RefusedScanError: an element is missing, contradicts another, or asks for too much.
    """
    if "PixelData" not in dataset:
        raise RefusedScanError(Reason.NO_PIXELS)
    model = str(element(dataset, "PhotometricInterpretation") or "").strip()
    if model not in COLOUR_MODELS:
        raise RefusedScanError(Reason.COLOUR if model else Reason.HEADER)
    header = ImageHeader(
        rows=integer(dataset, "Rows"),
        columns=integer(dataset, "Columns"),
        samples=integer(dataset, "SamplesPerPixel"),
        frames=integer(dataset, "NumberOfFrames", 1),
        bits_allocated=integer(dataset, "BitsAllocated"),
        bits_stored=integer(dataset, "BitsStored"),
        signed=bool(integer(dataset, "PixelRepresentation", 0)),
        colour_model=model,
    )
    sound = (
        0 < header.rows <= 65535
        and 0 < header.columns <= 65535
        and header.samples == COLOUR_MODELS[model]
        and header.frames > 0
        and header.bits_allocated in (1, 8, 16, 32)
        and 0 < header.bits_stored <= header.bits_allocated
    )
    if not sound:
        raise RefusedScanError(Reason.HEADER)
    if header.rows * header.columns * header.samples * header.frames > MAX_PIXELS:
        raise RefusedScanError(Reason.PIXEL_LIMIT)
    return header


def element(dataset: Dataset, keyword: str) -> Any:
    """Value of an element, None when absent or empty.

    Raises:
        RefusedScanError: its bytes are no value of its type.
    """
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom converts lazily; broken bytes raise whatever they run into
        raise RefusedScanError(Reason.HEADER) from None
    return None if value is None or value == "" else value


def integer(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    """Value of an integer element.

    Raises:
        RefusedScanError: it is absent without a default, or no integer.
    """
    value = element(dataset, keyword)
    if value is None and default is not None:
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        raise RefusedScanError(Reason.HEADER) from None


def read_bounded(path: Path) -> bytes:
    """Read a file of at most ``MAX_FILE_BYTES``.

    Raises:
        RefusedScanError: it is missing, unreadable, no regular file, or larger.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise RefusedScanError(Reason.MISSING)
        if status.st_size > MAX_FILE_BYTES:
            raise RefusedScanError(Reason.TOO_LARGE)
        with path.open("rb") as file:
            content = file.read(status.st_size + 1)
    except OSError:
        raise RefusedScanError(Reason.MISSING) from None
    if len(content) > MAX_FILE_BYTES:
        raise RefusedScanError(Reason.TOO_LARGE)
    return content


class _Metered(io.BytesIO):
    """Bytes to parse, of which all but the pixel data is metered.

    Each piece read costs its length and 16 bytes more: an element without a value takes 8
    bytes in a file and hundreds in memory, and a million of them deflate to nearly nothing.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._spent, self._free, self._had_pixels = 0, False, False

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file.

        Raises:
            RefusedScanError: more than ``MAX_OVERHEAD_BYTES`` was read.
        """
        piece = super().read(size)
        if not self._free:
            self._spent += len(piece) + 16
            if self._spent > MAX_OVERHEAD_BYTES:
                raise RefusedScanError(Reason.OVERHEAD)
        return piece

    def at_element(self, tag: int, vr: str | None, _length: int) -> bool:
        """Hear from the parser which element's value comes; the first pixel data is free."""
        pixels = tag == _PIXEL_DATA and vr in (None, "OB", "OW")
        self._free = pixels and not self._had_pixels
        self._had_pixels = self._had_pixels or pixels
        return False  # never stop


def _parsed(content: bytes) -> Dataset:
    try:
        meta = _file_meta(content)
        syntax = meta.get("TransferSyntaxUID")
    except RefusedScanError:
        raise
    except Exception:  # a broken header raises whatever it runs into; all mean the same
        raise RefusedScanError(Reason.NOT_DICOM) from None
    if not isinstance(syntax, str) or (syntax not in NATIVE and syntax not in COMPRESSED):
        raise RefusedScanError(Reason.SYNTAX)
    try:
        if syntax == uids.DeflatedExplicitVRLittleEndian:
            return _deflated(meta, content)
        stream = _Metered(content)
        return read_partial(stream, stop_when=stream.at_element)
    except RefusedScanError:
        raise
    except Exception:  # as above, RecursionError of nested sequences included
        raise RefusedScanError(Reason.NOT_DICOM) from None


def _file_meta(content: bytes) -> FileMetaDataset:
    stream = _Metered(content)
    stream.seek(132)  # preamble and magic word
    elements = read_dataset(
        stream,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag >> 16 != 2,
    )
    return FileMetaDataset(elements)


def _deflated(meta: FileMetaDataset, content: bytes) -> Dataset:
    """Parse a deflated data set from bytes inflated here, up to the limit."""
    start = 144 + int(meta.FileMetaInformationGroupLength)  # 128 + 4 + the length element's 12
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(content[start:], MAX_FILE_BYTES)
    if inflater.unconsumed_tail:
        raise RefusedScanError(Reason.TOO_LARGE)
    stream = _Metered(inflated)
    dataset = read_dataset(
        stream, is_implicit_VR=False, is_little_endian=True, stop_when=stream.at_element
    )
    dataset.file_meta = meta
    return dataset


def check_frame(dataset: Dataset, header: ImageHeader, index: int) -> CodestreamSize | None:
    """Compare what the codestream of one compressed frame states with the header.

    Args:
        dataset: With pixel data, and without an extended offset table. Private.
        header: Its checked image header.
        index: Which frame, from 0.

    Returns:
        What it states; None where there is no codestream, in native and run-length frames.

    Raises:
        RefusedScanError: it is another picture than the header says, or not to be found.

    Guarantee:
        The frame looked at is the one that pydicom decodes under this index.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in NATIVE:
        return None
    try:
        frame = get_frame(dataset.PixelData, index, number_of_frames=header.frames)
    except Exception:  # a broken item structure raises whatever it runs into
        raise RefusedScanError(Reason.DECODE) from None
    size = (header.rows, header.columns, header.samples)
    if syntax == uids.RLELossless:
        if len(frame) > rle_bound_bytes(*size, header.bits_allocated):
            raise RefusedScanError(Reason.CODESTREAM)
        return None
    stated = codestream_size(frame)
    if stated is None or stated[:3] != size or stated.bits > header.bits_allocated:
        raise RefusedScanError(Reason.CODESTREAM)
    return stated


def _check_pixels(dataset: Dataset, header: ImageHeader) -> None:
    """Check the length of native pixel data, or the first of the compressed frames."""
    pixels = element(dataset, "PixelData")
    if not isinstance(pixels, bytes):
        raise RefusedScanError(Reason.NO_PIXELS)
    native = dataset.file_meta.TransferSyntaxUID in NATIVE
    if native and len(pixels) * 8 < native_bits(header):
        raise RefusedScanError(Reason.DECODE)
    check_frame(dataset, header, 0)


def native_bits(header: ImageHeader) -> int:
    """Bits that uncompressed pixel data of this header takes; YBR_FULL_422 shares its colours."""
    samples = 2 if header.colour_model == "YBR_FULL_422" else header.samples
    return header.rows * header.columns * header.frames * samples * header.bits_allocated
