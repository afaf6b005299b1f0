"""Exact figures of a model on scans the researcher holds: public, synthetic or their own."""

from __future__ import annotations

import numpy as np
import torch

from medfed.client.evaluation import scored
from medfed.client.inputs import inputs_for
from medfed.client.scans.scanset import ScanSet
from medfed.common.exact_metrics import Scored
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
        self._inputs, self._scorer = inputs_for(self._network, scans.images, device)

    def score(self, model: Parameters) -> Scored:
        """Give every scan its class probabilities under a model."""
        load_parameters(self._network, model)
        known = len(self._scans) > 0
        classes = scored(self._scorer, self._inputs) if known else np.zeros((0, 2))
        return Scored(self._scans.labels, classes, self._scans.patient)
