"""Federated averaging against its formula, and as a function without memory of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medfed.common.updates import Parameters
from medfed.server.strategies.fed_avg import FedAvg

VECTORS = hnp.arrays(np.float64, 3, elements=st.floats(-10, 10))


@given(st.lists(VECTORS, min_size=1, max_size=5), st.floats(0.1, 2.0), st.floats(0.0, 0.99))
@settings(deadline=None, max_examples=100)
def test_it_is_the_formula_of_the_paper(
    means: list[np.ndarray], learning_rate: float, momentum: float
) -> None:
    rule = FedAvg(learning_rate, momentum)
    state = rule.init({"w": np.ones(3, np.float32)})

    for mean in means:
        state = rule.apply(state, {"w": mean})

    # Unrolled: w_n = w_0 + eta * sum over rounds t of delta_t * (1 + beta + ... + beta^(n - t)).
    rounds = len(means)
    expected = np.ones(3) + learning_rate * sum(
        mean * sum(momentum**power for power in range(rounds - number))
        for number, mean in enumerate(means)
    )
    assert state.parameters["w"] == pytest.approx(expected, rel=1e-4, abs=1e-4)  # float32 storage
    assert state.parameters["w"].dtype == np.float32
    assert state.velocity["w"].dtype == np.float64


def test_without_momentum_and_at_rate_one_it_adds_the_mean() -> None:
    rule = FedAvg()
    state = rule.init({"w": np.array([1.0, 2.0], np.float32), "b": np.array(0.0, np.float32)})

    state = rule.apply(state, {"w": np.array([0.5, -1.0]), "b": np.array(0.25)})

    assert state.parameters["w"].tolist() == [1.5, 1.0]
    assert state.parameters["b"].tolist() == 0.25
    assert state.parameters["b"].shape == ()


def test_a_mean_of_zeros_changes_nothing_and_momentum_runs_on() -> None:
    rule = FedAvg(momentum=0.5)
    state = rule.init({"w": np.zeros(1, np.float32)})

    moved = [0.0]
    for mean in (1.0, 0.0, 0.0):
        state = rule.apply(state, {"w": np.array([mean])})
        moved.append(float(state.parameters["w"][0]))

    assert moved == [0.0, 1.0, 1.5, 1.75]  # 1, + 1/2, + 1/4


def test_the_state_before_and_the_mean_are_not_changed() -> None:
    rule = FedAvg(momentum=0.9)
    first: Parameters = {"w": np.array([1.0], np.float32)}
    mean: Parameters = {"w": np.array([0.5])}
    before = rule.init(first)

    rule.apply(rule.apply(before, mean), mean)

    assert before.parameters["w"].tolist() == first["w"].tolist() == [1.0]
    assert before.velocity["w"].tolist() == [0.0]
    assert mean["w"].tolist() == [0.5]


def test_a_mean_without_one_of_the_parameters_is_a_defect_and_not_a_zero() -> None:
    rule = FedAvg()

    with pytest.raises(KeyError):
        rule.apply(rule.init({"w": np.zeros(1, np.float32)}), {})
