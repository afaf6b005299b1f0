"""Epsilon of a DP-SGD schedule, by Google's ``dp-accounting``.

Every epsilon medfed shows comes from here: privacy loss distributions (PLD), pessimistic
rounding, add-or-remove-one patient. The replace-one relation is 1.4 to 2.3 times larger; the
relation is named wherever an epsilon is shown. We have no accountant of our own; what is ours
is the choice of the grid: fine enough for five digits, small enough for a fraction of a second.

Source:
    Koskela, Jälkö, Honkela. Computing Tight Differential Privacy Guarantees Using FFT.
    AISTATS 2020. https://arxiv.org/abs/1906.03049
    Doroshenko et al. Connect the Dots: Tighter Discrete Approximations of Privacy Loss
    Distributions. PoPETs 2022. https://arxiv.org/abs/2207.04380
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from medfed.common.errors import ConfigError

NEIGHBOURS = "add-or-remove one patient"
"""The neighbouring relation of every epsilon in medfed."""

Kind = tuple[float, float, int]
"""Noise multiplier and sampling rate of a step, and under how many ids one person is in it."""

_STEPS_PER_SIGMA = 1000
_SMALLEST_SEARCHED, _LARGEST_SEARCHED = 200, 10_000_000  # noise multipliers 0.2 and 10,000
_WEAKEST_NOISE = 1e-2
_MOST_STEPS = 10_000_000
_BLOCK_STEPS = 10_000


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


class JointSpend(NamedTuple):
    """A run of such steps that one person was in under several ids. Public but ``ids``.

    Each id was drawn by a coin of its own and clipped by itself: record numbers that were merged
    later. Two ids lose *more* in one step together than in two steps one after the other, for
    both may push the sum the same way (``several_ids.py``).

    Attributes:
        noise_multiplier: ``sigma / S``, > 0; S bounds one id.
        sampling_rate: ``q`` in (0, 1], of one id.
        steps: Number of steps, >= 0.
        ids: 1 to 1000.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int
    ids: int


def composed_epsilon(
    spends: Sequence[Spend | JointSpend], delta: float, *, interval: float | None = None
) -> float:
    """Epsilon of several runs of steps on the same patients.

    Args:
        spends: In any order; equal ones are counted together.
        delta: In (0, 1).
        interval: Discretisation of the privacy loss; coarser is faster and looser. None: chosen
            from the spends, within 0.1 % of the limit of ever finer grids.

    Returns:
        An upper bound (pessimistic estimate) on epsilon at ``delta``; 0.0 for no steps. Infinity
        below a noise multiplier of 0.01 and above 10,000,000 steps, where floating point ends.

    Raises:
        ValueError: a number outside its range.

    Example:
        >>> half = Spend(1.0, 0.05, 100)
        >>> round(composed_epsilon([half, half], 1e-4), 2)
        4.0
    """
    check_delta(delta)
    steps = steps_by_kind(spends)
    if not steps:
        return 0.0
    if beyond_floating_point(steps):
        return math.inf
    grid = _interval_for(steps) if interval is None else interval
    first, *others = (compose_equal(_one_step(*kind, grid), steps[kind]) for kind in sorted(steps))
    for other in others:
        first = first.compose(other)
    return float(first.get_epsilon_for_delta(delta))


def check_delta(delta: float) -> None:
    """Raise a ``ValueError`` unless ``delta`` is in (0, 1)."""
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta must be in (0, 1), got {delta!r}")


def steps_by_kind(spends: Sequence[Spend | JointSpend]) -> dict[Kind, int]:
    """Count the steps of each kind; kinds without a step are left out.

    Raises:
        ValueError: a spend is no run of Poisson-sampled Gaussian steps.
    """
    steps: dict[Kind, int] = {}
    for spend in spends:
        sigma, rate, count = spend[:3]
        ids = spend.ids if isinstance(spend, JointSpend) else 1
        if not (math.isfinite(sigma) and sigma > 0.0 and 0.0 < rate <= 1.0 and count >= 0):
            raise ValueError(f"not a run of Poisson-sampled Gaussian steps: {spend}")
        if not 1 <= ids <= 1000:
            raise ValueError(f"ids must be 1 to 1000: {spend}")
        if count:
            steps[sigma, rate, ids] = steps.get((sigma, rate, ids), 0) + count
    return steps


def beyond_floating_point(steps: Mapping[Kind, int]) -> bool:
    """Tell whether an epsilon of these steps, >= 1 in all, cannot be computed: it is infinite."""
    weakest = min(sigma / ids for sigma, _, ids in steps)
    return weakest < _WEAKEST_NOISE or sum(steps.values()) > _MOST_STEPS


@lru_cache(maxsize=64)
def _one_step(noise_multiplier: float, sampling_rate: float, ids: int, interval: float) -> Any:
    """The privacy loss distribution of one step; a ledger asks for the same one every round."""
    if ids > 1:
        from medfed.common.privacy.several_ids import loss_of_step  # noqa: PLC0415  numpy, rarely

        return loss_of_step(noise_multiplier, sampling_rate, ids, interval)
    # 1.4 s to import: only who needs an epsilon pays it.
    from dp_accounting import NeighboringRelation  # noqa: PLC0415  lazy, see above
    from dp_accounting.pld import privacy_loss_distribution  # noqa: PLC0415  lazy, see above

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=sampling_rate,
        value_discretization_interval=interval,
        pessimistic_estimate=True,
        use_connect_dots=True,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


def compose_equal(step: Any, count: int) -> Any:
    """Compose equal steps, in blocks: beyond a block the library's time grows with the count.

    Args:
        step: A ``PrivacyLossDistribution`` of ``dp_accounting.pld``.
        count: Of steps, >= 1.
    """
    if count <= _BLOCK_STEPS:
        return step.self_compose(count)
    blocks, rest = divmod(count, _BLOCK_STEPS)
    whole = compose_equal(step.self_compose(_BLOCK_STEPS), blocks)
    return whole.compose(step.self_compose(rest)) if rest else whole


def _interval_for(steps: Mapping[Kind, int]) -> float:
    """Choose the grid: 3 % of a step's typical loss, but not too many points for any step.

    A power of two, so that a coarse grid's points lie on the finer ones; at most 8, above which
    the library overflows.
    """
    together = [
        (sigma / ids, min(1.0, rate * ids), count) for (sigma, rate, ids), count in steps.items()
    ]
    fine = min(0.03 * rate / sigma for sigma, rate, _ in together)
    few_points = max(largest_loss(sigma, rate) / 50_000 for sigma, rate, _ in together)
    short_sum = max(
        20.0 * math.sqrt(count) * min(largest_loss(sigma, rate), _spread(sigma, rate)) / 1e6
        for sigma, rate, count in together
    )
    wanted = min(8.0, max(fine, few_points, short_sum, 1e-8))
    return float(2.0 ** math.floor(math.log2(wanted)))


def largest_loss(sigma: float, rate: float) -> float:
    """The loss of one step at a noise of ten standard deviations: ``log(1 + q (e^u - 1))``."""
    unsampled = 0.5 / sigma**2 + 10.0 / sigma
    if unsampled > 50.0:  # e^u would swamp the 1
        return max(unsampled + math.log(rate), 1.0)
    return math.log1p(rate * math.expm1(unsampled))


def _spread(sigma: float, rate: float) -> float:
    """About the standard deviation of one step's loss: ``q sqrt(e^(1/sigma^2) - 1)``."""
    return rate * math.sqrt(math.expm1(min(700.0, sigma**-2)))


def epsilon(
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    delta: float,
    *,
    interval: float | None = None,
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
    """Find the smallest noise multiplier, in steps of 0.001 above 0.2, within a target epsilon.

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

    def epsilon_at(thousandths: int) -> float:
        return epsilon(thousandths / _STEPS_PER_SIGMA, sampling_rate, steps, delta)

    low, high = _SMALLEST_SEARCHED, _STEPS_PER_SIGMA
    at_low, at_high = math.inf, epsilon_at(high)
    while at_high > target_epsilon:
        if high == _LARGEST_SEARCHED:
            raise ConfigError(
                f"privacy.target_epsilon = {target_epsilon} at delta = {delta} cannot be reached "
                f"with {steps} steps at sampling rate {sampling_rate:.3g}.",
                advice="take fewer rounds or steps, or a larger target epsilon.",
            )
        low, at_low, high = high, at_high, min(high * 2, _LARGEST_SEARCHED)
        at_high = epsilon_at(high)
    halve = False
    while high - low > 1:
        line = None if halve else _crossing(low, at_low, high, at_high, target_epsilon)
        middle = (low + high) // 2 if line is None else min(max(line, low + 1), high - 1)
        at_middle = epsilon_at(middle)
        if at_middle <= target_epsilon:
            high, at_high = middle, at_middle
        else:
            low, at_low = middle, at_middle
        halve = not halve and high - low > 8
    return high / _STEPS_PER_SIGMA


def _crossing(low: int, at_low: float, high: int, at_high: float, target: float) -> int | None:
    """Where a straight line through two points, in logarithms, meets the target; None: no line."""
    if not (math.isfinite(at_low) and at_low > at_high > 0.0):
        return None
    part = math.log(at_low / target) / math.log(at_low / at_high)
    return math.ceil(low * math.exp(part * math.log(high / low)))
