"""What a sample of a given size can tell: accepted ranges, and lower bounds on epsilon.

Everything here is statistics on public or synthetic numbers. A check that compares an estimate
with its claimed value gets the range in which the estimate of honest code falls but for a
probability of `FALSE_ALARM`; a bound exceeds the truth with no larger probability.

Source:
    Wilson, Hilferty. The Distribution of Chi-Square. PNAS 1931 (quantiles of a variance).
    Dong, Roth, Su. Gaussian Differential Privacy. JRSS B 2022.
    https://arxiv.org/abs/1905.02383 (epsilon and delta of a mu-GDP mechanism).
    Nasr et al. Tight Auditing of Differentially Private Machine Learning. USENIX Security 2023.
    https://arxiv.org/abs/2302.07956 (a lower bound on mu, converted at the delta claimed).
    Steinke, Nasr, Jagielski. Privacy Auditing with One (1) Training Run. NeurIPS 2023.
    https://arxiv.org/abs/2305.08846 (many canaries in one run).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float64]

FALSE_ALARM = 1e-4
"""Probability with which one check fails on honest code; at most."""

ONE_RUN_FALSE_ALARM = 0.05
"""The same for the one-run bound, in theory. At 1e-4 it would say nothing: a mechanism may fail
altogether with probability delta. Honest noise is Gaussian, and its bound stays far below."""

_LARGEST_ONE_RUN = 60.0  # an epsilon that no audit reaches: e^60 guesses
_GUESSED_SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0)  # of the canaries; each is one try


class Range(NamedTuple):
    """What a check accepts: from ``low`` to ``high``, both included."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value lies in it; NaN never does."""
        return self.low <= value <= self.high


def quantile(tail: float) -> float:
    """How many standard deviations a normal number exceeds with probability ``tail``."""
    return -NormalDist().inv_cdf(tail)


def around(expected: float, standard_error: float, false_alarm: float = FALSE_ALARM) -> Range:
    """Accept what is as far from ``expected`` as chance takes a normal estimate, on both sides."""
    reach = quantile(false_alarm / 2) * standard_error
    return Range(expected - reach, expected + reach)


def coins_range(tosses: int, rate: float, false_alarm: float = FALSE_ALARM) -> Range:
    """Accept shares of heads among independent coins, divided by the probability ``rate``.

    A little wider than a normal range, for the skew of a binomial number and its steps of one
    (Cornish, Fisher 1938); with ``rate`` 1 it has no width.
    """
    heads, reach = tosses * rate, quantile(false_alarm / 2)
    width = reach * math.sqrt((1.0 - rate) / heads)
    if rate < 1.0:
        width += (reach**2 + 5.0) / (6.0 * heads)
    return Range(max(0.0, 1.0 - width), 1.0 + width)


def variance_range(count: int, false_alarm: float = FALSE_ALARM) -> Range:
    """Accept variances of normal numbers, divided by the true one.

    Args:
        count: Independent numbers, of known mean, behind the variance; >= 1.
        false_alarm: Probability of a value outside the range, shared by both sides.

    Returns:
        A range around 1 that never holds 0, however few the numbers: no variance at all is
        never chance.

    Example:
        >>> [round(end, 3) for end in variance_range(10_000)]
        [0.946, 1.056]
    """
    part, reach = 2.0 / (9.0 * count), quantile(false_alarm / 2)
    low, high = ((1.0 - part + side * math.sqrt(part)) for side in (-reach, reach))
    return Range(max(low, 1e-3) ** 3, high**3)


def gdp_epsilon(mu: float, delta: float) -> float:
    """Epsilon at ``delta`` of a mechanism that is exactly ``mu``-GDP.

    Args:
        mu: Separation of the two outcomes, in standard deviations of the noise.
        delta: In (0, 1).

    Returns:
        0 where ``mu`` is not positive; infinity where it is infinite.

    Source:
        arXiv:1905.02383, corollary 1: delta(eps) = F(-eps/mu + mu/2) - e^eps F(-eps/mu - mu/2).

    Example:
        >>> round(gdp_epsilon(1.0, 1e-5), 2)
        4.38
    """
    if mu <= 0.0 or math.isinf(mu):
        return max(0.0, mu)
    low, high = 0.0, mu * (mu / 2 + 40.0)  # 40 standard deviations: delta is 0 there
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _gdp_delta(middle, mu) > delta else (low, middle)
    return low


def _gdp_delta(epsilon: float, mu: float) -> float:
    ends = torch.tensor([mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu], dtype=torch.float64)
    first, second = torch.special.log_ndtr(ends).tolist()
    return -math.exp(first) * math.expm1(min(0.0, epsilon + second - first))


def gdp_lower_bound(inside: Floats, outside: Floats, false_alarm: float = FALSE_ALARM) -> float:
    """Bound from below how far canaries that took part stand from those that did not.

    Args:
        inside: Scores of canaries in the training data, shape ``(n,)``, n >= 2.
        outside: Scores of those not in it; normal, being sums of noise only.
        false_alarm: Probability that the bound is too large.

    Returns:
        ``mu``: the least separation of the means over the largest standard deviation of the
        noise, each at half the false alarm. Infinity where there is no noise.
    """
    reach = quantile(false_alarm / 2)
    error = math.sqrt(inside.var(ddof=1) / len(inside) + outside.var(ddof=1) / len(outside))
    apart = float(inside.mean() - outside.mean()) - reach * error
    spread = math.sqrt(outside.var(ddof=1) / variance_range(len(outside) - 1, false_alarm).low)
    if spread == 0.0:
        return math.inf if apart > 0.0 else 0.0
    return max(0.0, apart / spread)


def one_run_lower_bound(
    scores: Floats,
    included: npt.NDArray[np.bool_],
    delta: float,
    false_alarm: float = ONE_RUN_FALSE_ALARM,
) -> float:
    """Bound epsilon from below by guessing who took part, in a single run.

    The highest scores are guessed in, as many of the lowest out, the rest are not guessed; the
    best of several numbers of guesses counts, each at its share of the false alarm.

    Args:
        scores: One per canary, shape ``(canaries,)``.
        included: Whether it took part, by a fair coin each.
        delta: The delta claimed.
        false_alarm: Probability that the bound is too large.

    Source:
        arXiv:2305.08846, theorem 5.2.
    """
    order, best = np.argsort(scores, kind="stable"), 0.0
    for share in _GUESSED_SHARES:
        half = int(len(scores) * share / 2)
        if half:
            right = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())
            tail = false_alarm / len(_GUESSED_SHARES)
            best = max(best, _one_run_epsilon(len(scores), 2 * half, right, delta, tail))
    return best


def _one_run_epsilon(canaries: int, guesses: int, right: int, delta: float, tail: float) -> float:
    """The largest epsilon that so many right guesses rule out."""
    low, high = 0.0, _LARGEST_ONE_RUN
    if _one_run_tail(canaries, guesses, right, 0.0, delta) > tail:
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        ruled_out = _one_run_tail(canaries, guesses, right, middle, delta) <= tail
        low, high = (middle, high) if ruled_out else (low, middle)
    return low


def _one_run_tail(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Most probability that an (epsilon, delta) mechanism allows to so many right guesses."""
    if not right:
        return 1.0
    chance = _binomial(guesses, -math.log1p(math.exp(-epsilon)), -math.log1p(math.exp(epsilon)))
    below = np.cumsum(chance[right - 1 :: -1]) / np.arange(1, right + 1)  # P[v - i <= W < v] / i
    return min(1.0, float(chance[right:].sum() + 2.0 * canaries * delta * below.max()))


def _binomial(count: int, log_chance: float, log_rest: float) -> Floats:
    """Probabilities of 0 to ``count`` successes."""
    k = torch.arange(count + 1, dtype=torch.float64)
    ways = torch.lgamma(torch.tensor(count + 1.0, dtype=torch.float64))
    logs = ways - torch.lgamma(k + 1) - torch.lgamma(count - k + 1)
    probabilities: Floats = (logs + k * log_chance + (count - k) * log_rest).exp().numpy()
    return probabilities
