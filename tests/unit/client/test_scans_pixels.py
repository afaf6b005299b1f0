from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import ExplicitVRBigEndian

from medfed.client.scans.functional_groups import pixel_spacing
from medfed.client.scans.guards import open_scan
from medfed.client.scans.pixels import read_dicom
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.simulations.dicom_objects import write_object
from tests.support.scans import random_pixels, scan_object, study_of, write_scan


def test_eight_bits_of_the_study_s_size_are_divided_by_255(tmp_path: Path) -> None:
    pixels = random_pixels()

    tensor = read_dicom(write_scan(tmp_path / "a.dcm", pixels), study_of().scans).tensor

    assert np.array_equal(tensor[0], (pixels / 255.0).astype(np.float32))
    assert np.array_equal(tensor[0], pixels.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_polarity_and_depth_of_a_scanner_do_not_change_what_is_shown(
    tmp_path: Path, seed: int, signed: bool, bits: int
) -> None:
    # The same scene of 256 levels, stored by another scanner: shifted, scaled and inverted,
    # with the window that undoes it.
    scene = random_pixels(seed).astype(np.int64)
    step, low = (1 << (bits - 9)), 7
    stored = low + step * (255 - scene)
    shift = (1 << (bits - 1)) if signed else 0
    dataset = scan_object(
        (stored - shift).astype(np.int16 if signed else np.uint16).view(np.uint16),
        bits_stored=bits,
        colour_model="MONOCHROME1",
        WindowCenter=low + step * 127.5 - shift,
        WindowWidth=step * 255,
        VOILUTFunction="LINEAR_EXACT",
    )
    dataset.PixelRepresentation = int(signed)
    write_object(dataset, tmp_path / "a.dcm")

    tensor = read_dicom(tmp_path / "a.dcm", study_of().scans).tensor

    assert tensor[0] == pytest.approx(scene / 255.0, abs=1e-6)


def test_big_endian_pixels_are_read(tmp_path: Path) -> None:
    pixels = random_pixels().astype(np.uint16) * 257
    dataset = scan_object(pixels)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.PixelData = pixels.astype(">u2").tobytes()
    write_object(dataset, tmp_path / "a.dcm")

    tensor = read_dicom(tmp_path / "a.dcm", study_of().scans).tensor

    assert tensor[0] == pytest.approx(pixels / 65535.0)


def test_colour_keeps_its_channels(tmp_path: Path) -> None:
    pixels = random_pixels(shape=(32, 32, 3))
    path = write_scan(tmp_path / "a.dcm", pixels, colour_model="RGB")

    tensor = read_dicom(path, study_of(channels=3).scans).tensor

    assert np.array_equal(tensor, (pixels / 255.0).astype(np.float32).transpose(2, 0, 1))


def test_luminance_and_chrominance_become_red_green_and_blue(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:] = (76, 85, 255)  # PS3.3 C.7.6.3.1.2: pure red in YBR_FULL
    path = write_scan(tmp_path / "a.dcm", pixels, colour_model="YBR_FULL")

    tensor = read_dicom(path, study_of(channels=3).scans).tensor

    assert tensor[:, 0, 0] == pytest.approx([1.0, 0.0, 0.0], abs=0.01)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_palette_is_looked_up(tmp_path: Path, depth: int) -> None:
    top = (1 << depth) - 1
    ramp = np.linspace(0, top, 256).astype("<u2" if depth == 16 else np.uint8)
    elements: dict[str, Any] = {}
    for name, table in {"Red": ramp, "Green": ramp[::-1], "Blue": ramp * 0}.items():
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, depth]
        elements[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    dataset = scan_object(random_pixels(), colour_model="PALETTE COLOR", **elements)
    for name in ("Red", "Green", "Blue"):
        dataset[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
    write_object(dataset, tmp_path / "a.dcm")

    tensor = read_dicom(tmp_path / "a.dcm", study_of(channels=3).scans).tensor

    grey = random_pixels() / 255.0
    assert tensor[0] == pytest.approx(grey, abs=1e-4)
    assert tensor[1] == pytest.approx(1.0 - grey, abs=1e-4)
    assert tensor[2].max() == 0.0


def test_a_palette_without_tables_is_refused(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "a.dcm", random_pixels(), colour_model="PALETTE COLOR")

    with pytest.raises(RefusedScanError) as caught:
        read_dicom(path, study_of().scans)

    assert caught.value.reason is Reason.COLOUR


def test_of_several_frames_the_first_is_the_scan(tmp_path: Path) -> None:
    frames = [random_pixels(seed) for seed in range(3)]
    dataset = scan_object(frames[0], NumberOfFrames=3)
    dataset.PixelData = b"".join(frame.tobytes() for frame in frames)
    write_object(dataset, tmp_path / "a.dcm")

    tensor = read_dicom(tmp_path / "a.dcm", study_of().scans).tensor

    assert np.array_equal(tensor[0], (frames[0] / 255.0).astype(np.float32))


@pytest.mark.parametrize(("written", "read"), [("P1", "P1"), (" P1 ", "P1"), ("", ""), ("   ", "")])
def test_a_patient_id_is_read_without_its_blanks(tmp_path: Path, written: str, read: str) -> None:
    path = write_scan(tmp_path / "a.dcm", random_pixels(), patient_id=written)

    assert read_dicom(path, study_of().scans).patient_id == read


def test_spacing_is_the_detector_s_where_the_file_says_it() -> None:
    both = scan_object(random_pixels(), PixelSpacing=[0.5, 0.5], ImagerPixelSpacing=[0.7, 0.8])

    assert pixel_spacing(both) == (0.7, 0.8)
    assert pixel_spacing(scan_object(random_pixels(), PixelSpacing=[0.5, 0.6])) == (0.5, 0.6)
    assert pixel_spacing(scan_object(random_pixels())) is None


def test_a_study_with_a_spacing_refuses_a_scan_without(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "a.dcm", random_pixels())

    with pytest.raises(RefusedScanError) as caught:
        read_dicom(path, study_of(scans="spacing_mm = 1.0").scans)

    assert caught.value.reason is Reason.SPACING


def test_odd_values_are_neither_printed_nor_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_scan(tmp_path / "a.dcm", random_pixels(), SeriesDescription="x" * 20)
    path.write_bytes(path.read_bytes().replace(b"x" * 20, b"Doe\\" + b"\xff" * 16))

    with caplog.at_level(logging.DEBUG):
        read_dicom(path, study_of().scans)
        with pytest.warns(UserWarning):  # the value is one that pydicom warns of
            open_scan(path)[0].get("SeriesDescription")

    assert caplog.text == capsys.readouterr().err == ""
