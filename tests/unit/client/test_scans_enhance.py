from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.exposure import equalize_adapthist
from skimage.restoration import denoise_nl_means

from medfed.client.scans.enhance import LUMINANCE, denoised, equalised, luminance, noise_of
from medfed.common.errors import ScanError
from tests.support.chests import chest

WAYS = ("median", "non-local-means")


def step(noise: float, seed: int = 0, *, colour: bool = False) -> NDArray[np.float64]:
    """Dark left half at 0.3, bright right half at 0.7."""
    shape = (96, 96, 3) if colour else (96, 96)
    picture = np.full(shape, 0.3)
    picture[:, 48:] = 0.7
    return picture + noise * np.random.default_rng(seed).normal(size=shape)


# ---- denoising -----------------------------------------------------------------------------------
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("how", WAYS)
def test_denoising_halves_the_noise_and_keeps_an_edge(how: str, colour: bool) -> None:
    noisy = step(0.05, colour=colour)

    clean = denoised(noisy, how)  # type: ignore[arg-type]

    assert clean.shape == noisy.shape and clean.dtype == np.float64
    # The median of 9 normal values has 0.41 of their standard deviation.
    for half in (np.s_[:, 3:45], np.s_[:, 51:93]):
        assert clean[half].std() < 0.5 * noisy[half].std()
    # The edge's columns keep their levels but for what 3 of 9 pixels from beyond it do to a
    # median: it is the fifth of six normal values, 0.64 standard deviations or 0.032 too far.
    assert clean[:, 47].mean() == pytest.approx(0.3, abs=0.045)
    assert clean[:, 48].mean() == pytest.approx(0.7, abs=0.045)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (8, 8), (8, 8, 3), (40, 17, 3)])
def test_denoising_stays_between_the_least_and_the_largest_value(
    how: str, shape: tuple[int, ...]
) -> None:
    noisy = np.random.default_rng(1).random(shape)

    clean = denoised(noisy, how)  # type: ignore[arg-type]

    assert clean.shape == shape
    assert noisy.min() <= clean.min() and clean.max() <= noisy.max()


def test_the_median_takes_single_pixels_out_and_leaves_each_colour_by_itself() -> None:
    picture = np.zeros((9, 9, 3))
    picture[:, :, 1] = 0.5
    picture[4, 4] = [1.0, 1.0, 0.0]

    clean = denoised(picture, "median")

    assert clean[:, :, [0, 2]].max() == 0.0  # 1 of 9 values is no median
    assert (clean[:, :, 1] == 0.5).all()


def test_without_noise_non_local_means_changes_nothing() -> None:
    smooth = step(0.0)

    assert np.array_equal(denoised(smooth, "non-local-means"), smooth)


def test_non_local_means_is_scikit_image_s_with_a_strength_of_the_noise() -> None:
    noisy = step(0.05)
    noise = noise_of(noisy)

    expected = denoise_nl_means(noisy, 5, 5, h=0.6 * noise, sigma=noise, fast_mode=True)

    assert np.allclose(denoised(noisy, "non-local-means"), expected, atol=1e-12)


def test_more_noise_is_smoothed_more() -> None:
    little, much = (
        np.abs(denoised(step(noise), "non-local-means") - step(noise)).mean()
        for noise in (0.01, 0.08)
    )

    assert much > 4 * little


@pytest.mark.parametrize("sigma", [0.005, 0.02, 0.1])
def test_the_noise_of_a_picture_is_measured(sigma: float) -> None:
    picture = chest(0, 256, noise=0.0).picture * 0.5 + 0.25
    picture += sigma * np.random.default_rng(0).normal(size=picture.shape)

    # 65,536 differences, overlapping: a per cent or two of chance, and a little of ribs.
    assert noise_of(picture) == pytest.approx(sigma, rel=0.08)


def test_clipped_pixels_do_not_count_as_free_of_noise() -> None:
    picture = np.zeros((128, 128))  # three quarters black, as around a retina
    picture[64:, 64:] = 0.5 + 0.05 * np.random.default_rng(0).normal(size=(64, 64))

    assert noise_of(picture) == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize(
    "picture", [np.full((2, 50), 0.3), np.full((1, 9), 0.3), np.ones((9, 9)), np.full((9, 9), 0.4)]
)
def test_where_nothing_tells_the_noise_there_is_none(picture: NDArray[np.float64]) -> None:
    assert noise_of(picture) == 0.0


# ---- CLAHE ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("clip", [0.005, 0.01, 0.1, 1.0])
def test_grey_is_equalised_as_scikit_image_does(clip: float) -> None:
    picture = chest(0, 128).picture

    assert np.array_equal(equalised(picture, clip), equalize_adapthist(picture, clip_limit=clip))


def test_a_small_picture_has_fewer_regions_of_at_least_8_pixels() -> None:
    picture = chest(0, 40).picture

    expected = equalize_adapthist(picture, kernel_size=8)  # 5 × 5; 40 / 8 would be 5 pixels
    assert np.array_equal(equalised(picture, 0.01), expected)


def test_a_higher_clip_limit_gives_more_local_contrast() -> None:
    faint = 0.5 + 0.2 * (chest(0, 128, noise=0.0).picture - 0.5)

    contrast = [
        np.abs(np.diff(picture, axis=1)).mean()
        for picture in (faint, equalised(faint, 0.005), equalised(faint, 0.05))
    ]

    assert contrast[0] < contrast[1] < contrast[2]


@pytest.mark.parametrize("seed", range(4))
def test_of_colour_the_luminance_is_equalised_and_nothing_overshoots(seed: int) -> None:
    random = np.random.default_rng(seed)
    colour = random.random((64, 64, 3)) ** [1.0, 2.0, 4.0]
    colour[:8], colour[8:16] = 0.0, 1.0

    result = equalised(colour, 0.02)

    wanted = equalize_adapthist(colour @ LUMINANCE, clip_limit=0.02)
    assert np.allclose(result @ LUMINANCE, wanted, atol=1e-9)
    assert result.min() >= 0.0 and result.max() <= 1.0


def test_a_colour_keeps_its_hue_where_there_is_room() -> None:
    grey = 0.2 + 0.1 * chest(0, 64).picture
    colour = grey[:, :, None] * [1.2, 1.0, 0.5]

    result = equalised(colour, 0.001)

    dim = (result.max(axis=2) < 0.99) & (result.min(axis=2) > 0.0)
    assert dim.mean() > 0.5
    assert np.allclose(result[dim] / result[dim][:, :1], [1.0, 1.0 / 1.2, 0.5 / 1.2])


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (5, 3), (8, 8, 3), (17, 90)])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 1.0])
def test_whatever_the_picture_it_stays_in_range(shape: tuple[int, ...], spread: float) -> None:
    picture = 0.5 + spread * (np.random.default_rng(0).random(shape) - 0.5)

    result = equalised(picture, 0.01)

    assert result.shape == shape and np.isfinite(result).all()
    assert result.min() >= 0.0 and result.max() <= 1.0
    assert spread > 0.0 or np.array_equal(result, picture)  # flat: unchanged


# ---- packages ------------------------------------------------------------------------------------
def test_without_scikit_image_the_pip_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    line = r"scikit-image.*\n.*pip install 'medfed\[enhance\]'"

    with pytest.raises(ScanError, match=line):
        denoised(step(0.05), "non-local-means")
    with pytest.raises(ScanError, match=line):
        equalised(step(0.05), 0.01)
    assert denoised(step(0.05), "median").shape == (96, 96)  # needs no more than scikit-learn does


def test_reading_scans_loads_no_package_for_enhancing_them() -> None:
    code = (
        "import sys, numpy as np\n"
        "from medfed.client.scans.tensors import tensor_of\n"
        "print(any(name in sys.modules for name in ('skimage', 'scipy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


def test_the_luminance_of_grey_is_itself() -> None:
    grey = step(0.0)

    assert luminance(grey) is grey
