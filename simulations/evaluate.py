"""Exact figures of a model on scans the researcher holds: public, synthetic or their own."""

from __future__ import annotations

import numpy as np
import torch

from medfed.client.scans.scanset import ScanSet
from medfed.client.training import apply_front
from medfed.common.exact_metrics import Scored
from medfed.common.networks.network import probabilities
from medfed.common.networks.parameters import load_parameters, network_for
from medfed.common.study import Study
from medfed.common.updates import Parameters


class Judge:
    """Scores models on one set of scans; the fixed front of the network runs only once.

    Args:
        study: Names the network.
        scans: What to score. Private to whoever holds them.
        device: Where to compute.
    """

    def __init__(self, study: Study, scans: ScanSet, device: torch.device) -> None:
        self._network = network_for(study).to(device).eval()
        self._scans = scans
        images = torch.from_numpy(scans.images)
        self._inputs, self._scorer = apply_front(self._network, images, device)
        self._device = device

    def score(self, model: Parameters) -> Scored:
        """Give every scan its class probabilities under a model."""
        load_parameters(self._network, model)
        with torch.no_grad():
            parts = [
                probabilities(self._scorer(chunk.to(self._device))).double().cpu().numpy()
                for chunk in torch.split(self._inputs, 256)
            ]
        classes = np.concatenate(parts) if parts else np.zeros((0, 2))
        return Scored(self._scans.labels, classes, self._scans.patient)
