"""AlexNet: five convolutions, two of them normalised, and three dense layers.

What differs from the paper:

* the widths are those of the later single-tower version (64-192-384-256-256), because the
  paper's split over two graphics cards is of no use today;
* GroupNorm (8 groups) stands where the paper normalises over neighbouring channels;
* no dropout, and dense layers no wider than what enters them (``layers.py``);
* the first convolution is the published 11×11 with stride 4 from 128 pixels on, 7×7 with
  stride 2 from 64, and 5×5 with stride 1 below; the last maps are averaged to at most 6×6.

Source:
    Krizhevsky, Sutskever, Hinton. ImageNet Classification with Deep Convolutional Neural
    Networks. NeurIPS 2012. Krizhevsky. One weird trick for parallelizing convolutional neural
    networks. 2014. https://arxiv.org/abs/1404.5997. Wu, He. Group Normalization. ECCV 2018.
    https://arxiv.org/abs/1803.08494.
"""

from __future__ import annotations

from torch import nn

from medfed.common.networks.layers import LARGE_SIZE, MEDIUM_SIZE, dense_classifier, he_init
from medfed.common.networks.network import Network

_LARGEST_SIDE = 6  # cells a side before the dense layers, as published


def alexnet(*, channels: int, size: int, outputs: int) -> Network:
    """Build AlexNet for square scans of at least 28 pixels a side.

    Args:
        channels: Input channels, 1 or 3.
        size: Side of the input, in pixels, at least 28.
        outputs: Number of logits.

    Returns:
        A network without a front; He's initial weights.
    """
    stem, side = _stem(channels, size)
    for _ in range(3):
        side = (side - 3) // 2 + 1  # each of the three overlapping 3×3 poolings with stride 2
    side = min(_LARGEST_SIDE, side)
    features = nn.Sequential(
        stem,
        nn.ReLU(),
        nn.GroupNorm(8, 64),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.GroupNorm(8, 192),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.AdaptiveAvgPool2d(side),
    )
    return Network(nn.Sequential(he_init(features), dense_classifier(256, side, outputs)))


def _stem(channels: int, size: int) -> tuple[nn.Conv2d, int]:
    """Return the first convolution and the side of the maps it gives."""
    if size >= LARGE_SIZE:
        kernel, stride, padding = 11, 4, 2
    elif size >= MEDIUM_SIZE:
        kernel, stride, padding = 7, 2, 3
    else:
        kernel, stride, padding = 5, 1, 2
    side = (size + 2 * padding - kernel) // stride + 1
    return nn.Conv2d(channels, 64, kernel, stride, padding), side
