"""Build a network by name, and choose where and in which precision it runs.

Everything here is public: names and shapes come from the study. Initial weights are the same
for the same arguments on every machine with the same torch, which is how a simulation and a
deployment can begin from one model.

Example:
    >>> network = build_network("cnn28", channels=1, size=28, classes=2, seed=0)
    >>> sum(weights.numel() for weights in network.parameters())
    22018
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch

from medfed.common.errors import ConfigError
from medfed.common.networks import alexnet, densenet, resnet, scattering, small, tutorial, vgg
from medfed.common.networks.names import check_network
from medfed.common.networks.network import Network

PRECISIONS = ("float32", "bf16")

_BUILDERS: Mapping[str, Callable[..., Network]] = {
    "cnn28": tutorial.cnn28,
    "cnn32": tutorial.cnn32,
    "cnn32-shallow": tutorial.cnn32_shallow,
    "cnn64-binary": tutorial.cnn64_binary,
    "cnn224": tutorial.cnn224,
    "medfed-small": small.medfed_small,
    "scatter-small": scattering.scatter_small,
    "alexnet": alexnet.alexnet,
    "vgg11": vgg.vgg11,
    "resnet18": resnet.resnet18,
    "densenet121": densenet.densenet121,
}


def build_network(name: str, *, channels: int, size: int, classes: int, seed: int) -> Network:
    """Build a network with fresh initial weights.

    Args:
        name: A key of ``names.NETWORKS``.
        channels: Input channels, 1 or 3.
        size: Side of the square input, in pixels.
        classes: Number of classes, at least 2.
        seed: Seed of the initial weights, in ``[0, 2**63)``. Public; it selects no noise.

    Returns:
        The network in training mode, float32, on the CPU.

    Raises:
        ConfigError: As ``names.check_network``.

    Guarantee:
        The weights depend on the arguments only, and the caller's random state on the CPU
        and on every other device is the same afterwards.
    """
    spec = check_network(name, channels=channels, size=size, classes=classes)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA too
        return _BUILDERS[name](channels=channels, size=size, outputs=spec.outputs(classes))


def pick_device(prefer: str = "auto") -> torch.device:
    """Choose the device to train on.

    Args:
        prefer: ``auto`` (CUDA if there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        A device that exists on this machine.

    Raises:
        ConfigError: The name is none of these, or this machine has no such CUDA device.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if prefer == "auto":
        return torch.device("cuda", 0) if found else torch.device("cpu")
    if prefer == "cpu":
        return torch.device("cpu")
    kind, colon, number = prefer.partition(":")
    if kind != "cuda" or (colon and not (number.isascii() and number.isdigit())):
        raise ConfigError(
            f"device: {prefer!r} is unknown; allowed are 'auto', 'cpu', 'cuda' and 'cuda:N'.",
            advice="write 'auto' to take CUDA where there is one and the CPU elsewhere.",
        )
    index = int(number or 0)
    if index >= found:
        raise ConfigError(
            f"device: {prefer!r} is asked for, this machine has {found} usable CUDA device(s).",
            advice="write 'auto' or 'cpu', or install a torch build and driver that see the GPU.",
        )
    return torch.device("cuda", index)


def describe_device(device: torch.device) -> str:
    """Name a device for reports: ``CPU, 2 threads`` or ``CUDA 0, NVIDIA H200, 139 GiB``."""
    if device.type != "cuda":
        threads = torch.get_num_threads()
        return f"{device.type.upper()}, {threads} thread{'' if threads == 1 else 's'}"
    properties = torch.cuda.get_device_properties(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    return f"CUDA {index}, {properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which forward and loss run.

    Args:
        device: Where the network is.
        precision: ``float32``, or ``bf16`` for automatic mixed precision on CUDA.

    Returns:
        A context manager. Weights, losses and fixed fronts stay float32 in both.

    Raises:
        ConfigError: The precision is unknown, or is bf16 on a device that cannot run it.
    """
    if precision not in PRECISIONS:
        raise ConfigError(
            f"precision: {precision!r} is unknown; allowed are 'float32' and 'bf16'.",
            advice="write 'float32', or 'bf16' for faster training on CUDA.",
        )
    if precision == "float32":
        return nullcontext()
    if device.type != "cuda" or not torch.cuda.is_bf16_supported():
        raise ConfigError(
            f"precision: 'bf16' needs a CUDA device that supports it, "
            f"found {describe_device(device)}.",
            advice="write 'float32', or train on a machine with such a GPU.",
        )
    return torch.autocast("cuda", dtype=torch.bfloat16)
