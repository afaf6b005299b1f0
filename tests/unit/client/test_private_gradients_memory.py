"""What a step held is gone when it is over: a regression test of a leak of 70 MB per round."""

from __future__ import annotations

import weakref

import torch
from torch import nn

from medfed.client.private_gradients import PatientBatch, clipped_sums
from medfed.common.networks.network import loss_per_scan


def test_no_activation_of_a_batch_outlives_its_sums() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 2)
    )
    kept: list[weakref.ref[torch.Tensor]] = []
    network[1].register_forward_hook(lambda _m, _i, output: kept.append(weakref.ref(output)))
    network[2].register_forward_hook(lambda _m, _i, output: kept.append(weakref.ref(output)))
    batch = PatientBatch(
        torch.rand(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64), torch.arange(6), 6
    )

    clipped_sums(network, loss_per_scan, batch, clip_norm=1.0)

    assert [activation() for activation in kept] == [None, None]
