"""Parameter counts and shapes of the named networks, against the papers and hand-worked sums."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medfed.common.networks.alexnet import alexnet
from medfed.common.networks.build import build_network
from medfed.common.networks.names import NETWORKS
from medfed.common.networks.network import Network
from medfed.common.networks.resnet import stem


def parameters_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def shapes_of(network: Network, size: int, channels: int = 1) -> list[tuple[int, ...]]:
    """Return the shape of every layer's output for one scan, without the scan axis."""
    shapes: list[tuple[int, ...]] = []
    for layer in network.body.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    network(torch.rand(1, channels, size, size))
    return shapes


@pytest.mark.parametrize(
    ("name", "channels", "classes", "expected"),
    [
        # conv: 9·in·out + out. 28 → 26 → 13 → 11 → 5: 320 + 18,496 + 64·25·10 + 10
        ("cnn28", 1, 10, 34_826),
        # 896 + 18,496 + 1600·3 + 3
        ("cnn28", 3, 3, 24_195),
        # 32 → 30 → 15 → 13 → 6 → 4: 896 + 18,496 + 36,928 + (64·16·64 + 64) + 650
        ("cnn32", 3, 10, 122_570),
        # 32 → 30 → 15 → 13 → 6: 896 + 18,496 + 64·36·10 + 10
        ("cnn32-shallow", 3, 10, 42_442),
        # 64 → 62 → 31: 896 + 32·961 + 1
        ("cnn64-binary", 3, 2, 31_649),
        # 224 → 222 → 111 → 109 → 54 → 52 → 26: 896 + 18,496 + 73,856
        # + (128·676·128 + 128) + 258
        ("cnn224", 3, 2, 11_169_218),
        # (9·32 + 32) + 64 + (9·32·64 + 64) + 128 + 64·49·2 + 2
        ("medfed-small", 1, 2, 25_282),
        # (9·81·32 + 32) + 64 + 32·49·2 + 2
        ("scatter-small", 1, 2, 26_562),
        # (9·83·32 + 32) + 64 + 32·49·3 + 3
        ("scatter-small", 3, 3, 28_707),
        # torchvision's resnet18 with 1000 classes has 11,689,512
        ("resnet18", 3, 1000, 11_689_512),
        # torchvision's densenet121 with 1000 classes has 7,978,856
        ("densenet121", 3, 1000, 7_978_856),
        # torchvision's alexnet has 61,100,840; GroupNorm adds 2·(64 + 192)
        ("alexnet", 3, 1000, 61_100_840 + 512),
    ],
)
def test_parameters_number_as_published_or_worked_by_hand(
    name: str, channels: int, classes: int, expected: int
) -> None:
    size = NETWORKS[name].size
    network = build_network(name, channels=channels, size=size, classes=classes, seed=0)

    assert parameters_of(network) == expected


def test_vgg11_on_small_scans_keeps_its_convolutions_and_shrinks_its_dense_layers() -> None:
    network = build_network("vgg11", channels=3, size=32, classes=10, seed=0)

    # torchvision's vgg11 has 9,220,480 parameters in its convolutions; 512 → 512 → 512 → 10
    assert parameters_of(network) == 9_220_480 + 2 * (512 * 512 + 512) + 5_130


@pytest.mark.parametrize("name", ["medfed-small", "scatter-small", "resnet18", "densenet121"])
def test_parameters_do_not_grow_with_large_inputs(name: str) -> None:
    counts = {
        parameters_of(build_network(name, channels=1, size=size, classes=2, seed=0))
        for size in (128, 224, 512)
    }

    assert len(counts) == 1


@pytest.mark.parametrize(("name", "size", "side"), [("resnet18", 28, 4), ("densenet121", 28, 3)])
def test_small_scans_leave_maps_to_average(name: str, size: int, side: int) -> None:
    shapes = shapes_of(build_network(name, channels=1, size=size, classes=2, seed=0), size)

    # three halvings of 28, rounded up by strides (28, 14, 7, 4) and down by pooling (…, 3)
    assert [shape for shape in shapes if len(shape) == 3][-2][1:] == (side, side)


@pytest.mark.parametrize(("size", "side"), [(28, 28), (63, 63), (64, 16), (127, 32), (224, 56)])
def test_the_stem_shrinks_large_inputs_only(size: int, side: int) -> None:
    maps = nn.Sequential(*stem(1, size))(torch.zeros(1, 1, size, size))

    assert maps.shape == (1, 64, side, side)  # stride 1 below 64 pixels, then 4


@pytest.mark.parametrize(
    ("size", "side"),
    # (size + 2·padding − kernel) // stride + 1: 5×5 / 1, then 7×7 / 2, then 11×11 / 4
    [(28, 28), (63, 63), (64, 32), (127, 64), (128, 31), (224, 55)],
)
def test_the_first_convolution_of_alexnet_follows_the_size(size: int, side: int) -> None:
    with torch.device("meta"):  # shapes only, nothing is computed
        network = alexnet(channels=1, size=size, outputs=2)
        assert shapes_of(network, size)[0] == (64, side, side)


@pytest.mark.parametrize(
    ("size", "cells"),
    # 8 // 4 = 2 and 27 // 4 = 6 cells a side; from 28 pixels on always 7
    [(8, 2), (27, 6), (28, 7), (31, 7), (100, 7)],
)
def test_medfed_small_bounds_its_dense_layer(size: int, cells: int) -> None:
    shapes = shapes_of(
        build_network("medfed-small", channels=1, size=size, classes=2, seed=0), size
    )

    assert shapes[-3:] == [(64, cells, cells), (64 * cells * cells,), (2,)]


def test_medfed_small_averages_nothing_at_28_pixels() -> None:
    network = build_network("medfed-small", channels=1, size=28, classes=2, seed=0)

    shapes = shapes_of(network, 28)

    assert shapes[-4] == shapes[-3] == (64, 7, 7)
