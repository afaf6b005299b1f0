"""What of several frames becomes the picture, and which part of an ultrasound picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medfed.client.scans.pixels import read_dicom
from medfed.client.scans.projection import Picture, projected
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.simulations.dicom_objects import write_object
from tests.support.scans import random_pixels, scan_object, study_of
from tests.support.series import ct_scans, enhanced_ct, hounsfield, item


def cine(path: Path, frames: list[NDArray[np.uint8]], **elements: Any) -> Path:
    dataset = scan_object(frames[0], NumberOfFrames=len(frames), **elements)
    dataset.PixelData = b"".join(frame.tobytes() for frame in frames)
    write_object(dataset, path)
    return path


def taken(path: Path, take: str, **study: Any) -> Any:
    return read_dicom(path, study_of(scans=f'take = "{take}"', **study).scans).tensor


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_projections_agree_with_numpy_s_over_the_stack(tmp_path: Path, count: int) -> None:
    frames = [random_pixels(seed) for seed in range(count)]
    path = cine(tmp_path / "a.dcm", frames)
    stack = np.stack(frames) / 255.0

    assert taken(path, "first")[0] == pytest.approx(stack[0])
    assert taken(path, "middle")[0] == pytest.approx(stack[count // 2])
    assert taken(path, "maximum")[0] == pytest.approx(stack.max(axis=0))
    assert taken(path, "mean")[0] == pytest.approx(stack.mean(axis=0), abs=1e-6)


@pytest.mark.parametrize("take", ["first", "middle", "maximum", "mean"])
def test_of_one_frame_all_takes_are_that_frame(tmp_path: Path, take: str) -> None:
    path = cine(tmp_path / "a.dcm", [random_pixels()])

    assert np.array_equal(taken(path, take)[0], (random_pixels() / 255.0).astype(np.float32))


def test_the_brightest_is_what_is_shown_brightest_and_not_what_is_stored_highest(
    tmp_path: Path,
) -> None:
    frames = [np.full((32, 32), value, dtype=np.uint8) for value in (0, 255)]

    tensor = taken(cine(tmp_path / "a.dcm", frames, colour_model="MONOCHROME1"), "maximum")

    assert tensor.min() == 1.0  # stored 0 is white, stored 255 black


def test_colour_is_projected_channel_by_channel(tmp_path: Path) -> None:
    frames = [random_pixels(seed, (32, 32, 3)) for seed in range(3)]
    path = cine(tmp_path / "a.dcm", frames, colour_model="RGB")

    brightest = taken(path, "maximum", channels=3)

    expected = (np.stack(frames).max(axis=0) / 255.0).astype(np.float32).transpose(2, 0, 1)
    assert np.array_equal(brightest, expected)


def test_padding_has_no_part_in_a_projection() -> None:
    # 0.2 beside padding and 0.4 beside 0.6: means 0.3 and 0.6, not 0.3 and 0.3.
    first = Picture(np.asarray([[0.2, 0.0, 0.0]]), np.asarray([[True, False, False]]))
    second = Picture(np.asarray([[0.4, 0.6, 0.0]]), np.asarray([[True, True, False]]))

    mean, brightest = projected([first, second], "mean"), projected([first, second], "maximum")

    assert mean.values == pytest.approx(np.asarray([[0.3, 0.6, 0.0]]))
    assert brightest.values.tolist() == [[0.4, 0.6, 0.0]]
    for picture in (mean, brightest):
        assert picture.valid is not None and picture.valid.tolist() == [[True, True, False]]


def test_values_below_zero_are_projected_too() -> None:
    # Hounsfield units of a volume that goes through no window.
    padding = np.asarray([[True, False]])
    air = [
        Picture(np.asarray([[-1000.0, 0.0]]), padding),
        Picture(np.asarray([[-900.0, -800.0]])),
        Picture(np.asarray([[-950.0, 0.0]]), padding),
    ]

    assert projected(air, "maximum").values.tolist() == [[-900.0, -800.0]]
    assert projected(air, "mean").values.tolist() == [[-950.0, -800.0]]


def test_frames_are_taken_one_at_a_time() -> None:
    alive: list[int] = []

    def frames() -> Any:
        for number in range(5):
            alive.append(number)
            yield Picture(np.full((2, 2), float(number)))
            assert alive == [number]
            alive.clear()

    assert projected(frames(), "maximum").values.max() == 4.0


def test_a_projection_of_nothing_is_a_defect() -> None:
    with pytest.raises(ValueError, match="needs a picture"):
        projected([], "mean")


@pytest.mark.parametrize(("take", "expected"), [("first", -1024), ("middle", 172)])
def test_enhanced_ct_is_in_hounsfield_units_by_each_frame_s_own_rescale(
    tmp_path: Path, take: str, expected: int
) -> None:
    # As pydicom's eCT_Supplemental.dcm: stored 0 to 1196 are -1024 to 172; here the second frame
    # stores the same 172 under another intercept. A window of 2,001 around 0 is
    # (x + 0.5) / 2000 + 0.5, which is 0 below -1000.5.
    stored = [np.full((8, 8), 0, np.uint16), np.full((8, 8), 372, np.uint16)]
    write_object(enhanced_ct(stored, [0.0, 5.0], [-1024, -200]), tmp_path / "a.dcm")

    tensor = read_dicom(tmp_path / "a.dcm", ct_scans(f'take = "{take}"')).tensor

    assert tensor == pytest.approx(max(0.0, (expected + 0.5) / 2000 + 0.5), abs=1e-6)


def test_a_projection_of_enhanced_ct_is_one_of_hounsfield_units(tmp_path: Path) -> None:
    # -500, 0 and 100 HU stored under three intercepts: the mean is -133.33 HU.
    stored = [np.full((8, 8), v, np.uint16) for v in (500, 200, 2124)]
    path = tmp_path / "a.dcm"
    write_object(enhanced_ct(stored, [0.0, 5.0, 10.0], [-1000, -200, -2024]), path)

    mean = read_dicom(path, ct_scans('take = "mean"')).tensor
    brightest = read_dicom(path, ct_scans('take = "maximum"')).tensor

    assert mean == pytest.approx((-400 / 3 + 0.5) / 2000 + 0.5, abs=1e-6)
    assert brightest == pytest.approx(100.5 / 2000 + 0.5, abs=1e-6)


def test_the_middle_frame_s_window_holds_for_all_of_them(tmp_path: Path) -> None:
    # An MR scanner writes a window for each slice. By its own each frame here would be white.
    frames = [np.full((32, 32), value, dtype=np.uint8) for value in (50, 100, 200)]
    groups = [
        item(FrameVOILUTSequence=[item(WindowCenter=v / 2 + 0.5, WindowWidth=v + 1)])
        for v in (50, 100, 200)
    ]
    path = cine(tmp_path / "a.dcm", frames, Modality="MR", PerFrameFunctionalGroupsSequence=groups)

    # The middle one's: centre 50.5, width 101: (x - 50) / 100 + 0.5. So 0.5, 1 and 1 (clipped).
    assert taken(path, "mean") == pytest.approx((0.5 + 1.0 + 1.0) / 3)
    assert taken(path, "first") == pytest.approx(1.0)


def test_a_frame_without_functional_groups_of_its_own_is_refused(tmp_path: Path) -> None:
    stored = [hounsfield(0), hounsfield(0)]
    dataset = enhanced_ct(stored, [0.0, 5.0], [-1024, -1024])
    del dataset.PerFrameFunctionalGroupsSequence[1]
    write_object(dataset, tmp_path / "a.dcm")

    with pytest.raises(RefusedScanError) as caught:
        read_dicom(tmp_path / "a.dcm", ct_scans('take = "middle"'))

    assert caught.value.reason is Reason.HEADER


def region(left: int, top: int, right: int, bottom: int, space: int = 1) -> Any:
    return item(
        RegionSpatialFormat=space,
        RegionDataType=1,
        RegionLocationMinX0=left,
        RegionLocationMinY0=top,
        RegionLocationMaxX1=right,
        RegionLocationMaxY1=bottom,
    )


@pytest.mark.parametrize(
    ("regions", "rows", "columns"),
    [
        ([region(4, 8, 19, 23)], (8, 24), (4, 20)),  # corners belong to the region
        ([region(0, 0, 15, 15), region(8, 8, 23, 23)], (0, 24), (0, 24)),  # the box of both
        ([region(4, 8, 19, 23), region(0, 0, 31, 31, space=3)], (8, 24), (4, 20)),  # a curve
        ([region(16, 16, 32, 32)], (16, 32), (16, 32)),  # one too many, as some devices write
        ([region(4, 8, 19, 40)], (0, 32), (0, 32)),  # not inside: the picture was cut later
        ([region(9, 9, 9, 20)], (0, 32), (0, 32)),  # no extent
        ([region(0, 0, 31, 31, space=3)], (0, 32), (0, 32)),
        ([], (0, 32), (0, 32)),
    ],
)
@pytest.mark.parametrize("colour_model", ["RGB", "MONOCHROME2"])
def test_ultrasound_is_cut_to_where_it_shows_the_patient(
    tmp_path: Path,
    regions: Any,
    rows: tuple[int, int],
    columns: tuple[int, int],
    colour_model: str,
) -> None:
    pixels = random_pixels(shape=(32, 32, 3) if colour_model == "RGB" else (32, 32))
    plain, cut = pixels, pixels[slice(*rows), slice(*columns)]
    for name, picture, given in (("a", plain, regions), ("b", cut, [])):
        dataset = scan_object(picture, colour_model=colour_model, Modality="US")
        dataset.SequenceOfUltrasoundRegions = given
        write_object(dataset, tmp_path / f"{name}.dcm")

    scans = study_of(channels=3).scans
    one, other = (read_dicom(tmp_path / f"{name}.dcm", scans).tensor for name in "ab")

    assert np.array_equal(one, other)


def test_text_outside_the_region_of_an_ultrasound_picture_is_gone(tmp_path: Path) -> None:
    pixels = random_pixels()
    written = pixels.copy()
    written[:8] = 255  # a banner
    tensors = []
    for name, picture in (("a", pixels), ("b", written)):
        dataset = scan_object(picture, Modality="US")
        dataset.SequenceOfUltrasoundRegions = [region(0, 8, 31, 31)]
        write_object(dataset, tmp_path / f"{name}.dcm")
        tensors.append(read_dicom(tmp_path / f"{name}.dcm", study_of().scans).tensor)

    assert np.array_equal(*tensors)
