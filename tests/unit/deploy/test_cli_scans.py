from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medfed.common.errors import ConfigError
from medfed.deploy.cli import app
from medfed.simulations.dicom_objects import write_object
from tests.support.scans import random_pixels, scan_object


def run(*arguments: object) -> str:
    """A command's standard output; errors are raised as they are."""
    words = [str(argument) for argument in arguments]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    write_object(scan_object(random_pixels(), PatientName="Doe^Jane", Modality="US"), folder / "a")
    (folder / "Doe^Jane.txt").write_text("Jane")
    return folder


def test_deidentify_says_what_it_did_and_what_it_did_not(tmp_path: Path, source: Path) -> None:
    out = run("scans", "deidentify", source, tmp_path / "clean", "--key", tmp_path / "key")

    assert f"1 files of 1 patients are in {tmp_path / 'clean'}; 1 files were left out:" in out
    assert "1 not a DICOM file" in out
    assert "Warning: 1 are of kinds that often have text in the picture" in out
    assert "The pictures themselves were not changed" in out
    assert "Doe" not in out
    (written,) = (tmp_path / "clean").rglob("*.dcm")
    assert b"Doe" not in written.read_bytes()


def test_deidentify_tells_programs_the_same(tmp_path: Path, source: Path) -> None:
    out = run(
        "scans", "deidentify", source, tmp_path / "clean", "--key", tmp_path / "key",
        "--dates", "shift", "--format", "json",
    )  # fmt: skip

    assert json.loads(out) == {
        "written": 1,
        "patients": 1,
        "may_show_text": 1,
        "left_out": {"not a DICOM file": 1},
        "labelled": None,
        "label_notes": {},
    }


def test_a_second_run_needs_resume(tmp_path: Path, source: Path) -> None:
    words = ("scans", "deidentify", source, tmp_path / "clean", "--key", tmp_path / "key")
    run(*words)

    with pytest.raises(ConfigError, match="not empty"):
        run(*words)
    assert "1 already in the target, or a second copy" in run(*words, "--resume")
