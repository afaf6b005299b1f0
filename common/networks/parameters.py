"""Between a network and the plain arrays that travel: initial model, copy out, copy in."""

from __future__ import annotations

import torch
from torch import nn

from medfed.common.networks.build import build_network
from medfed.common.networks.network import Network
from medfed.common.study import Study
from medfed.common.updates import Parameters


def network_for(study: Study, *, seed: int = 0) -> Network:
    """The study's network with its initial weights.

    Args:
        study: Names network, channels, size and classes; its digest chooses the weights.
        seed: Public; another one gives other initial weights.

    Guarantee:
        The same weights wherever it is called with the same study and seed.
    """
    return build_network(
        study.network.name,
        channels=study.scans.channels,
        size=study.scans.size[0],
        classes=study.classes,
        seed=int(study.digest[:12], 16) + seed,
    )


def parameters_of(network: nn.Module) -> Parameters:
    """Copy a network's parameters out, as float32 arrays by name."""
    return {
        name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()
    }


def load_parameters(network: nn.Module, parameters: Parameters) -> None:
    """Copy parameters in; names and shapes must be exactly the network's own.

    Raises:
        RuntimeError: they are not.
    """
    tensors = {name: torch.from_numpy(array) for name, array in parameters.items()}
    network.load_state_dict(tensors)
