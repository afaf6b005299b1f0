from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import EnhancedCTImageStorage

from medfed.client.scans.pixels import read_dicom
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.simulations.dicom_objects import write_object
from tests.support.scans import random_pixels, scan_object, study_of, write_scan
from tests.support.series import CT, ct_scans, ct_slice, hounsfield


def refusal(path: Path, scans: str) -> Reason | None:
    try:
        read_dicom(path, study_of(scans=scans).scans)
    except RefusedScanError as error:
        return error.reason
    return None


def written(folder: Path, **elements: Any) -> Path:
    return write_scan(folder / "a.dcm", random_pixels(), **elements)


@pytest.mark.parametrize(
    ("modality", "reason"),
    [
        ("CR", None),
        ("DX", None),
        ("DX ", None),  # a blank that fills an odd length is no part of the code
        ("US", Reason.MODALITY),
        ("", Reason.MODALITY),
        (None, Reason.MODALITY),
    ],
)
def test_only_the_study_s_modalities_are_taken(
    tmp_path: Path, modality: str | None, reason: Reason | None
) -> None:
    path = written(tmp_path, **({} if modality is None else {"Modality": modality}))

    assert refusal(path, 'modalities = ["CR", "DX"]') is reason
    assert refusal(path, "") is None  # a study that does not choose takes any


@pytest.mark.parametrize(
    ("view", "reason"),
    [("PA", None), ("AP ", None), ("LL", Reason.VIEW), ("", Reason.VIEW), (None, Reason.VIEW)],
)
def test_only_the_study_s_views_are_taken(
    tmp_path: Path, view: str | None, reason: Reason | None
) -> None:
    path = written(tmp_path, **({} if view is None else {"ViewPosition": view}))

    assert refusal(path, 'views = ["PA", "AP"]') is reason
    assert refusal(path, "") is None


@pytest.mark.parametrize("intensity", ["window", "stored", "percentile"])
def test_ct_is_taken_under_a_fixed_window_only(tmp_path: Path, intensity: str) -> None:
    dataset = ct_slice(hounsfield(0, 32), 0.0, WindowCenter=40, WindowWidth=400)
    write_object(dataset, tmp_path / "a.dcm")

    assert refusal(tmp_path / "a.dcm", f'intensity = "{intensity}"') is Reason.CT_WINDOW
    assert refusal(tmp_path / "a.dcm", CT) is None


def test_a_file_of_a_ct_class_is_ct_whatever_modality_it_says(tmp_path: Path) -> None:
    dataset = ct_slice(hounsfield(0), 0.0, Modality="OT")
    dataset.SOPClassUID = EnhancedCTImageStorage
    write_object(dataset, tmp_path / "a.dcm")

    assert refusal(tmp_path / "a.dcm", "") is Reason.CT_WINDOW


def test_ct_that_is_not_in_hounsfield_units_is_refused(tmp_path: Path) -> None:
    # A dose report or a screen shot in a CT series has no rescale; its values mean nothing.
    path = written(tmp_path, Modality="CT")

    assert refusal(path, CT) is Reason.NO_UNITS


@pytest.mark.parametrize("colour_model", ["RGB", "YBR_FULL"])
def test_colour_has_no_units_for_a_fixed_window(tmp_path: Path, colour_model: str) -> None:
    pixels = random_pixels(shape=(32, 32, 3))
    path = write_scan(tmp_path / "a.dcm", pixels, colour_model=colour_model)

    assert refusal(path, CT) is Reason.NO_UNITS


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_localizer_is_no_scan(tmp_path: Path, modality: str) -> None:
    localizer = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    path = written(tmp_path, Modality=modality, ImageType=localizer, RescaleSlope=1)

    assert refusal(path, CT) is Reason.LOCALIZER


def test_another_kind_of_picture_may_say_localizer(tmp_path: Path) -> None:
    path = written(tmp_path, Modality="XA", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])

    assert refusal(path, "") is None


@pytest.mark.parametrize("modality", ["MG", "DX"])
def test_raw_detector_values_are_refused(tmp_path: Path, modality: str) -> None:
    raw = written(tmp_path, Modality=modality, PresentationIntentType="FOR PROCESSING")
    assert refusal(raw, "") is Reason.FOR_PROCESSING

    shown = written(tmp_path, Modality=modality, PresentationIntentType="FOR PRESENTATION")
    assert refusal(shown, "") is None


@pytest.mark.parametrize("modality", ["SEG", "RTDOSE"])
def test_what_was_computed_from_scans_is_none(tmp_path: Path, modality: str) -> None:
    assert refusal(written(tmp_path, Modality=modality), "") is Reason.NO_SCAN


def test_float_pixel_data_is_refused(tmp_path: Path) -> None:
    dataset = scan_object(random_pixels())
    del dataset.PixelData
    dataset.BitsAllocated = 32
    dataset.FloatPixelData = np.zeros((32, 32), dtype="<f4").tobytes()
    write_object(dataset, tmp_path / "a.dcm")

    assert refusal(tmp_path / "a.dcm", "") is Reason.NO_PIXELS


def test_hounsfield_units_go_through_the_study_s_window_and_never_the_header_s(
    tmp_path: Path,
) -> None:
    # PS3.3 C.11.2.1.2.1 with centre 0 and width 2001: (x + 0.5) / 2000 + 0.5. Air, -1000,
    # is 0.00025 above black; 0 HU is 0.50025; 1000 HU and what is denser is white.
    pixels = np.zeros((8, 8), dtype=np.uint16)
    pixels[0, :4] = np.asarray([-1000, 0, 999.5, 2000]).round() + 1024
    header_window = {"WindowCenter": 40, "WindowWidth": 80}
    write_object(ct_slice(pixels, 0.0, **header_window), tmp_path / "a.dcm")

    tensor = read_dicom(tmp_path / "a.dcm", ct_scans()).tensor

    assert tensor[0, 0, :4] == pytest.approx([0.00025, 0.50025, 1.0, 1.0], abs=1e-6)
    assert tensor[0, 1].max() == 0.0  # stored 0 is -1024 HU, below the window


def test_a_monochrome1_slice_is_its_twin_s_negative_under_a_fixed_window(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (8, 8), dtype=np.uint16)
    for name, model in (("a", "MONOCHROME2"), ("b", "MONOCHROME1")):
        write_object(ct_slice(pixels, 0.0, colour_model=model), tmp_path / f"{name}.dcm")

    plain, inverted = (read_dicom(tmp_path / f"{n}.dcm", ct_scans()).tensor for n in "ab")

    assert inverted == pytest.approx(1.0 - plain, abs=1e-6)


def test_a_narrow_fixed_window_is_no_step(tmp_path: Path) -> None:
    # 0.001 x stored: 0, 0.5, 1 and 2. A window of 1 around 1 spans 0.5 to 1.5, one of 0.5 spans
    # 0.75 to 1.25. The standard's LINEAR makes a step of the first and knows no such second.
    pixels = np.asarray([[0, 500], [1000, 2000]], dtype=np.uint16).repeat(4, 0).repeat(4, 1)
    path = write_scan(tmp_path / "a.dcm", pixels, Modality="MR", RescaleSlope="0.001")
    for width, expected in ((1.0, [0.0, 0.0, 0.5, 1.0]), (0.5, [0.0, 0.0, 0.5, 1.0])):
        window = f'intensity = "fixed"\nwindow = {{ center = 1.0, width = {width} }}'

        tensor = read_dicom(path, study_of(size=8, scans=window).scans).tensor

        assert tensor[0, [0, 0, 4, 4], [0, 4, 0, 4]] == pytest.approx(expected, abs=1e-6)
