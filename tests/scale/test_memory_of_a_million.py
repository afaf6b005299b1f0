"""A million files listed, twenty thousand read: the memory of the process that does it stays flat.

Each peak is that of a process of its own; the growth from few files to many is what counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medfed.simulations.dicom_objects import derived_uid
from tests.support.many_files import LABELS, linked_files, write_long_list
from tests.support.scans import random_pixels, write_scan

pytestmark = pytest.mark.slow

FEW, MANY = 20_000, 1_000_000
LISTED_BYTES = 48
"""For each file more that is listed: its name packed, a hash, the sorting of hashes."""
READ_BYTES = 500
"""For each file more that is imported: what the cache's index on disk keeps in memory of it is
bounded, so over 20,000 files little more than noise, which is some megabytes."""


def done(what: str, folder: Path, caches: Path) -> dict[str, int]:
    """Do it in a process; give what it says."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.scale.memory_of", what, str(folder), str(caches)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    said: dict[str, int] = json.loads(ended.stdout)
    return said


def growth(few: dict[str, int], many: dict[str, int]) -> float:
    """Bytes for each entry more."""
    return (many["peak_bytes"] - few["peak_bytes"]) / (many["entries"] - few["entries"])


def test_a_million_pictures_in_class_folders_are_listed_in_little_memory(tmp_path: Path) -> None:
    said = []
    for files in (FEW, MANY):
        linked_files(tmp_path / str(files), files)
        said.append(done("index", tmp_path / str(files), tmp_path / "caches"))

    assert [one["entries"] for one in said] == [FEW, MANY]
    assert growth(*said) < LISTED_BYTES


def test_a_worklist_of_a_million_lines_is_listed_in_little_memory(tmp_path: Path) -> None:
    said = []
    for files in (FEW, MANY):
        (tmp_path / str(files)).mkdir()
        write_long_list(tmp_path / str(files), files)
        said.append(done("index", tmp_path / str(files), tmp_path / "caches"))

    assert [one["entries"] for one in said] == [FEW, MANY]
    assert growth(*said) < LISTED_BYTES


def write_dicom_files(folder: Path, files: int, first: int = 0) -> None:
    """Small DICOM files, long settled, with a worklist that knows them by their UID."""
    folder.mkdir()
    with (folder / "worklist.csv").open("w") as table:
        table.write("sop_uid,label\n")
        for number in range(first, first + files):
            place = folder / f"export{number // 1000}"
            place.mkdir(exist_ok=True)
            uid = derived_uid("scale", str(number))
            pixels = random_pixels(number, (16, 16))
            path = place / f"IM{number:07}"
            write_scan(path, pixels, patient_id=f"P{number // 3}", SOPInstanceUID=uid)
            os.utime(path, (1_500_000_000, 1_500_000_000))
            table.write(f"{uid},{LABELS[number % 2]}\n")


def test_twenty_thousand_files_are_matched_by_their_headers_and_imported_in_little_memory(
    tmp_path: Path,
) -> None:
    few, many = 1_000, 20_000
    said = []
    for files in (few, many):
        folder = tmp_path / str(files)
        write_dicom_files(folder, files)
        for turn in ("first", "again"):
            one = done("import", folder, tmp_path / f"caches-{files}")
            assert one["entries"] == files
            assert one["imported" if turn == "first" else "unchanged"] == files
            said.append(one)

    assert growth(said[0], said[2]) < READ_BYTES
    assert growth(said[1], said[3]) < READ_BYTES
