"""White box: how much noise a step adds, in every tensor, and whether it is ever the same twice.

A step for which nobody is sampled releases noise only. So the noise is seen here as it leaves,
whatever the generator, the optimizer or the network does with it.

Notation, as in the source:
    S       clip norm
    sigma   noise multiplier: the noise has standard deviation sigma S per coordinate

Source:
    Abadi et al. Deep Learning with Differential Privacy. CCS 2016.
    https://arxiv.org/abs/1607.00133 (algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from medfed.client.noise import Randomness
from medfed.common.networks.parameters import network_for
from medfed.simulations.privacy_audit.bounds import (
    FALSE_ALARM,
    Floats,
    around,
    coins_range,
    variance_range,
)
from medfed.simulations.privacy_audit.result import Check
from medfed.simulations.privacy_audit.subject import Planted, Subject

_VALUES = 200_000  # of noise; the tolerance of a variance is then 1.2 %
_LOT = 3  # a divisor that is no number of patients
_MOST_ROUNDS = 32
_MOST_STEPS = 4  # of a round: enough to see noise that repeats from step to step


def check_noise(subject: Subject) -> list[Check]:
    """Check the noise of rounds in which nobody is sampled, in the study's own network.

    Guarantee:
        Fails if the noise is missing, also in one tensor only; if it has another size than the
        study claims; if it repeats between steps or between rounds.
    """
    network = network_for(subject.study).to(subject.device)
    steps = min(_MOST_STEPS, subject.mechanism.steps_per_round)
    idle = replace(
        subject.mechanism,
        sampling_rate=0.0,
        steps_per_round=steps,
        lot=_LOT,
        scans_per_patient=1,
    )
    size = sum(p.numel() for p in network.parameters())
    rounds = min(_MOST_ROUNDS, max(2, math.ceil(_VALUES / size)))
    nobody = subject.data_of(network, [Planted(subject.scans(1), 0)])  # who is never sampled
    unit = subject.mechanism.noise_multiplier * math.sqrt(steps)
    drawn = [
        {
            name: noise.ravel() / unit
            for name, noise in subject.noised_sum(network, nobody, idle, f"noise {number}").items()
        }
        for number in range(rounds)
    ]
    tensors = [np.concatenate([noises[name] for noises in drawn]) for name in drawn[0]]
    whole = [np.concatenate(list(noises.values())) for noises in drawn]
    return [
        _variance(subject, np.concatenate(whole)),
        _every_tensor(subject, tensors),
        _never_twice(subject, whole),
    ]


def _variance(subject: Subject, noise: Floats) -> Check:
    found = float(np.square(noise).mean())
    return subject.check("noise variance / (sigma S)^2", 1.0, found, variance_range(len(noise)))


def _every_tensor(subject: Subject, tensors: Sequence[Floats]) -> Check:
    """One row for all tensors: the share of them whose noise has the right variance."""
    right = [
        variance_range(len(noise), FALSE_ALARM / len(tensors)).holds(float(np.square(noise).mean()))
        for noise in tensors
    ]
    exact = around(1.0, 0.0)
    return subject.check("tensors with that noise / all", 1.0, sum(right) / len(right), exact)


def _never_twice(subject: Subject, rounds: Sequence[Floats]) -> Check:
    """Correlate each round's noise with the next one's; the strongest counts."""
    strongest = max((float(np.mean(a * b)) for a, b in pairwise(rounds)), key=abs)
    pairs = len(rounds) - 1
    tolerance = around(0.0, 1.0 / math.sqrt(len(rounds[0])), FALSE_ALARM / pairs)
    return subject.check("correlation of two rounds' noise", 0.0, strongest, tolerance)


def check_generator(subject: Subject, name: str, randomness: Randomness) -> list[Check]:
    """Check one generator's normal numbers and coins by themselves."""
    noise, rate = randomness.normal(_VALUES), subject.mechanism.sampling_rate
    heads = float(randomness.coins(_VALUES, rate).mean())
    fourth = around(1.0, math.sqrt(96.0 / _VALUES) / 3.0)  # the fourth moment's variance is 96 / n
    square = np.square(noise)
    return [
        subject.check(f"{name}: variance", 1.0, float(square.mean()), variance_range(_VALUES)),
        subject.check(
            f"{name}: fourth moment / 3", 1.0, float(np.square(square).mean()) / 3.0, fourth
        ),
        subject.check(f"{name}: coins / q", 1.0, heads / rate, coins_range(_VALUES, rate)),
    ]
