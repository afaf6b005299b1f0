from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from medfed.client.site_root import SiteRoot
from medfed.common.errors import ScanError
from medfed.deploy.cli import scans_import
from tests.support.scans import random_pixels, write_list, write_scan
from tests.support.sites import STUDY, make_site

app = typer.Typer()
scans_import.register(app)


@app.callback()
def scans() -> None:
    """With one command more than one level is not collapsed."""


@pytest.fixture
def site(tmp_path: Path) -> SiteRoot:
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(3):
        write_scan(folder / f"{number}.dcm", random_pixels(number), patient_id=f"P{number}")
        os.utime(folder / f"{number}.dcm", (1e9, 1e9))
    (folder / "broken.dcm").write_bytes(b"nothing")
    names = ["0.dcm", "1.dcm", "2.dcm", "broken.dcm"]
    write_list(folder, [(name, "bright") for name in names], "file", "label")
    (tmp_path / "study.toml").write_text(STUDY.replace('group_key = "patient"\n', ""))
    return make_site(tmp_path, scans=folder, patient_array=None)


def run(site: SiteRoot, *arguments: str) -> Result:
    study = str(site.folder.parent / "study.toml")
    command = ["import", "--root", str(site.folder), "--study", study, *arguments]
    return CliRunner().invoke(app, command, catch_exceptions=False)


def test_it_says_what_it_imported_and_where_the_names_of_refused_files_stand(
    site: SiteRoot,
) -> None:
    shown = run(site).output

    assert "imported                3" in shown
    assert "refused                 1   not a DICOM file" in shown
    assert "refused.csv" in shown
    assert "broken.dcm" not in shown


def test_a_second_run_finds_everything_there(site: SiteRoot) -> None:
    run(site)
    told = json.loads(run(site, "--format", "json").output)

    assert (told["listed"], told["unchanged"], told["imported"]) == (4, 3, 0)
    assert told["refused"] == {"not a DICOM file": 1}
    assert "broken.dcm" in Path(told["report"]).read_text()


def test_again_and_verify_are_passed_on(site: SiteRoot) -> None:
    run(site)
    (tensors,) = (site.folder / "cache").glob("*/tensors.bin")
    tensors.write_bytes(bytes(tensors.stat().st_size))
    (site.scans / "broken.dcm").unlink()

    told = json.loads(run(site, "--format", "json", "--verify", "--children", "1").output)
    assert (told["damaged"], told["imported"]) == (3, 3)
    told = json.loads(run(site, "--format", "json", "--again").output)
    assert told["refused"] == {"file missing or unreadable": 1}


def test_without_a_usable_scan_it_ends_with_the_error_of_scans(site: SiteRoot) -> None:
    for number in range(3):
        (site.scans / f"{number}.dcm").unlink()

    with pytest.raises(ScanError, match="none of the 4 files or lines is a usable scan"):
        run(site)


def test_help_has_an_example() -> None:
    shown = CliRunner().invoke(app, ["import", "--help"]).output

    assert "Example: medfed scans import --root" in shown
