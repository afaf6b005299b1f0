"""Studies and DICOM files for tests of ``client/scans``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from medfed.common.findings import Findings
from medfed.common.study import Study, parse_study
from medfed.simulations.dicom_objects import derived_uid, image_object, write_object

GIVEN = 'rule = "given"'
HASH = 'rule = "hash"\ntest_fraction = 0.3\nvalidation_fraction = 0.2\nsalt = "x"'

_STUDY = """
[study]
name = "tiny"
purpose = "For the tests of reading scans."
[task]
labels = [{labels}]
[scans]
size = [{size}, {size}]
channels = {channels}
{scans}
[split]
{split}
[network]
name = "medfed-small"
[training]
rounds = 1
local_steps = 1
batch_size = 1
learning_rate = 0.1
[privacy]
mode = "none"
[cohort]
quorum = 1
[[site]]
name = "A"
declared_patients = 1
"""


def study_of(
    *,
    labels: Sequence[str] = ("normal", "opacity"),
    size: int = 32,
    channels: int = 1,
    scans: str = "",
    split: str = GIVEN,
) -> Study:
    """A study without privacy whose scans are read as said; ``scans`` is further TOML."""
    return parse_study(study_text(labels, size=size, channels=channels, scans=scans, split=split))


def study_text(
    labels: Sequence[str] = ("normal", "opacity"),
    *,
    size: int = 32,
    channels: int = 1,
    scans: str = "",
    split: str = GIVEN,
) -> str:
    """The same as the text of a study file."""
    return _STUDY.format(
        labels=", ".join(f'"{label}"' for label in labels),
        size=size,
        channels=channels,
        scans=scans,
        split=split,
    )


def mapping(study: Study, findings: Findings) -> Study:
    """The same study, with its own words for what a data source found."""
    return study.model_copy(update={"task": study.task.model_copy(update={"findings": findings})})


def scan_object(
    pixels: NDArray[Any],
    *,
    patient_id: str = "P1",
    bits_stored: int | None = None,
    colour_model: str = "MONOCHROME2",
    **elements: Any,
) -> Dataset:
    """A DICOM object of unsigned pixels with further elements by keyword."""
    dataset = image_object(
        pixels,
        sop_class=SecondaryCaptureImageStorage,
        instance=derived_uid("test", patient_id),
        study=derived_uid("test study"),
        series=derived_uid("test series"),
        patient_id=patient_id,
        bits_stored=bits_stored or 8 * pixels.dtype.itemsize,
        colour_model=colour_model,
    )
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def write_scan(path: Path, pixels: NDArray[Any], **elements: Any) -> Path:
    """Write such an object as a file; give its path."""
    write_object(scan_object(pixels, **elements), path)
    return path


def write_list(folder: Path, rows: Sequence[Sequence[str]], *columns: str) -> None:
    """Write ``worklist.csv`` as given, right or wrong."""
    with (folder / "worklist.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns or ("file", "label", "split"), *rows])


def random_pixels(seed: int = 0, shape: tuple[int, ...] = (32, 32)) -> NDArray[np.uint8]:
    """Grey or colour noise of 8 bits."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
