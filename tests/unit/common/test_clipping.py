"""No update is longer than the bound, whatever its type, its size or its values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medfed.common.errors import UpdateRejectedError
from medfed.common.privacy.clipping import clip_update
from medfed.common.updates import Parameters


def exact_norm(update: Parameters) -> float:
    """The L2 norm without overflow or underflow: `math.hypot` scales by itself."""
    return math.hypot(*(float(value) for array in update.values() for value in array.ravel()))


def updates(dtype: Any, bits: int) -> st.SearchStrategy[Parameters]:
    numbers = st.floats(width=bits, allow_nan=False, allow_infinity=False)  # type: ignore[arg-type]  # 16, 32, 64
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    arrays = hnp.arrays(dtype, shapes, elements=numbers)
    return st.dictionaries(st.sampled_from("abc"), arrays, max_size=3)


ANY = st.one_of(updates(np.float16, 16), updates(np.float32, 32), updates(np.float64, 64))


@given(update=ANY, clip_norm=st.floats(1e-290, 1e300))
@settings(deadline=None, max_examples=300)
def test_the_norm_never_exceeds_the_bound(update: Parameters, clip_norm: float) -> None:
    clipped, _ = clip_update(update, clip_norm)

    assert exact_norm(clipped) <= clip_norm * (1 + 1e-6)
    for name, array in update.items():
        assert clipped[name].shape == array.shape
        assert clipped[name].dtype == np.float64


@given(update=ANY, slack=st.floats(1.000001, 10.0))
@settings(deadline=None, max_examples=200)
def test_an_update_inside_the_bound_keeps_its_values(update: Parameters, slack: float) -> None:
    norm = exact_norm(update)
    assume(1e-290 < norm < 1e300)

    clipped, norm_before = clip_update(update, norm * slack)

    assert norm_before == pytest.approx(norm, rel=1e-9)
    for name, array in update.items():
        assert clipped[name].tolist() == array.astype(np.float64).tolist()


@given(update=ANY, share=st.floats(1e-3, 0.999))
@settings(deadline=None, max_examples=200)
def test_an_update_outside_the_bound_keeps_its_direction_and_meets_the_bound(
    update: Parameters, share: float
) -> None:
    norm = exact_norm(update)
    assume(1e-250 < norm < 1e300)

    clipped, _ = clip_update(update, norm * share)

    assert exact_norm(clipped) == pytest.approx(norm * share, rel=1e-9)
    for name, array in update.items():
        expected = array.astype(np.float64) * share
        assert np.allclose(clipped[name], expected, rtol=1e-9, atol=norm * 1e-300)


def test_the_norm_is_that_of_all_arrays_together() -> None:
    update: Parameters = {"w": np.array([[3.0]]), "b": np.array(4.0)}  # 3-4-5 triangle

    clipped, norm = clip_update(update, clip_norm=1.0)

    assert norm == 5.0
    assert clipped["w"].tolist() == [[pytest.approx(0.6)]]
    assert clipped["b"].tolist() == pytest.approx(0.8)


@pytest.mark.parametrize("empty", [{}, {"w": np.zeros((0, 3), np.float32)}, {"w": np.zeros(4)}])
def test_nothing_and_zeros_have_norm_zero_and_stay(empty: Parameters) -> None:
    clipped, norm = clip_update(empty, clip_norm=1.0)

    assert norm == 0.0
    assert [array.tolist() for array in clipped.values()] == [
        array.tolist() for array in empty.values()
    ]


@pytest.mark.parametrize("value", [1e200, 1e308, np.finfo(np.float64).max])
def test_squares_that_overflow_do_not_make_the_update_vanish(value: float) -> None:
    clipped, _ = clip_update({"w": np.array([value, value])}, clip_norm=1.0)

    assert clipped["w"].tolist() == pytest.approx([math.sqrt(0.5)] * 2)


def test_squares_that_vanish_do_not_let_the_update_pass() -> None:
    clipped, norm = clip_update({"w": np.array([3e-170, 4e-170])}, clip_norm=1e-170)

    assert norm == pytest.approx(5e-170)
    assert clipped["w"].tolist() == pytest.approx([0.6e-170, 0.8e-170])


def test_rounding_to_half_precision_cannot_break_the_bound() -> None:
    tiny = np.full(1_000_000, 6e-5, np.float16)  # norm 0.06; 4e-8 each is subnormal in float16

    clipped, _ = clip_update({"w": tiny}, clip_norm=4e-5)

    assert np.linalg.norm(clipped["w"]) <= 4e-5 * (1 + 1e-6)
    assert (
        np.linalg.norm(clipped["w"].astype(np.float16).astype(np.float64)) > 5.9e-5
    )  # why float64


def test_the_update_that_came_in_is_not_changed() -> None:
    array = np.array([3.0, 4.0])

    clipped, _ = clip_update({"w": array}, clip_norm=1.0)
    inside, _ = clip_update({"w": array}, clip_norm=6.0)
    clipped["w"][:] = 0.0
    inside["w"][:] = 0.0

    assert array.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_value_that_is_not_finite_is_refused_and_its_array_is_named(
    bad: float, dtype: npt.DTypeLike
) -> None:
    update: Parameters = {"w": np.zeros(2), "head.b": np.array([0.0, bad], dtype)}

    with pytest.raises(UpdateRejectedError, match=r"'head\.b' of shape \(2,\)"):
        clip_update(update, clip_norm=1.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_a_bound_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="clip_norm must be finite and > 0"):
        clip_update({"w": np.ones(1)}, clip_norm=bad)
