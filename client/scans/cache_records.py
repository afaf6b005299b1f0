"""The cache's tensors on disk: one file of encrypted records, all of one size.

A record is a nonce, the ciphertext of one tensor and its tag (AES-256-GCM). The authenticated
data are the record's number and what it is the tensor of, so that a record which was damaged,
swapped or put in another's place does not decrypt. Records are only ever appended; they are read
through a memory map, and reading a batch touches the batch's records only.

A tensor is stored as 16-bit steps between two bounds. The bounds are those that the study's
normalisation gives to black and white; a tensor that goes beyond brings its own.

Source:
    NIST SP 800-38D (GCM); section 8.3 for the number of random nonces under one key: 2**32.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from medfed.common.errors import ScanError

NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
STEPS: Final = 65535
PIECE: Final = 64
"""Records read at a time when all are looked at."""
_BOUNDS: Final = struct.Struct("<dd")
_ROW: Final = struct.Struct("<Q")


class DamagedRecordsError(ScanError):
    """Records of the cache do not decrypt: the disk failed, or someone wrote into them.

    Attributes:
        rows: Which.
    """

    def __init__(self, path: Path, rows: Sequence[int]) -> None:
        self.rows = tuple(rows)
        super().__init__(
            f"{path}: {len(self.rows)} cached scans are damaged.",
            advice="`medfed scans import --verify` reads them again from their files.",
        )


class TensorForm(NamedTuple):
    """What all tensors of a cache have in common. Public: it follows from the study.

    Attributes:
        shape: ``(channels, rows, columns)``.
        black: What black becomes after the study's normalisation.
        white: What white becomes.
    """

    shape: tuple[int, int, int]
    black: float
    white: float

    @property
    def plain_bytes(self) -> int:
        """Length of a record before encryption."""
        channels, rows, columns = self.shape
        return _BOUNDS.size + 2 * channels * rows * columns

    @property
    def record_bytes(self) -> int:
        """Length of a record on disk."""
        return NONCE_BYTES + self.plain_bytes + TAG_BYTES


def packed(tensor: NDArray[np.float32], form: TensorForm) -> bytes:
    """Give a tensor as the plain content of a record.

    Args:
        tensor: Finite, of the form's shape. Private.
        form: Its bounds are used unless the tensor goes beyond them.

    Raises:
        ValueError: the shape is another, or a value is not finite.

    Guarantee:
        ``unpacked`` gives every value to within half a step, ``(white - black) / 131070``; where
        black is 0 and white is 1, pictures of 8 and of 16 bits come back to the bit.
    """
    if tensor.shape != form.shape or not np.isfinite(tensor).all():
        raise ValueError(f"a tensor of shape {tensor.shape} that cannot be stored")
    low, high = form.black, form.white
    slack = 1e-6 * (high - low)
    if tensor.min() < low - slack or tensor.max() > high + slack:
        low = float(tensor.min())
        high = max(float(tensor.max()), low + slack)
    steps = np.rint((tensor.astype(np.float64) - low) * (STEPS / (high - low)))
    return _BOUNDS.pack(low, high) + steps.clip(0, STEPS).astype("<u2").tobytes()


class Packed:
    """Turns the content of records back into tensors.

    Args:
        form: Of the cache.
    """

    def __init__(self, form: TensorForm) -> None:
        self._bounds = _BOUNDS.pack(form.black, form.white)
        self._values = _values(form.black, form.white)

    def unpack(self, plain: bytearray, out: NDArray[np.float32]) -> None:
        """Write the tensor of one record into ``out``."""
        steps = np.frombuffer(plain, "<u2", offset=_BOUNDS.size).reshape(out.shape)
        usual = plain.startswith(self._bounds)
        values = self._values if usual else _values(*_BOUNDS.unpack_from(plain))
        np.take(values, steps, out=out, mode="clip")


def rounded(tensor: NDArray[np.float32], form: TensorForm) -> NDArray[np.float32]:
    """Give a tensor as it would come out of a cache: a simulation sees what a site sees."""
    out = np.empty(form.shape, dtype=np.float32)
    Packed(form).unpack(bytearray(packed(tensor, form)), out)
    return out


def _values(low: float, high: float) -> NDArray[np.float32]:
    """Step -> value."""
    return (low + np.arange(STEPS + 1) / STEPS * (high - low)).astype(np.float32)


class RecordWriter:
    """Appends records.

    Args:
        path: The file; made if there is none, of mode 0600.
        key: 32 bytes, used for this file only.
        form: Of the cache.
    """

    def __init__(self, path: Path, key: bytes, form: TensorForm) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._cipher, self._form = AESGCM(key), form

    def write(self, row: int, name: bytes, plain: bytes) -> None:
        """Encrypt a record and write it at its place. It is durable after ``sync``.

        Args:
            row: Its number; what stands there was never in use, or is so no more.
            name: What it is the tensor of.
            plain: As ``packed`` gives it. Private.
        """
        nonce = os.urandom(NONCE_BYTES)
        record = nonce + self._cipher.encrypt(nonce, plain, _ROW.pack(row) + name)
        start = row * self._form.record_bytes
        while record:  # a full disk raises; a signal may make a write a short one
            written = os.pwrite(self._file, record, start)
            record, start = record[written:], start + written

    def blank(self, row: int) -> None:
        """Write zeros over a record. It is durable after ``sync``."""
        os.pwrite(self._file, bytes(self._form.record_bytes), row * self._form.record_bytes)

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class CachedTensors:
    """Scans of a cache by their place in a data set, read when they are asked for.

    It can stand where an array ``(scans, channels, rows, columns)`` of float32 stands: indexing it
    with places reads those scans.

    Args:
        path: The file of records.
        key: Its key.
        form: Of the cache.
        rows: ``(scans,)``: the record of each scan.
        names: ``(scans,)``: what each is the tensor of, as it was written with.

    Guarantee:
        Reading decrypts the records that are asked for and no other. It goes on after the cache
        was closed, and after an import added to it.
    """

    dtype: Final = np.dtype(np.float32)
    ndim: Final = 4

    def __init__(
        self,
        path: Path,
        key: bytes,
        form: TensorForm,
        rows: NDArray[np.int64],
        names: NDArray[np.void],
    ) -> None:
        self._path, self._form, self._rows, self._names = path, form, rows, names
        self._cipher, self._packed = AESGCM(key), Packed(form)
        self._plain = bytearray(form.plain_bytes)
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            self._map = mmap.mmap(file.fileno(), length, prot=mmap.PROT_READ) if length else None

    def __len__(self) -> int:
        """Number of scans. Private."""
        return len(self._rows)

    def __repr__(self) -> str:
        return f"CachedTensors(tensor={self._form.shape})"

    @property
    def shape(self) -> tuple[int, ...]:
        """``(scans, channels, rows, columns)``; the first is private."""
        return (len(self), *self._form.shape)

    def __getitem__(self, scans: NDArray[np.int64]) -> NDArray[np.float32]:
        """As ``read``."""
        return self.read(scans)

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        """All scans, read. numpy asks for it."""
        return self.read(range(len(self))).astype(dtype or self.dtype, copy=False)

    def chosen(self, scans: NDArray[np.bool_] | NDArray[np.int64]) -> Self:
        """Give a data set of some of the scans, without reading one.

        Args:
            scans: Places, or for each scan whether it is chosen.
        """
        some = copy(self)
        some._rows, some._names = self._rows[scans], self._names[scans]
        return some

    def read(self, scans: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Read some scans.

        Args:
            scans: Places in the data set, in any order; one may be asked for twice.

        Returns:
            ``(scans asked for, channels, rows, columns)``, float32, as the study normalises it,
            in new storage. Private.

        Raises:
            DamagedRecordsError: of these some do not decrypt; it names all of them.
        """
        images = np.empty((len(scans), *self._form.shape), dtype=np.float32)
        damaged = []
        with self._view() as view:
            for image, scan in zip(images, scans, strict=True):
                if not self._read(view, int(scan), image):
                    damaged.append(int(self._rows[scan]))
        if damaged:
            raise DamagedRecordsError(self._path, damaged)
        return images

    def damaged(self) -> list[int]:
        """Read all scans, a few at a time, and give the records that do not decrypt."""
        found: list[int] = []
        for first in range(0, len(self), PIECE):
            try:
                self.read(range(first, min(first + PIECE, len(self))))
            except DamagedRecordsError as error:
                found += error.rows
        return found

    def close(self) -> None:
        """Release the memory map."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _view(self) -> Iterator[memoryview]:
        with memoryview(self._map or b"") as view:
            yield view

    def _read(self, view: memoryview, scan: int, image: NDArray[np.float32]) -> bool:
        row, size = int(self._rows[scan]), self._form.record_bytes
        start = row * size
        if start + size > len(view):
            return False
        with (
            view[start : start + NONCE_BYTES] as nonce,
            view[start + NONCE_BYTES : start + size] as sealed,
        ):
            about = _ROW.pack(row) + self._names[scan].tobytes()
            try:
                self._cipher.decrypt_into(nonce, sealed, about, self._plain)
            except InvalidTag:
                return False
        self._packed.unpack(self._plain, image)
        return True
