"""Hold a patient's ceiling over studies that are chosen one after the other.

Privacy loss distributions compose mechanisms that were all fixed before the first output. A
study chosen *after* the results of another were seen (with other noise, or longer because the
first went well) is not fixed: the tight composition of what was run in the end may then understate
the loss (Tran et al. 2026, Regehr et al. 2026). So the ceiling is held by a filter, which decides
before each study whether it may still run; the PLD value is what is shown.

The theorem, and what we add to it:

* *One order* (Feldman and Zrnic): fix an order α before the first output. If a new mechanism
  runs only while the sum of Rényi divergences of order α stays within a fixed budget, everything
  together is (α, budget)-RDP, however the mechanisms and their parameters were chosen.
* *Several orders*: reading the guarantee at whichever order turned out best is not covered, for
  which one that is depends on what was seen. We fix five orders, give each its own share of
  delta, and go on while *any* of them is within the budget that makes it (ε, share · δ)-DP.
  For an order α let A be the views at whose end α is still within its budget; views show which,
  because parameters are public. On A the process is the one that α alone would have stopped, so
  P(S ∩ A) <= e^ε Q(S ∩ A) + share · δ for any set S of views. Every view is in some A; cut them
  into disjoint parts and add: P(S) <= e^ε Q(S) + δ. Orders and shares follow from the ceiling
  alone, so they are fixed before the first output.

Source:
    Feldman, Zrnic. Individual Privacy Accounting via a Rényi Filter. NeurIPS 2021.
    https://arxiv.org/abs/2008.11193 (adaptive composition of one fixed order; each individual
    has a filter of their own)
    Canonne, Kamath, Steinke. The Discrete Gaussian for Differential Privacy. NeurIPS 2020.
    https://arxiv.org/abs/2004.00010 (from RDP to epsilon, as dp-accounting does it)
    Tran, Koskela, Räisä, Honkela. f-Differential Privacy Filters: Validity and Approximate
    Solutions. 2026. https://arxiv.org/abs/2602.06756
    Regehr et al. Privacy Filters are Captured by Residues. 2026.
    https://arxiv.org/abs/2602.15815 (why a filter on the exact composition is not sound)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

from medfed.common.privacy.accounting import (
    JointSpend,
    Kind,
    Spend,
    beyond_floating_point,
    check_delta,
    composed_epsilon,
    steps_by_kind,
)

_LARGEST_ORDER = 1024
_PERCENT_OF_DELTA = (40, 20, 15, 15, 10)  # of the five orders, from the highest down
_NEXT_ORDER = 0.8  # each order less 1, over the one before less 1


def _spaced_orders() -> tuple[int, ...]:
    """Whole orders, each about a tenth above the one before.

    Whole, because there the divergence is a finite sum of positive terms.
    """
    orders = [2]
    while orders[-1] < _LARGEST_ORDER:
        orders.append(max(orders[-1] + 1, round(1.1 * orders[-1])))
    return tuple(orders)


_ORDERS = _spaced_orders()


def renyi_epsilon(spends: Sequence[Spend | JointSpend], delta: float) -> float:
    """Epsilon by Rényi accounting at the best order, of runs of steps that were fixed in advance.

    Looser than ``composed_epsilon``, and no filter: see ``held_epsilon``.

    Args:
        spends: In any order; equal ones are counted together.
        delta: In (0, 1).

    Returns:
        An upper bound on epsilon; 0.0 for no steps; infinite where floating point ends, as for
        ``composed_epsilon``.

    Raises:
        ValueError: a number outside its range.

    Example:
        >>> round(renyi_epsilon([Spend(1.0, 0.05, 200)], 1e-4), 2)
        4.6
    """
    check_delta(delta)
    steps = steps_by_kind(spends)
    if not steps:
        return 0.0
    return min(
        _epsilon_at(order, divergence, delta)
        for order, divergence in zip(_ORDERS, _divergences(steps), strict=True)
    )


def held_epsilon(
    spends: Sequence[Spend | JointSpend], *, epsilon_limit: float, delta_limit: float
) -> float:
    """What the filter of a ceiling reads off a history: it holds while this is within the limit.

    Args:
        spends: All that was spent on a patient, in any order.
        epsilon_limit: The ceiling; it chooses the filter's orders. > 0; infinity: none.
        delta_limit: The delta of the ceiling, in (0, 1).

    Returns:
        At least ``renyi_epsilon(spends, delta_limit)``; 0.0 for no steps. It never falls as
        spends are added.

    Raises:
        ValueError: a number outside its range.

    Guarantee:
        If nothing is run that would raise it above ``epsilon_limit``, all that ever ran on the
        patient is (``epsilon_limit``, ``delta_limit``)-differentially private, add-or-remove one
        patient, however each run was chosen from the outputs before.
    """
    check_delta(delta_limit)
    if not epsilon_limit > 0.0:
        raise ValueError(f"epsilon_limit must be > 0, got {epsilon_limit!r}")
    steps = steps_by_kind(spends)
    if not steps:
        return 0.0
    divergences = _divergences(steps)
    return min(
        _epsilon_at(_ORDERS[place], divergences[place], share * delta_limit)
        for place, share in _shares(epsilon_limit, delta_limit)
    )


def fits(
    earlier: Sequence[Spend | JointSpend],
    new: Sequence[Spend | JointSpend],
    *,
    epsilon_limit: float,
    delta_limit: float,
) -> bool:
    """Tell whether a study may still run on a patient under a ceiling.

    It may if (a) the filter holds with it: ``held_epsilon`` of everything is within the limit; or
    (b) it is the patient's first and its exact composition (PLD) is within the limit. Rule (b)
    is for the site whose ceiling is what one study costs: a single study's schedule is fixed
    before its first output, so it is not adaptive.

    Both rules together are sound. Which of them lets the first study in depends on its schedule
    and the ceiling, both fixed before the first output. If it is (a), the filter has held from
    the start. If it is (b) alone, the first study is within the ceiling by itself, and nothing
    that costs anything follows: the filter's reading never falls, so (a) refuses.

    Args:
        earlier: Everything *set aside* for this patient before, whole schedules, whether used or
            not. What a study left unused may be taken out only if rule (a) had let it in: after
            (b), stopping early to buy something else would be a choice made from outputs.
        new: The whole schedule of the study.
        epsilon_limit: The ceiling, > 0; infinity: none.
        delta_limit: The delta of the ceiling, in (0, 1).

    Raises:
        ValueError: a number outside its range.

    Guarantee:
        That of ``held_epsilon``, for a patient of whom every study was let in by this function.
        As readings never fall, a ceiling that the site changes later is held as if it had been
        there from the start, unless it was changed because of what had been released.

    Example:
        >>> study = Spend(1.0, 0.05, 200)  # epsilon 4.00 by PLD, 4.95 by the filter
        >>> fits([], [study], epsilon_limit=4.0, delta_limit=1e-4)
        True
        >>> fits([study], [Spend(1.0, 0.05, 1)], epsilon_limit=4.0, delta_limit=1e-4)
        False
    """
    after = held_epsilon([*earlier, *new], epsilon_limit=epsilon_limit, delta_limit=delta_limit)
    if after <= epsilon_limit:
        return True
    cost = steps_by_kind(new)
    if not cost:
        return True
    if steps_by_kind(earlier):
        return False
    return _composed_once(tuple(sorted(cost.items())), delta_limit) <= epsilon_limit


@lru_cache(maxsize=256)
def _composed_once(steps: tuple[tuple[Kind, int], ...], delta: float) -> float:
    """The PLD value; a site asks it for thousands of patients with the same history."""
    spends = [JointSpend(sigma, rate, count, ids) for (sigma, rate, ids), count in steps]
    return composed_epsilon(spends, delta)


@lru_cache(maxsize=256)
def _shares(epsilon_limit: float, delta_limit: float) -> tuple[tuple[int, float], ...]:
    """The filter's orders, by place in ``_ORDERS``, with their shares of delta.

    The highest is the best one for Gaussian steps without sampling. With sampling the best is
    lower, down to two fifths of it, so the others go down from there.
    """
    places = range(len(_ORDERS))

    def room(place: int) -> float:
        """How much of a divergence that grows as the order does fits below the limit."""
        beside_divergence = _epsilon_at(_ORDERS[place], 1.0, delta_limit) - 1.0
        return (epsilon_limit - beside_divergence) / _ORDERS[place]

    highest = _ORDERS[max(places, key=room)]
    percents: dict[int, int] = {}
    for number, percent in enumerate(_PERCENT_OF_DELTA):
        wanted = 1.0 + (highest - 1) * _NEXT_ORDER**number
        nearest = min(places, key=lambda place: abs(_ORDERS[place] - wanted))
        percents[nearest] = percents.get(nearest, 0) + percent
    return tuple((place, percent / 100) for place, percent in percents.items())


def _divergences(steps: Mapping[Kind, int]) -> list[float]:
    """The Rényi divergence of all steps together, at each of ``_ORDERS``."""
    if beyond_floating_point(steps):
        return [math.inf] * len(_ORDERS)
    rows = [(_one_step(*kind), count) for kind, count in steps.items()]
    return [math.fsum(row[i] * count for row, count in rows) for i in range(len(_ORDERS))]


@lru_cache(maxsize=1024)
def _one_step(noise_multiplier: float, sampling_rate: float, ids: int) -> tuple[float, ...]:
    """The Rényi divergence of one step at each of ``_ORDERS``; 0.1 s the first time."""
    if ids > 1:
        from medfed.common.privacy.several_ids import divergences  # noqa: PLC0415  numpy, rarely

        return divergences(noise_multiplier, sampling_rate, ids, _ORDERS)
    # 1.4 s to import: only who needs an epsilon pays it.
    from dp_accounting import (  # noqa: PLC0415  lazy, see above
        GaussianDpEvent,
        NeighboringRelation,
        PoissonSampledDpEvent,
    )
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415  lazy, see above

    accountant = RdpAccountant(_ORDERS, NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(noise_multiplier)))
    return tuple(max(0.0, float(divergence)) for divergence in accountant.rdp)


def _epsilon_at(order: int, divergence: float, delta: float) -> float:
    """Epsilon that follows from a Rényi divergence of one order."""
    from dp_accounting.rdp import compute_epsilon  # noqa: PLC0415  lazy, see _one_step

    return float(compute_epsilon([order], [divergence], delta)[0])
