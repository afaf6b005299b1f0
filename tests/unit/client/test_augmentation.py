"""Training scans are varied as the draws say, within the study's bounds and no further."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from medfed.client.augmentation import DRAWS_PER_SCAN, augment
from medfed.common.study_scans import Augmentation

COLUMNS = ("left_right", "up_down", "turn", "down", "right", "zoom", "contrast", "noise")
ALMOST_1 = 1.0 - 2.0**-53
STILL: dict[str, float] = {
    "rotate_degrees": 0.0,
    "shift": 0.0,
    "scale": 0.0,
    "contrast": 0.0,
    "noise": 0.0,
}
EVERYTHING = Augmentation(
    flip_left_right=True,
    flip_up_down=True,
    rotate_degrees=180.0,
    shift=0.5,
    scale=0.5,
    contrast=0.9,
)


def only(**bounds: Any) -> Augmentation:
    """Augmentation with nothing but what is named."""
    return Augmentation(**(STILL | bounds))


def draws_of(scans: int = 1, **columns: float) -> Tensor:
    """Draws that change nothing, but in the columns named."""
    draws = torch.full((scans, DRAWS_PER_SCAN), 0.5, dtype=torch.float64)
    for name, value in columns.items():
        draws[:, COLUMNS.index(name)] = value
    return draws


def random_draws(scans: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(scans, DRAWS_PER_SCAN, dtype=torch.float64, generator=generator)


def pictures(scans: int = 1, side: int = 16, channels: int = 1, seed: int = 0) -> Tensor:
    """Grey noise in [0, 1]; no symmetry."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(scans, channels, side, side, generator=generator)


def varied(images: Tensor, how: Augmentation, draws: Tensor) -> Tensor:
    return augment(images, how, draws, black=0.0, white=1.0)


# ---- what always holds ---------------------------------------------------------------------------
@pytest.mark.parametrize("contrast", [0.0, 0.9])
@pytest.mark.parametrize(("black", "white"), [(0.0, 1.0), (-1.0, 1.0), (-0.42, 3.8)])
def test_values_stay_between_black_and_white(black: float, white: float, contrast: float) -> None:
    images = black + (white - black) * pictures(400, side=12)
    images[::3], images[1::3] = black, white  # where rounding would overstep
    how = EVERYTHING.model_copy(update={"contrast": contrast})

    result = augment(images, how, random_draws(400), black=black, white=white)

    assert result.isfinite().all()
    # float32 has no -0.42: the bounds are those of the pictures' own dtype
    assert float(result.min()) == torch.tensor(black) and float(result.max()) == torch.tensor(white)


@pytest.mark.parametrize("side", [9, 16, 33])
def test_a_scans_result_is_independent_of_its_batch_to_the_bit(side: int) -> None:
    how = EVERYTHING.model_copy(update={"noise": 0.1})
    images, draws = pictures(7, side, channels=3), random_draws(7)
    draws[2] = 0.5  # one that stays as it is, among others that move

    together = varied(images, how, draws)

    for row in range(7):
        alone = varied(images[row : row + 1], how, draws[row : row + 1])
        assert torch.equal(together[row], alone[0])


def test_equal_draws_give_equal_results_and_other_draws_others() -> None:
    how = EVERYTHING.model_copy(update={"noise": 0.1})
    images = pictures().expand(6, -1, -1, -1)
    draws = random_draws(3).repeat(2, 1)

    result = varied(images, how, draws)

    assert torch.equal(result[:3], result[3:])
    assert not torch.equal(result[0], result[1]) and not torch.equal(result[1], result[2])


def test_a_scan_whose_draws_change_nothing_keeps_its_bits() -> None:
    images = pictures(2) * 5.0 - 1.0  # beyond black and white, where a cut would show
    draws = draws_of(2)
    draws[1] = 0.25

    result = varied(images, EVERYTHING, draws)

    assert torch.equal(result[0], images[0])
    assert not torch.equal(result[1], images[1])


def test_a_study_that_asks_for_nothing_changes_nothing() -> None:
    images = pictures(20)

    assert torch.equal(varied(images, only(), random_draws(20)), images)


@pytest.mark.parametrize(
    ("column", "key"),
    [
        ("left_right", "flip_left_right"),
        ("up_down", "flip_up_down"),
        ("turn", "rotate_degrees"),
        ("down", "shift"),
        ("right", "shift"),
        ("zoom", "scale"),
        ("contrast", "contrast"),
        ("noise", "noise"),
    ],
)
def test_each_draw_obeys_its_own_key_and_no_other(column: str, key: str) -> None:
    alone = {
        "flip_left_right": only(flip_left_right=True),
        "flip_up_down": only(flip_up_down=True),
        "rotate_degrees": only(rotate_degrees=30.0),
        "shift": only(shift=0.2),
        "scale": only(scale=0.3),
        "contrast": only(contrast=0.5),
        "noise": only(noise=0.1),
    }
    image, draws = pictures(), draws_of(**{column: 0.25})

    changed = {
        name
        for name, how in alone.items()
        if not torch.equal(varied(image, how, draws), varied(image, how, draws_of()))
    }

    assert changed == {key}


def test_gradients_flow_through() -> None:
    images = pictures(3).requires_grad_()
    how = Augmentation(noise=0.1)

    varied(images, how, random_draws(3)).sum().backward()

    assert images.grad is not None and images.grad.isfinite().all()
    assert (images.grad.flatten(1).sum(1) > 0).all()


def test_autocast_changes_nothing() -> None:
    images, draws = pictures(2, side=64), random_draws(2)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = varied(images, EVERYTHING, draws)

    assert torch.equal(result, varied(images, EVERYTHING, draws))


def test_the_channels_of_a_scan_move_together() -> None:
    images = pictures(5).expand(-1, 3, -1, -1)

    result = varied(images, EVERYTHING, random_draws(5))

    assert torch.equal(result[:, 0], result[:, 1]) and torch.equal(result[:, 0], result[:, 2])


# ---- known pictures ------------------------------------------------------------------------------
def test_the_defaults_never_mirror() -> None:
    image = torch.zeros(1, 1, 24, 24)
    image[..., 10:14, 3:6] = 1.0  # a marker on the left, 6 or more pixels from the middle
    draws = random_draws(2000)

    result = varied(image.expand(2000, -1, -1, -1), Augmentation(), draws)

    # At 0.05 x 24 + 9 x (1.05 - cos 7 deg) + 2 x sin 7 deg, the marker moves < 2 pixels.
    assert (result[..., :12].amax((1, 2, 3)) > 0.5).all()
    assert (result[..., 12:].amax((1, 2, 3)) < 0.06).all()  # black: 0.5 - 0.9 x 0.5 at most
    # ... nor upside down: a marker at the top stays there
    turned = varied(image.mT.expand(2000, -1, -1, -1), Augmentation(), draws)
    assert (turned[..., 12:, :].amax((1, 2, 3)) < 0.06).all()


@pytest.mark.parametrize(
    ("how", "column", "axis"),
    [(only(flip_left_right=True), "left_right", -1), (only(flip_up_down=True), "up_down", -2)],
)
@pytest.mark.parametrize("side", [15, 16])
def test_a_flip_mirrors_the_whole_picture(
    how: Augmentation, column: str, axis: int, side: int
) -> None:
    image = pictures(side=side)

    mirrored = varied(image, how, draws_of(**{column: 0.49}))

    torch.testing.assert_close(mirrored, image.flip(axis), atol=1e-5, rtol=0)
    assert torch.equal(varied(image, how, draws_of(**{column: 0.5})), image)


def test_about_every_other_scan_is_mirrored_where_the_study_says_so() -> None:
    images = torch.zeros(2000, 1, 8, 8)
    images[..., 0] = 1.0

    result = varied(images, only(flip_left_right=True), random_draws(2000))

    # Binomial(2000, 1/2): mean 1000, standard deviation 22; five of them.
    assert abs(int((result[..., 7].amax((1, 2)) > 0.5).sum()) - 1000) < 112


@pytest.mark.parametrize("side", [15, 16])
def test_a_quarter_turn_is_what_rot90_gives(side: int) -> None:
    image = pictures(side=side)
    how = only(rotate_degrees=90.0)

    counter_clockwise = varied(image, how, draws_of(turn=ALMOST_1))
    clockwise = varied(image, how, draws_of(turn=0.0))

    # torch.rot90 turns from the first axis towards the second: with (-2, -1), counter-clockwise.
    torch.testing.assert_close(counter_clockwise, image.rot90(1, (-2, -1)), atol=1e-5, rtol=0)
    torch.testing.assert_close(clockwise, image.rot90(-1, (-2, -1)), atol=1e-5, rtol=0)


def test_a_drawn_corner_comes_round() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[..., 0, 0] = 1.0  # top left

    result = varied(image, only(rotate_degrees=90.0), draws_of(turn=0.0))  # clockwise: top right

    assert float(result[..., 0, 7]) == pytest.approx(1.0, abs=1e-5)
    assert float(result.sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("column", "draw", "axis", "pixels"),
    # 0.25 x 16 = 4 pixels at the end of the range, 2 half-way.
    [("down", 0.0, 0, -4), ("down", 0.75, 0, 2), ("right", 0.25, 1, -2), ("right", ALMOST_1, 1, 4)],
)
def test_a_shift_moves_by_whole_pixels_and_black_comes_in(
    column: str, draw: float, axis: int, pixels: int
) -> None:
    image = pictures(side=16) * 2.0 + 1.0  # black is 1, white 3

    result = augment(
        image, only(shift=0.25), draws_of(**{column: draw}), black=1.0, white=3.0
    ).squeeze()

    expected = image.squeeze().roll(pixels, axis)
    came_in = slice(0, pixels) if pixels > 0 else slice(pixels, None)
    expected.movedim(axis, 0)[came_in] = 1.0
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    assert (result.movedim(axis, 0)[came_in] == 1.0).all()


def test_a_zoom_enlarges_about_the_centre() -> None:
    image = torch.zeros(1, 1, 32, 32)
    image[..., 12:20, 12:20] = 1.0  # 8 x 8 = 64 pixels in the middle

    large = varied(image, only(scale=0.5), draws_of(zoom=ALMOST_1))
    small = varied(image, only(scale=0.5), draws_of(zoom=0.0))

    assert float(large.sum()) == pytest.approx(64 * 1.5**2, rel=0.05)  # an area
    assert float(small.sum()) == pytest.approx(64 * 0.5**2, rel=0.05)
    for zoomed in (large, small):
        torch.testing.assert_close(zoomed, zoomed.flip(-1, -2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("column", "axis"), [("right", -1), ("down", -2)])
def test_the_parts_of_a_move_come_in_the_order_that_is_documented(column: str, axis: int) -> None:
    image = pictures(side=16)
    how = only(flip_left_right=True, rotate_degrees=90.0, shift=0.25)

    result = varied(image, how, draws_of(left_right=0.0, turn=ALMOST_1, **{column: 0.75}))

    expected = image.flip(-1).rot90(1, (-2, -1)).roll(2, axis)  # mirror, turn, shift by 2 pixels
    expected.movedim(axis, 0)[:2] = 0.0
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_contrast_stretches_about_mid_grey_and_is_cut_off() -> None:
    image = torch.tensor([[[[0.0, 2.0], [4.0, 5.0]]]])  # black 0, mid-grey 4, white 8

    def with_draw(draw: float) -> list[float]:
        how, draws = only(contrast=0.5), draws_of(contrast=draw)
        return augment(image, how, draws, black=0.0, white=8.0).flatten().tolist()

    # 4 + f (value - 4): f = 0.5 and 1.5; 4 - 1.5 x 4 = -2 is cut off at 0.
    assert with_draw(0.0) == pytest.approx([2.0, 3.0, 4.0, 4.5])
    assert with_draw(ALMOST_1) == pytest.approx([0.0, 1.0, 4.0, 5.5])


def test_noise_has_the_studys_deviation_and_no_mean() -> None:
    images = torch.full((50, 1, 40, 40), 2.0)  # mid-grey

    noise = augment(images, only(noise=0.1), random_draws(50), black=0.0, white=4.0) - images

    # 0.1 x (4 - 0); 80,000 values: standard errors 0.0014 and 0.001, five of each.
    assert abs(float(noise.mean())) < 0.007
    assert float(noise.std()) == pytest.approx(0.4, abs=0.005)
    near = (noise[:, :, 1:] * noise[:, :, :-1]).mean() / 0.16  # from pixel to pixel
    between = (noise[1:] * noise[:-1]).mean() / 0.16  # and from scan to scan
    assert abs(float(near)) < 0.02 and abs(float(between)) < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_accelerator_gives_what_the_cpu_gives() -> None:
    how = EVERYTHING.model_copy(update={"noise": 0.1})
    images, draws = pictures(32, side=64), random_draws(32)

    there = varied(images.cuda(), how, draws)

    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), varied(images, how, draws), atol=1e-3, rtol=0)


# ---- refusals ------------------------------------------------------------------------------------
def test_no_scans_are_no_work() -> None:
    how = EVERYTHING.model_copy(update={"noise": 0.1})

    assert varied(pictures(0), how, random_draws(0)).shape == (0, 1, 16, 16)


@pytest.mark.parametrize(
    ("images", "draws", "says"),
    [
        (torch.zeros(2, 8, 8), draws_of(2), "images must be float32 of shape"),
        (torch.zeros(2, 1, 8, 8).double(), draws_of(2), "got torch.float64"),
        (torch.zeros(2, 1, 8, 8), draws_of(3), r"draws must be floating point of shape \(2, 8\)"),
        (torch.zeros(2, 1, 8, 8), draws_of(2)[:, :7], r"got torch.float64 of shape \(2, 7\)"),
        (torch.zeros(2, 1, 8, 8), draws_of(2).long(), "floating point"),
        (torch.zeros(2, 1, 8, 8), draws_of(2, turn=1.0), r"draws must be in \[0, 1\)"),
        (torch.zeros(2, 1, 8, 8), draws_of(2, turn=-0.1), r"draws must be in \[0, 1\)"),
        (torch.zeros(2, 1, 8, 8), draws_of(2, turn=math.nan), r"draws must be in \[0, 1\)"),
    ],
)
def test_what_is_not_as_said_is_refused(images: Tensor, draws: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        varied(images, EVERYTHING, draws)


@pytest.mark.parametrize(("black", "white"), [(1.0, 1.0), (1.0, 0.0), (0.0, math.inf)])
def test_black_must_be_below_white(black: float, white: float) -> None:
    with pytest.raises(ValueError, match="black must be below white"):
        augment(pictures(), EVERYTHING, draws_of(), black=black, white=white)
