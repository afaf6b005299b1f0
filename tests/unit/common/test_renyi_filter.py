"""The filter that holds a patient's ceiling, against those who choose the next study by results."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medfed.common.privacy.accounting import Spend, composed_epsilon
from medfed.common.privacy.renyi_filter import fits, held_epsilon, renyi_epsilon

MIXED = [Spend(1.0, 0.05, 100), Spend(1.5, 0.1, 50), Spend(0.9, 0.02, 300)]
STUDY = Spend(1.0, 0.05, 200)  # epsilon 4.00 at delta 1e-4 by PLD

SPENDS = st.builds(
    Spend,
    # Below a noise of 0.6 and above 30 both bounds grow loose, each in its own way.
    noise_multiplier=st.floats(0.6, 30.0),
    sampling_rate=st.floats(0.001, 1.0),
    steps=st.integers(1, 300),
)


# ---- properties ----------------------------------------------------------------------------------
@given(spends=st.lists(SPENDS, min_size=1, max_size=3), delta=st.floats(1e-7, 1e-2))
@settings(deadline=None, max_examples=6)
def test_exact_composition_is_never_above_renyi_accounting(
    spends: list[Spend], delta: float
) -> None:
    # 1e-3 relative for the grid of the PLD; 1e-4 absolute where epsilon is nearly zero.
    assert composed_epsilon(spends, delta) <= renyi_epsilon(spends, delta) * 1.001 + 1e-4


@given(
    spends=st.lists(SPENDS, min_size=1, max_size=4),
    more=SPENDS,
    limit=st.floats(0.1, 20.0),
    delta=st.floats(1e-7, 1e-2),
)
@settings(deadline=None, max_examples=15)
def test_the_filter_is_on_the_safe_side_of_renyi_accounting_and_never_reads_less(
    spends: list[Spend], more: Spend, limit: float, delta: float
) -> None:
    def held(history: list[Spend]) -> float:
        return held_epsilon(history, epsilon_limit=limit, delta_limit=delta)

    assert renyi_epsilon(spends, delta) <= held(spends) <= held([*spends, more])
    assert held(spends) == pytest.approx(held(spends[::-1]), rel=1e-12)


@given(studies=st.lists(SPENDS, min_size=1, max_size=8), limit=st.floats(0.5, 10.0))
@settings(deadline=None, max_examples=5)
def test_whatever_is_asked_for_what_was_let_in_is_within_the_ceiling(
    studies: list[Spend], limit: float
) -> None:
    let_in: list[Spend] = []
    for study in studies:
        if fits(let_in, [study], epsilon_limit=limit, delta_limit=1e-5):
            let_in.append(study)

    assert composed_epsilon(let_in, 1e-5) <= limit * 1.001


# ---- why a filter --------------------------------------------------------------------------------
# Ceiling (1, 1e-3). After FIRST the analyst looks at its output, and takes the study that hurts
# the patient most: STEADY, much noise for everybody, or GAMBLE, next to no noise for 1 in 1000.
LIMIT, DELTA = 1.0, 1e-3
FIRST = Spend(5.0, 1.0, 1)


def steady(strength: float) -> Spend:
    return Spend(1.0 / strength, 1.0, 1)


def gamble(rate: float) -> Spend:
    return Spend(0.05, rate, 1)


def largest(make: Callable[[float], Spend], allowed: Callable[[Spend], bool]) -> Spend:
    """The costliest of a family of studies that a rule lets in after ``FIRST``."""
    low, high = 1e-9, 1.0
    for _ in range(30):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if allowed(make(middle)) else (low, middle)
    return make(low)


def normal(x: NDArray[np.float64], mean: float, sigma: float) -> NDArray[np.float64]:
    return np.exp(-0.5 * ((x - mean) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))


def excess(step: Spend, levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """``E_P (1 - e^(level - loss))+`` of one step at each level, by integration over its output."""
    sigma, rate, _ = step
    around = np.linspace(-10 * sigma, 10 * sigma, 4001)
    z = np.unique(np.concatenate([around, 1.0 + around]))
    density = (1 - rate) * normal(z, 0.0, sigma) + rate * normal(z, 1.0, sigma)
    unsampled = -math.inf if rate == 1.0 else math.log1p(-rate)
    loss = np.logaddexp(unsampled, math.log(rate) + (z - 0.5) / sigma**2)
    return np.array(
        [np.trapezoid(density * -np.expm1(np.minimum(level - loss, 0.0)), z) for level in levels]
    )


def delta_of_an_analyst_who_chooses(*choices: Spend) -> float:
    """The delta at ``LIMIT`` of FIRST and then whichever choice is worst after its output."""
    mu = 1.0 / FIRST.noise_multiplier  # the loss of a Gaussian step is N(mu^2 / 2, mu^2)
    first = np.linspace(mu**2 / 2 - 8 * mu, mu**2 / 2 + 8 * mu, 801)
    worst = np.max([excess(choice, LIMIT - first) for choice in choices], axis=0)
    return float(np.trapezoid(normal(first, mu**2 / 2, mu) * worst, first))


def test_an_analyst_who_chooses_by_results_breaks_a_ceiling_held_by_exact_composition() -> None:
    a, b = Spend(3.004, 1.0, 1), gamble(0.00099)  # found by halving: as much as exactly fits

    # Either study, had it been fixed before, is within the ceiling; the integral says the same.
    for study in (a, b):
        assert composed_epsilon([FIRST, study], DELTA) <= LIMIT
        assert 0.98 * DELTA < delta_of_an_analyst_who_chooses(study) <= DELTA
    assert delta_of_an_analyst_who_chooses(a, b) > 1.5 * DELTA
    assert not fits([FIRST], [a], epsilon_limit=LIMIT, delta_limit=DELTA)
    assert not fits([FIRST], [b], epsilon_limit=LIMIT, delta_limit=DELTA)


def test_the_same_analyst_stays_within_a_ceiling_held_by_the_filter() -> None:
    def filtered(study: Spend) -> bool:
        return fits([FIRST], [study], epsilon_limit=LIMIT, delta_limit=DELTA)

    a, b = largest(steady, filtered), largest(gamble, filtered)

    assert a.noise_multiplier < 10.0  # the filter leaves room for something
    assert 0.0 < delta_of_an_analyst_who_chooses(a, b) <= DELTA


# ---- examples ------------------------------------------------------------------------------------
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("spends", [[STUDY], MIXED, [Spend(20.0, 0.5, 30)]])
def test_renyi_epsilon_is_that_of_dp_accounting(spends: list[Spend], delta: float) -> None:
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    for sigma, rate, steps in spends:
        step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma))
        accountant.compose(step, steps)

    # Theirs reads at fractions too; ours, at whole orders only, can be above it by a little.
    theirs = accountant.get_epsilon(delta)
    assert theirs * 0.995 <= renyi_epsilon(spends, delta) <= theirs * 1.03


def test_the_reading_of_gaussian_steps_is_what_the_definition_gives() -> None:
    # Ceiling (1, 1e-5): the best order for Gaussian steps is 18, and its share of delta is 0.4.
    # Divergence of 50 steps at sigma 40: 18 * 50 / (2 * 1600) = 0.28125; epsilon by
    # arXiv:2004.00010, proposition 12: 0.28125 + ln(17/18) - ln(0.4e-5 * 18) / 17.
    by_hand = 0.28125 + math.log(17 / 18) - math.log(0.4e-5 * 18) / 17

    read = held_epsilon([Spend(40.0, 1.0, 50)], epsilon_limit=1.0, delta_limit=1e-5)

    assert read == pytest.approx(by_hand, rel=1e-9)


def test_a_first_study_may_cost_all_of_the_ceiling_and_then_nothing_follows() -> None:
    ceiling = {"epsilon_limit": 4.0, "delta_limit": 1e-4}  # the cost of STUDY by PLD: 3.999

    assert fits([], [STUDY], **ceiling)
    assert fits([Spend(1.0, 0.05, 0)], [Spend(1.0, 0.05, 80), Spend(1.0, 0.05, 120)], **ceiling)
    assert held_epsilon([STUDY], **ceiling) > 4.0
    assert not fits([STUDY], [Spend(30.0, 0.001, 1)], **ceiling)
    assert fits([STUDY], [Spend(1.0, 0.05, 0)], **ceiling)  # costs nothing


def test_exact_composition_counts_for_the_first_study_only() -> None:
    ceiling = {"epsilon_limit": 4.0, "delta_limit": 1e-4}
    tiny = Spend(30.0, 0.001, 1)
    rest = Spend(1.0, 0.05, 190)

    assert composed_epsilon([tiny, rest], 1e-4) < 4.0
    assert fits([], [tiny, rest], **ceiling)
    assert not fits([tiny], [rest], **ceiling)
    assert fits([tiny], [Spend(1.0, 0.05, 110)], **ceiling)


def test_a_first_study_above_the_ceiling_is_refused() -> None:
    assert not fits([], [STUDY], epsilon_limit=3.9, delta_limit=1e-4)


def test_studies_are_let_in_one_after_the_other_until_the_ceiling() -> None:
    quarter = Spend(1.42, 0.032, 100)  # epsilon 0.92 at delta 1e-4 by PLD
    let_in: list[Spend] = []
    while fits(let_in, [quarter], epsilon_limit=3.0, delta_limit=1e-4):
        let_in.append(quarter)

    # By exact composition 9 of them (900 steps) cost 2.92. The filter stops at 6: the price of
    # holding whatever is chosen is what lies between.
    assert len(let_in) == 6


def test_without_a_ceiling_everything_fits() -> None:
    anything = [Spend(0.001, 1.0, 1), STUDY]

    assert fits(anything, anything, epsilon_limit=math.inf, delta_limit=1e-5)


def test_where_floating_point_ends_it_is_infinite() -> None:
    for spend in [Spend(0.009, 0.5, 1), Spend(1.0, 0.5, 10_000_001)]:
        assert renyi_epsilon([spend], 1e-5) == math.inf
        assert held_epsilon([spend], epsilon_limit=5.0, delta_limit=1e-5) == math.inf
        assert not fits([], [spend], epsilon_limit=1e6, delta_limit=1e-5)


def test_what_costs_nothing_is_zero_and_does_not_load_the_library() -> None:
    code = (
        "import sys, medfed.common.privacy.renyi_filter as r;"
        "assert r.renyi_epsilon([], 1e-5) == 0.0;"
        "assert r.fits([], [], epsilon_limit=1.0, delta_limit=1e-5);"
        "sys.exit('dp_accounting' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- refusals ------------------------------------------------------------------------------------
@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_ceiling_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="epsilon_limit"):
        fits([], [STUDY], epsilon_limit=limit, delta_limit=1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
def test_a_delta_outside_0_and_1_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        renyi_epsilon([STUDY], delta)
    with pytest.raises(ValueError, match="delta"):
        fits([], [STUDY], epsilon_limit=1.0, delta_limit=delta)


def test_a_spend_that_is_no_mechanism_is_refused() -> None:
    with pytest.raises(ValueError, match="Poisson-sampled"):
        fits([Spend(1.0, 1.5, 1)], [STUDY], epsilon_limit=1.0, delta_limit=1e-5)
