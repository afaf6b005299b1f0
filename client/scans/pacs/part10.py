"""Whether a file that came is the object that was asked for. Its data set is not looked at.

Source:
    DICOM PS3.10 section 7.1: preamble, prefix, file meta information.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

from pydicom.filereader import read_dataset

from medfed.client.scans.pacs.archive import NotPulledError, Reason

_HEAD_BYTES: Final = 64 << 10
_PREFIX_AT: Final = 128


def check_identity(path: Path, uid: str) -> None:
    """Hold a file against the SOP Instance UID that was asked for.

    Raises:
        NotPulledError: it is no DICOM file, or its file meta information names another object.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head[_PREFIX_AT : _PREFIX_AT + 4] != b"DICM":
        raise NotPulledError(Reason.NOT_DICOM)
    try:
        meta = read_dataset(
            io.BytesIO(head[_PREFIX_AT + 4 :]),
            is_implicit_VR=False,
            is_little_endian=True,
            stop_when=lambda tag, _vr, _length: tag >> 16 != 2,
        )
        found = str(meta.get("MediaStorageSOPInstanceUID", ""))
    except Exception:  # a broken header raises whatever it runs into; all mean the same
        raise NotPulledError(Reason.NOT_DICOM) from None
    if found != uid:
        raise NotPulledError(Reason.OTHER_OBJECT)
