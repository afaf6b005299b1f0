from __future__ import annotations

import numpy as np
import pytest

from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.client.scans.tensors import tensor_of
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
