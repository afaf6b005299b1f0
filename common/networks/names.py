"""The networks a study can name, and what each takes, without importing torch.

A study file is checked on machines and in commands that never train, so the names, the
input shapes and the refusals live here, apart from the layers (``build.py`` and one file
per family). Nothing here is private.

Shapes: a scan is ``channels × size × size``; a network gives one logit per class, except a
*binary* one, which gives one logit for the second class of exactly two.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from medfed.common.errors import ConfigError

DEFAULT_NETWORK = "scatter-small"


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """What one named network takes, and the values it is taught or published with.

    Attributes:
        name: The name a study writes.
        summary: One line for lists and reports.
        size: Default side of the square input, in pixels.
        min_size: Smallest side it takes, in pixels.
        max_size: Largest side it takes, in pixels; None means that it has no limit of its own.
        channels: Default number of input channels.
        classes: Default number of classes.
        binary: True for a network with one output, which tells exactly two classes apart.
        has_front: True if it begins with a fixed transform whose outputs may be cached.
        allowed_channels: Every number of input channels it takes.
    """

    name: str
    summary: str
    size: int
    min_size: int
    max_size: int | None = None
    channels: int = 1
    classes: int = 2
    binary: bool = False
    has_front: bool = False
    allowed_channels: tuple[int, ...] = (1, 3)

    def takes_size(self, size: int) -> bool:
        """Tell whether a square input of ``size`` pixels a side fits."""
        return self.min_size <= size and (self.max_size is None or size <= self.max_size)

    def outputs(self, classes: int) -> int:
        """Return the number of logits for ``classes`` classes: 1 if binary, else one per class."""
        return 1 if self.binary else classes

    def sizes_in_words(self) -> str:
        """Return the sizes it takes, as a message says them: ``exactly 28`` or ``28 or more``."""
        if self.max_size is None:
            return f"{self.min_size} or more"
        if self.max_size == self.min_size:
            return f"exactly {self.min_size}"
        return f"{self.min_size} to {self.max_size}"


def _fixed(name: str, summary: str, size: int, **taught: int | bool) -> NetworkSpec:
    """Describe a network that takes one size only."""
    channels, classes = int(taught["channels"]), int(taught["classes"])
    binary = bool(taught.get("binary", False))
    return NetworkSpec(
        name, summary, size, size, size, channels=channels, classes=classes, binary=binary
    )


_SPECS = (
    _fixed("cnn28", "tutorial CNN, conv 32-64", 28, channels=1, classes=10),
    _fixed("cnn32", "tutorial CNN, conv 32-64-64, dense 64", 32, channels=3, classes=10),
    _fixed("cnn32-shallow", "tutorial CNN, conv 32-64", 32, channels=3, classes=10),
    _fixed(
        "cnn64-binary", "tutorial CNN, conv 32, one output", 64, channels=3, classes=2, binary=True
    ),
    _fixed("cnn224", "tutorial CNN, conv 32-64-128, dense 128", 224, channels=3, classes=2),
    NetworkSpec("medfed-small", "plain CNN with GroupNorm, conv 32-64", size=28, min_size=8),
    NetworkSpec(
        "scatter-small",
        "fixed scattering transform under one convolution",
        size=28,
        min_size=28,
        has_front=True,
    ),
    NetworkSpec("alexnet", "AlexNet without dropout", size=224, min_size=28, channels=3),
    NetworkSpec("vgg11", "VGG-11 (configuration A) without dropout", 224, 28, channels=3),
    NetworkSpec("resnet18", "ResNet-18 with GroupNorm", size=224, min_size=28, channels=3),
    NetworkSpec("densenet121", "DenseNet-121 with GroupNorm", 224, 28, channels=3),
)

NETWORKS: Mapping[str, NetworkSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})


def check_network(name: str, *, channels: int, size: int, classes: int) -> NetworkSpec:
    """Check that a network exists and takes these scans, before anything is built.

    Args:
        name: A key of ``NETWORKS``.
        channels: Input channels of a scan: 1 (grey) or 3 (colour).
        size: Side of the square input, in pixels.
        classes: Number of classes the study tells apart, at least 2.

    Returns:
        The network's description.

    Raises:
        ConfigError: The name is unknown (the message names the closest one and lists all),
            or the network does not take this size, these channels or these classes.

    Example:
        >>> check_network("cnn28", channels=1, size=28, classes=2).outputs(2)
        2
    """
    spec = NETWORKS.get(name)
    if spec is None:
        raise _unknown(name)
    if not spec.takes_size(size):
        others = ", ".join(s.name for s in _SPECS if s.takes_size(size))
        fit = f", or choose a network that takes {size}: {others}" if others else ""
        raise ConfigError(
            f"network {name!r}: takes square inputs of {spec.sizes_in_words()} pixels a side, "
            f"the study has {size}.",
            advice=f"set the study's image size to {spec.size}{fit}.",
        )
    if channels not in spec.allowed_channels:
        allowed = " or ".join(str(count) for count in spec.allowed_channels)
        raise ConfigError(
            f"network {name!r}: takes {allowed} input channels, the study has {channels}.",
            advice="set the study's channels to 1 (grey scans) or 3 (colour scans).",
        )
    _check_classes(spec, classes)
    return spec


def _check_classes(spec: NetworkSpec, classes: int) -> None:
    """Refuse fewer than two classes, and other than two for a binary network."""
    if classes < 2:
        raise ConfigError(
            f"network {spec.name!r}: tells at least 2 classes apart, the study has {classes}.",
            advice="name at least two classes in the study, for example normal and pneumonia.",
        )
    if spec.binary and classes != 2:
        raise ConfigError(
            f"network {spec.name!r}: has one output and tells exactly 2 classes apart, "
            f"the study has {classes}.",
            advice="name two classes in the study, or choose a network with one output per "
            f"class, for example {DEFAULT_NETWORK!r}.",
        )


def _unknown(name: str) -> ConfigError:
    """Word the refusal of an unknown name, with the closest known one."""
    close = difflib.get_close_matches(name.lower().replace("_", "-"), NETWORKS, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return ConfigError(
        f"network {name!r}: unknown.{guess} Known networks: {', '.join(NETWORKS)}.",
        advice=f"write one of these names in the study; the default is {DEFAULT_NETWORK!r}.",
    )
