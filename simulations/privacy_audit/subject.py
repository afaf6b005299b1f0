"""Run the training code of a site on planted patients, and read the noised sums from its updates.

Everything that is audited goes through ``medfed.client.training``, as in a deployed site; the
audit hands it arguments and looks at what it returns. What acts after the noise (learning rate,
momentum, penalties) cannot weaken privacy, so it is replaced by plain SGD, of which one step is
the noised sum times a known number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medfed.client import training
from medfed.client.inputs import Inputs
from medfed.client.noise import Randomness
from medfed.client.scans.scanset import TRAIN, ScanSet, number_in_order
from medfed.common.networks.network import Network
from medfed.common.networks.parameters import parameters_of
from medfed.common.privacy.mechanism import Mechanism
from medfed.common.study import Site, Study
from medfed.common.updates import Parameters
from medfed.simulations.privacy_audit.bounds import Floats, Range
from medfed.simulations.privacy_audit.result import Check

_CANARY_RATE = 2.0**-80
"""Learning rate of a canary's weight, in clip norms: so small that no step changes the next."""

_CANARY_PULL = 2.0**14
"""A canary's gradient before clipping, twice, in clip norms above 1: it always saturates."""


class Planted(NamedTuple):
    """A synthetic patient.

    Attributes:
        scans: float32, shape ``(scans, channels, size, size)``.
        label: Class index, of all scans.
    """

    scans: npt.NDArray[np.float32]
    label: int


@dataclass(frozen=True)
class Subject:
    """One site of the study that is audited; all of it public.

    Attributes:
        study: The study.
        site: The site whose declared numbers hold.
        mechanism: What the site claims to do; from the study.
        device: Where it trains.
        randomness_for: Makes the generator of a round, from a key that no two rounds share. A
            site's own generator ignores it.
        patients: Generator of synthetic scans and of the canaries' coins.
    """

    study: Study
    site: Site
    mechanism: Mechanism
    device: torch.device
    randomness_for: Callable[[str], Randomness]
    patients: np.random.Generator

    def check(self, name: str, asked: float, measured: float, tolerance: Range) -> Check:
        """Make a row about this site."""
        return Check(name, self.site.name, asked, measured, tolerance)

    def scans(self, count: int, contrast: float = 1.0) -> npt.NDArray[np.float32]:
        """Draw scans of the study's shape: uniform noise, normalised as the study says."""
        how = self.study.scans
        stored = self.patients.random((count, how.channels, *how.size))
        return ((stored - how.mean) / how.std * contrast).astype(np.float32)

    def noised_sum(
        self,
        network: Network,
        data: training.TrainingData,
        mechanism: Mechanism,
        key: str,
        *,
        start: Parameters | None = None,
        rate: float = 1.0,
        class_weights: tuple[float, ...] | None = None,
    ) -> dict[str, Floats]:
        """Train one round; give the noised sum of all its steps, in units of the clip norm.

        Args:
            network: Overwritten.
            data: From ``training.prepare``, or made for a network of canaries.
            mechanism: The site's, or one that differs from it in what is not looked at. Its
                lot sets the size of physical batches, and so the time.
            key: Names the round's randomness.
            start: The global model; None: zeros, from which float32 updates are exact.
            rate: How far a sum of norm 1 moves the weights.
            class_weights: Public factors on the loss, before clipping.
        """
        if start is None:
            start = {name: np.zeros_like(a) for name, a in parameters_of(network).items()}
        update = training.train_round(
            network,
            data,
            start,
            study=self._plain(rate * mechanism.lot / mechanism.clip_norm, class_weights),
            site=self.site,
            mechanism=mechanism,
            randomness=self.randomness_for(f"audit site={self.site.name} {key}"),
        )
        return {name: array.astype(np.float64) / -rate for name, array in update.items()}

    def _plain(self, learning_rate: float, class_weights: tuple[float, ...] | None) -> Study:
        """The study with plain SGD in place of what acts after the noise."""
        changes = {
            "optimizer": "sgd",
            "learning_rate": learning_rate,
            "momentum": 0.0,
            "l1": 0.0,
            "l2": 0.0,
            "class_weights": class_weights,
        }
        schedule = self.study.training.model_copy(update=changes)
        return self.study.model_copy(update={"training": schedule})

    def data_of(self, network: Network, patients: Sequence[Planted]) -> training.TrainingData:
        """Bring planted patients to a network as a site does with those it read."""
        counts = [len(patient.scans) for patient in patients]
        of_scan = np.repeat(np.arange(len(patients)), counts)
        labels = [patient.label for patient in patients]
        scans = ScanSet(
            images=np.concatenate([self.scans(0), *(patient.scans for patient in patients)]),
            labels=np.repeat(np.array(labels, dtype=np.int64), counts),
            patient=number_in_order(of_scan.tolist()),
            part=np.full(len(of_scan), TRAIN, dtype=np.uint8),
            unit="patient",
        )
        return training.prepare(network, scans, self.device)

    def canaries(self, included: npt.NDArray[np.bool_]) -> CanaryRun:
        """Plant canaries: patients of one scan whose gradients have a direction of their own.

        Args:
            included: bool, shape ``(canaries,)``: which are in the training data. The others
                have a direction, too.
        """
        pull = _CANARY_PULL * max(1.0, self.mechanism.clip_norm)
        network = Network(nn.Linear(len(included), 1, bias=False).to(self.device))
        inside = torch.from_numpy(np.flatnonzero(included))
        count = len(inside)
        inputs = torch.zeros(count, len(included))
        inputs[torch.arange(count), inside] = pull
        data = training.TrainingData(
            inputs=Inputs(inputs, self.device),
            labels=torch.zeros(count, dtype=torch.int64, device=self.device),
            scans_of=tuple(np.arange(count).reshape(-1, 1)),
            trained=network.body,
        )
        lot = max(1, math.ceil(count * self.mechanism.sampling_rate))
        fitting = replace(self.mechanism, lot=lot, scans_per_patient=1)
        return CanaryRun(self, fitting, network, data)


@dataclass(frozen=True)
class CanaryRun:
    """Canaries that are planted at a site, ready for rounds.

    Attributes:
        subject: The site.
        mechanism: The site's, with a lot and a number of scans that fit the canaries; what they
            set is the size of physical batches.
        network: A layer with one weight per canary, which starts at zero.
        data: Those of the canaries that are in the training data, with one scan each.
    """

    subject: Subject
    mechanism: Mechanism
    network: Network
    data: training.TrainingData

    def scores(self, mechanism: Mechanism, key: str) -> Floats:
        """Train one round; give each canary's part in the sum, in clip norms: ``(canaries,)``."""
        sums = self.subject.noised_sum(self.network, self.data, mechanism, key, rate=_CANARY_RATE)
        return next(iter(sums.values())).ravel()
