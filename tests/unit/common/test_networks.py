"""What private training asks of every network, held against each of them.

Per-patient gradients are formed layer by layer from what goes in and comes back, so a layer
of another type, used twice, mixing scans or writing in place would give wrong gradients
without an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional

from medfed.common.networks import build
from medfed.common.networks.build import build_network
from medfed.common.networks.names import NETWORKS
from medfed.common.networks.network import Network, loss_per_scan, probabilities

LAYERS_WITH_PARAMETERS = (nn.Conv2d, nn.Linear, nn.GroupNorm)
LARGEST = ("vgg11", 224)  # 129 million parameters
SMALLEST = [(spec.name, spec.min_size) for spec in NETWORKS.values()]
SIZES = [
    pytest.param(spec.name, size, marks=[pytest.mark.slow] if (spec.name, size) == LARGEST else [])
    for spec in NETWORKS.values()
    for size in sorted({spec.min_size, 28, 32, 64, 224})
    if spec.takes_size(size)
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep threads from waiting for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network_of(name: str, size: int, channels: int = 1, classes: int = 2) -> Network:
    return build_network(name, channels=channels, size=size, classes=classes, seed=0)


def scans_of(count: int, size: int, channels: int = 1) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_outputs_and_every_gradient_are_finite_and_alive(name: str, size: int) -> None:
    network = network_of(name, size)

    logits = network(scans_of(1, size))
    torch.autograd.backward(loss_per_scan(logits, torch.tensor([1])).sum())

    assert logits.shape == (1, NETWORKS[name].outputs(2))
    assert logits.isfinite().all()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    assert sum(float(p.grad.square().sum()) for p in network.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize(("name", "size"), SMALLEST)
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_and_classes_are_free(name: str, size: int, channels: int) -> None:
    classes = 2 if NETWORKS[name].binary else 5

    logits = network_of(name, size, channels, classes)(scans_of(2, size, channels))

    assert logits.shape == (2, NETWORKS[name].outputs(classes))
    assert probabilities(logits).shape == (2, classes)


@pytest.mark.parametrize(("name", "size"), SMALLEST)
def test_parameters_sit_only_in_layers_whose_gradients_split_by_patient(
    name: str, size: int
) -> None:
    network = network_of(name, size)
    for layer in network.modules():
        if list(layer.parameters(recurse=False)):
            assert type(layer) in LAYERS_WITH_PARAMETERS
            assert layer.weight.requires_grad
        if isinstance(layer, nn.Conv2d):
            assert layer.padding_mode == "zeros"
            assert isinstance(layer.padding, tuple)
        assert not isinstance(layer, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd)

    every_mention = [p for _, p in network.named_parameters(remove_duplicate=False)]
    assert len(every_mention) == len({id(p) for p in every_mention})


@pytest.mark.parametrize(("name", "size"), SMALLEST)
def test_each_layer_runs_once_and_nothing_is_written_in_place(name: str, size: int) -> None:
    network = network_of(name, size)
    calls: dict[nn.Module, int] = {}
    seen: list[tuple[torch.Tensor, int]] = []

    def record(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        calls[layer] = calls.get(layer, 0) + 1
        seen.extend((tensor, tensor._version) for tensor in (*inputs, output))
        if isinstance(layer, nn.Linear):
            assert inputs[0].dim() == 2

    layers = [layer for layer in network.body.modules() if not list(layer.children())]
    for layer in layers:
        layer.register_forward_hook(record)
    network(scans_of(2, size))

    with_parameters = [layer for layer in layers if list(layer.parameters())]
    assert all(calls[layer] == 1 for layer in with_parameters)
    assert all(tensor._version == version for tensor, version in seen)
    assert not any(getattr(layer, "inplace", False) for layer in layers)


@pytest.mark.parametrize(("name", "size"), SMALLEST)
def test_no_scan_reaches_the_logits_of_another(name: str, size: int) -> None:
    network, scans = network_of(name, size), scans_of(3, size)
    before = network(scans)

    spoiled = scans.clone()
    spoiled[1] = torch.nan
    after = network(spoiled)

    assert after[1].isnan().all()
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize(("name", "size"), SMALLEST)
def test_training_and_evaluation_mode_give_the_same_logits(name: str, size: int) -> None:
    network, scans = network_of(name, size), scans_of(2, size)

    assert torch.equal(network.train()(scans), network.eval()(scans))


@pytest.mark.parametrize(("name", "size"), SMALLEST)
def test_the_state_is_the_trained_parameters_in_float32_and_nothing_else(
    name: str, size: int
) -> None:
    network = network_of(name, size)

    state = network.state_dict()

    assert list(state) == [f"body.{key}" for key, _ in network.body.named_parameters()]
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.parametrize(("name", "size"), SMALLEST)
def test_front_has_no_parameters_and_its_cached_output_gives_the_same_logits(
    name: str, size: int
) -> None:
    network, scans = network_of(name, size), scans_of(2, size)
    assert (network.front is not None) == NETWORKS[name].has_front

    if network.front is not None:
        assert not list(network.front.parameters())
        assert torch.equal(network.body(network.front(scans)), network(scans))


@pytest.mark.parametrize(
    ("name", "size"),
    [("cnn28", 28), ("cnn64-binary", 64), ("medfed-small", 28), ("scatter-small", 28)],
)
def test_one_step_against_the_gradient_lowers_the_loss(name: str, size: int) -> None:
    network, scans, labels = network_of(name, size), scans_of(4, size), torch.tensor([0, 1] * 2)
    before = loss_per_scan(network(scans), labels).mean()
    torch.autograd.backward(before)
    with torch.no_grad():
        length = sum(p.grad.square().sum() for p in network.parameters() if p.grad is not None)
        for parameter in network.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=1e-3 / float(length) ** 0.5)

    assert loss_per_scan(network(scans), labels).mean() < before


def refuse_enlarging(
    layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
) -> None:
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        assert output.shape[-1] <= inputs[0].shape[-1], "averaging copies cells"


@pytest.mark.parametrize("name", ["alexnet", "vgg11"])
def test_dense_layers_fit_the_maps_at_every_size(name: str) -> None:
    edges = [63, 64, 65, 127, 128, 129]  # where stems change
    for size in [*range(NETWORKS[name].min_size, 62), *edges, 223, 224, 225, 300, 512]:
        with torch.device("meta"):  # shapes only, nothing is computed
            network = build._BUILDERS[name](channels=1, size=size, outputs=3)
            for layer in network.modules():
                layer.register_forward_hook(refuse_enlarging)
            assert network(torch.empty(2, 1, size, size)).shape == (2, 3), size


LOGITS = torch.tensor([[2.0, -1.0], [0.5, 0.5], [-80.0, 120.0]])
LABELS = torch.tensor([0, 1, 0])


def test_the_loss_of_a_scan_depends_on_that_scan_alone() -> None:
    whole = loss_per_scan(LOGITS, LABELS, torch.tensor([0.5, 3.0]))
    alone = [loss_per_scan(LOGITS[[i]], LABELS[[i]], torch.tensor([0.5, 3.0])) for i in range(3)]

    assert torch.equal(whole, torch.cat(alone))


def test_one_logit_gives_binary_cross_entropy_and_the_sigmoid() -> None:
    logits = torch.tensor([[-100.0], [-1.5], [0.0], [0.3], [100.0]])
    for label in (0, 1):
        labels = torch.full((5,), label)
        expected = functional.binary_cross_entropy_with_logits(
            logits[:, 0], labels.float(), reduction="none"
        )
        torch.testing.assert_close(loss_per_scan(logits, labels), expected)

    torch.testing.assert_close(probabilities(logits)[:, 1], torch.sigmoid(logits[:, 0]))


def test_cross_entropy_is_worked_by_hand() -> None:
    losses = loss_per_scan(LOGITS, LABELS)

    # ln(1 + e^-3) = 0.04858735; two equal logits give ln 2; 120 - (-80) = 200
    assert losses.tolist() == pytest.approx([0.04858735, 0.69314718, 200.0])
    assert losses.dtype == torch.float32


@pytest.mark.parametrize("outputs", [1, 2])
def test_class_weights_scale_each_loss(outputs: int) -> None:
    logits = LOGITS[:, :outputs]

    weighted = loss_per_scan(logits, LABELS, torch.tensor([2.0, 5.0]))

    factors = torch.tensor([2.0, 5.0, 2.0])  # the weights of labels 0, 1, 0
    torch.testing.assert_close(weighted, loss_per_scan(logits, LABELS) * factors)


def test_half_precision_logits_give_a_float32_loss_and_probabilities() -> None:
    assert loss_per_scan(LOGITS.bfloat16(), LABELS).dtype == torch.float32
    assert probabilities(LOGITS.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("outputs", [1, 2, 7])
def test_probabilities_sum_to_one_over_the_classes(outputs: int) -> None:
    rows = probabilities(torch.randn(4, outputs, generator=torch.Generator().manual_seed(0)))

    assert rows.shape == (4, max(outputs, 2))
    torch.testing.assert_close(rows.sum(1), torch.ones(4))


@pytest.mark.parametrize("outputs", [1, 2])
def test_an_empty_batch_has_an_empty_loss(outputs: int) -> None:
    none = loss_per_scan(torch.zeros(0, outputs), torch.zeros(0, dtype=torch.int64))

    assert none.shape == (0,)


@pytest.mark.parametrize(
    ("logits", "labels"),
    list(itertools.product([torch.zeros(3, 2)], [torch.zeros(2).long(), torch.zeros(3, 1).long()]))
    + [(torch.zeros(3), torch.zeros(3).long())],
)
def test_labels_that_do_not_match_the_scans_are_refused(
    logits: torch.Tensor, labels: torch.Tensor
) -> None:
    with pytest.raises(
        ValueError, match=r"logits must be \(scans, outputs\) and labels \(scans,\)"
    ):
        loss_per_scan(logits, labels)


def test_a_label_beyond_the_two_classes_of_a_binary_network_is_refused() -> None:
    with pytest.raises(IndexError):
        loss_per_scan(torch.zeros(1, 1), torch.tensor([2]))
