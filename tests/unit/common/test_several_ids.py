"""What a person loses who is in one step under several ids: more than two steps of one id."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.common.privacy.accounting import JointSpend, Spend, composed_epsilon
from medfed.common.privacy.image_level import patient_epsilon
from medfed.common.privacy.renyi_filter import fits, held_epsilon, renyi_epsilon
from medfed.common.privacy.several_ids import chances_of, divergences

DELTA = 1e-4
STUDY = Spend(1.0, 0.05, 200)  # epsilon 4.00 at delta 1e-4
ORDERS = (2, 3, 8, 64, 1024)

SIGMAS, RATES = st.floats(0.6, 10.0), st.floats(0.01, 1.0)


# ---- properties ----------------------------------------------------------------------------------
@given(sigma=SIGMAS, rate=RATES, steps=st.integers(1, 100))
@settings(deadline=None, max_examples=4)
def test_two_ids_in_one_step_cost_more_than_two_steps_of_one(
    sigma: float, rate: float, steps: int
) -> None:
    one, both = Spend(sigma, rate, steps), JointSpend(sigma, rate, steps, 2)

    for read in (composed_epsilon, renyi_epsilon):
        # 1e-3 relative and absolute: both are rounded to the safe side on grids of their own.
        assert read([one], DELTA) <= read([one, one], DELTA)
        assert read([one, one], DELTA) <= read([both], DELTA) * 1.001 + 1e-3


@given(sigma=SIGMAS, rate=RATES, steps=st.integers(1, 100), ids=st.integers(2, 4))
@settings(deadline=None, max_examples=4)
def test_exact_composition_of_several_ids_is_never_above_their_renyi_accounting(
    sigma: float, rate: float, steps: int, ids: int
) -> None:
    spends = [JointSpend(sigma, rate, steps, ids), Spend(1.0, 0.1, 10)]

    assert composed_epsilon(spends, DELTA) <= renyi_epsilon(spends, DELTA) * 1.001 + 1e-4


@given(sigma=SIGMAS, rate=RATES, ids=st.integers(1, 4), order=st.sampled_from(ORDERS))
@settings(deadline=None, max_examples=40)
def test_a_divergence_grows_with_ids_and_is_at_most_that_of_all_ids_in_every_draw(
    sigma: float, rate: float, ids: int, order: int
) -> None:
    (less,) = divergences(sigma, rate, ids, [order])
    (more,) = divergences(sigma, rate, ids + 1, [order])

    assert 0.0 < less <= more
    # Drawn for sure and all one way: a Gaussian moved by k clip norms. 1e-6: rounded up.
    assert more <= order * (ids + 1) ** 2 / (2.0 * sigma**2) * (1 + 1e-6) + 1e-11


# ---- examples ------------------------------------------------------------------------------------
@pytest.mark.parametrize("spend", [STUDY, Spend(1.42, 0.032, 937), Spend(4.0, 1.0, 3)])
def test_epsilon_is_that_of_a_patient_whose_images_were_sampled_one_by_one(spend: Spend) -> None:
    # The same mixture of Gaussians, composed with a grid of its own: 0.1 % for each grid.
    joint = composed_epsilon([JointSpend(*spend, 2)], DELTA)

    assert joint == pytest.approx(patient_epsilon(spend, DELTA, 2), rel=3e-3)


def test_composing_the_two_ids_would_claim_too_little() -> None:
    joint = composed_epsilon([JointSpend(*STUDY, 2)], DELTA)

    assert composed_epsilon([STUDY], DELTA) == pytest.approx(4.0, abs=0.01)
    assert composed_epsilon([STUDY, STUDY], DELTA) == pytest.approx(5.74, abs=0.01)
    assert joint == pytest.approx(9.19, abs=0.02)  # as `patient_epsilon` above


@pytest.mark.parametrize("sigma", [0.7, 1.0, 4.0])
@pytest.mark.parametrize("rate", [0.01, 0.2, 0.9])
def test_with_one_id_the_divergence_is_that_of_dp_accounting(sigma: float, rate: float) -> None:
    from dp_accounting import NeighboringRelation, dp_event  # noqa: PLC0415  1.4 s
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415

    accountant = RdpAccountant(ORDERS, NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma)))

    found = divergences(sigma, rate, 1, ORDERS)
    assert found == pytest.approx(accountant.rdp, rel=1e-8, abs=2e-12)
    assert all(own >= theirs for own, theirs in zip(found, accountant.rdp, strict=True))


@pytest.mark.parametrize(("sigma", "rate", "ids"), [(0.6, 0.3, 2), (1.0, 0.05, 2), (3.0, 0.5, 4)])
@pytest.mark.parametrize("order", [2, 8, 64])
def test_divergences_are_the_integrals_by_a_rule_of_its_own(
    sigma: float, rate: float, ids: int, order: int
) -> None:
    # Simpson's rule on a grid four times as fine over both directions, in logarithms.
    reach = order * ids / sigma + 15.0
    x = np.linspace(-reach, reach, 2 * int(reach * 512 / min(1.0, sigma)) + 1)
    weights = np.full(x.size, 2.0)
    weights[1::2], weights[[0, -1]] = 4.0, 1.0
    noise = -0.5 * x**2 - 0.5 * math.log(2 * math.pi) + np.log(weights * (x[1] - x[0]) / 3)
    terms = [
        math.log(chance) + shift / sigma * x - 0.5 * (shift / sigma) ** 2
        for shift, chance in enumerate(chances_of(ids, rate))
    ]
    ratio = np.logaddexp.reduce(terms)
    expected = max(
        np.logaddexp.reduce(noise + power * ratio) / (order - 1) for power in (order, 1 - order)
    )

    assert divergences(sigma, rate, ids, [order]) == pytest.approx([expected], rel=1e-7, abs=1e-9)


def test_the_filter_counts_several_ids() -> None:
    limits = {"epsilon_limit": 8.0, "delta_limit": DELTA}

    assert held_epsilon([STUDY], **limits) == pytest.approx(5.36, abs=0.01)
    assert held_epsilon([JointSpend(*STUDY, 2)], **limits) > composed_epsilon(
        [JointSpend(*STUDY, 2)], DELTA
    )
    assert fits([], [STUDY], **limits)
    assert not fits([JointSpend(*STUDY, 2)], [Spend(1.0, 0.05, 1)], **limits)


def test_one_id_counts_as_a_spend_of_one() -> None:
    assert composed_epsilon([JointSpend(*STUDY, 1)], DELTA) == composed_epsilon([STUDY], DELTA)


# ---- refusals ------------------------------------------------------------------------------------
@pytest.mark.parametrize("ids", [0, -1, 1001])
def test_a_number_of_ids_out_of_range_is_refused(ids: int) -> None:
    with pytest.raises(ValueError, match="ids must be 1 to 1000"):
        composed_epsilon([JointSpend(*STUDY, ids)], DELTA)


def test_too_little_noise_for_several_ids_is_infinite() -> None:
    # 0.015 is above the floor of 0.01 for one id, and half of it below.
    assert math.isfinite(composed_epsilon([Spend(0.015, 1.0, 1)], DELTA))
    assert math.isinf(composed_epsilon([JointSpend(0.015, 1.0, 1, 2)], DELTA))
