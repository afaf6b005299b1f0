"""Black box: bound epsilon from below by canaries that are in the training data, or not.

Each canary is a patient whose gradient has a direction of its own; a fair coin decides whether
it is in the data. Then the site trains the study's schedule in its own way, and the part of its
updates in that direction is the canary's score. If those inside can be told from those outside
better than the claimed epsilon allows, the claim is false.

Source:
    Nasr et al. Tight Auditing of Differentially Private Machine Learning. USENIX Security 2023.
    https://arxiv.org/abs/2302.07956 (canaries of one gradient coordinate; the GDP bound).
    Steinke, Nasr, Jagielski. Privacy Auditing with One (1) Training Run. NeurIPS 2023.
    https://arxiv.org/abs/2305.08846 (many canaries in one run).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medfed.client.private_gradients import MARGIN
from medfed.common.privacy.accounting import epsilon
from medfed.simulations.privacy_audit.bounds import (
    Floats,
    Range,
    around,
    gdp_epsilon,
    gdp_lower_bound,
    one_run_lower_bound,
    variance_range,
)
from medfed.simulations.privacy_audit.result import Check
from medfed.simulations.privacy_audit.subject import Subject

_MOST_SAMPLED = 200_000  # canaries expected in all steps together: bounds the time
_MOST_STEPS = 1000


def check_canaries(subject: Subject, canaries: int) -> list[Check]:
    """Plant canaries, train as the study says, and compare what they tell with what is claimed.

    Args:
        subject: The site.
        canaries: How many, about half of them in the data; >= 100. More give tighter bounds.

    Returns:
        Rows on the canaries' signal and noise, and two lower bounds on epsilon beside the claim
        for the steps that were audited: all of the schedule, unless it is very long.

    Guarantee:
        Fails if a lower bound exceeds the claim. The GDP bound holds at the audit's false-alarm
        rate, so it is looser than the usual 95 % one; the one-run bound is a 95 % one.
    """
    claimed = subject.mechanism
    sampled = max(1.0, canaries / 2 * claimed.sampling_rate)
    steps = max(1, min(claimed.steps, _MOST_STEPS, int(_MOST_SAMPLED / sampled)))
    included = subject.patients.random(canaries) < 0.5
    scores = _scores(subject, included, steps)
    inside, outside = scores[included], scores[~included]
    mu = gdp_lower_bound(inside, outside)
    few = int(min(canaries, max(100.0, 0.1 / claimed.delta)))  # more: delta swallows the bound
    one_run = one_run_lower_bound(scores[:few], included[:few], claimed.delta)
    limit = epsilon(claimed.noise_multiplier, claimed.sampling_rate, steps, claimed.delta)
    below = Range(0.0, limit)
    return [
        _signal(subject, inside, outside, steps),
        _noise(subject, outside, steps),
        subject.check("epsilon, GDP bound", limit, gdp_epsilon(mu, claimed.delta), below),
        subject.check("epsilon, one-run bound", limit, one_run, below),
    ]


def _scores(subject: Subject, included: npt.NDArray[np.bool_], steps: int) -> Floats:
    """Each canary's part in the sums of all steps, in clip norms; noise only where it is out."""
    run, per_round = subject.canaries(included), subject.mechanism.steps_per_round
    scores = np.zeros(len(included))
    for first in range(0, steps, per_round):
        count = min(per_round, steps - first)
        part = replace(run.mechanism, steps_per_round=count)
        scores += run.scores(part, f"canaries {first}")
    return scores


def _signal(subject: Subject, inside: Floats, outside: Floats, steps: int) -> Check:
    """Each sampled canary adds one clip norm: no less, or clipping is not per patient."""
    rate, sigma = subject.mechanism.sampling_rate, subject.mechanism.noise_multiplier
    expected = rate * steps * (1.0 - MARGIN)
    noise = steps * sigma**2
    coins = steps * rate * (1.0 - rate)
    error = math.sqrt((noise + coins) / len(inside) + noise / len(outside)) / expected
    found = float(inside.mean() - outside.mean()) / expected
    return subject.check("canaries: signal / (q T S)", 1.0, found, around(1.0, error))


def _noise(subject: Subject, outside: Floats, steps: int) -> Check:
    expected = steps * subject.mechanism.noise_multiplier**2
    found = float(np.square(outside).mean()) / expected
    name = "canaries: noise / (T sigma^2 S^2)"
    return subject.check(name, 1.0, found, variance_range(len(outside)))
