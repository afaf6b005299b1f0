"""DenseNet-121 with GroupNorm: each layer reads the maps of all layers before it in its block.

What differs from the paper:

* GroupNorm (32 groups) wherever the paper has BatchNorm, which would mix patients; every
  number of channels that occurs is a multiple of 32;
* the stem follows the input size, as in ``resnet.py``.

Source:
    Huang, Liu, van der Maaten, Weinberger. Densely Connected Convolutional Networks.
    CVPR 2017. https://arxiv.org/abs/1608.06993 (table 1: growth rate 32, bottlenecks of 4
    growth rates, compression 0.5).
    Wu, He. Group Normalization. ECCV 2018. https://arxiv.org/abs/1803.08494.
"""

from __future__ import annotations

import torch
from torch import nn

from medfed.common.networks.layers import group_norm, he_init
from medfed.common.networks.network import Network
from medfed.common.networks.resnet import stem

_GROWTH = 32  # maps that each layer adds
_BLOCKS = (6, 12, 24, 16)  # layers in each block


def densenet121(*, channels: int, size: int, outputs: int) -> Network:
    """Build DenseNet-121 for square scans of at least 28 pixels a side.

    Args:
        channels: Input channels, 1 or 3.
        size: Side of the input, in pixels, at least 28.
        outputs: Number of logits.

    Returns:
        A network without a front; He's initial weights.
    """
    layers = stem(channels, size)
    width = 64
    for index, depth in enumerate(_BLOCKS):
        if index > 0:
            layers.append(_transition(width))
            width //= 2
        layers += [_DenseLayer(width + _GROWTH * step) for step in range(depth)]
        width += _GROWTH * depth
    layers += [group_norm(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Network(nn.Sequential(he_init(nn.Sequential(*layers)), nn.Linear(width, outputs)))


def _transition(channels: int) -> nn.Sequential:
    """Halve the channels and the side between two blocks."""
    return nn.Sequential(
        group_norm(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels // 2, kernel_size=1, bias=False),
        nn.AvgPool2d(2),
    )


class _DenseLayer(nn.Module):
    """Add ``_GROWTH`` maps to those that came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        bottleneck = 4 * _GROWTH
        self.new_maps = nn.Sequential(
            group_norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, bottleneck, kernel_size=1, bias=False),
            group_norm(bottleneck),
            nn.ReLU(),
            nn.Conv2d(bottleneck, _GROWTH, kernel_size=3, padding=1, bias=False),
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the maps that came in, followed by the new ones."""
        return torch.cat([maps, self.new_maps(maps)], dim=1)
