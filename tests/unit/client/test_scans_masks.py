from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medfed.client.scans.masks import Box, box_of
from medfed.common.errors import ScanError
from tests.support.chests import area, chest, common, disc, slice_in_a_lung_window

KINDS = ("foreground", "lungs")


# ---- any picture ---------------------------------------------------------------------------------
@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(0, 40),
    columns=st.integers(0, 400),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([1, 2, 3, 256]),
    colour=st.booleans(),
    padded=st.sampled_from([None, 0.0, 0.5, 0.99, 1.0]),
    kind=st.sampled_from(KINDS),
)
def test_whatever_the_picture_the_box_is_within_it(
    rows: int, columns: int, seed: int, levels: int, colour: bool, padded: float | None, kind: str
) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(0, levels, (rows, columns, 3)) / max(levels - 1, 1)
    valid = None if padded is None else random.random((rows, columns)) >= padded

    box = box_of(values if colour else values[:, :, 0], valid, kind)  # type: ignore[arg-type]

    assert 0 <= box.top <= box.bottom <= rows and 0 <= box.left <= box.right <= columns
    assert area(box) > 0 or rows * columns == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("valid", [None, np.ones((64, 64), dtype=bool)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_number_counts_as_padding(
    kind: str, valid: NDArray[np.bool_] | None, value: float
) -> None:
    picture = np.full((64, 64), value)
    picture[20:40, 20:40] = 0.8

    box = box_of(picture, valid, kind)  # type: ignore[arg-type]

    assert box == (20, 20, 40, 40)


@pytest.mark.parametrize("matrix", [96, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mirrored_picture_has_the_mirrored_box(kind: str, matrix: int) -> None:
    cropped = 0
    for seed in range(8):
        picture = chest(seed, matrix).picture

        box = box_of(picture, None, kind)  # type: ignore[arg-type]
        aside = box_of(picture[:, ::-1], None, kind)  # type: ignore[arg-type]
        upside_down = box_of(picture[::-1], None, kind)  # type: ignore[arg-type]

        cropped += box != (0, 0, matrix, matrix)
        assert aside == (box.top, matrix - box.right, box.bottom, matrix - box.left)
        assert upside_down == (matrix - box.bottom, box.left, matrix - box.top, box.right)
    assert cropped >= 4


def test_no_picture_leaves_anything_behind_for_the_next() -> None:
    first, second = chest(0).picture, chest(1).picture

    alone = box_of(second, None, "lungs")
    box_of(first, None, "lungs")

    assert box_of(second, None, "lungs") == alone


# ---- lungs ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("matrix", "noise"), [(72, 0.05), (120, 0.04), (256, 0.0), (500, 0.03)])
def test_the_box_holds_both_lungs_of_a_chest_and_little_else(matrix: int, noise: float) -> None:
    held, alike = [], []
    for seed in range(24):
        picture, lungs = chest(seed, matrix, opacity=seed % 2 == 0, noise=noise)
        box = box_of(picture, None, "lungs")
        shared = area(common(box, lungs))
        held.append(shared / area(lungs))
        alike.append(shared / (area(box) + area(lungs) - shared))

    # Measured over 900 chests of five sizes: never less than 0.96 of the lungs, and all of them in
    # nine of ten. A margin of 5 % at each end alone makes the likeness 1 / 1.1² = 0.83.
    assert min(held) > 0.95
    assert np.median(alike) > 0.7
    # The whole field is 0.3 to 0.4: one chest in forty falls back to that.
    assert sum(likeness < 0.5 for likeness in alike) <= 2


@pytest.mark.parametrize("side", [96, 512])
def test_the_lungs_of_a_ct_slice_are_found_inside_the_bright_body(side: int) -> None:
    picture, lungs = slice_in_a_lung_window(side)

    box = box_of(picture, None, "lungs")

    # The margin of 5 % of their height of 0.4 and width of 0.64 sides, and a pixel of the copy.
    pixel = max(1, side // 256)
    assert np.abs(np.subtract(box, lungs)[[0, 2]]).max() <= 0.02 * side + 2 * pixel
    assert np.abs(np.subtract(box, lungs)[[1, 3]]).max() <= 0.032 * side + 2 * pixel
    assert common(box, lungs) == lungs


@pytest.mark.parametrize(
    "lungs", [(), (0.31,), (0.1, 0.9)], ids=["no lung", "one lung", "open to the air outside"]
)
def test_without_two_lungs_inside_the_body_the_foreground_is_kept(lungs: tuple[float]) -> None:
    picture = slice_in_a_lung_window(256, lungs).picture

    assert box_of(picture, None, "lungs") == box_of(picture, None, "foreground")


@pytest.mark.parametrize("seed", range(4))
def test_lungs_that_the_picture_s_edge_cuts_off_are_not_taken_for_air(seed: int) -> None:
    picture, lungs = chest(seed, 256, noise=0.0)
    inner = picture[lungs.top - 5 : lungs.bottom - 20, lungs.left + 10 : lungs.right - 10]

    # Dark at both sides and in two corners, and still all of it patient.
    assert inner[-10:, 0].max() < 0.3
    assert box_of(inner, None, "lungs") == (0, 0, *inner.shape)


def body_with(*holes: NDArray[np.bool_]) -> NDArray[np.float64]:
    """A bright ellipse with dark regions in it, 256 × 256."""
    body = np.where(disc(256, (128, 128), (115, 120)), 0.8, 0.0)
    body[np.any(holes, axis=0)] = 0.2
    return body


LUNG = disc(256, (128, 80), (60, 30))  # 5,655 pixels, 8.6 % of the picture


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (disc(256, (80, 128), (25, 50)), disc(256, (180, 128), (25, 50))),  # above each other
        (disc(256, (75, 90), (30, 30)), disc(256, (180, 165), (30, 30))),  # one much higher
        (disc(256, (128, 80), (26, 12)), disc(256, (128, 176), (26, 12))),  # 980 pixels, 1.5 %
        (disc(256, (128, 65), (90, 42)), disc(256, (128, 175), (26, 22))),  # 1,797 to 11,875
        (disc(256, (128, 108), (80, 9)), disc(256, (128, 132), (80, 9))),  # 42 of 256 wide
        (disc(256, (128, 70), (15, 40)), disc(256, (128, 186), (15, 40))),  # 30 of 256 high
    ],
    ids=["stacked", "askew", "small", "unlike", "narrow", "low"],
)
def test_two_dark_regions_that_make_no_chest_are_no_lungs(
    first: NDArray[np.bool_], second: NDArray[np.bool_]
) -> None:
    body = body_with(first, second)

    assert box_of(body, None, "lungs") == box_of(body, None, "foreground")


def test_two_dark_regions_side_by_side_are_lungs_whatever_else_is_dark() -> None:
    above, below = disc(256, (38, 128), (12, 40)), disc(256, (218, 128), (12, 40))  # 2.3 % each

    box = box_of(body_with(LUNG, LUNG[:, ::-1], above, below), None, "lungs")

    # Rows 68 to 188 and columns 50 to 206, with 6 and 7.8 rounded up.
    assert np.abs(np.subtract(box, (62, 42, 194, 214))).max() <= 1


def test_dark_regions_at_the_picture_s_edge_are_no_lungs() -> None:
    picture = np.full((256, 256), 0.8)
    picture[80:180, :60] = picture[80:180, 196:] = 0.2

    assert box_of(picture, None, "lungs") == (0, 0, 256, 256)


# ---- foreground ----------------------------------------------------------------------------------
def test_the_black_border_of_a_retina_goes_and_its_dim_rim_stays() -> None:
    side = 512
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    eye = disc(side, (256, 256), (180, 180))
    glow = np.where(eye, 0.45 - 0.7 * (x * x + y * y), 0.0)  # 0.1 at the rim
    glow[disc(side, (256, 320), (25, 25))] = 0.95  # the optic disc, which Otsu would single out
    colour = glow[:, :, None] * [1.0, 0.5, 0.2]

    box = box_of(colour, None, "foreground")

    # 256 - 180 = 76 to 436; 5 % of 360 is 18; the copy's pixels are 2 × 2.
    assert np.abs(np.subtract(box, (58, 58, 454, 454))).max() <= 4


def test_the_air_around_a_body_the_table_and_a_letter_go() -> None:
    picture = slice_in_a_lung_window(256).picture
    picture[4:20, 4:10] = 1.0

    box = box_of(picture, None, "foreground")

    # The body is 0.56 sides high and 0.84 wide: rows 56 to 200 and columns 20 to 236, and 5 %.
    assert np.abs(np.subtract(box, (49, 9, 207, 247))).max() <= 2


def test_both_of_two_limbs_are_kept() -> None:
    legs = np.zeros((100, 100))
    legs[10:90, 10:35] = 0.6
    legs[10:90, 70:90] = 0.7

    assert box_of(legs, None, "foreground") == (6, 6, 94, 94)  # 5 % of 80 is 4


def test_white_film_behind_a_collimator_goes_and_then_the_air() -> None:
    film = np.ones((200, 200))
    film[:, 50:170] = 0.05
    film[20:180, 80:140] = 0.6

    # 5 % of 160 rows is 8, of 60 columns 3.
    assert box_of(film, None, "foreground") == (12, 77, 188, 143)


def test_padding_is_background_whatever_stands_in_it() -> None:
    picture, valid = np.full((100, 100), 0.9), np.zeros((100, 100), dtype=bool)
    picture[30:70, 30:70], valid[30:70, 30:70] = 0.5 + 0.1 * np.eye(40), True

    assert box_of(picture, valid, "foreground") == (30, 30, 70, 70)  # no margin of padding


def test_cells_on_a_bright_field_are_not_cut_but_a_black_bar_is() -> None:
    field = np.full((28, 28, 3), [0.75, 0.8, 0.78])
    field[disc(28, (20, 22), (8, 8))] = [0.7, 0.5, 0.52]  # touches two sides

    assert box_of(field, None, "foreground") == (0, 0, 28, 28)

    field[:8] = 0.0
    assert box_of(field, None, "foreground") == (7, 0, 28, 28)  # 5 % of 20 rows is 1


@pytest.mark.parametrize("kind", KINDS)
def test_dim_corners_around_something_darker_are_no_surround(kind: str) -> None:
    picture = np.full((64, 64), 0.25)
    picture[16:48, 16:48] = 0.0

    assert box_of(picture, None, kind) == (0, 0, 64, 64)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_flat_picture_is_kept_whole(kind: str, value: float) -> None:
    picture = np.full((40, 60), value)
    picture[:, 20:40] += 0.015 if value < 1.0 else -0.009  # less than what could be told apart

    assert box_of(picture, None, kind) == (0, 0, 40, 60)  # type: ignore[arg-type]


@pytest.mark.parametrize(("side", "kept"), [(22, False), (23, True)])
def test_a_foreground_under_a_twentieth_is_none(side: int, kept: bool) -> None:
    picture = np.zeros((100, 100))
    picture[40 : 40 + side, 40 : 40 + side] = 0.8  # 22² = 484 and 23² = 529 of 10,000 pixels

    assert (box_of(picture, None, "foreground") != (0, 0, 100, 100)) is kept


@pytest.mark.parametrize(("rows", "kept"), [(7, 40), (8, 32)])
def test_a_picture_of_less_than_8_rows_is_not_cropped(rows: int, kept: int) -> None:
    picture = np.full((rows, 40), 0.8)
    picture[:, :10] = 0.0

    box = box_of(picture, None, "foreground")

    assert box.right - box.left == kept  # 30 columns and 5 % at one end, rounded up to 2


def test_a_box_cuts_rows_and_columns_and_copies_nothing() -> None:
    values = np.arange(24.0).reshape(4, 6)

    cut = Box(1, 2, 3, 5).of(values)

    assert cut.tolist() == [[8.0, 9.0, 10.0], [14.0, 15.0, 16.0]]
    assert np.shares_memory(cut, values)


def test_without_scikit_image_the_pip_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)

    with pytest.raises(ScanError, match=r"scikit-image.*\n.*pip install 'medfed\[enhance\]'"):
        box_of(np.zeros((32, 32)), None, "foreground")
