"""Global models made to expose one patient: what an attack found, held by tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from medfed.client.evaluation import class_probabilities, exact_histogram
from medfed.client.exposure import Ceiling
from medfed.client.ledger import Ledger, RoundKey
from medfed.client.private_gradients import PatientBatch, clipped_sums
from medfed.client.scans.scanset import ScanSet
from medfed.common.networks.build import build_network
from medfed.common.networks.network import Network, loss_per_scan
from medfed.common.privacy.accounting import Spend
from medfed.common.privacy.histogram import HistogramMechanism
from medfed.common.privacy.terms import Term, Terms
from tests.support.ledgers import patients

STUDY, CEILING = "d" * 64, (4.0, 1e-4)


def norm_of(sums: dict[nn.Parameter, torch.Tensor]) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for part in sums.values()))


def flat_network(name: str, size: int) -> Network:
    """A network that hands pixel values on unchanged to a last layer of zeros."""
    network = build_network(name, channels=1, size=size, classes=2, seed=0)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.zero_()
                layer.weight[:, 0, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 1
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                layer.bias.zero_()
            if isinstance(layer, nn.Linear):
                layer.weight.zero_()
    return network


@pytest.mark.parametrize("seed", range(8))
def test_two_flat_scans_that_cancel_do_not_hide_a_patients_norm(seed: int) -> None:
    # In float32 the products of 1,600 nearly equal numbers cancelled to nothing: 1.26 S.
    network, generator = flat_network("cnn28", 28), np.random.default_rng(seed)
    worst = 0.0
    for _ in range(20):
        value = np.float32(generator.uniform(0.5, 2.0))
        other = np.float32(value * (1.0 + 10 ** generator.uniform(-3.2, -1.5)))
        scans = torch.stack([torch.full((1, 28, 28), float(v)) for v in (value, other, 0, 0)])
        batch = PatientBatch(scans, torch.tensor([0, 1, 0, 0]), torch.tensor([0, 0]), 1, 2)
        sums = clipped_sums(network, loss_per_scan, batch, clip_norm=1e-3, scans_per_patient=2)
        worst = max(worst, norm_of(sums) / 1e-3)

    assert worst <= 1.0


def product(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A loss whose output gradients are as large as the labels."""
    return (logits[:, 0] * labels).float()


def test_one_patients_large_numbers_shrink_nobody_else() -> None:
    # The whole batch went to units of its own, and everyone's norm grew by a floor: 2.67 S.
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.1)
    others = 400
    scans = torch.full((others + 1, 1, 2, 2), 1e-4)
    scans[:, :, 0, 0], scans[-1] = 4000.0, 5000.0
    labels = torch.full((others + 1,), 1e-9)

    def total(rows: int) -> torch.Tensor:
        batch = PatientBatch(scans[:rows], labels[:rows], torch.arange(rows), rows)
        sums = clipped_sums(network, product, batch, clip_norm=1e-5)
        return torch.cat([part.double().flatten() for part in sums.values()])

    assert float((total(others + 1) - total(others)).norm()) <= 1e-5


@pytest.mark.parametrize("scans", [2, 3, 5, 33, 64, 65, 66])
def test_a_patient_does_not_change_the_scores_of_others(scans: int) -> None:
    # A matrix product rounds otherwise for another number of rows; a hostile model turned the
    # last bit into a score of 0 or 1, and one patient moved the histogram by 2.24 instead of 1.
    generator = np.random.default_rng(scans)
    images = generator.normal(0.5, 0.2, (scans, 1, 28, 28)).astype(np.float32)
    labels, patient = np.zeros(scans, np.int64), np.arange(scans)
    whole = ScanSet(images, labels, patient, np.zeros(scans, np.uint8), "patient")
    network = build_network("medfed-small", channels=1, size=28, classes=2, seed=1)
    mechanism = HistogramMechanism(20, (1,), 1.0, 1, 1e-3)

    less = whole.select(np.arange(1, scans))
    scores, fewer = (class_probabilities(network, s, torch.device("cpu")) for s in (whole, less))

    assert np.array_equal(scores[1:], fewer)
    one, other = (
        exact_histogram(s.labels, p, s.patient, mechanism)
        for s, p in ((whole, scores), (less, fewer))
    )
    assert np.linalg.norm(one - other) <= mechanism.sensitivity


def paying(ledger: Ledger, purpose: str, rounds: range) -> None:
    for number in rounds:
        key = RoundKey(STUDY, "run", number, "b" * 64, purpose)  # type: ignore[arg-type]
        ledger.reserve(key)
        ledger.commit(key, f"{purpose} {number}".encode())


def test_a_patient_who_changes_parts_between_two_approvals_pays_for_both() -> None:
    # What was trained did not count when the same study was approved again: 4.89 of 4.0.
    ledger = ledger_of()
    terms: Terms = {"train": Term(Spend(1.0, 0.05, 20), 10), "test": Term(Spend(1.5, 1.0, 1), 1)}
    ledger.approve(STUDY, "study", terms, {"train": patients("x"), "test": frozenset()})
    paying(ledger, "train", range(1, 10))
    ledger.withdraw(STUDY, "the split was wrong")

    ledger.approve(STUDY, "study", terms, {"train": frozenset(), "test": patients("x")})

    assert ledger.eligible(STUDY, "test") == frozenset()
    assert ledger.epsilon(CEILING[1]) <= CEILING[0]


def test_rounds_at_another_cost_count_when_a_study_is_approved_again() -> None:
    ledger = ledger_of()
    dear, cheap = Term(Spend(1.0, 0.05, 20), 10), Term(Spend(1.0, 0.05, 6), 30)
    ledger.approve(STUDY, "study", {"train": dear}, {"train": patients("x")})
    paying(ledger, "train", range(1, 10))
    ledger.withdraw(STUDY, "another medfed is installed")

    ledger.approve(STUDY, "study", {"train": cheap}, {"train": patients("x")})

    assert ledger.eligible(STUDY, "train") == frozenset()


def ledger_of() -> Ledger:
    return Ledger.in_memory("A", ceiling=Ceiling(*CEILING))
