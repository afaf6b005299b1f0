"""DICOM files full of canaries, sound and spoilt ones, and where a canary may hide in memory."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from tests.support.canaries import NEST, Canaries, nested, plant_in_meta
from tests.support.scans import random_pixels, scan_object, write_list


def write_canary(
    path: Path,
    canaries: Canaries,
    pixels: NDArray[np.uint8] | None = None,
    spoil: Callable[[Dataset, str], None] | None = None,
) -> Path:
    """A picture with canaries at the top, three sequences deep, and around the data set."""
    innermost = Dataset()
    with warnings.catch_warnings(action="ignore"):  # pydicom's, about ages that are none
        dataset = scan_object(random_pixels() if pixels is None else pixels)
        canaries.plant(dataset, f"{path.name} top")
        canaries.plant(innermost, f"{path.name} nested")
        innermost.CodeValue = "T-D3000"  # not in the table: must come through, three deep
        setattr(dataset, NEST[0], [nested(innermost)])
        plant_in_meta(dataset.file_meta, canaries, path.name)
        preamble = canaries.text(f"{path.name} preamble")
        dataset.preamble = preamble.encode().ljust(128, b"\0")
        if spoil is not None:
            spoil(dataset, canaries.text(f"{path.name} spoilt"))
        dataset.save_as(path)
    return path


def reachable(start: object) -> bytes:
    """Every text and piece of bytes that can be reached from an object, joined."""
    seen: dict[int, object] = {}
    left = [start]
    while left:
        found = left.pop()
        if id(found) in seen or isinstance(found, type | ModuleType | FunctionType):
            continue
        seen[id(found)] = found
        left += gc.get_referents(found)
    texts = (f for f in seen.values() if isinstance(f, str | bytes | bytearray))
    numbers = (str(f) for f in seen.values() if isinstance(f, int | float))
    parts = [*texts, *numbers]
    return b"\n".join(p.encode("utf-8", "replace") if isinstance(p, str) else p for p in parts)


def truncated(dataset: Dataset, text: str) -> None:
    dataset.PixelData = dataset.PixelData[:100]


def bad_number(dataset: Dataset, text: str) -> None:
    dataset[0x00281050] = DataElement(0x00281050, "LO", text)  # WindowCenter
    dataset[0x00281051] = DataElement(0x00281051, "LO", text)


def bad_rows(dataset: Dataset, text: str) -> None:
    dataset[0x00280010] = DataElement(0x00280010, "LO", text)


def bad_colours(dataset: Dataset, text: str) -> None:
    dataset.PhotometricInterpretation = text


def bad_frames(dataset: Dataset, text: str) -> None:
    dataset[0x00280008] = DataElement(0x00280008, "LO", text)


def bad_table(dataset: Dataset, text: str) -> None:
    table = Dataset()
    table[0x00283002] = DataElement(0x00283002, "LO", text)
    table[0x00283006] = DataElement(0x00283006, "LO", text)
    dataset.ModalityLUTSequence = [table]


def no_sequence(dataset: Dataset, text: str) -> None:
    dataset[0x00283000] = DataElement(0x00283000, "UT", text)


SPOILERS = [truncated, bad_number, bad_rows, bad_colours, bad_frames, bad_table, no_sequence]


def write_folder(folder: Path, canaries: Canaries) -> Path:
    """Six good canary files of as many patients, and one spoilt in each way."""
    folder.mkdir()
    rows = []
    for index in range(6):
        path = write_canary(folder / f"good{index}.dcm", canaries, random_pixels(index))
        rows.append([path.name, ("dark", "bright")[index % 2], "train"])
    for spoil in SPOILERS:
        path = write_canary(folder / f"{spoil.__name__}.dcm", canaries, spoil=spoil)
        rows.append([path.name, "dark", "train"])
    write_list(folder, rows)
    return folder
