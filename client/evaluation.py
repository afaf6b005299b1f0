"""Score a model on a site's own patients and give the noised histogram that may be paid for.

The exact histogram never leaves this module. The model comes from the server and was made from
private releases; a model that this site trained or adapted without noise is never scored here,
because the histogram's noise hides the patients who are *counted*, not those a model remembers.

The noise protects a counted patient whatever the model is, also one that somebody made to expose
a patient: a patient moves the histogram by a bounded amount, and the model was fixed before.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medfed.client.inputs import Inputs, inputs_for
from medfed.client.noise import Randomness
from medfed.client.scans.scanset import ScanSet
from medfed.common.networks.network import Network, probabilities
from medfed.common.privacy.histogram import GRID, NEGATIVE, POSITIVE, HistogramMechanism, bin_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_CHUNK = 64
"""Scans scored at a time: a public constant."""


def noised_histogram(
    network: Network,
    scans: ScanSet,
    mechanism: HistogramMechanism,
    randomness: Randomness,
    device: torch.device,
) -> Floats:
    """Score the patients of one part and give their histogram with noise on every cell.

    Args:
        network: The model to judge, on ``device``: a private release. Left in evaluation mode.
        scans: The eligible patients of one part, and no others. Private; may be empty.
        mechanism: That part's histogram mechanism of the study.
        randomness: Source of the noise. Secret in a deployed site.
        device: Where to compute.

    Returns:
        float64, ``mechanism.shape``, on the grid. With secret randomness a release whose cost is
        ``mechanism.spend`` for *every* patient of the part, also for one without a usable scan.

    Guarantee:
        Exactly ``exact_histogram(...) + noise`` without rounding. The noise does not depend on
        the scans, nor does the number of draws.
    """
    scores = class_probabilities(network, scans, device)
    exact = exact_histogram(scans.labels, scores, scans.patient, mechanism)
    noise = randomness.normal(exact.size).reshape(exact.shape) * mechanism.noise_std
    noised: Floats = exact + np.rint(noise / GRID) * GRID
    return noised


def class_probabilities(network: Network, scans: ScanSet, device: torch.device) -> Floats:
    """Give every scan its class probabilities, float64 (scans, classes). Private."""
    network.eval()
    inputs, scorer = inputs_for(network, scans.images, device)
    return scored(scorer, inputs)


def scored(scorer: nn.Module, inputs: Inputs) -> Floats:
    """Give what a network's class probabilities are, float64 (scans, classes). Private.

    Args:
        scorer: What takes the inputs, in evaluation mode.
        inputs: Of the scans.

    Guarantee:
        A scan's score does not depend on the others: they go through the network in chunks of
        one size, the last one filled with blank scans. Kernels round differently for another
        number of rows, and so one patient more or less would change the last bits of the others'
        scores, and of a hostile model's more.
    """
    parts = []
    with torch.no_grad():
        for begin in range(0, len(inputs), _CHUNK):
            some = inputs.rows(np.arange(begin, min(begin + _CHUNK, len(inputs))))
            filled = torch.cat([some, some.new_zeros(_CHUNK - len(some), *inputs.shape)])
            parts.append(probabilities(scorer(filled))[: len(some)].double().cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, 0))


def exact_histogram(
    labels: Ints, scores: Floats, patient: Ints, mechanism: HistogramMechanism
) -> Floats:
    """Count patients by class and score, each with total weight 1.

    Args:
        labels: (scans,), class index. Private.
        scores: (scans, classes), class probabilities. Private.
        patient: (scans,), index of the patient. Private.
        mechanism: Which classes, how many bins.

    Returns:
        float64, ``mechanism.shape``, on the grid. Private: it never leaves as it is.

    Guarantee:
        One patient more or fewer moves the result by at most ``mechanism.sensitivity`` in L2
        norm: a patient with k scans gives each 1/k, rounded down to the grid. All of a patient's
        scans count. A scan whose score is NaN or infinite contributes nothing, and its patient
        the rest of its weight. Sums are exact in any order for up to 2^29 patients.
    """
    counts = np.zeros(mechanism.shape)
    if not len(labels):
        return counts
    scans_of = np.bincount(patient)
    weight = np.floor(1.0 / (scans_of * GRID))[patient] * GRID
    for target, histogram in zip(mechanism.targets, counts, strict=True):
        score = scores[:, target]
        usable = np.isfinite(score)
        row = np.where(labels == target, POSITIVE, NEGATIVE)[usable]
        bins = bin_of(score[usable], mechanism.bins)
        np.add.at(histogram, (row, bins), weight[usable])
    return counts
