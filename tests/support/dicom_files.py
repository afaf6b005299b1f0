"""Real DICOM files for tests, and what the reader makes of their pixels."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import pydicom.data
import pytest

from medfed.client.scans.frames import decoded_frame
from medfed.client.scans.guards import open_scan
from medfed.client.scans.refusals import RefusedScanError

ROOT = Path(__file__).parents[2]
DICOM_DEV = ROOT.parent / "shared/data/dicom_dev"
"""218 files with a manifest, where the machine has them: they are no part of the repository."""
SHIPPED = Path(pydicom.data.__file__).parent / "test_files"
"""The files that come with pydicom."""


def manifest() -> dict[str, dict[str, str]]:
    """File name → its row in the manifest of ``DICOM_DEV``; skips the test without them."""
    if not DICOM_DEV.is_dir():
        pytest.skip(f"the DICOM files are not on this machine: {DICOM_DEV}")
    with (DICOM_DEV / "MANIFEST.csv").open(encoding="utf-8", newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def outcome(path: Path) -> str:
    """SHA-256 over the little-endian values of all frames, or the reason for a refusal."""
    digest = hashlib.sha256()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, on odd files
        try:
            dataset, header = open_scan(path)
            for index in range(header.frames):
                frame = decoded_frame(dataset, header, index)
                digest.update(frame.astype(frame.dtype.newbyteorder("<")).tobytes())
        except RefusedScanError as error:
            return error.reason.value
    return digest.hexdigest()


def outcomes(folder: Path) -> dict[str, str]:
    """File, by its path in the folder, → outcome."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): outcome(path) for path in files}


def outcomes_without(folder: Path, modules: Iterable[str]) -> dict[str, str]:
    """As ``outcomes``, in a process where these modules cannot be imported."""
    code = (
        "import json, pathlib, sys\n"
        f"sys.modules.update(dict.fromkeys({list(modules)!r}))\n"  # None: as if not installed
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.support.dicom_files import outcomes\n"
        f"print(json.dumps(outcomes(pathlib.Path({str(folder)!r}))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found
