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
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.patients import Pseudonymise
from medfed.client.scans.scanset import PARTS, ScanSet
from medfed.client.scans.tensors import tensor_of
from medfed.common.errors import ScanError
from medfed.common.study import Study

MAX_ARRAYS_BYTES: Final = 8 << 30
"""Largest sum of all arrays, inflated."""
SPLIT_NAMES: Final[Mapping[str, int]] = {
    "train": PARTS["train"],
    "val": PARTS["validation"],
    "test": PARTS["test"],
}


class Pictures(NamedTuple):
    """What an ``.npz`` holds, checked, before it becomes tensors. Private but ``unit``."""

    images: NDArray[np.uint8]
    """``(scans, rows, columns)`` or ``(scans, rows, columns, 3)``, 0 to 255."""
    labels: list[int]
    keys: list[str]
    """The privacy unit's key per scan: its group, or its running number."""
    parts: list[int] | None
    unit: str


def read_npz(path: Path, study: Study, pseudonymise: Pseudonymise | None = None) -> ScanSet:
    """Read a data set from one ``.npz`` file.

    Args:
        path: The file. Nothing in it is unpickled.
        study: Says the group key, the labels and how a picture becomes a tensor.
        pseudonymise: How the ledger names patients.

    Returns:
        The scans in the file's order; train, validation, test in the first form. Private.
        The unit is the group key's name, or ``"image"`` without one.

    Raises:
        ScanError: the file cannot be read, arrays are missing or of wrong shape or type, a
            label is none of the study's, the study asks for a spacing, or a privacy unit is in
            two parts.
    """
    pictures = load_pictures(path, study)
    if study.scans.spacing_mm is not None:
        raise ScanError(
            f"{path}: study {study.name!r} resamples to {study.scans.spacing_mm} mm, and the "
            "pictures of an .npz have no pixel spacing.",
            advice="leave scans.spacing_mm out of the study, or use DICOM files.",
        )
    tensors = [tensor_of(image / 255.0, study.scans) for image in pictures.images]
    return ScanSet.assemble(
        tensors,
        pictures.labels,
        pictures.keys,
        pictures.parts,
        study,
        unit=pictures.unit,
        pseudonymise=pseudonymise,
    )


def load_pictures(path: Path, study: Study) -> Pictures:
    """Read and check the arrays of an ``.npz`` data set, as they are stored.

    Raises:
        ScanError: as ``read_npz``.
    """
    prefixes = {f"{name}_": part for name, part in SPLIT_NAMES.items()}
    arrays = _arrays(path)
    if any(f"{prefix}images" in arrays for prefix in prefixes):
        pieces = [_piece(path, arrays, prefix, study) for prefix in prefixes]
        parts = [
            part for piece, part in zip(pieces, prefixes.values(), strict=True) for _ in piece[1]
        ]
    else:
        pieces, parts = [_piece(path, arrays, "", study)], None
    shapes = {piece[0].shape[1:] for piece in pieces}
    if len(shapes) != 1:
        raise _refused(path, f"its parts hold pictures of shapes {sorted(shapes)}, not of one")
    images = np.concatenate([piece[0] for piece in pieces])
    if not len(images):
        raise _refused(path, "it holds no picture")
    labels = [label for piece in pieces for label in piece[1]]
    if study.scans.group_key is None:
        return Pictures(images, labels, [str(n) for n in range(len(images))], parts, "image")
    keys = [key for piece in pieces for key in piece[2]]
    return Pictures(images, labels, keys, parts, study.scans.group_key)


def _arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    """All arrays of the file, after their inflated size was looked at."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_ARRAYS_BYTES:
            raise _refused(path, f"its arrays take {size} bytes, above {MAX_ARRAYS_BYTES}")
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except ScanError:
        raise
    except Exception as error:  # a broken archive or header raises whatever it runs into
        raise ScanError(
            f"{path}: the data set cannot be read ({type(error).__name__}).",
            advice="check that the file exists, that this user may read it, and that it is an "
            ".npz of plain arrays (nothing pickled).",
        ) from None
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise _refused(path, "it holds something that is no array")
    return arrays


def _piece(
    path: Path, arrays: Mapping[str, NDArray[np.generic]], prefix: str, study: Study
) -> tuple[NDArray[np.uint8], list[int], list[str]]:
    """Images, labels and group keys of one part."""
    names = [f"{prefix}images", f"{prefix}labels"]
    group = study.scans.group_key
    names += [f"{prefix}{group}"] if group is not None else []
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ScanError(
            f"{path}: arrays missing: {', '.join(missing)}; found: {', '.join(arrays) or 'none'}.",
            advice="give a file with train_images, train_labels, val_…, test_…, or with images "
            "and labels, and the array that scans.group_key names.",
        )
    images = _images(path, arrays[names[0]], names[0])
    labels = _labels(path, arrays[names[1]], names[1], len(images), study)
    keys = _keys(path, arrays[names[2]], names[2], len(images)) if group is not None else []
    return images, labels, keys


def _images(path: Path, array: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[:, :, :, 0]
    colour = array.ndim == 4 and array.shape[3] == 3
    if array.dtype != np.uint8 or not (array.ndim == 3 or colour) or 0 in array.shape[1:]:
        raise _refused(
            path,
            f"{name} is {array.dtype} of shape {array.shape}; allowed is uint8 of shape "
            "(scans, rows, columns), or the same with 1 or 3 colours last",
        )
    return array.astype(np.uint8, copy=False)


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
