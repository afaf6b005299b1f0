"""Scans in one ``.npz`` file, as public data sets come.

Two forms: ``train_images``, ``train_labels``, ``val_…``, ``test_…`` (MedMNIST), where the split
is given; or one ``images`` and ``labels``. A group array, named by ``scans.group_key`` (with the
same ``train_`` … in front in the first form), says which scans belong to one privacy unit;
without it each scan is its own.

Source:
    Yang, Shi, Wei, et al. MedMNIST v2. Scientific Data 10, 41 (2023), for the first form.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from medfed.client.scans.scanset import PARTS
from medfed.common.errors import ScanError
from medfed.common.study import Study

MAX_ARRAYS_BYTES: Final = 8 << 30
"""Largest sum of all arrays, inflated."""
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
    """
    with _opened(path) as content:
        prefixes = _prefixes(content)
        _check_present(path, content, prefixes, study.scans.group_key)
        shapes = [_image_shape(path, content, f"{prefix}images") for prefix in prefixes]
        pieces = [
            _piece(path, content, prefix, shape[0], study)
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
    with _opened(path) as content:
        return np.concatenate(
            [
                _images(path, content[f"{prefix}images"], f"{prefix}images")
                for prefix in _prefixes(content)
            ]
        )


def load_pictures(path: Path, study: Study) -> Pictures:
    """Read and check the arrays of an ``.npz`` data set, as they are stored.

    Raises:
        ScanError: as ``index_pictures`` and ``load_images``.
    """
    index = index_pictures(path, study)
    return Pictures(load_images(path), *index)


@contextmanager
def _opened(path: Path) -> Iterator[NpzFile]:
    """The arrays of the file, read when asked for, after their inflated size was looked at."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_ARRAYS_BYTES:
            raise _refused(path, f"its arrays take {size} bytes, above {MAX_ARRAYS_BYTES}")
        with np.load(path, allow_pickle=False) as content:
            yield content
    except ScanError:
        raise
    except Exception as error:  # a broken archive or header raises whatever it runs into
        raise ScanError(
            f"{path}: the data set cannot be read ({type(error).__name__}).",
            advice="check that the file exists, that this user may read it, and that it is an "
            ".npz of plain arrays (nothing pickled).",
        ) from None


def _prefixes(content: NpzFile) -> dict[str, int | None]:
    """What stands before ``images`` -> its part; one empty prefix without a part, or three."""
    three: dict[str, int | None] = {f"{name}_": part for name, part in SPLIT_NAMES.items()}
    return three if any(f"{prefix}images" in content for prefix in three) else {"": None}


def _check_present(
    path: Path, content: NpzFile, prefixes: Mapping[str, int | None], group: str | None
) -> None:
    names = ["images", "labels"] + ([group] if group is not None else [])
    missing = [p + name for p in prefixes for name in names if p + name not in content]
    if missing:
        for name in content.files:  # in a damaged file, the names are not what is wrong
            if not isinstance(content[name], np.ndarray):
                raise _refused(path, "it holds something that is no array")
        raise ScanError(
            f"{path}: arrays missing: {', '.join(missing)}; found: "
            f"{', '.join(content.files) or 'none'}.",
            advice="give a file with train_images, train_labels, val_…, test_…, or with images "
            "and labels, and the array that scans.group_key names.",
        )


def _piece(
    path: Path, content: NpzFile, prefix: str, scans: int, study: Study
) -> tuple[list[int], list[str]]:
    """Labels and group keys of one part."""
    name, group = f"{prefix}labels", study.scans.group_key
    labels = _labels(path, _array(path, content, name), name, scans, study)
    if group is None:
        return labels, []
    return labels, _keys(path, _array(path, content, prefix + group), prefix + group, scans)


def _array(path: Path, content: NpzFile, name: str) -> NDArray[np.generic]:
    array: object = content[name]
    if not isinstance(array, np.ndarray):
        raise _refused(path, "it holds something that is no array")
    return array


def _image_shape(path: Path, content: NpzFile, name: str) -> tuple[int, ...]:
    """Shape of an array of pictures, from its first bytes."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read(member)
    _check_images(path, shape, dtype, name)
    return tuple(shape[:3]) if shape[3:] == (1,) else tuple(shape)


def _images(path: Path, array: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    _check_images(path, array.shape, array.dtype, name)
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[:, :, :, 0]
    return array.astype(np.uint8, copy=False)


def _check_images(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic], name: str
) -> None:
    sound = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if dtype != np.uint8 or not sound or 0 in shape[1:]:
        raise _refused(
            path,
            f"{name} is {dtype} of shape {shape}; allowed is uint8 of shape "
            "(scans, rows, columns), or the same with 1 or 3 colours last",
        )


def _labels(
    path: Path, array: NDArray[np.generic], name: str, scans: int, study: Study
) -> list[int]:
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.shape != (scans,) or not np.issubdtype(flat.dtype, np.integer):
        raise _refused(
            path,
            f"{name} is {array.dtype} of shape {array.shape}; allowed are integers of shape "
            f"({scans},) or ({scans}, 1)",
        )
    labels = [int(label) for label in flat]
    unknown = sum(not 0 <= label < study.classes for label in labels)
    if unknown:
        raise _refused(
            path,
            f"{name} has {unknown} values that are no label of study {study.name!r}; allowed are "
            f"0 to {study.classes - 1} ({', '.join(study.task.labels)})",
        )
    return labels


def _keys(path: Path, array: NDArray[np.generic], name: str, scans: int) -> list[str]:
    flat = array.reshape(-1) if array.shape == (scans, 1) else array
    keys = [str(key).strip() for key in flat.tolist()] if flat.shape == (scans,) else []
    if len(keys) != scans or not all(keys) or array.dtype.kind not in "iuU":
        raise _refused(
            path,
            f"{name} is {array.dtype} of shape {array.shape}; allowed are integers or non-empty "
            f"texts of shape ({scans},)",
        )
    return keys


def _refused(path: Path, found: str) -> ScanError:
    return ScanError(f"{path}: {found}.", advice="correct the data set, or give another one.")
