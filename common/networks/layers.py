"""Choices that several published networks share: stem stride, initial weights, dense layers.

The published networks were drawn for 224×224. Their stem (the layers before the first block)
shrinks the input by 4 to 16; on a 28×28 scan nothing would be left. Here the stem's stride
follows the size, as the same papers do for CIFAR-10, and the rest stays as published.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

MEDIUM_SIZE = 64  # from here on a stem shrinks: the residual ones as published, AlexNet's by half
LARGE_SIZE = 128  # from here on AlexNet's stem is the published one too
_WIDEST_DENSE = 4096  # the published width of AlexNet's and VGG's dense layers

M = TypeVar("M", bound=nn.Module)


def he_init(module: M) -> M:
    """Draw the weights of a ReLU network's layers from He's normal distribution.

    Args:
        module: Changed in place: every ``nn.Conv2d`` and ``nn.Linear`` in it gets weights of
            variance ``2 / fan_in`` and biases of 0, so that 20 layers deep the signal is
            neither lost nor blown up. Drawn from torch's CPU generator.

    Returns:
        The same module.

    Source:
        He, Zhang, Ren, Sun. Delving Deep into Rectifiers. ICCV 2015.
        https://arxiv.org/abs/1502.01852 (section 2.2).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm of 32 groups, the paper's default; ``channels`` is a multiple of 32.

    Source:
        Wu, He. Group Normalization. ECCV 2018. https://arxiv.org/abs/1803.08494.
    """
    return nn.GroupNorm(32, channels)


def dense_classifier(channels: int, side: int, outputs: int) -> nn.Sequential:
    """Return AlexNet's and VGG's three dense layers, no wider than what enters them.

    Args:
        channels: Channels of the maps that enter.
        side: Side of those maps, in cells.
        outputs: Number of logits.

    Returns:
        Two hidden layers of ``min(4096, channels · side²)`` with ReLU, and the output layer.
        The papers put dropout between them; here there is none, because the noise of private
        training already regularises and clipped gradients should not carry a second noise.
    """
    features = channels * side * side
    width = min(_WIDEST_DENSE, features)
    hidden = nn.Sequential(
        nn.Flatten(), nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    )
    return nn.Sequential(he_init(hidden), nn.Linear(width, outputs))
