"""Which study, series and patient each DICOM file of a folder is of, without its pixels.

Only the elements that a worklist can be matched by are looked at, and of each file no more is
read than up to the last of them.
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from pydicom import uid as uids
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag

from medfed.client.scans.layouts.files import walk

KEYWORDS: Final = {
    "sop_uid": "SOPInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "study_uid": "StudyInstanceUID",
    "accession": "AccessionNumber",
    "patient_id": "PatientID",
}
"""Column of a worklist -> the DICOM element that it is matched with."""
MAX_HEADER_BYTES: Final = 4 << 20
"""Most that is parsed or inflated of one file."""

_LAST: Final = 0x0020000E  # Series Instance UID: the last of KEYWORDS in the order of tags


class _TooLongError(Exception):
    """More was asked for than ``MAX_HEADER_BYTES``."""


class _Metered(io.BufferedReader):
    """A file of which only so much is read; each piece costs its length and 16 bytes."""

    spent = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file.

        Raises:
            _TooLongError: more was read than is allowed.
        """
        if size is None or size < 0 or self.spent + size > MAX_HEADER_BYTES:
            raise _TooLongError
        self.spent += size + 16
        return super().read(size)


def files_by(root: Path, join: str) -> Iterator[tuple[str, str]]:
    """Give the DICOM files below a folder, each with what it is matched by.

    Args:
        root: The folder; its files are not trusted.
        join: A key of ``KEYWORDS``.

    Returns:
        Path, and value as ``header_value`` gives it. Files that are no DICOM files are left out.
        Private.
    """
    for path in walk(root):
        value = header_value(root / path, KEYWORDS[join])
        if value is not None:
            yield path, value


def header_value(path: Path, keyword: str) -> str | None:
    """Value of one element, without surrounding blanks. Private.

    Empty where the file has none or cannot be read up to there; None where it is no DICOM file.
    """
    values = header_values(path, [keyword])
    return None if values is None else values[0]


def header_values(path: Path, keywords: Sequence[str]) -> list[str] | None:
    """Values of several elements, each as ``header_value`` gives it. Private."""
    try:
        with _Metered(io.FileIO(path)) as file:
            if file.read(132)[128:] != b"DICM":
                return None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom's quote the file
                head = _head(file)
                return [str(head.get(keyword) or "").strip(" \0") for keyword in keywords]
    except OSError:
        return None
    except Exception:  # a broken header raises whatever it runs into; all mean the same
        return [""] * len(keywords)


def _head(file: _Metered) -> Dataset:
    """The elements up to the last that matters, of a file that stands behind its magic word."""
    meta = _explicit(file, lambda tag, _vr, _length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != uids.DeflatedExplicitVRLittleEndian:
        file.seek(0)
        return read_partial(file, stop_when=lambda tag, _vr, _length: tag > _LAST)
    file.seek(144 + int(meta.FileMetaInformationGroupLength))  # 128 + 4 + that element's 12
    packed = file.read(MAX_HEADER_BYTES // 4)
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, MAX_HEADER_BYTES)
    return _explicit(io.BytesIO(inflated), lambda tag, _vr, _length: tag > _LAST)


def _explicit(file: BinaryIO, stop: Callable[[BaseTag, str | None, int], bool]) -> Dataset:
    return read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=stop)
