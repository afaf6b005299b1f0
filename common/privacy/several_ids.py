"""What one step costs a person who is in it under several ids.

A hospital may find out later that two record numbers were one person. Until then each was drawn
by a coin of its own and clipped by itself, so that the person moved the sum by as much as two
clip norms where both coins fell on heads. That is a mixture of Gaussians:

    without the person   N(0, σ²)
    with them            the sum over j of P(j of k ids are drawn) · N(j, σ²)

Composing the ids' own costs, as for two steps one after the other, would claim too little: at
σ = 1, q = 0.05 and 200 steps one id has ε = 4.0, two steps for each give 5.7, and two ids in the
same steps really have 9.2 (δ = 1e-4).

The mixture on a line, all contributions in one direction and of full length, is the worst case
of vectors of any direction: it dominates them, so its divergences bound theirs and compose.

Source:
    Choquette-Choo, Ganesh, Steinke, Thakurta. Privacy Amplification for Matrix Mechanisms. ICLR
    2024. https://arxiv.org/abs/2310.15526 (mixture of Gaussians mechanisms, and that vectors are
    dominated by their norms)
    Charles et al. Fine-Tuning Large Language Models with User-Level Differential Privacy. 2024.
    https://arxiv.org/abs/2407.07737 (examples sampled one by one, accounted for their owner)
    Trefethen, Weideman. The Exponentially Convergent Trapezoidal Rule. SIAM Review 56, 2014.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_TAIL: Final = 12.0  # standard deviations; beyond them lies less than 1e-32
_REVERSE_TAIL: Final = 80.0
_STEPS_FORWARD, _STEPS_REVERSE = 8, 64
_ROUNDED_UP: Final = (1.0 + 1e-9, 1e-12)  # more than floating point may have lost


def chances_of(ids: int, rate: float) -> list[float]:
    """The probability that 0, 1 ... all of a person's ids are in a step; they add up to 1.

    Up to 1000 ids, what underflows here is below 1e-24.
    """
    chances = [math.comb(ids, i) * (rate**i * (1.0 - rate) ** (ids - i)) for i in range(ids + 1)]
    whole = math.fsum(chances)
    return [chance / whole for chance in chances]


def loss_of_step(noise_multiplier: float, sampling_rate: float, ids: int, interval: float) -> Any:
    """The privacy loss distribution of one step, in both directions.

    Args:
        noise_multiplier: ``σ / S``, > 0.
        sampling_rate: In (0, 1].
        ids: Of one person, each in the step by itself; 1 to 1000.
        interval: Discretisation of the loss.

    Returns:
        A ``PrivacyLossDistribution`` of ``dp_accounting.pld``, pessimistic.
    """
    # 1.4 s to import: only who needs an epsilon pays it.
    from dp_accounting.pld import privacy_loss_distribution  # noqa: PLC0415  lazy, see above

    return privacy_loss_distribution.from_mixture_gaussian_mechanism(
        noise_multiplier,
        sensitivities=list(range(ids + 1)),
        sampling_probs=chances_of(ids, sampling_rate),
        pessimistic_estimate=True,
        value_discretization_interval=interval,
        use_connect_dots=True,
    )


def divergences(
    noise_multiplier: float, sampling_rate: float, ids: int, orders: Sequence[int]
) -> tuple[float, ...]:
    """The Rényi divergence of one step at some orders, the larger of both directions.

    Args:
        noise_multiplier: ``σ / S``, > 0.
        sampling_rate: In (0, 1].
        ids: Of one person, each in the step by itself; >= 1.
        orders: Whole numbers >= 2. Whole, because the divergence of the mixture from the noise is
            then an integral of a function without singularities.

    Guarantee:
        Each result is an upper bound: the trapezoidal rule errs by less than 1e-12 of the
        integrals (they are analytic in a strip around the real line), and is rounded up by more.

    Example:
        >>> [round(d, 4) for d in divergences(2.0, 1.0, 2, [2, 3])]  # Gaussian: α k² / 2σ²
        [1.0, 1.5]
    """
    if sampling_rate == 1.0:
        return tuple(order * ids**2 / (2.0 * noise_multiplier**2) for order in orders)
    chances = np.log(np.maximum(chances_of(ids, sampling_rate), 1e-300))
    return tuple(_larger(noise_multiplier, chances, order) for order in orders)


def _larger(sigma: float, chances: NDArray[np.float64], order: int) -> float:
    """The larger of both directions at one order, in units in which the noise is standard."""
    ids = len(chances) - 1
    far = order * ids / sigma + _TAIL
    with_them = _log_mean(sigma, chances, order, (-_TAIL, far), 1.0 / _STEPS_FORWARD)
    # The likelihood ratio is at least the chance that nobody was drawn: so far can it matter.
    near = math.sqrt(2.0 * (order - 1) * -float(chances[0]) + _REVERSE_TAIL)
    step = min(1.0, sigma) / _STEPS_REVERSE
    without = _log_mean(sigma, chances, 1 - order, (-min(far, near), _TAIL), step)
    factor, more = _ROUNDED_UP
    return max(with_them, without, 0.0) / (order - 1) * factor + more


def _log_mean(
    sigma: float,
    chances: NDArray[np.float64],
    power: int,
    ends: tuple[float, float],
    step: float,
) -> float:
    """The logarithm of the mean of a power of the likelihood ratio under the noise alone."""
    x = np.arange(ends[0], ends[1] + step, step)
    shifts = np.arange(len(chances)) / sigma
    log_ratio = np.full_like(x, -np.inf)
    for chance, shift in zip(chances, shifts, strict=True):
        np.logaddexp(log_ratio, chance + shift * x - 0.5 * shift**2, out=log_ratio)
    logs = power * log_ratio - 0.5 * x**2
    highest = float(logs.max())
    total = float(np.exp(logs - highest).sum())
    return highest + math.log(total * step) - 0.5 * math.log(2.0 * math.pi)
