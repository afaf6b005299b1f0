"""Initial weights from a seed, the device, and the precision."""

from __future__ import annotations

import contextlib

import pytest
import torch

from medfed.common.errors import ConfigError
from medfed.common.networks import build
from medfed.common.networks.build import (
    autocast,
    build_network,
    describe_device,
    pick_device,
)
from medfed.common.networks.names import NETWORKS

SMALL = {"channels": 1, "size": 28, "classes": 2}


def weights(seed: int, name: str = "scatter-small") -> torch.Tensor:
    network = build_network(name, seed=seed, **SMALL)
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("name", ["medfed-small", "scatter-small", "resnet18"])
def test_weights_depend_on_the_seed_and_not_on_the_callers_random_state(name: str) -> None:
    torch.manual_seed(1)
    first = weights(seed=7, name=name)
    torch.manual_seed(2)

    assert torch.equal(weights(seed=7, name=name), first)
    assert not torch.equal(weights(seed=8, name=name), first)


def test_the_callers_random_state_is_left_as_it_was() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)

    torch.manual_seed(3)
    build_network("cnn28", seed=0, **SMALL)

    assert torch.equal(torch.rand(4), expected)


def test_cuda_generators_are_not_reseeded(monkeypatch: pytest.MonkeyPatch) -> None:
    reseeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)

    build_network("cnn28", seed=5, **SMALL)

    assert reseeded == []


def test_the_network_is_built_on_the_cpu_in_training_mode() -> None:
    with torch.device("meta"):
        network = build_network("scatter-small", seed=0, **SMALL)

    assert {tensor.device.type for tensor in network.parameters()} == {"cpu"}
    assert {tensor.device.type for tensor in network.buffers()} == {"cpu"}
    assert network.training


def test_every_name_has_a_builder_and_no_builder_lacks_a_name() -> None:
    assert set(build._BUILDERS) == set(NETWORKS)


def test_a_wrong_shape_is_refused_before_anything_is_built() -> None:
    with pytest.raises(ConfigError, match="network 'cnn28': takes"):
        build_network("cnn28", channels=1, size=32, classes=2, seed=0)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("prefer", "device"),
    [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")],
)
def test_the_preferred_device_is_taken_where_it_exists(prefer: str, device: str) -> None:
    assert pick_device(prefer) == torch.device(device)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_auto_takes_the_cpu() -> None:
    assert pick_device() == torch.device("cpu")


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'cuda' is asked for, this machine has 0 usable"):
        pick_device("cuda")


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_beyond_the_last_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'cuda:2' is asked for, this machine has 2 usable"):
        pick_device("cuda:2")


@pytest.mark.parametrize("prefer", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "", "mps"])
def test_an_unknown_device_is_refused_with_what_is_allowed(prefer: str) -> None:
    with pytest.raises(ConfigError, match="allowed are 'auto', 'cpu', 'cuda' and 'cuda:N'"):
        pick_device(prefer)


@pytest.mark.parametrize(("threads", "words"), [(1, "CPU, 1 thread"), (2, "CPU, 2 threads")])
def test_the_cpu_is_described_with_its_threads(
    threads: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)

    assert describe_device(torch.device("cpu")) == words


def test_float32_changes_nothing() -> None:
    with autocast(torch.device("cpu"), "float32") as entered:
        assert entered is None
        assert not torch.is_autocast_enabled("cpu")


def test_bf16_on_the_cpu_is_refused_before_the_context_is_entered() -> None:
    with pytest.raises(ConfigError, match="'bf16' needs a CUDA device .* found CPU"):
        autocast(torch.device("cpu"), "bf16")


def test_bf16_on_cuda_casts_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, torch.dtype]] = []

    def fake(kind: str, dtype: torch.dtype) -> contextlib.nullcontext[None]:
        asked.append((kind, dtype))
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch, "autocast", fake)

    autocast(torch.device("cuda"), "bf16")

    assert asked == [("cuda", torch.bfloat16)]


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="'fp16' is unknown; allowed are 'float32' and 'bf16'"):
        autocast(torch.device("cpu"), "fp16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_on_a_gpu_forward_runs_in_bfloat16_and_the_device_is_named() -> None:
    device = pick_device("cuda")
    network = build_network("scatter-small", seed=0, **SMALL).to(device)

    with autocast(device, "bf16"):
        logits = network(torch.rand(2, 1, 28, 28, device=device))

    assert logits.dtype == torch.bfloat16
    assert describe_device(device).startswith("CUDA 0, ")
