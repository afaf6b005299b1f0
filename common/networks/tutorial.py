"""The five small CNNs that tutorials on diagnosis from medical images teach.

3×3 convolutions without padding, each followed by ReLU and 2×2 max-pooling unless said, no
normalisation, then dense layers. They are here so that a result from a tutorial can be
repeated with privacy; they are no recommendation. Input size is fixed; channels and classes
are not. Initial weights are PyTorch's defaults.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from medfed.common.networks.network import Network


def cnn28(*, channels: int, size: int, outputs: int) -> Network:
    """Build conv 32-64, dense ``outputs``; taught for 28×28 grey scans, 10 classes."""
    return _plain_cnn(channels, size, convolutions=(32, 64), outputs=outputs)


def cnn32(*, channels: int, size: int, outputs: int) -> Network:
    """Build conv 32-64-64 (no pooling after the last), dense 64; taught for 32×32 colour."""
    return _plain_cnn(
        channels, size, convolutions=(32, 64, 64), pool_last=False, hidden=64, outputs=outputs
    )


def cnn32_shallow(*, channels: int, size: int, outputs: int) -> Network:
    """Build conv 32-64, dense ``outputs``; taught for 32×32 colour scans, 10 classes."""
    return _plain_cnn(channels, size, convolutions=(32, 64), outputs=outputs)


def cnn64_binary(*, channels: int, size: int, outputs: int) -> Network:
    """Build conv 32 and one output for the second of two classes; taught for 64×64 colour."""
    return _plain_cnn(channels, size, convolutions=(32,), outputs=outputs)


def cnn224(*, channels: int, size: int, outputs: int) -> Network:
    """Build conv 32-64-128, dense 128; taught for 224×224 colour scans, 2 classes."""
    return _plain_cnn(channels, size, convolutions=(32, 64, 128), hidden=128, outputs=outputs)


def _plain_cnn(
    channels: int,
    side: int,
    *,
    convolutions: Sequence[int],
    outputs: int,
    hidden: int | None = None,
    pool_last: bool = True,
) -> Network:
    """Stack the convolutions, then at most one hidden dense layer and the output layer."""
    layers: list[nn.Module] = []
    for index, width in enumerate(convolutions):
        layers += [nn.Conv2d(channels, width, kernel_size=3), nn.ReLU()]
        channels, side = width, side - 2
        if pool_last or index < len(convolutions) - 1:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    layers.append(nn.Flatten())
    features = channels * side * side
    if hidden is not None:
        layers += [nn.Linear(features, hidden), nn.ReLU()]
        features = hidden
    layers.append(nn.Linear(features, outputs))
    return Network(nn.Sequential(*layers))
