from __future__ import annotations

import sys

import numpy as np
import pytest

from medfed.client.scans import tensors
from medfed.client.scans.enhance import denoised, equalised
from medfed.client.scans.masks import box_of
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.client.scans.tensors import tensor_of
from medfed.common.errors import ScanError
from tests.support.chests import chest
from tests.support.scans import random_pixels, study_of


@pytest.mark.parametrize("shape", [(8, 8), (16, 31), (32, 32), (100, 40), (300, 300)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("colour", [False, True])
def test_a_tensor_has_the_study_s_shape_and_stays_in_range(
    shape: tuple[int, int], channels: int, colour: bool
) -> None:
    values = random_pixels(shape=(*shape, 3) if colour else shape) / 255.0

    tensor = tensor_of(values, study_of(channels=channels).scans)

    assert tensor.shape == (channels, 32, 32)
    assert tensor.dtype == np.float32
    assert tensor.min() >= 0.0 and tensor.max() <= 1.0  # no overshoot


def test_a_picture_of_the_study_s_size_keeps_its_values() -> None:
    values = random_pixels() / 255.0

    tensor = tensor_of(values, study_of().scans)

    assert np.array_equal(tensor[0], values.astype(np.float32))


def test_normalisation_uses_the_study_s_constants() -> None:
    scans = study_of(scans="mean = 0.5\nstd = 0.25").scans

    tensor = tensor_of(np.full((32, 32), 0.75), scans)

    assert tensor.tolist() == np.ones((1, 32, 32)).tolist()  # (0.75 - 0.5) / 0.25


def test_one_channel_of_colour_is_its_luminance() -> None:
    red = np.zeros((32, 32, 3))
    red[:, :, 0] = 1.0

    assert tensor_of(red, study_of().scans).max() == np.float32(0.299)  # BT.601


def test_three_channels_of_grey_are_copies_and_of_colour_stay_in_order() -> None:
    scans = study_of(channels=3).scans
    grey = random_pixels() / 255.0
    colour = random_pixels(shape=(32, 32, 3)) / 255.0

    assert all(np.array_equal(plane, grey.astype(np.float32)) for plane in tensor_of(grey, scans))
    assert np.array_equal(tensor_of(colour, scans), colour.transpose(2, 0, 1).astype(np.float32))


def test_making_smaller_averages_instead_of_skipping() -> None:
    stripes = np.tile([0.0, 1.0], (64, 32))  # columns alternate; every second is white

    tensor = tensor_of(stripes, study_of().scans)

    # Away from the rim each result is a mean over as much black as white.
    assert tensor[0, :, 2:-2] == pytest.approx(0.5, abs=0.01)


def test_a_spacing_keeps_millimetres_and_crops_around_the_centre() -> None:
    scans = study_of(size=8, scans="spacing_mm = 2.0").scans
    picture = np.zeros((32, 16))
    picture[12:20, 4:12] = 1.0  # 8 mm × 8 mm in the middle, at 1 mm

    tensor = tensor_of(picture, scans, spacing_mm=(1.0, 1.0))

    # 32 × 16 mm are 16 × 8 pixels of 2 mm; the middle 8 × 8 stay, with 4 × 4 white in them.
    assert tensor[0, 3:5, 3:5].min() > 0.95
    assert tensor[0, [0, 7]].max() == 0.0
    assert np.allclose(tensor[0], tensor[0, ::-1, ::-1], atol=1e-6)


def test_a_picture_smaller_than_the_tensor_gets_a_black_rim() -> None:
    scans = study_of(size=10, scans="spacing_mm = 1.0\nmean = 0.5").scans

    tensor = tensor_of(np.ones((4, 5)), scans, spacing_mm=(1.0, 1.0))

    assert tensor[0, 3:7, 2:7].tolist() == np.full((4, 5), 0.5).tolist()  # (10 - 5) // 2 = 2
    assert (tensor == -0.5).sum() == 10 * 10 - 4 * 5


def test_rows_and_columns_have_their_own_spacing() -> None:
    scans = study_of(size=8, scans="spacing_mm = 1.0").scans

    tensor = tensor_of(np.ones((4, 4)), scans, spacing_mm=(2.0, 1.0))

    assert (tensor[0].sum(axis=1) > 0).sum() == 8  # 4 rows of 2 mm
    assert (tensor[0].sum(axis=0) > 0).sum() == 4


def test_percentiles_stretch_the_scan_s_own_values() -> None:
    scans = study_of(scans='intensity = "percentile"').scans
    dim = 0.4 + random_pixels() / 1275.0  # 0.4 to 0.6

    tensor = tensor_of(dim, scans)

    assert (tensor.min(), tensor.max()) == (0.0, 1.0)
    assert 0 < (tensor == 1.0).sum() <= 16  # 0.5 % of 1024 pixels, some of them equal


def test_padding_does_not_count_in_the_percentiles_and_becomes_black() -> None:
    scans = study_of(scans='intensity = "percentile"').scans
    picture, valid = random_pixels() / 255.0, np.ones((32, 32), dtype=bool)
    picture[:, :16], valid[:, :16] = 100.0, False

    tensor = tensor_of(picture, scans, valid=valid)

    assert tensor[0, :, :16].max() == 0.0
    assert tensor[0, :, 16:].max() == 1.0


@pytest.mark.parametrize("valid", [None, np.zeros((32, 32), dtype=bool)])
def test_a_flat_or_all_padded_scan_becomes_black(valid: np.ndarray | None) -> None:
    scans = study_of(scans='intensity = "percentile"').scans

    assert tensor_of(np.full((32, 32), 0.7), scans, valid=valid).max() == 0.0


@pytest.mark.parametrize(
    "spacing", [None, (0.0, 1.0), (1.0, -1.0), (np.nan, 1.0), (np.inf, 1.0), (1e6, 1.0)]
)
def test_a_missing_or_senseless_spacing_is_refused(spacing: tuple[float, float] | None) -> None:
    scans = study_of(scans="spacing_mm = 1.0").scans

    with pytest.raises(RefusedScanError) as caught:
        tensor_of(np.zeros((32, 32)), scans, spacing_mm=spacing)

    assert caught.value.reason is Reason.SPACING


# ---- denoising, cropping, CLAHE ------------------------------------------------------------------
ENHANCED = 'denoise = "median"\ncrop = "lungs"\nclahe_clip = 0.02'


def test_a_study_that_enhances_nothing_needs_no_package_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "scipy", None)
    values = random_pixels(shape=(32, 32, 3)) / 255.0

    tensor = tensor_of(values, study_of(channels=3).scans)

    assert np.array_equal(tensor, values.transpose(2, 0, 1).astype(np.float32))


@pytest.mark.parametrize(
    "scans", ['denoise = "non-local-means"', 'crop = "foreground"', "clahe_clip = 0.01"]
)
def test_a_study_that_enhances_says_which_package_is_missing(
    monkeypatch: pytest.MonkeyPatch, scans: str
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)

    with pytest.raises(ScanError, match=r"pip install 'medfed\[enhance\]'") as caught:
        tensor_of(random_pixels() / 255.0, study_of(scans=scans).scans)

    assert not isinstance(caught.value, RefusedScanError)  # the site's fault, not one file's


def test_a_picture_is_denoised_then_cropped_then_equalised_then_resized() -> None:
    picture = chest(0, 128).picture
    clean = denoised(picture, "median")
    local = equalised(box_of(clean, None, "lungs").of(clean), 0.02)

    tensor = tensor_of(picture, study_of(scans=ENHANCED).scans)

    assert np.array_equal(tensor, tensor_of(local, study_of().scans))
    # Each step counts, and in another order the result is another one.
    for scans in (ENHANCED.replace("0.02", "0.2"), ENHANCED.replace("median", "none")):
        assert not np.array_equal(tensor, tensor_of(picture, study_of(scans=scans).scans))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize(
    "scans", [ENHANCED, 'denoise = "non-local-means"\ncrop = "foreground"', "clahe_clip = 1.0"]
)
def test_an_enhanced_tensor_has_the_study_s_shape_and_stays_in_range(
    scans: str, colour: bool, channels: int
) -> None:
    picture = chest(1, 100).picture
    values = picture[:, :, None] * [1.0, 0.8, 0.5] if colour else picture

    tensor = tensor_of(values, study_of(channels=channels, scans=scans).scans)

    assert tensor.shape == (channels, 32, 32) and tensor.dtype == np.float32
    assert tensor.min() >= 0.0 and tensor.max() <= 1.0
    if channels == 3 and not colour:
        assert all(np.array_equal(plane, tensor[0]) for plane in tensor)


def test_a_tensor_does_not_depend_on_what_was_read_before() -> None:
    scans = study_of(scans=ENHANCED).scans
    first, second = chest(0).picture, chest(1).picture

    alone = tensor_of(second, scans)
    tensor_of(first, scans)

    assert np.array_equal(tensor_of(second, scans), alone)
    assert np.array_equal(second, chest(1).picture)  # nor is what was given changed


def test_a_crop_keeps_values_and_millimetres() -> None:
    picture = np.zeros((80, 60))
    picture[8:40, 4:36] = 0.5  # 32 mm × 32 mm off the centre, at 1 mm
    picture[8:24, 4:36] = 0.6
    scans = study_of(size=32, scans='crop = "foreground"\nspacing_mm = 2.0').scans

    tensor = tensor_of(picture, scans, spacing_mm=(1.0, 1.0))

    # 32 mm are 16 pixels of 2 mm, now in the middle of the tensor; the 5 % margin is a pixel.
    assert (tensor[0] > 0.4).sum(axis=0).max() == pytest.approx(16, abs=1)
    assert (tensor[0] > 0.4).sum(axis=1).max() == pytest.approx(16, abs=1)
    assert np.argwhere(tensor[0] > 0.4).mean(axis=0) == pytest.approx([15.5, 15.5], abs=0.5)
    assert tensor.max() == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize("scans", ['denoise = "median"', "clahe_clip = 1.0"])
def test_padding_is_cropped_away_and_what_is_left_of_it_stays_black(scans: str) -> None:
    picture, valid = random_pixels(shape=(64, 64)) / 255.0, np.zeros((64, 64), dtype=bool)
    valid[16:48, 16:48] = True
    valid[24:40, 24:40] = np.indices((16, 16)).sum(axis=0) % 2 == 0  # every other pixel
    picture[~valid] = 0.0

    tensor = tensor_of(picture, study_of(scans=f'crop = "foreground"\n{scans}').scans, valid=valid)

    within = valid[16:48, 16:48]
    assert (tensor[0][~within] == 0.0).all()
    assert (tensor[0][within] > 0.0).mean() > 0.95


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize(
    ("scans", "limit"),
    [
        ('denoise = "median"', "MOST_FILTERED"),
        ('denoise = "non-local-means"', "MOST_DENOISED"),
        ("clahe_clip = 0.01", "MOST_FILTERED"),
    ],
)
def test_a_very_large_picture_is_made_smaller_first_and_keeps_its_millimetres(
    monkeypatch: pytest.MonkeyPatch, scans: str, limit: str, colour: bool
) -> None:
    study = study_of(size=32, scans=f"{scans}\nspacing_mm = 4.0")
    picture, valid = np.full((100, 60), 0.1), np.ones((100, 60), dtype=bool)
    picture[28:68, 10:50] = 0.9  # 40 mm × 80 mm at 1 mm × 2 mm
    picture += 0.02 * np.random.default_rng(0).normal(size=picture.shape)
    values = np.stack([picture] * 3, axis=2) if colour else picture

    full = tensor_of(values, study.scans, spacing_mm=(1.0, 2.0), valid=valid)
    monkeypatch.setattr(tensors, limit, 50 * 30)
    tensor = tensor_of(values, study.scans, spacing_mm=(1.0, 2.0), valid=valid)

    assert not np.array_equal(tensor, full)
    assert (tensor[0] > 0.5).sum(axis=0).max() == 10  # 40 mm of 4
    assert (tensor[0] > 0.5).sum(axis=1).max() == 20
