"""Accepted ranges and lower bounds hold as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medfed.common.privacy.accounting import epsilon
from medfed.simulations.privacy_audit.bounds import (
    Floats,
    Range,
    around,
    coins_range,
    gdp_epsilon,
    gdp_lower_bound,
    one_run_lower_bound,
    quantile,
    variance_range,
)


def scores(mu: float, canaries: int, seed: int) -> tuple[Floats, np.ndarray]:
    """Normal scores, ``mu`` higher for those that a coin put in."""
    rng = np.random.default_rng(seed)
    included = rng.random(canaries) < 0.5
    return rng.normal(size=canaries) + mu * included, included


# ---- properties ----------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 2, 10, 1000])
def test_a_variance_leaves_its_range_as_often_as_said(count: int) -> None:
    found = np.square(np.random.default_rng(0).normal(size=(10_000, count))).mean(axis=1)
    low, high = variance_range(count, 0.05)

    outside = float(((found < low) | (found > high)).mean())
    # 0.05 with a standard error of 0.002; the approximation is cautious for very few numbers.
    assert 0.05 * (0.4 if count < 10 else 0.85) < outside < 0.05 * 1.15


@pytest.mark.parametrize(("tosses", "rate"), [(400, 0.01), (400, 0.2), (10_000, 0.5), (50, 0.98)])
def test_coins_leave_their_range_no_more_often_than_said(tosses: int, rate: float) -> None:
    shares = np.random.default_rng(0).binomial(tosses, rate, 50_000) / tosses / rate
    low, high = coins_range(tosses, rate, 0.01)

    assert ((shares < low) | (shares > high)).mean() <= 0.01


@pytest.mark.parametrize("count", [1, 2, 10, 1000])
def test_no_variance_at_all_is_never_accepted(count: int) -> None:
    assert not variance_range(count).holds(0.0)


def test_the_gdp_bound_exceeds_the_truth_no_more_often_than_said() -> None:
    above = 0
    for seed in range(500):
        drawn, included = scores(1.0, 200, seed)
        above += gdp_lower_bound(drawn[included], drawn[~included], 0.1) > 1.0

    assert above < 0.1 * 500


def test_the_one_run_bound_stays_below_the_truth() -> None:
    truth = gdp_epsilon(1.5, 1e-5)

    assert all(one_run_lower_bound(*scores(1.5, 1000, seed), 1e-5) < truth for seed in range(20))


@pytest.mark.parametrize("sigma", [0.5, 2.0])
@pytest.mark.parametrize("rate", [0.01, 0.3])
@pytest.mark.parametrize("steps", [1, 100])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_what_canaries_of_honest_code_can_show_is_below_the_claim(
    sigma: float, rate: float, steps: int, delta: float
) -> None:
    # A canary adds q T to a sum of T noises: q sqrt(T) / sigma standard deviations.
    shown = gdp_epsilon(rate * math.sqrt(steps) / sigma, delta)

    assert shown <= epsilon(sigma, rate, steps, delta) + 1e-9


# ---- examples ------------------------------------------------------------------------------------
def test_the_range_of_a_variance_is_that_of_chi_square() -> None:
    # Quantiles of chi-square with 100 degrees of freedom at 0.025 and 0.975: 74.222, 129.561.
    low, high = variance_range(100, 0.05)

    assert (100 * low, 100 * high) == pytest.approx((74.222, 129.561), abs=0.02)


def test_coins_that_always_fall_on_heads_leave_no_room() -> None:
    assert coins_range(10, 1.0) == (1.0, 1.0)


def test_the_reach_of_a_tail_is_the_normal_quantile() -> None:
    assert quantile(0.025) == pytest.approx(1.959964, abs=1e-6)
    assert around(1.0, 0.1, 0.05) == pytest.approx((0.8040036, 1.1959964))


@pytest.mark.parametrize(
    ("sigma", "steps", "delta"), [(1.0, 1, 1e-5), (3.326, 48, 1e-3), (20.0, 100, 1e-6)]
)
def test_a_mechanism_without_sampling_is_exactly_gdp(
    sigma: float, steps: int, delta: float
) -> None:
    # Composition of Gaussian mechanisms (arXiv:1905.02383, corollary 2): mu = sqrt(T) / sigma.
    mu = math.sqrt(steps) / sigma

    assert gdp_epsilon(mu, delta) == pytest.approx(epsilon(sigma, 1.0, steps, delta), rel=2e-3)


def test_a_great_separation_overflows_nothing() -> None:
    assert gdp_epsilon(1000.0, 1e-5) == pytest.approx(1000.0**2 / 2, rel=0.02)
    assert gdp_epsilon(math.inf, 1e-5) == math.inf
    assert gdp_epsilon(0.0, 1e-5) == gdp_epsilon(-1.0, 1e-5) == 0.0


def test_without_noise_the_gdp_bound_is_infinite() -> None:
    assert gdp_lower_bound(np.full(50, 2.0), np.zeros(50)) == math.inf
    assert gdp_lower_bound(np.zeros(50), np.zeros(50)) == 0.0


def test_the_one_run_bound_of_perfect_guesses_is_that_of_its_theorem() -> None:
    # With delta 0 and all 1,000 right, p = (e^eps / (1 + e^eps))^1000 for the best of 7 tries:
    # 0.05 / 7 = q^1000 gives q = 0.995071 and eps = log(q / (1 - q)) = 5.3078.
    included = np.arange(1000) % 2 == 0

    assert one_run_lower_bound(included * 1.0, included, 1e-300) == pytest.approx(5.3078, abs=1e-3)


def test_guesses_that_know_nothing_bound_nothing() -> None:
    assert one_run_lower_bound(*scores(0.0, 1000, 0), 1e-5) == 0.0
    drawn, included = scores(3.0, 1000, 0)
    assert one_run_lower_bound(drawn, ~included, 1e-5) == 0.0  # always wrong


def test_not_a_number_lies_in_no_range() -> None:
    assert not Range(-math.inf, math.inf).holds(math.nan)
