"""The released average: between its parts, the latest model at decay 0, warm at the start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medfed.server.strategies.iterate_average import averaged

VECTORS = hnp.arrays(np.float32, 3, elements=st.floats(-100, 100, width=32))


@given(VECTORS, VECTORS, st.floats(0.0, 0.999), st.integers(2, 1000))
@settings(deadline=None, max_examples=200)
def test_every_value_lies_between_the_past_and_the_latest(
    past: np.ndarray, latest: np.ndarray, decay: float, round_: int
) -> None:
    result = averaged({"w": past}, {"w": latest}, decay=decay, round_=round_)["w"]

    assert result.dtype == np.float32
    assert (result >= np.minimum(past, latest)).all()
    assert (result <= np.maximum(past, latest)).all()


@given(VECTORS, VECTORS, st.integers(2, 1000))
@settings(deadline=None, max_examples=50)
def test_decay_zero_is_exactly_the_latest_model(
    past: np.ndarray, latest: np.ndarray, round_: int
) -> None:
    result = averaged({"w": past}, {"w": latest}, decay=0.0, round_=round_)

    assert result["w"].tobytes() == latest.tobytes()


def test_the_first_round_is_its_own_model() -> None:
    latest = {"w": np.array([1.5], np.float32)}

    assert averaged(None, latest, decay=0.9, round_=1)["w"].tolist() == [1.5]


@pytest.mark.parametrize(
    ("round_", "decay", "past"),
    # min(decay, round / (round + 4)): 2/6, 4/8, 36/40 = 0.9, then the decay itself.
    [
        (2, 0.99, 2 / 6),
        (4, 0.99, 0.5),
        (36, 0.99, 0.9),
        (36, 0.5, 0.5),
        (36, 0.1, 0.1),
        (1000, 0.9, 0.9),
    ],
)
def test_the_weight_of_the_past_warms_up_to_the_decay(
    round_: int, decay: float, past: float
) -> None:
    before, latest = {"w": np.ones(1, np.float32)}, {"w": np.zeros(1, np.float32)}

    result = averaged(before, latest, decay=decay, round_=round_)["w"]

    assert float(result[0]) == pytest.approx(past, rel=1e-6)


def test_averaging_takes_the_noise_down() -> None:
    # Independent noise around one model. With decay d the stationary variance of the average is
    # (1 - d) / (1 + d) of each model's: 0.0526 at d = 0.9; warm-up leaves it near that.
    chance = np.random.default_rng(0)
    average = None
    for round_ in range(1, 201):
        noisy = {"w": chance.normal(0.0, 1.0, 20_000).astype(np.float32)}
        average = averaged(average, noisy, decay=0.9, round_=round_)

    assert average is not None
    assert float(average["w"].var()) == pytest.approx(0.1 / 1.9, rel=0.05)
