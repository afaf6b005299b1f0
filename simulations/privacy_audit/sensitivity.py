"""White box: how far one more patient moves the sum of a step, at most and at least.

The patients are planted so that clipping has work to do: their losses are weighted until every
gradient is far longer than the clip norm. Noise is turned down to where it does not show, and
everybody is sampled, so these checks are exact: honest code always passes.

Source:
    Abadi et al. Deep Learning with Differential Privacy. CCS 2016.
    https://arxiv.org/abs/1607.00133 (algorithm 1: each gradient is clipped, then added).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from medfed.client.private_gradients import MARGIN
from medfed.common.networks.network import probabilities
from medfed.common.networks.parameters import network_for, parameters_of
from medfed.simulations.privacy_audit.bounds import Floats, Range
from medfed.simulations.privacy_audit.result import Check
from medfed.simulations.privacy_audit.subject import Planted, Subject

SATURATED = Range(0.99, 1.0 + 1e-6)
"""Of the clip norm. Below it the planted patients would not have tested the bound."""

_FAINT = 1e-12  # a noise multiplier that changes no digit which is looked at
_WEIGHT = 1e4  # of a scan's loss, in clip norms above 1: every planted patient saturates
_STEEPER = 1e3  # how much longer the gradient of the patient against all others is
_LOT = 6  # a divisor that is no number of patients planted below
_MOST_SCANS = 8  # of a patient in a step, here: the time grows with it
_RATE = 1000.0  # how far a sum of norm 1 moves the weights, whose rounding then does not show


def check_sensitivity(subject: Subject) -> list[Check]:
    """Check what one patient can change, with one scan, with many, and against all others.

    Guarantee:
        Fails if a step clips the batch, or each scan, in place of each patient; if it takes
        more scans of a patient than the study allows and adds them up; if a layer's gradient
        does not count in the norm; if a scan that is no number disturbs the sum.
    """
    bench = _Bench(subject)
    heavy = _WEIGHT * max(1.0, subject.mechanism.clip_norm)
    even = (heavy,) * subject.study.classes
    scan = subject.scans(1)
    label, other = bench.least_likely(scan)
    at_most = bench.mechanism.scans_per_patient
    rest = [Planted(subject.scans(1 + i % min(3, at_most)), label) for i in range(4)]
    copies = 2 * at_most + 1  # more than the step may take
    crowd = [Planted(scan, label)] * 8
    steep = tuple(heavy * (_STEEPER if index == other else 1.0) for index in range(len(even)))

    harsh = [Planted(subject.scans(1, contrast), label) for contrast in (1.0, 50.0)]
    one = max(bench.moved(rest, patient, even) for patient in harsh)
    many = bench.moved(rest, Planted(np.repeat(scan, copies, axis=0), label), even)
    against = bench.moved(crowd[:3], Planted(scan, other), steep)
    broken = bench.moved(rest, Planted(scan * np.float32(np.nan), label), even)
    together = float(np.linalg.norm(bench.sum_of(crowd, even)))
    each = together / len(crowd) / (1.0 - MARGIN)
    of_s = "sensitivity / S, "
    return [
        subject.check(f"{of_s}one scan", 1.0, one, SATURATED),
        subject.check(f"{of_s}many scans", 1.0, many, SATURATED),
        subject.check(f"{of_s}against all others", 1.0, against, SATURATED),
        subject.check(f"{of_s}a scan that is no number", 0.0, broken, Range(0.0, 1e-4)),
        subject.check("signal / S of each of 8 patients", 1.0, each, Range(0.99, 1.001)),
    ]


class _Bench:
    """The study's network, and one step of it over all planted patients."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._network = network_for(subject.study).to(subject.device)
        self._start = parameters_of(self._network)
        self._steps = 0
        self.mechanism = replace(
            subject.mechanism,
            noise_multiplier=_FAINT,
            sampling_rate=1.0,
            steps_per_round=1,
            lot=_LOT,
            scans_per_patient=min(_MOST_SCANS, subject.mechanism.scans_per_patient),
        )

    def least_likely(self, scan: npt.NDArray[np.float32]) -> tuple[int, int]:
        """The class that the initial network gives a scan least, and the next one."""
        with torch.no_grad():
            logits = self._network(torch.from_numpy(scan).to(self._subject.device))
        first, second, *_ = probabilities(logits)[0].argsort().tolist()
        return first, second

    def moved(
        self, rest: Sequence[Planted], extra: Planted, class_weights: tuple[float, ...]
    ) -> float:
        """How far one more patient moves the sum, in clip norms."""
        with_extra = self.sum_of([*rest, extra], class_weights)
        return float(np.linalg.norm(with_extra - self.sum_of(rest, class_weights)))

    def sum_of(self, patients: Sequence[Planted], class_weights: tuple[float, ...]) -> Floats:
        """The sum over the patients, nearly without noise, in clip norms; all parameters."""
        self._steps += 1
        sums = self._subject.noised_sum(
            self._network,
            self._subject.data_of(self._network, patients),
            self.mechanism,
            f"sensitivity {self._steps}",
            start=self._start,
            rate=_RATE,
            class_weights=class_weights,
        )
        return np.concatenate([array.ravel() for array in sums.values()])
