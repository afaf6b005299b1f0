"""Scans in one ``.npz`` file, as public data sets come.

Two forms: ``train_images``, ``train_labels``, ``val_…``, ``test_…`` (MedMNIST), where the split
is given; or one ``images`` and ``labels``. A group array, named by ``scans.group_key`` (with the
same ``train_`` … in front in the first form), says which scans belong to one privacy unit;
without it each scan is its own.

Source:
    Yang, Shi, Wei, et al. MedMNIST v2. Scientific Data 10, 41 (2023), for the first form.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.lib.format import (
    MAGIC_PREFIX,
    read_array,
    read_array_header_1_0,
    read_array_header_2_0,
    read_magic,
)
from numpy.typing import NDArray

from medfed.client.scans.scanset import PARTS
from medfed.common.errors import ScanError
from medfed.common.report.words import clean
from medfed.common.study import Study

MAX_ARRAYS_BYTES: Final = 8 << 30
"""Largest sum of all arrays, inflated."""
MAX_PICTURES: Final = 1_000_000
"""Most pictures of one array."""
MAX_KEYS_BYTES: Final = 64 << 20
"""Largest array of groups."""
MAX_READ_BYTES: Final = 1 << 20
"""Most that is read of the file at once, its list of arrays included: some ten thousand."""
NAMES_SHOWN: Final = 20
"""Most arrays that a message names."""
SPLIT_NAMES: Final[Mapping[str, int]] = {
    "train": PARTS["train"],
    "val": PARTS["validation"],
    "test": PARTS["test"],
}


class PictureIndex(NamedTuple):
    """What an ``.npz`` says of its pictures, checked. Private but ``unit``."""

    labels: list[int]
    keys: list[str]
    """The privacy unit's key per scan: its group, or its running number."""
    parts: list[int] | None
    unit: str


class Pictures(NamedTuple):
    """What an ``.npz`` holds, checked, before it becomes tensors. Private but ``unit``."""

    images: NDArray[np.uint8]
    """``(scans, rows, columns)`` or ``(scans, rows, columns, 3)``, 0 to 255."""
    labels: list[int]
    keys: list[str]
    parts: list[int] | None
    unit: str


def index_pictures(path: Path, study: Study) -> PictureIndex:
    """Read and check labels and groups of an ``.npz`` data set; of its images only the shapes.

    Args:
        path: The file. Nothing in it is unpickled.
        study: Says the group key and the labels.

    Returns:
        One label and key per picture in the file's order; train, validation, test in the first
        form. The unit is the group key's name, or ``"image"`` without one.

    Raises:
        ScanError: the file cannot be read, arrays are missing or of wrong shape or type, or a
            label is none of the study's.

    Guarantee:
        What is inflated and kept grows with the number of pictures, at most ``MAX_PICTURES``, and
        not with what else the archive holds or says that it holds.
    """
    with _opened(path) as arrays:
        prefixes = _prefixes(arrays)
        _check_present(arrays, prefixes, study.scans.group_key)
        shapes = [_image_shape(arrays, f"{prefix}images") for prefix in prefixes]
        pieces = [
            _piece(arrays, prefix, shape[0], study)
            for prefix, shape in zip(prefixes, shapes, strict=True)
        ]
    if len({shape[1:] for shape in shapes}) != 1:
        found = sorted({shape[1:] for shape in shapes})
        raise _refused(path, f"its parts hold pictures of shapes {found}, not of one")
    labels = [label for piece in pieces for label in piece[0]]
    if not labels:
        raise _refused(path, "it holds no picture")
    parts = [
        part for part, shape in zip(prefixes.values(), shapes, strict=True) for _ in range(shape[0])
    ]
    given = [part for part in parts if part is not None]
    keys = [key for piece in pieces for key in piece[1]] or [str(n) for n in range(len(labels))]
    return PictureIndex(labels, keys, given or None, study.scans.group_key or "image")


def load_images(path: Path) -> NDArray[np.uint8]:
    """All pictures of an ``.npz`` data set, in the order of ``index_pictures``. Private.

    Returns:
        ``(scans, rows, columns)`` or ``(scans, rows, columns, 3)``, 0 to 255.

    Raises:
        ScanError: the file cannot be read, or its pictures are of wrong shape or type.
    """
    with _opened(path) as arrays:
        parts = [_images(arrays, f"{prefix}images") for prefix in _prefixes(arrays)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def load_pictures(path: Path, study: Study) -> Pictures:
    """Read and check the arrays of an ``.npz`` data set, as they are stored.

    Raises:
        ScanError: as ``index_pictures`` and ``load_images``.
    """
    index = index_pictures(path, study)
    return Pictures(load_images(path), *index)


class _Header(NamedTuple):
    """What an array says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}"[:100]


class _BoundedFile(io.FileIO):
    """A file of which little is read at once: an archive's list of members is, in one piece."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file.

        Raises:
            ValueError: more than ``MAX_READ_BYTES`` is asked for and there.
        """
        most = MAX_READ_BYTES + 1
        piece = super().read(most if size is None or size < 0 else min(size, most))
        if len(piece) > MAX_READ_BYTES:
            raise ValueError("more than may be read at once")
        return piece


class _Arrays:
    """The arrays of an archive: what their headers say, and their values when asked for."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self._archive = path, archive
        self._members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def names(self) -> list[str]:
        """Of all members, without their ending."""
        return list(self._members)

    def header(self, name: str) -> _Header:
        """Look at an array's header; nothing else of it is inflated."""
        entry = self._members[name]
        with self._archive.open(entry) as member:
            if member.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:
                raise _refused(self.path, "it holds something that is no array")
            member.seek(0)
            read = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}
            shape, _, dtype = read[read_magic(member)](member)
            stated = member.tell() + math.prod(shape) * dtype.itemsize
        if dtype.hasobject or stated != entry.file_size:
            raise ValueError("pickled, or longer or shorter than it says")
        return _Header(tuple(shape), dtype)

    def values(self, name: str) -> NDArray[Any]:
        """Read an array whose header was looked at."""
        with self._archive.open(self._members[name]) as member:
            array: NDArray[Any] = read_array(member, allow_pickle=False)
        return array


@contextmanager
def _opened(path: Path) -> Iterator[_Arrays]:
    """The arrays of the file, after their inflated size was looked at."""
    try:
        with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > MAX_ARRAYS_BYTES:
                raise _refused(path, f"its arrays take {size} bytes, above {MAX_ARRAYS_BYTES}")
            yield _Arrays(path, archive)
    except ScanError:
        raise
    except Exception as error:  # a broken archive or header raises whatever it runs into
        raise ScanError(
            f"{path}: the data set cannot be read ({type(error).__name__}).",
            advice="check that the file exists, that this user may read it, and that it is an "
            ".npz of plain arrays (nothing pickled).",
        ) from None


def _prefixes(arrays: _Arrays) -> dict[str, int | None]:
    """What stands before ``images`` -> its part; one empty prefix without a part, or three."""
    three: dict[str, int | None] = {f"{name}_": part for name, part in SPLIT_NAMES.items()}
    return three if any(f"{prefix}images" in arrays for prefix in three) else {"": None}


def _check_present(arrays: _Arrays, prefixes: Mapping[str, int | None], group: str | None) -> None:
    names = ["images", "labels"] + ([group] if group is not None else [])
    missing = [p + name for p in prefixes for name in names if p + name not in arrays]
    if not missing:
        return
    found = arrays.names[:NAMES_SHOWN]
    for name in found:  # in a damaged file, the names are not what is wrong
        arrays.header(name)
    raise ScanError(
        f"{arrays.path}: arrays missing: {', '.join(missing)}; found: "
        f"{', '.join(clean(name)[:64] for name in found) or 'none'}.",
        advice="give a file with train_images, train_labels, val_…, test_…, or with images "
        "and labels, and the array that scans.group_key names.",
    )


def _piece(arrays: _Arrays, prefix: str, scans: int, study: Study) -> tuple[list[int], list[str]]:
    """Labels and group keys of one part."""
    group = study.scans.group_key
    labels = _labels(arrays, f"{prefix}labels", scans, study)
    return labels, [] if group is None else _keys(arrays, prefix + group, scans)


def _image_shape(arrays: _Arrays, name: str) -> tuple[int, ...]:
    """Shape of an array of pictures, checked: ``(scans, rows, columns)``, or with 3 behind."""
    shape, dtype = header = arrays.header(name)
    sound = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if dtype != np.uint8 or not sound or 0 in shape[1:]:
        raise _refused(
            arrays.path,
            f"{name} is {header}; allowed is uint8 of shape "
            "(scans, rows, columns), or the same with 1 or 3 colours last",
        )
    if shape[0] > MAX_PICTURES:
        raise _refused(arrays.path, f"{name} holds more than {MAX_PICTURES} pictures")
    return shape[:3] if shape[3:] == (1,) else shape


def _images(arrays: _Arrays, name: str) -> NDArray[np.uint8]:
    return arrays.values(name).reshape(_image_shape(arrays, name)).astype(np.uint8, copy=False)


def _labels(arrays: _Arrays, name: str, scans: int, study: Study) -> list[int]:
    shape, dtype = header = arrays.header(name)
    if shape not in ((scans,), (scans, 1)) or not np.issubdtype(dtype, np.integer):
        raise _refused(
            arrays.path,
            f"{name} is {header}; allowed are integers of shape ({scans},) or ({scans}, 1)",
        )
    labels = [int(label) for label in arrays.values(name).reshape(-1)]
    unknown = sum(not 0 <= label < study.classes for label in labels)
    if unknown:
        raise _refused(
            arrays.path,
            f"{name} has {unknown} values that are no label of study {study.name!r}; allowed are "
            f"0 to {study.classes - 1} ({', '.join(study.task.labels)})",
        )
    return labels


def _keys(arrays: _Arrays, name: str, scans: int) -> list[str]:
    shape, dtype = header = arrays.header(name)
    sound = shape in ((scans,), (scans, 1)) and dtype.kind in "iuU"
    small = scans * dtype.itemsize <= MAX_KEYS_BYTES
    keys = [str(key).strip() for key in arrays.values(name).flat] if sound and small else []
    if len(keys) != scans or not all(keys):
        raise _refused(
            arrays.path,
            f"{name} is {header}; allowed are integers or non-empty texts of "
            f"shape ({scans},), {MAX_KEYS_BYTES} bytes in all",
        )
    return keys


def _refused(path: Path, found: str) -> ScanError:
    return ScanError(f"{path}: {found}.", advice="correct the data set, or give another one.")
