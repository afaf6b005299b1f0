"""One site's part of a round: start from the global model, train on own patients, give the update.

With privacy every step goes through ``private_gradients``: patients are drawn by secret coins
at the study's sampling rate, each gives the mean gradient over at most ``scans_per_patient`` of
its scans, clipped and noised. Without privacy it is the ordinary loop over shuffled batches.
Nothing but the update comes out of here: no loss, no norm, no count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medfed.client.noise import Randomness
from medfed.client.private_gradients import PatientBatch, PrivateSteps
from medfed.client.scans.scanset import TRAIN, ScanSet
from medfed.common.networks.build import autocast
from medfed.common.networks.network import Network, loss_per_scan
from medfed.common.networks.parameters import load_parameters, parameters_of
from medfed.common.privacy.mechanism import Mechanism
from medfed.common.study import Site, Study, steps_per_round
from medfed.common.updates import Parameters, subtract

_CHUNK_VALUES = 2_000_000
"""Numbers in one physical batch: a public constant, so that memory tells nothing of the sample."""

_CACHE_BYTES = 2 << 30
"""A fixed front end is computed once per scan while its outputs fit in this."""


@dataclass(frozen=True, repr=False)
class TrainingData:
    """A site's training patients as the network's body takes them. Private.

    Attributes:
        inputs: float32 (scans, ...), the scans or the outputs of the fixed front.
        labels: int64 (scans,).
        scans_of: Patient -> rows of its scans.
        trained: The module that takes ``inputs``: the body where the front is already applied.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    scans_of: tuple[npt.NDArray[np.int64], ...]
    trained: nn.Module


def prepare(network: Network, scans: ScanSet, device: torch.device) -> TrainingData:
    """Choose the training patients and apply the network's fixed front once.

    Args:
        network: On ``device``.
        scans: All scans of the site; the training part is taken.
        device: Where training happens.
    """
    part = scans.part_of(TRAIN)
    images = torch.from_numpy(part.images)
    inputs, trained = apply_front(network, images, device)
    order = np.argsort(part.patient, kind="stable")
    borders = np.cumsum(np.bincount(part.patient, minlength=part.patients))[:-1]
    return TrainingData(
        inputs=inputs.to(device),
        labels=torch.from_numpy(part.labels).to(device),
        scans_of=tuple(np.split(order, borders)),
        trained=trained,
    )


def apply_front(
    network: Network, images: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, nn.Module]:
    """Compute the fixed front once per scan, if there is one and its outputs fit in memory.

    Returns:
        What to feed, and the module to feed it to.
    """
    if network.front is None or not len(images):
        return images, network if network.front is None else network.body
    with torch.no_grad():
        first = network.front(images[:1].to(device))
        if first.numel() * first.element_size() * len(images) > _CACHE_BYTES:
            return images, network
        chunks = torch.split(images, _chunk_rows(first))
        return torch.cat([network.front(c.to(device)).cpu() for c in chunks]), network.body


def _chunk_rows(inputs: torch.Tensor) -> int:
    """Rows of a physical batch, from the shape of one scan only."""
    return max(4, _CHUNK_VALUES // math.prod(inputs.shape[1:]))


def train_round(
    network: Network,
    data: TrainingData,
    start: Parameters,
    *,
    study: Study,
    site: Site,
    mechanism: Mechanism | None,
    randomness: Randomness,
) -> Parameters:
    """Train one round from the global model.

    Args:
        network: The study's network; overwritten.
        data: From ``prepare`` with this network.
        start: The global model.
        study: The study.
        site: This site in the study.
        mechanism: The site's privacy mechanism, or None without privacy.
        randomness: Source of coins, choices and noise. Secret in a deployed site.

    Returns:
        The update, site minus global, float32. With a mechanism and secret randomness it is a
        release whose cost is ``mechanism.steps_per_round`` steps. Without one it is private.
    """
    load_parameters(network, start)
    network.train()
    optimizer = _optimizer(study, data.trained)
    penalty = _penalty(study, data.trained)
    if mechanism is None:
        _train_plainly(data, optimizer, penalty, study, site, randomness)
    else:
        _train_privately(data, optimizer, penalty, study, mechanism, randomness)
    return subtract(parameters_of(network), start)


def _optimizer(study: Study, network: nn.Module) -> torch.optim.Optimizer:
    training = study.training
    if training.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=training.learning_rate)
    return torch.optim.SGD(
        network.parameters(), lr=training.learning_rate, momentum=training.momentum
    )


def _penalty(study: Study, network: nn.Module) -> Callable[[], None] | None:
    """What adds the gradient of ``l1·Σ|w| + l2/2·Σw²``; it depends on no data."""
    l1, l2 = study.training.l1, study.training.l2
    if not (l1 or l2):
        return None
    parameters = [p for p in network.parameters() if p.requires_grad]

    def add() -> None:
        with torch.no_grad():
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.grad.add_(l1 * parameter.sign() + l2 * parameter)

    return add


def _loss(
    study: Study, device: torch.device
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    weights = study.training.class_weights
    if weights is None:
        return loss_per_scan
    public = torch.tensor(weights, dtype=torch.float32, device=device)
    return lambda logits, labels: loss_per_scan(logits, labels, public)


def _train_privately(
    data: TrainingData,
    optimizer: torch.optim.Optimizer,
    penalty: Callable[[], None] | None,
    study: Study,
    mechanism: Mechanism,
    randomness: Randomness,
) -> None:
    device = data.inputs.device
    with PrivateSteps(
        data.trained,
        optimizer,
        loss=_loss(study, device),
        clip_norm=mechanism.clip_norm,
        noise_multiplier=mechanism.noise_multiplier,
        lot=mechanism.lot,
        randomness=randomness,
        scans_per_patient=mechanism.scans_per_patient,
    ) as steps:
        for _ in range(mechanism.steps_per_round):
            sampled = randomness.coins(len(data.scans_of), mechanism.sampling_rate)
            batches = _batches(data, np.flatnonzero(sampled), mechanism, randomness)
            with autocast(device, study.training.precision):
                steps.step(batches, after_noise=penalty)


def _batches(
    data: TrainingData,
    patients: npt.NDArray[np.int64],
    mechanism: Mechanism,
    randomness: Randomness,
) -> Iterator[PatientBatch]:
    """The sampled patients' scans in physical batches that never split a patient."""
    per_batch = max(1, _chunk_rows(data.inputs) // mechanism.scans_per_patient)
    for begin in range(0, len(patients), per_batch):
        chosen = [
            data.scans_of[p][randomness.choose(len(data.scans_of[p]), mechanism.scans_per_patient)]
            for p in patients[begin : begin + per_batch]
        ]
        rows = torch.from_numpy(np.concatenate(chosen)).to(data.inputs.device)
        sizes = torch.tensor([len(scans) for scans in chosen], device=data.inputs.device)
        unit = torch.repeat_interleave(torch.arange(len(chosen), device=sizes.device), sizes)
        yield PatientBatch(data.inputs[rows], data.labels[rows], unit, len(chosen))


def _train_plainly(
    data: TrainingData,
    optimizer: torch.optim.Optimizer,
    penalty: Callable[[], None] | None,
    study: Study,
    site: Site,
    randomness: Randomness,
) -> None:
    device = data.inputs.device
    loss = _loss(study, device)
    for rows in _shuffled_batches(len(data.labels), study, site, randomness):
        chosen = torch.from_numpy(rows).to(device)
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, study.training.precision):
            logits = data.trained(data.inputs[chosen])
            mean_loss = loss(logits, data.labels[chosen]).mean()
        torch.autograd.backward(mean_loss)
        if penalty is not None:
            penalty()
        optimizer.step()


def _shuffled_batches(
    scans: int, study: Study, site: Site, randomness: Randomness
) -> Iterator[npt.NDArray[np.int64]]:
    """Batches of the epochs the study asks for, or of exactly as many steps as it asks for."""
    per_epoch = -(-scans // study.training.batch_size)
    epochs = study.training.local_epochs
    steps = steps_per_round(study, site) if epochs is None else epochs * per_epoch
    for step in range(steps if scans else 0):
        if step % per_epoch == 0:
            order = randomness.permutation(scans)
        begin = step % per_epoch * study.training.batch_size
        yield order[begin : begin + study.training.batch_size]
