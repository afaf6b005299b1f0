"""White box: who is sampled, as the accountant believes: each patient by a coin in each step.

The noise is turned down until each canary's score is the number of steps in which it took part.
Shuffled batches and batches of fixed size have the right mean and the wrong variance.

Notation, as in the source:
    q   sampling rate
    T   steps of a round

Source:
    Abadi et al. Deep Learning with Differential Privacy. CCS 2016.
    https://arxiv.org/abs/1607.00133 (Poisson sampling: "with probability q").
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from medfed.client.private_gradients import MARGIN
from medfed.simulations.privacy_audit.bounds import Floats, Range, coins_range, variance_range
from medfed.simulations.privacy_audit.result import Check
from medfed.simulations.privacy_audit.subject import CanaryRun, Subject

_FAINT = 1e-6  # a noise multiplier far below one more step
_ENTERED = 4  # steps that a patient is expected to enter, if the most steps allow it
_FEWEST_CANARIES, _MOST_CANARIES = 400, 2000
_MOST_STEPS = 1000  # of one round
_ROUNDS_OF_ONE_STEP = 100


def check_sampling(subject: Subject) -> list[Check]:
    """Check how many steps a patient enters, and how many patients a step takes.

    Guarantee:
        Fails if the sampling rate is another than the accounted one, or if the coins of a
        patient's steps, or of a step's patients, depend on each other.
    """
    rate = subject.mechanism.sampling_rate
    wanted = math.ceil(_ENTERED / rate)
    count = min(_MOST_CANARIES, max(_FEWEST_CANARIES, wanted))
    steps = min(_MOST_STEPS, max(subject.mechanism.steps_per_round, wanted))
    run = subject.canaries(np.ones(count, dtype=np.bool_))
    entered = _entered(run, steps, "all steps")
    if rate == 1.0:
        least = float(entered.min()) / steps
        return [subject.check("sampled / (q N), least patient", 1.0, least, _counted(1.0))]
    taken = [_entered(run, 1, f"step {n}").sum() for n in range(_ROUNDS_OF_ONE_STEP)]
    return [
        subject.check(
            "sampled / (q N)",
            1.0,
            float(entered.mean()) / (steps * rate),
            coins_range(count * steps, rate),
        ),
        _variance(subject, "steps of a patient", entered, steps),
        _variance(subject, "patients of a step", np.array(taken), count),
    ]


def _entered(run: CanaryRun, steps: int, key: str) -> Floats:
    """In how many steps of a round each canary took part: ``(canaries,)``."""
    faint = replace(run.mechanism, noise_multiplier=_FAINT, steps_per_round=steps)
    return run.scores(faint, f"sampling {key}") / (1.0 - MARGIN)


def _counted(value: float) -> Range:
    """Accept a count that is not an estimate, but for the faint noise."""
    return Range(value - 1e-4, value + 1e-4)


def _variance(subject: Subject, over: str, counts: Floats, coins: int) -> Check:
    """Compare the variance of binomial counts, of ``coins`` coins each, with its expectation."""
    rate = subject.mechanism.sampling_rate
    expected = coins * rate * (1.0 - rate)
    excess = (1.0 - 6.0 * rate * (1.0 - rate)) / expected  # kurtosis of a binomial count, minus 3
    worth = max(1, int(2.0 * len(counts) / (2.0 + excess)))  # as many normal numbers tell as much
    found = float(np.square(counts - coins * rate).mean()) / expected
    return subject.check(f"sampling variance, {over}", 1.0, found, variance_range(worth))
