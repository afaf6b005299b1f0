"""What image-level privacy means for a patient: against exact cases and the library itself."""

from __future__ import annotations

import math

import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant

from medfed.common.privacy.accounting import Spend, epsilon, noise_multiplier_for
from medfed.common.privacy.image_level import patient_epsilon

# 4000 images, 128 in a lot, 937 steps (30 epochs).
RATE, STEPS, DELTA = 128 / 4000, 937, 1e-4


# ---- properties ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "spend", [Spend(3.28, RATE, STEPS), Spend(2.0, 0.25, 80), Spend(10.0, 1.0, 50)]
)
def test_a_single_image_is_a_patient_and_every_further_one_costs(spend: Spend) -> None:
    alone = epsilon(*spend, DELTA)
    several = [patient_epsilon(spend, DELTA, images) for images in (1, 2, 5)]

    assert several[0] == pytest.approx(alone, rel=2e-3)
    # At least in proportion: two images that are always drawn apart would cost twice.
    assert all(after > before * 1.05 for before, after in zip(several, several[1:], strict=False))


@pytest.mark.parametrize("images", [2, 7])
def test_without_sampling_it_is_the_noise_shared_among_the_images(images: int) -> None:
    # All images are in every step: their sum moves by `images` clip norms.
    exact = epsilon(20.0 / images, 1.0, 30, DELTA)

    assert patient_epsilon(Spend(20.0, 1.0, 30), DELTA, images) == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("images", [2, 4])
def test_it_is_below_the_bound_that_moves_every_image_at_once(images: int) -> None:
    # Whenever any image is drawn, pretend that all are: valid, and far too loose.
    together = epsilon(1.42 / images, 1 - (1 - RATE) ** images, STEPS, DELTA)

    assert patient_epsilon(Spend(1.42, RATE, STEPS), DELTA, images) < together / 2


def test_no_steps_cost_nothing() -> None:
    assert patient_epsilon(Spend(1.0, 0.1, 0), 1e-5, 10) == 0.0


def test_where_floating_point_ends_it_is_infinite() -> None:
    assert patient_epsilon(Spend(1.0, 0.5, 20), 1e-5, 1000) == math.inf
    assert patient_epsilon(Spend(1.0, 0.5, 10_000_001), 1e-5, 2) == math.inf


# ---- examples ------------------------------------------------------------------------------------
# Computed once with dp-accounting 0.6.0 on a grid of 1e-4, apart from this code. The noise was
# what Opacus finds for 3 per image; its search keeps 0.01 of reserve, so that 2.99 is used.
@pytest.mark.parametrize(("images", "expected"), [(1, 2.99), (2, 6.87), (4, 16.7)])
def test_three_per_image_is_nearly_seven_for_two_scans_and_seventeen_for_four(
    images: int, expected: float
) -> None:
    sigma = noise_multiplier_for(2.99, DELTA, RATE, STEPS)

    spent = patient_epsilon(Spend(sigma, RATE, STEPS), DELTA, images)

    assert float(f"{spent:.3g}") == expected


@pytest.mark.parametrize("images", [3, 6])
def test_it_is_the_mixture_of_gaussians_of_dp_accounting(images: int) -> None:
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, 4e-3)
    chances = [math.comb(images, i) * 0.05**i * 0.95 ** (images - i) for i in range(images + 1)]
    step = dp_event.MixtureOfGaussiansDpEvent(2.0, list(range(images + 1)), chances)
    accountant.compose(step, 100)

    assert patient_epsilon(Spend(2.0, 0.05, 100), 1e-4, images) == pytest.approx(
        accountant.get_epsilon(1e-4), rel=2e-3
    )


# ---- refusals ------------------------------------------------------------------------------------
@pytest.mark.parametrize("images", [0, -1, 1001])
def test_a_patient_without_images_or_with_too_many_is_refused(images: int) -> None:
    with pytest.raises(ValueError, match="images must be 1 to 1000"):
        patient_epsilon(Spend(1.0, 0.1, 10), 1e-5, images)


def test_numbers_that_are_no_mechanism_are_refused() -> None:
    with pytest.raises(ValueError, match="Poisson-sampled"):
        patient_epsilon(Spend(0.0, 0.1, 10), 1e-5, 2)
    with pytest.raises(ValueError, match="delta"):
        patient_epsilon(Spend(1.0, 0.1, 10), 0.0, 2)
