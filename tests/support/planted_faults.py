"""Faults of the privacy mechanism, to be planted in the code of a site: an audit must find them.

Each function replaces one component for the duration of a test. Nothing of this is installed,
and the product has no switch that does any of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from medfed.client import private_gradients, training
from medfed.client.noise import KeystreamRandomness
from medfed.client.private_gradients import MARGIN, PatientBatch, PrivateSteps, clipped_sums

Fault = Callable[[pytest.MonkeyPatch], None]
Sums = dict[nn.Parameter, torch.Tensor]


def _noise_times(factor: float) -> Fault:
    class Scaled(PrivateSteps):
        def __init__(self, *args: Any, noise_multiplier: float, **kwargs: Any) -> None:
            super().__init__(*args, noise_multiplier=factor * noise_multiplier, **kwargs)

    return lambda patch: patch.setattr(training, "PrivateSteps", Scaled)


no_noise = _noise_times(0.0)
half_noise = _noise_times(0.5)


def _mean_losses(network: nn.Module, loss: Any, batch: PatientBatch) -> torch.Tensor:
    """The mean loss of each patient, without the padding: ``(units,)``."""
    rows = len(batch.unit)
    losses = loss(network(batch.inputs[:rows]), batch.labels[:rows])
    sums: torch.Tensor = losses.new_zeros(batch.units).index_add(0, batch.unit, losses)
    return sums / torch.bincount(batch.unit, minlength=batch.units)


def _scaled_down(gradients: Sums, clip_norm: float) -> Sums:
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    factor = min(1.0, (1 - MARGIN) * clip_norm / norm) if norm else 1.0
    return {p: g * factor for p, g in gradients.items()}


def clip_the_batch(patch: pytest.MonkeyPatch) -> None:
    """The sum of all patients is clipped, not each of them."""

    def faulty(
        network: nn.Module, loss: Any, batch: PatientBatch, *, clip_norm: float, **how: Any
    ) -> Sums:
        weights = list(network.parameters())
        if not batch.units:
            return {p: torch.zeros_like(p) for p in weights}
        total = _mean_losses(network, loss, batch).sum()
        return _scaled_down(
            dict(zip(weights, torch.autograd.grad(total, weights), strict=True)), clip_norm
        )

    patch.setattr(private_gradients, "clipped_sums", faulty)


def clip_each_tensor(patch: pytest.MonkeyPatch) -> None:
    """Each tensor of a patient's gradient is clipped to the whole clip norm."""

    def faulty(
        network: nn.Module, loss: Any, batch: PatientBatch, *, clip_norm: float, **how: Any
    ) -> Sums:
        weights = list(network.parameters())
        sums = {p: torch.zeros_like(p) for p in weights}
        for one in _mean_losses(network, loss, batch) if batch.units else ():
            gradients = torch.autograd.grad(one, weights, retain_graph=True)
            for p, gradient in zip(weights, gradients, strict=True):
                sums[p] += _scaled_down({p: gradient}, clip_norm)[p]
        return sums

    patch.setattr(private_gradients, "clipped_sums", faulty)


def clip_each_image(patch: pytest.MonkeyPatch) -> None:
    """Each image is clipped by itself, and a patient's images are added up."""

    def faulty(network: nn.Module, loss: Any, batch: PatientBatch, **how: Any) -> Sums:
        rows = len(batch.unit)
        alone = batch._replace(unit=torch.arange(rows, device=batch.unit.device), units=rows)
        return clipped_sums(network, loss, alone, **how)

    patch.setattr(private_gradients, "clipped_sums", faulty)


def sample_twice_as_often(patch: pytest.MonkeyPatch) -> None:
    """Every coin has twice the probability that the accountant was told."""
    honest = KeystreamRandomness.coins

    def faulty(self: KeystreamRandomness, count: int, probability: float) -> npt.NDArray[np.bool_]:
        return honest(self, count, min(1.0, 2.0 * probability))

    patch.setattr(KeystreamRandomness, "coins", faulty)


def shuffle(patch: pytest.MonkeyPatch) -> None:
    """Patients are shuffled once and taken in turn, which is reported as Poisson sampling."""
    orders: dict[int, list[npt.NDArray[np.int64]]] = {}

    def faulty(self: KeystreamRandomness, count: int, probability: float) -> npt.NDArray[np.bool_]:
        waiting = orders.setdefault(id(self), [])
        if not waiting:
            parts = max(1, round(1 / max(probability, 1e-9))) if probability else 1
            waiting += np.array_split(self.permutation(count), parts)
        chosen = np.zeros(count, dtype=np.bool_)
        chosen[waiting.pop()] = probability > 0.0
        return chosen

    patch.setattr(KeystreamRandomness, "coins", faulty)


def sample_a_fixed_number(patch: pytest.MonkeyPatch) -> None:
    """Every step takes the same number of patients."""

    def faulty(self: KeystreamRandomness, count: int, probability: float) -> npt.NDArray[np.bool_]:
        chosen = np.zeros(count, dtype=np.bool_)
        chosen[self.permutation(count)[: round(count * probability)]] = True
        return chosen

    patch.setattr(KeystreamRandomness, "coins", faulty)


def one_quiet_tensor(patch: pytest.MonkeyPatch) -> None:
    """The smallest tensor gets no noise."""
    honest = private_gradients._NoisingOptimizer.add_noise

    def faulty(self: private_gradients._NoisingOptimizer) -> None:
        smallest = min(self.params, key=lambda p: p.numel())
        exact = self._sums.get(smallest, torch.zeros_like(smallest)).clone()
        honest(self)
        smallest.grad = exact.to(smallest.dtype)

    patch.setattr(private_gradients._NoisingOptimizer, "add_noise", faulty)


def lot_of_the_patients_at_hand(patch: pytest.MonkeyPatch) -> None:
    """The divisor is the number of patients sampled, not the public lot."""
    honest = PrivateSteps.step

    def faulty(self: PrivateSteps, batches: Any, after_noise: Any = None) -> None:
        batches = list(batches)
        sampled = sum(batch.units for batch in batches)
        self._optimizer.expected_batch_size = max(1, sampled)
        honest(self, batches, after_noise)

    patch.setattr(PrivateSteps, "step", faulty)


PLANTED: Mapping[str, Fault] = {
    "no noise": no_noise,
    "clipping per batch": clip_the_batch,
    "half the noise": half_noise,
    "twice the sampling rate": sample_twice_as_often,
    "clipping per image": clip_each_image,
}
"""The faults that every audit must find."""
