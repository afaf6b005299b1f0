"""One site's part of a round: start from the global model, train on own patients, give the update.

With privacy every step goes through ``private_gradients``: patients are drawn by secret coins
at the study's sampling rate, each gives the mean gradient over at most ``scans_per_patient`` of
its scans, clipped and noised. Without privacy it is the ordinary loop over shuffled batches.
Nothing but the update comes out of here: no loss, no norm, no count.

How long a private step takes and how much memory it needs tell little of the sample: physical
batches have one public size, filled up with zeros, and a step has at least a public number of
them (`batch_plan`), so that nobody sampled costs what a usual sample costs. Not constant: a
sample past four standard deviations takes one more batch; patients with several scans take time
for each pair of their rows, and memory for each patient; numbers beyond 4096, or not finite,
take a slower way. With ``scans_per_patient`` above what patients mostly have, most is padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medfed.client.augmentation import DRAWS_PER_SCAN, augment
from medfed.client.inputs import Inputs, chunk_rows, inputs_for
from medfed.client.noise import Randomness
from medfed.client.private_gradients import PatientBatch, PrivateSteps
from medfed.client.scans.scanset import TRAIN, ScanSet
from medfed.common.networks.build import autocast
from medfed.common.networks.network import Network, loss_per_scan
from medfed.common.networks.parameters import load_parameters, parameters_of
from medfed.common.privacy.mechanism import Mechanism
from medfed.common.study import Site, Study, steps_per_round
from medfed.common.study_scans import Augmentation
from medfed.common.updates import Parameters, subtract

Vary = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Scans and the uniform numbers that decide -> the scans varied."""


@dataclass(frozen=True, repr=False)
class TrainingData:
    """A site's training patients as the network's body takes them. Private.

    Attributes:
        inputs: The scans, or the outputs of the fixed front.
        labels: int64 (scans,).
        scans_of: Patient -> rows of its scans.
        pseudonyms: Patient -> the name that the site's ledger knows them by; empty: no names.
        trained: The module that takes ``inputs``: the body where the front is already applied.
        vary: How scans are varied each time they are drawn; None: not at all.
    """

    inputs: Inputs
    labels: torch.Tensor
    scans_of: tuple[npt.NDArray[np.int64], ...]
    trained: nn.Module
    pseudonyms: tuple[bytes, ...] = ()
    vary: Vary | None = None

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Rows of all scans of the patients that take part, ascending."""
        return np.sort(np.concatenate([np.empty(0, np.int64), *self.scans_of]))

    def only(self, eligible: Collection[bytes] | None) -> TrainingData:
        """The same scans, of some patients only.

        Args:
            eligible: Pseudonyms of those who take part; None: everyone.
        """
        if eligible is None:
            return self
        named = zip(self.pseudonyms, self.scans_of, strict=True)
        return replace(self, scans_of=tuple(rows for name, rows in named if name in eligible))


def prepare(
    network: Network, scans: ScanSet, device: torch.device, *, vary: Vary | None = None
) -> TrainingData:
    """Choose the training patients, and apply the network's fixed front once.

    Args:
        network: On ``device``.
        scans: All scans of the site; the training part is taken.
        device: Where training happens.
        vary: How scans are varied each time they are drawn; None: not at all.
    """
    part = scans.part_of(TRAIN)
    inputs, trained = inputs_for(network, part.images, device, varied=vary is not None)
    order = np.argsort(part.patient, kind="stable")
    borders = np.cumsum(np.bincount(part.patient, minlength=part.patients))[:-1]
    return TrainingData(
        inputs=inputs,
        labels=torch.from_numpy(part.labels).to(device),
        scans_of=tuple(np.split(order, borders)) if part.patients else (),
        trained=trained,
        pseudonyms=part.pseudonyms,
        vary=vary,
    )


def vary_for(study: Study) -> Vary | None:
    """How a study varies its training scans; None: not at all."""
    if study.augmentation is None:
        return None
    scans = study.scans
    black, white = ((value - scans.mean) / scans.std for value in (0.0, 1.0))
    return partial(_vary, how=study.augmentation, black=black, white=white)


def _vary(
    inputs: torch.Tensor, draws: torch.Tensor, *, how: Augmentation, black: float, white: float
) -> torch.Tensor:
    return augment(inputs, how, draws, black=black, white=white)


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


class BatchPlan(NamedTuple):
    """In what physical batches a step is done. Public: a function of the study's numbers.

    Attributes:
        rows: Rows of every physical batch; >= scans_per_patient.
        least: Physical batches of every step, however few patients were sampled; >= 1.
    """

    rows: int
    least: int


def batch_plan(mechanism: Mechanism, shape: tuple[int, ...]) -> BatchPlan:
    """Plan physical batches that hold nearly every sample, with little to spare.

    They have room for the patients expected in a step and four standard deviations more, each
    with ``scans_per_patient`` scans; one step in 30,000 samples more and takes another batch.
    That is for a site with as many patients as it declared.

    Args:
        mechanism: Of the site.
        shape: Of what the network takes of one scan.
    """
    lot, scans = mechanism.lot, mechanism.scans_per_patient
    patients = math.ceil(lot + 4.0 * math.sqrt(lot * (1.0 - mechanism.sampling_rate)))
    most = max(1, chunk_rows(shape) // scans)  # patients in a physical batch
    least = math.ceil(patients / most)
    return BatchPlan(rows=math.ceil(patients / least) * scans, least=least)


def _batches(
    data: TrainingData,
    patients: npt.NDArray[np.int64],
    mechanism: Mechanism,
    randomness: Randomness,
) -> Iterator[PatientBatch]:
    """The sampled patients' scans in physical batches of one size that never split a patient."""
    plan = batch_plan(mechanism, data.inputs.shape)
    chosen: list[npt.NDArray[np.int64]] = []
    done = filled = 0
    for patient in patients:
        scans = data.scans_of[patient]
        scans = scans[randomness.choose(len(scans), mechanism.scans_per_patient)]
        if filled + len(scans) > plan.rows:
            yield _filled_up(data, chosen, plan.rows, randomness)
            chosen, done, filled = [], done + 1, 0
        chosen.append(scans)
        filled += len(scans)
    for rest in [chosen] + [[]] * (plan.least - done - 1):
        yield _filled_up(data, rest, plan.rows, randomness)


def _filled_up(
    data: TrainingData, chosen: list[npt.NDArray[np.int64]], rows: int, randomness: Randomness
) -> PatientBatch:
    """A physical batch of the patients' chosen scans, filled up to ``rows`` with zeros."""
    device = data.inputs.device
    scans = np.concatenate([np.zeros(0, np.int64), *chosen])
    taken = torch.from_numpy(scans).to(device)
    sizes = torch.tensor([len(scans) for scans in chosen], dtype=torch.int64, device=device)
    labels = data.labels.new_zeros(rows)
    labels[: len(scans)] = data.labels[taken]
    inputs = _padded_rows(data.inputs, scans, rows)
    inputs = _varied(data, inputs, randomness)
    inputs[len(scans) :] = 0.0
    unit = torch.repeat_interleave(torch.arange(len(chosen), device=device), sizes)
    return PatientBatch(inputs, labels, unit, len(chosen), padding=rows - len(scans))


def _padded_rows(inputs: Inputs, scans: npt.NDArray[np.int64], rows: int) -> torch.Tensor:
    """As many rows as a batch has, of any content behind the scans'.

    All are read, decrypted and varied, so that the time tells not how many were drawn.
    """
    if not len(inputs):
        return torch.zeros(rows, *inputs.shape, device=inputs.device)
    return inputs.rows(np.concatenate([scans, np.zeros(rows - len(scans), np.int64)]))


def _varied(data: TrainingData, inputs: torch.Tensor, randomness: Randomness) -> torch.Tensor:
    if data.vary is None:
        return inputs
    draws = randomness.uniform(len(inputs) * DRAWS_PER_SCAN).reshape(len(inputs), DRAWS_PER_SCAN)
    return data.vary(inputs, torch.from_numpy(draws))


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
    taking_part = data.rows
    for places in _shuffled_batches(len(taking_part), study, site, randomness):
        chosen = taking_part[places]
        labels = data.labels[torch.from_numpy(chosen).to(device)]
        inputs = _varied(data, data.inputs.rows(chosen), randomness)
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, study.training.precision):
            mean_loss = loss(data.trained(inputs), labels).mean()
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
