"""The names a study can write, what they take, and how a wrong choice is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medfed.common.errors import ConfigError
from medfed.common.networks.names import (
    DEFAULT_NETWORK,
    NETWORKS,
    NetworkSpec,
    check_network,
)

ALL_SPECS = list(NETWORKS.values())


@pytest.mark.parametrize("spec", ALL_SPECS, ids=lambda spec: spec.name)
def test_every_network_takes_the_shape_it_is_taught_with(spec: NetworkSpec) -> None:
    checked = check_network(spec.name, channels=spec.channels, size=spec.size, classes=spec.classes)

    assert checked is spec


@pytest.mark.parametrize("spec", ALL_SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_takes_grey_and_colour_scans(spec: NetworkSpec, channels: int) -> None:
    checked = check_network(spec.name, channels=channels, size=spec.size, classes=2)

    assert checked is spec


def test_the_default_is_a_known_network_for_small_scans() -> None:
    assert check_network(DEFAULT_NETWORK, channels=1, size=28, classes=2).name == "scatter-small"


def test_names_and_checks_need_no_torch() -> None:
    program = "import sys, medfed.common.networks.names; print('torch' in sys.modules)"

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "False"


def test_the_mapping_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        NETWORKS["cnn28"] = ALL_SPECS[1]  # type: ignore[index]  # the refusal is the point


def test_a_binary_network_has_one_output_and_the_others_one_per_class() -> None:
    assert {spec.name: spec.outputs(2) for spec in ALL_SPECS if spec.outputs(2) != 2} == {
        "cnn64-binary": 1
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [("cnn28", "exactly 28"), ("medfed-small", "8 or more"), ("resnet18", "28 or more")],
)
def test_sizes_are_said_in_words(name: str, words: str) -> None:
    assert NETWORKS[name].sizes_in_words() == words


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("resnet-18", "resnet18"),
        ("cnn-28", "cnn28"),
        ("RESNET18", "resnet18"),
        ("Scatter_Small", "scatter-small"),
    ],
)
def test_unknown_name_is_refused_with_the_closest_one(typo: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"network '{typo}': unknown. Did you mean '{meant}'"):
        check_network(typo, channels=1, size=28, classes=2)


def test_unknown_name_like_no_other_is_refused_with_the_whole_list() -> None:
    with pytest.raises(ConfigError) as refusal:
        check_network("transformer", channels=1, size=28, classes=2)

    assert "Did you mean" not in str(refusal.value)
    assert all(name in str(refusal.value) for name in NETWORKS)
    assert "Next step:" in str(refusal.value)


@pytest.mark.parametrize("size", [27, 29, 0, -28])
def test_fixed_network_refuses_another_size(size: int) -> None:
    with pytest.raises(ConfigError, match=rf"'cnn28': takes .* exactly 28 .* has {size}\."):
        check_network("cnn28", channels=1, size=size, classes=2)


def test_refused_size_comes_with_networks_that_take_it() -> None:
    with pytest.raises(ConfigError) as refusal:
        check_network("cnn28", channels=1, size=32, classes=2)

    advice = refusal.value.advice
    assert "set the study's image size to 28" in advice
    assert "cnn32, cnn32-shallow, medfed-small" in advice
    assert "cnn224" not in advice


@pytest.mark.parametrize("spec", ALL_SPECS, ids=lambda spec: spec.name)
def test_one_pixel_below_the_smallest_size_is_refused(spec: NetworkSpec) -> None:
    with pytest.raises(ConfigError, match=spec.sizes_in_words()):
        check_network(spec.name, channels=1, size=spec.min_size - 1, classes=2)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_channels_than_grey_and_colour_are_refused(channels: int) -> None:
    with pytest.raises(ConfigError, match=rf"takes 1 or 3 input channels, .* has {channels}\."):
        check_network("scatter-small", channels=channels, size=28, classes=2)


def test_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 classes apart, the study has 1"):
        check_network("scatter-small", channels=1, size=28, classes=1)


def test_three_classes_are_refused_by_the_binary_network() -> None:
    with pytest.raises(ConfigError, match="exactly 2 classes apart, the study has 3"):
        check_network("cnn64-binary", channels=3, size=64, classes=3)
