"""What a network's trained part is fed with, per scan: held in memory, or read as it is asked for.

A fixed front end is computed once per scan; so is decryption of the cache, as long as the result
fits in memory. Training that varies its scans anew at each draw can use neither front nor result.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medfed.client.scans.scanset import Pictures
from medfed.common.networks.network import Network

HELD_BYTES: Final = 2 << 30
"""Most that is held in memory for the scans of one part."""
_CHUNK_VALUES: Final = 2_000_000
"""Most numbers of one physical batch, but for a patient alone; public."""


class Inputs:
    """What is fed to the trained part of a network, by scan. Private but for its shape.

    Args:
        source: One input per scan: pictures, or what the fixed front gives for them.
        device: Where they are needed.

    Attributes:
        device: Where batches lie.
    """

    def __init__(self, source: Pictures | torch.Tensor, device: torch.device) -> None:
        self.device = device
        self._source: Pictures | torch.Tensor = source
        if isinstance(source, np.ndarray):
            self._source = torch.from_numpy(source).to(device)
        elif isinstance(source, torch.Tensor):
            self._source = source.to(device)
        elif _bytes(source.shape) <= HELD_BYTES:
            self._source = torch.from_numpy(source[np.arange(len(source))]).to(device)

    def __len__(self) -> int:
        """Number of scans. Private."""
        return len(self._source)

    def __repr__(self) -> str:
        return f"Inputs(shape={self.shape})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input. Public: it follows from the study."""
        return tuple(self._source.shape[1:])

    def rows(self, scans: npt.NDArray[np.int64]) -> torch.Tensor:
        """Give the inputs of some scans, in this order: ``(scans, ...)``, float32, on the device.

        Raises:
            DamagedRecordsError: the cache was damaged since it was opened.
        """
        if isinstance(self._source, torch.Tensor):
            return self._source[torch.from_numpy(scans).to(self.device)]
        return torch.from_numpy(self._source[scans]).to(self.device)


def inputs_for(
    network: Network, images: Pictures, device: torch.device, *, varied: bool = False
) -> tuple[Inputs, nn.Module]:
    """Compute the fixed front once per scan, if there is one and its outputs fit in memory.

    Args:
        network: On ``device``.
        images: Of the scans. Private.
        device: Where to compute.
        varied: The pictures are varied before each use, so the front cannot be computed before.

    Returns:
        What to feed, and the module to feed it to.
    """
    if network.front is None or varied:
        return Inputs(images, device), network
    with torch.no_grad():
        blank = torch.zeros(1, *images.shape[1:], device=device)
        first = network.front(blank)
        if len(images) * first.numel() * first.element_size() > HELD_BYTES:
            return Inputs(images, device), network
        chunks = [first[:0].cpu()]  # of the shape that the body takes, where there is no scan
        step = chunk_rows(tuple(first.shape[1:]))
        for begin in range(0, len(images), step):
            some = np.arange(begin, min(begin + step, len(images)))
            chunks.append(network.front(torch.from_numpy(images[some]).to(device)).cpu())
    return Inputs(torch.cat(chunks), device), network.body


def chunk_rows(shape: tuple[int, ...]) -> int:
    """Rows of a physical batch, from the shape of one input only."""
    return max(4, _CHUNK_VALUES // math.prod(shape))


def _bytes(shape: tuple[int, ...]) -> int:
    return 4 * math.prod(shape)
