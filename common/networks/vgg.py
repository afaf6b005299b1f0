"""VGG-11, configuration A: eight 3×3 convolutions in five stages and three dense layers.

What differs from the paper:

* a stage's 2×2 max-pooling is left out once the maps are down to one cell (below 32 pixels);
* the last maps are averaged to at most 7×7, so any input size fits;
* no dropout, and dense layers no wider than what enters them (``layers.py``).

The paper has no normalisation in configuration A, and neither has this; He's initial weights
keep it trainable.

Source:
    Simonyan, Zisserman. Very Deep Convolutional Networks for Large-Scale Image Recognition.
    ICLR 2015. https://arxiv.org/abs/1409.1556 (table 1, column A).
"""

from __future__ import annotations

from torch import nn

from medfed.common.networks.layers import dense_classifier, he_init
from medfed.common.networks.network import Network

_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))  # channels, table 1 column A
_LARGEST_SIDE = 7  # cells a side before the dense layers, as published


def vgg11(*, channels: int, size: int, outputs: int) -> Network:
    """Build VGG-11 for square scans of at least 28 pixels a side.

    Args:
        channels: Input channels, 1 or 3.
        size: Side of the input, in pixels, at least 28.
        outputs: Number of logits.

    Returns:
        A network without a front; He's initial weights.
    """
    layers: list[nn.Module] = []
    side = size
    for stage in _STAGES:
        for width in stage:
            layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU()]
            channels = width
        if side > 1:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    side = min(_LARGEST_SIDE, side)
    layers.append(nn.AdaptiveAvgPool2d(side))
    features = he_init(nn.Sequential(*layers))
    return Network(nn.Sequential(features, dense_classifier(channels, side, outputs)))
