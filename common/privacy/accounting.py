"""Epsilon of a DP-SGD schedule, by Google's ``dp-accounting``.

Every epsilon medfed shows comes from here: privacy loss distributions (PLD), pessimistic
rounding, add-or-remove-one patient. The replace-one relation is 1.4 to 2.3 times larger; the
relation is named wherever an epsilon is shown. We have no accountant of our own.

Source:
    Koskela, Jälkö, Honkela. Computing Tight Differential Privacy Guarantees Using FFT.
    AISTATS 2020. https://arxiv.org/abs/1906.03049
    Doroshenko et al. Connect the Dots: Tighter Discrete Approximations of Privacy Loss
    Distributions. PoPETs 2022. https://arxiv.org/abs/2207.04380
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from medfed.common.errors import ConfigError

NEIGHBOURS = "add-or-remove one patient"
"""The neighbouring relation of every epsilon in medfed."""

_SHOWN_INTERVAL = 1e-4
_SEARCH_INTERVAL = 1e-3
_SIGMA_STEP = 1e-3


class Spend(NamedTuple):
    """A run of equal Poisson-sampled Gaussian steps. Public.

    Attributes:
        noise_multiplier: ``sigma / S``, > 0.
        sampling_rate: ``q`` in (0, 1].
        steps: Number of steps, >= 0.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int


def composed_epsilon(
    spends: Sequence[Spend], delta: float, *, interval: float = _SHOWN_INTERVAL
) -> float:
    """Epsilon of several runs of steps on the same patients.

    Args:
        spends: In any order; equal ones are counted together.
        delta: In (0, 1).
        interval: Discretisation of the privacy loss; coarser is faster and looser.

    Returns:
        An upper bound (pessimistic estimate) on epsilon at ``delta``; 0.0 for no steps.

    Example:
        >>> half = Spend(1.0, 0.05, 100)
        >>> round(composed_epsilon([half, half], 1e-4), 2)
        4.0
    """
    steps: dict[tuple[float, float], int] = {}
    for spend in spends:
        kind = (spend.noise_multiplier, spend.sampling_rate)
        steps[kind] = steps.get(kind, 0) + spend.steps
    if not any(steps.values()):
        return 0.0
    # 1.4 s to import: only who needs an epsilon pays it.
    from dp_accounting import NeighboringRelation, dp_event  # noqa: PLC0415  lazy, see above
    from dp_accounting.pld import PLDAccountant  # noqa: PLC0415  lazy, see above

    accountant = PLDAccountant(
        NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=interval
    )
    for (sigma, rate), count in sorted(steps.items()):
        if count:
            step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma))
            accountant.compose(step, count)
    return float(accountant.get_epsilon(delta))


def epsilon(
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    delta: float,
    *,
    interval: float = _SHOWN_INTERVAL,
) -> float:
    """Epsilon of ``steps`` equal Poisson-sampled Gaussian steps; see ``composed_epsilon``.

    Example:
        >>> round(epsilon(1.0, 0.05, 200, 1e-4), 2)
        4.0
    """
    spend = Spend(noise_multiplier, sampling_rate, steps)
    return composed_epsilon([spend], delta, interval=interval)


@lru_cache(maxsize=1024)
def noise_multiplier_for(
    target_epsilon: float, delta: float, sampling_rate: float, steps: int
) -> float:
    """Find the smallest noise multiplier, in steps of 0.001, within a target epsilon.

    Args:
        target_epsilon: > 0, for the whole schedule.
        delta: In (0, 1).
        sampling_rate: ``q`` in (0, 1].
        steps: Steps of the whole schedule, >= 1.

    Raises:
        ConfigError: no noise multiplier up to 10,000 reaches the target.

    Guarantee:
        ``epsilon(result, sampling_rate, steps, delta) <= target_epsilon``.
    """

    def within(units: int) -> bool:
        sigma = units * _SIGMA_STEP
        spent = epsilon(sigma, sampling_rate, steps, delta, interval=_SEARCH_INTERVAL)
        return spent <= target_epsilon

    low, high = round(0.2 / _SIGMA_STEP), round(1.0 / _SIGMA_STEP)
    while not within(high):
        low, high = high, high * 2
        if high * _SIGMA_STEP > 10_000:
            raise ConfigError(
                f"privacy.target_epsilon = {target_epsilon} at delta = {delta} cannot be reached "
                f"with {steps} steps at sampling rate {sampling_rate:.3f}.",
                advice="take fewer rounds or steps, or a larger target epsilon.",
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle) else (middle, high)
    return round(high * _SIGMA_STEP, 6)
