"""ResNet-18 with GroupNorm: four stages of two residual blocks, then an average over the maps.

What differs from the paper:

* GroupNorm (32 groups) wherever the paper has BatchNorm, which would mix patients;
* the stem is the published one, 7×7 with stride 2 and 3×3 max-pooling, from 64 pixels on, and
  below that one 3×3 with stride 1, as the paper has for CIFAR-10.

Source:
    He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016.
    https://arxiv.org/abs/1512.03385 (table 1; section 4.2 for CIFAR-10).
    Wu, He. Group Normalization. ECCV 2018. https://arxiv.org/abs/1803.08494.
"""

from __future__ import annotations

import torch
from torch import nn

from medfed.common.networks.layers import MEDIUM_SIZE, group_norm, he_init
from medfed.common.networks.network import Network

_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels, stride of the first block


def resnet18(*, channels: int, size: int, outputs: int) -> Network:
    """Build ResNet-18 for square scans of at least 28 pixels a side.

    Args:
        channels: Input channels, 1 or 3.
        size: Side of the input, in pixels, at least 28.
        outputs: Number of logits.

    Returns:
        A network without a front; He's initial weights.
    """
    layers = stem(channels, size)
    width = 64
    for wider, stride in _STAGES:
        layers += [_Block(width, wider, stride), _Block(wider, wider, stride=1)]
        width = wider
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Network(nn.Sequential(he_init(nn.Sequential(*layers)), nn.Linear(width, outputs)))


def stem(channels: int, size: int) -> list[nn.Module]:
    """Return the layers before the first block, 64 channels; DenseNet begins with the same."""
    published = size >= MEDIUM_SIZE
    kernel, stride = (7, 2) if published else (3, 1)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 64, kernel, stride, padding=kernel // 2, bias=False),
        group_norm(64),
        nn.ReLU(),
    ]
    if published:
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    return layers


class _Block(nn.Module):
    """Two 3×3 convolutions and the way around them."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            group_norm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            group_norm(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), group_norm(width)
            )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return ``relu(residual + shortcut)``."""
        return torch.relu(self.residual(maps) + self.shortcut(maps))
