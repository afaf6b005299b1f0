"""``medfed-small``: two convolutions with GroupNorm, for quick runs and overhead measurements.

conv32 - GroupNorm(8) - ReLU - pool - conv64 - GroupNorm(8) - ReLU - pool - dense. From 28
pixels on, the last maps are averaged to 7×7, so the number of parameters stops growing with
the input.

Source:
    Wu, He. Group Normalization. ECCV 2018. https://arxiv.org/abs/1803.08494.
"""

from __future__ import annotations

from torch import nn

from medfed.common.networks.network import Network

_LARGEST_SIDE = 7  # cells a side before the dense layer: what 28×28 gives


def medfed_small(*, channels: int, size: int, outputs: int) -> Network:
    """Build the network for square scans of at least 8 pixels a side.

    Args:
        channels: Input channels, 1 or 3.
        size: Side of the input, in pixels, at least 8.
        outputs: Number of logits.

    Returns:
        A network without a front; PyTorch's default initial weights.
    """
    side = min(_LARGEST_SIDE, size // 4)
    return Network(
        nn.Sequential(
            nn.Conv2d(channels, 32, kernel_size=3, padding=1),
            nn.GroupNorm(8, 32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.GroupNorm(8, 64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(side),
            nn.Flatten(),
            nn.Linear(64 * side * side, outputs),
        )
    )
