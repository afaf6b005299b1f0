"""A canary in every attribute of PS3.15 table E.1-1, at the top and three sequences deep."""

from __future__ import annotations

import io
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array
from typer.testing import CliRunner

from medfed.client.scans.allowed_attributes import IDENTIFIERS, keep_allowed
from medfed.client.scans.confidentiality import Profile
from medfed.client.scans.deidentify import CleanFile, deidentify_file
from medfed.client.scans.export_names import ExportNames
from medfed.client.scans.guards import open_scan
from medfed.client.scans.pixels import read_dicom
from medfed.client.scans.read import read_scans
from medfed.client.scans.refusals import RefusedScanError
from medfed.client.site_root import create_site
from medfed.common.trust.certificates import new_authority
from medfed.deploy.cli import app
from tests.support.canaries import NEST, Canaries, table_tags
from tests.support.canary_files import SPOILERS, reachable, write_canary, write_folder
from tests.support.scans import random_pixels, study_of
from tests.support.sites import STUDY, WITHOUT_PRIVACY

NAMES = ExportNames(bytes(32))


def deidentified(path: Path, *, shift_dates: bool = False) -> bytes:
    clean = deidentify_file(path, Profile(NAMES, shift_dates=shift_dates), NAMES)
    assert isinstance(clean, CleanFile), clean
    return clean.content


# ---- what deidentify writes ----------------------------------------------------------------------
def test_no_canary_is_in_what_deidentify_writes(tmp_path: Path) -> None:
    canaries, pixels = Canaries(), random_pixels()
    path = write_canary(tmp_path / "a.dcm", canaries, pixels)
    # All canaries sing in the source, else their silence below would mean nothing. The table of
    # 2026c has 655 rows; 650 of them are attributes of a data set, each planted twice.
    assert len(table_tags()) >= 649
    assert sorted(canaries.leaks(path.read_bytes())) == sorted(canaries.texts)
    assert len(canaries.texts) > 2 * 649

    content = deidentified(path)

    assert canaries.leaks(content) == []
    clean = pydicom.dcmread(io.BytesIO(content))
    assert np.array_equal(pixel_array(clean), pixels)
    innermost = clean
    for keyword in NEST:
        innermost = innermost[keyword].value[0]
    assert innermost.CodeValue == "T-D3000"
    assert clean.PatientIdentityRemoved == "YES"


def test_what_is_private_unknown_retired_or_drawn_over_is_gone_at_every_level(
    tmp_path: Path,
) -> None:
    content = deidentified(write_canary(tmp_path / "a.dcm", Canaries()))

    clean = pydicom.dcmread(io.BytesIO(content))
    left = [e.tag for e in clean.iterall()]
    assert len(left) > 200  # the nested ones are among them
    assert [t for t in left if t.is_private or t.group & 0xFF00 in (0x5000, 0x6000)] == []
    assert content[:128] == bytes(128)
    # PS3.10 7.1-1: what file meta information must hold, and pydicom's version.
    assert {e.keyword for e in clean.file_meta} == {
        "FileMetaInformationGroupLength",
        "FileMetaInformationVersion",
        "MediaStorageSOPClassUID",
        "MediaStorageSOPInstanceUID",
        "TransferSyntaxUID",
        "ImplementationClassUID",
        "ImplementationVersionName",
    }
    assert clean.file_meta.MediaStorageSOPInstanceUID == clean.SOPInstanceUID


def test_moved_dates_leak_no_canary_either(tmp_path: Path) -> None:
    canaries = Canaries()
    path = write_canary(tmp_path / "a.dcm", canaries)

    content = deidentified(path, shift_dates=True)

    clean = pydicom.dcmread(io.BytesIO(content))
    moved = {str(e.value).encode() for e in clean.iterall() if e.VR in ("DA", "DT") and e.value}
    # A moved date may fall on another canary's; texts that are no dates must all be gone.
    leaks = [n for n in canaries.leaks(content) if canaries.texts[n] not in moved]
    assert leaks == []
    assert clean.StudyDate not in ("", "19000101")


# ---- what the reader keeps, prints and raises ----------------------------------------------------
def test_only_identifiers_can_be_reached_behind_the_reader_s_door(tmp_path: Path) -> None:
    canaries = Canaries()
    dataset, _ = open_scan(write_canary(tmp_path / "a.dcm", canaries))
    everything = canaries.leaks(reachable(dataset))
    assert len(everything) > 1000  # the walk does see what is there

    kept = keep_allowed(dataset)
    del dataset

    allowed = {f"({e.tag.group:04X},{e.tag.element:04X})" for e in kept if e.keyword in IDENTIFIERS}
    # PatientSex is allowed too; its canary is a code that no file has.
    leaks = [n for n in canaries.leaks(reachable(kept)) if n.split()[2] not in allowed]
    assert [n for n in leaks if "(0010,0040)" not in n] == []
    assert all(" top " in n for n in leaks)
    assert canaries.leaks(f"{kept.file_meta}".encode()) == []


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_a_refusal_carries_nothing_of_the_file(
    tmp_path: Path,
    spoil: Callable[[Dataset, str], None],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    canaries = Canaries()
    path = write_canary(tmp_path / "a.dcm", canaries, spoil=spoil)

    with pytest.raises(RefusedScanError) as caught:
        read_dicom(path, study_of().scans)

    error = caught.value
    # The frame of this test holds the canaries itself: the reader's begin below it.
    below = error.__traceback__.tb_next if error.__traceback__ else None
    told = traceback.TracebackException(type(error), error, below, capture_locals=True)
    shown = "".join(told.format()) + repr(error) + str(error.args) + repr(vars(error))
    assert "read_dicom" in shown
    assert canaries.leaks(shown.encode()) == []
    assert error.__cause__ is None and error.__context__ is None
    assert canaries.leaks((caplog.text + "".join(capfd.readouterr())).encode()) == []


def test_what_the_reader_keeps_of_a_folder_holds_no_canary(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    canaries = Canaries()
    folder = write_folder(tmp_path / "scans", canaries)

    scans = read_scans(folder, study_of(labels=("dark", "bright")))

    assert len(scans) == 6 and scans.patients == 6 and scans.unit == "patient"
    assert sum(scans.refused.values()) == len(SPOILERS)
    assert canaries.leaks(reachable(scans) + repr(scans).encode()) == []
    assert canaries.leaks((caplog.text + "".join(capfd.readouterr())).encode()) == []


def test_site_check_shows_and_stores_no_canary(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    canaries = Canaries()
    root, study = tmp_path / "A", tmp_path / "study.toml"
    text = STUDY.replace(*WITHOUT_PRIVACY).replace('group_key = "patient"\n', "")
    study.write_text(text)
    create_site(
        root,
        name="A",
        scans=write_folder(tmp_path / "scans", canaries),
        server="127.0.0.1:1",
        ca=new_authority(tmp_path / "trust"),
    )

    outputs = [
        CliRunner().invoke(app, ["site", "check", "--root", str(root), "--study", str(study), *how])
        for how in ([], ["--format", "json"])
    ]

    assert [done.exit_code for done in outputs] == [0, 0], outputs[0].output
    assert "left out" in outputs[0].output
    shown = "".join(done.output for done in outputs) + caplog.text + "".join(capfd.readouterr())
    assert canaries.leaks(shown.encode()) == []
    stored = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert stored and canaries.leaks(stored) == []


def test_the_search_sees_a_canary_in_any_dress() -> None:
    canaries = Canaries()
    text: Any = canaries.text("one")

    assert canaries.leaks(b"--" + text.encode() + b"--") == ["one"]
    assert canaries.leaks(text.encode("utf-16-le")) == ["one"]
    assert canaries.leaks(text.encode()[::-1]) == ["one"]
    assert canaries.leaks(b"CNRY") == []
