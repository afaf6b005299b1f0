import copy
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from torch import Tensor, nn
from torch.nn import functional

from medfed.client import bookkeeping, layer_gradients
from medfed.client.private_gradients import (
    MARGIN,
    PatientBatch,
    PrivateSteps,
    check_supported,
    clipped_sums,
)
from medfed.common.errors import ConfigError
from medfed.common.networks.build import build_network
from medfed.common.networks.names import NETWORKS
from medfed.common.networks.network import loss_per_scan
from medfed.simulations.seeded import SeededRandomness

CLASSES = 3
SMALL = ("cnn28", "cnn32-shallow", "medfed-small", "scatter-small")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads only get in each other's way on networks this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- networks: each shows the book-keeping something else ---


class Residual(nn.Module):
    """Two ways from input to output, so that a gradient is a sum over paths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, stride=2, padding=1, bias=False)
        self.norm = nn.GroupNorm(2, 6)
        self.inner = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.GroupNorm(3, 6))
        self.skip = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        x = functional.relu(self.inner(x) + self.skip(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]  # a module's call is untyped


def plain_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, CLASSES)
    )


def odd_convolutions() -> nn.Module:
    """Depthwise, dilated, strided, oblong: the arguments that are easy to swap."""
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)),
        nn.Tanh(),
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.Tanh(),
        nn.Conv2d(8, 5, (1, 3), stride=(2, 1)),
        nn.Flatten(),
        nn.Linear(60, CLASSES, bias=False),
    )


def one_channel() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 1, 1), nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.Flatten(),
        nn.Linear(192, CLASSES),
    )  # fmt: skip


def wide_and_small() -> nn.Module:
    """Maps so small and channels so many that the ghost norm is chosen by itself."""
    return nn.Sequential(
        nn.Conv2d(2, 40, 3, stride=3), nn.ReLU(), nn.Conv2d(40, 48, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(48, 20), nn.Tanh(), nn.Linear(20, CLASSES),
    )  # fmt: skip


NETS: dict[str, Callable[[], nn.Module]] = {
    f.__name__: f for f in (plain_cnn, Residual, odd_convolutions, one_channel, wide_and_small)
}


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return NETS[name]()


# --- batches, and the truth ---


def patients(*sizes: int, seed: int = 0, shape: tuple[int, ...] = (2, 8, 8)) -> PatientBatch:
    """Patients with so many rows each, of very different contrast."""
    generator = torch.Generator().manual_seed(seed)
    rows = sum(sizes)
    contrast = torch.rand(rows, *[1] * len(shape), generator=generator) * 4
    inputs = torch.randn(rows, *shape, generator=generator) * contrast + 0.5
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)
    unit = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.long))
    return PatientBatch(inputs, labels, unit, len(sizes))


def pick(batch: PatientBatch, first: int, last: int) -> PatientBatch:
    """Patients ``first`` to ``last - 1`` of a batch."""
    keep = (batch.unit >= first) & (batch.unit < last)
    return PatientBatch(
        batch.inputs[keep], batch.labels[keep], batch.unit[keep] - first, last - first
    )


def padded(batch: PatientBatch, padding: int) -> PatientBatch:
    """The batch with rows of zeros after it that belong to nobody."""
    zeros = batch.inputs.new_zeros(padding, *batch.inputs.shape[1:])
    labels = batch.labels.new_zeros(padding)
    return batch._replace(
        inputs=torch.cat([batch.inputs, zeros]), labels=torch.cat([batch.labels, labels]),
        padding=padding,
    )  # fmt: skip


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def flat(tensors: Iterator[Tensor] | list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def summed(network: nn.Module, batch: PatientBatch, clip_norm: float, scans: int = 1) -> Tensor:
    sums = clipped_sums(network, cross_entropy, batch, clip_norm=clip_norm, scans_per_patient=scans)
    return flat([sums[p] for p in network.parameters()])


def patient_gradients(
    network: nn.Module, batch: PatientBatch, loss: Callable[..., Tensor] = cross_entropy
) -> list[Tensor]:
    """Mean gradient of each patient, one at a time, in float64, by ordinary autograd."""
    network = copy.deepcopy(network).double()
    gradients = []
    for patient in range(batch.units):
        rows = pick(batch, patient, patient + 1)
        mean = loss(network(rows.inputs.double()), rows.labels).mean()
        gradients.append(flat(list(torch.autograd.grad(mean, list(network.parameters())))))
    return gradients


def brute_force(
    network: nn.Module,
    batch: PatientBatch,
    clip_norm: float,
    loss: Callable[..., Tensor] = cross_entropy,
) -> Tensor:
    bound = clip_norm * (1 - MARGIN)
    return sum(
        (g * min(1.0, bound / float(g.norm())) for g in patient_gradients(network, batch, loss)),
        start=torch.zeros(()),
    )


def relative(value: Tensor, truth: Tensor) -> float:
    return float((value - truth).norm() / truth.norm())


WAYS = ["by shape", "ghost", "formed and kept", "formed twice", "as on CUDA"]


def force(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Force a way to compute a convolution's norms upon every layer where it can work."""
    if way == "ghost":
        monkeypatch.setattr(
            layer_gradients, "_ghost_is_cheaper", lambda layer, *_: layer.groups == 1
        )
    elif way != "by shape":
        monkeypatch.setattr(layer_gradients, "_ghost_is_cheaper", lambda *_: False)
        if way == "formed twice":
            monkeypatch.setattr(bookkeeping, "_KEEP_BYTES", 0)
        if way == "as on CUDA":
            monkeypatch.setattr(layer_gradients, "_unfolds", lambda layer, *_: layer.groups == 1)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way a convolution's norms are computed."""
    force(request.param, monkeypatch)
    return str(request.param)


# --- the clipped sum is right ---


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(NETS)),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    clip_norm=st.floats(-3, 3).map(lambda power: 10**power),
    scans=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
@example(name="wide_and_small", sizes=[1], clip_norm=1e3, scans=1, seed=0)
def test_sum_equals_clipping_one_patient_at_a_time(
    name: str, sizes: list[int], clip_norm: float, scans: int, seed: int
) -> None:
    network, batch = build(name, seed), patients(*sizes, seed=seed)

    got = summed(network, batch, clip_norm, scans)

    assert relative(got, brute_force(network, batch, clip_norm)) < 1e-4


@settings(max_examples=50, deadline=None)
@given(
    way=st.sampled_from(WAYS),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    sides=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
)
@example("ghost", (2, 3), (1, 1), (1, 3), (3, 3), (1, 1), (5, 6), [2, 1], 0)  # only padding meets
def test_a_convolution_of_any_shape_is_clipped_right(
    way: str,
    channels: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    sides: tuple[int, int],
    sizes: list[int],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(*channels, kernel, stride, padding, dilation), nn.Tanh(), nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )  # fmt: skip
    batch = patients(*sizes, seed=seed, shape=(channels[0], *sides))
    network(batch.inputs)  # sets the size of the last layer
    network = network.double()
    batch = batch._replace(inputs=batch.inputs.double())
    norms = [float(g.norm()) for g in patient_gradients(network, batch)]

    with pytest.MonkeyPatch.context() as monkeypatch:
        force(way, monkeypatch)
        exact = summed(network, batch, clip_norm=1e6)
        clipped = summed(network, batch, clip_norm=min(norms) / 2)

    assert relative(exact, brute_force(network, batch, 1e6)) < 1e-12  # 1e4 roundings of 1e-16
    # the slack of a ghost norm: 1e-6 of the square of what cancels in it
    assert relative(clipped, brute_force(network, batch, min(norms) / 2)) < 1e-4


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(NETS)),
    way=st.sampled_from(WAYS),
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    row=st.integers(0, 10**6),
    padding=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
def test_a_patient_with_a_bad_scan_leaves_the_others_as_brute_force_has_them(
    name: str, way: str, sizes: list[int], bad: float, row: int, padding: int, seed: int
) -> None:
    network, batch = build(name, seed), patients(*sizes, seed=seed)
    row %= len(batch.unit)
    others = torch.arange(batch.units) != batch.unit[row]
    gradients = torch.stack(patient_gradients(network, batch))[others]
    clip_norm = float(gradients.norm(dim=1).median())
    factor = (clip_norm * (1 - MARGIN) / gradients.norm(dim=1)).clamp(max=1)
    batch.inputs[row, 0, 2, 2] = bad

    with pytest.MonkeyPatch.context() as monkeypatch:
        force(way, monkeypatch)
        got = summed(network, padded(batch, padding), clip_norm)

    assert relative(got, factor @ gradients) < 1e-4


def test_augmented_copies_of_scans_are_one_unit_with_their_patient() -> None:
    network, scans = build("Residual").double(), patients(2, 1, 3)
    copies = torch.stack([scans.inputs, scans.inputs.flip(3), scans.inputs.roll(1, 2)], dim=1)
    batch = PatientBatch(  # three copies of each scan, side by side
        copies.flatten(0, 1).double(), scans.labels.repeat_interleave(3),
        scans.unit.repeat_interleave(3), scans.units,
    )  # fmt: skip
    norms = [float(g.norm()) for g in patient_gradients(network, batch)]

    got = summed(network, batch, clip_norm=min(norms) / 2, scans=9)

    assert relative(got, brute_force(network, batch, min(norms) / 2)) < 1e-4


@pytest.mark.parametrize("name", NETS)
def test_every_way_gives_the_same_sum(name: str, way: str) -> None:
    network, batch = build(name), patients(1, 4, 2, 1, 3)
    norms = [float(g.norm()) for g in patient_gradients(network, batch)]
    clip_norm = sorted(norms)[2]  # some patients are clipped, some are not

    got = summed(network, batch, clip_norm)

    assert relative(got, brute_force(network, batch, clip_norm)) < 1e-4


@pytest.mark.parametrize("name", NETS)
def test_in_float64_the_sum_is_exact_where_nobody_is_clipped(name: str, way: str) -> None:
    network, batch = build(name).double(), patients(2, 1, 3)
    batch = batch._replace(inputs=batch.inputs.double())

    got = summed(network, batch, clip_norm=1e6)

    assert relative(got, brute_force(network, batch, 1e6)) < 1e-12  # 1e4 roundings of 1e-16


@pytest.mark.parametrize("name", NETS)
def test_sum_is_a_few_roundings_from_the_truth_for_single_scans(name: str) -> None:
    network, batch = build(name), patients(1, 1, 1, 1)

    got = summed(network, batch, clip_norm=1e3)  # nobody is clipped

    assert relative(got, brute_force(network, batch, 1e3)) < 2e-6  # 30 roundings of 6e-8


def test_the_ghost_norm_is_chosen_for_small_maps_and_only_by_shape() -> None:
    def chosen(layer: nn.Conv2d, side: int, scans: int = 1) -> bool:
        x = torch.full((5, layer.in_channels, side, side), math.nan)  # values cannot matter
        y = torch.full((5, layer.out_channels, side, side), math.nan)
        return layer_gradients._ghost_is_cheaper(layer, x, y, scans)

    assert chosen(nn.Conv2d(64, 64, 3, padding=1), 4)
    assert not chosen(nn.Conv2d(64, 64, 3, padding=1), 4, scans=60)  # too many pairs
    assert not chosen(nn.Conv2d(64, 64, 3, padding=1, groups=2), 4)  # not worked out for groups
    assert not chosen(nn.Conv2d(3, 8, 3, padding=1), 28)


def registered(name: str, *sizes: int) -> tuple[nn.Module, PatientBatch]:
    """What is trained of a network of the registry, and patients as it takes them."""
    spec = NETWORKS[name]
    side, channels = spec.min_size, spec.channels
    network = build_network(name, channels=channels, size=side, classes=spec.classes, seed=0)
    batch = patients(*sizes, shape=(channels, side, side))
    features = batch.inputs if network.front is None else network.front(batch.inputs)
    return network.body, batch._replace(inputs=features, labels=batch.labels % 2)


def sum_of_registered(body: nn.Module, batch: PatientBatch, clip_norm: float) -> Tensor:
    sums = clipped_sums(body, loss_per_scan, batch, clip_norm=clip_norm)
    return flat([sums[p] for p in body.parameters()])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_registry_is_clipped_right(name: str) -> None:
    # in float64: densenet121 itself is only good to 3e-4 in float32
    body, batch = registered(name, 1, 2)
    batch = batch._replace(inputs=batch.inputs.double())
    clip_norm = 0.1  # below the norm of every patient, in all of them

    got = sum_of_registered(body.double(), batch, clip_norm)

    assert relative(got, brute_force(body, batch, clip_norm, loss_per_scan)) < 1e-4


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_are_right_to_a_millionth_in_float32(name: str) -> None:
    body, batch = registered(name, 1, 3, 2, 1)

    got = sum_of_registered(body, batch, clip_norm=1e3)  # nobody is clipped

    assert relative(got, brute_force(body, batch, 1e3, loss_per_scan)) < 1e-6


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_are_clipped_to_within_the_slack_of_a_norm(name: str) -> None:
    body, batch = registered(name, 1, 1, 1)
    batch = batch._replace(inputs=batch.inputs.double())

    got = sum_of_registered(body.double(), batch, clip_norm=0.1)  # all are clipped

    # A ghost norm is made larger by 5e-7 times the square of what cancels in it, here some 4.
    assert relative(got, brute_force(body, batch, 0.1, loss_per_scan)) < 1e-5


@pytest.mark.parametrize("name", ["plain_cnn", "Residual", "wide_and_small"])
def test_sum_equals_that_of_opacus_own_gradients_per_sample(name: str) -> None:
    network, batch = build(name), patients(3, 3, 3, 3)
    wrapped = GradSampleModule(copy.deepcopy(network), loss_reduction="sum")
    torch.autograd.backward(cross_entropy(wrapped(batch.inputs), batch.labels).sum())
    per_row = torch.cat([p.grad_sample.flatten(1) for p in wrapped.parameters()], dim=1)
    per_patient = per_row.view(4, 3, -1).mean(1)
    clip_norm = float(per_patient.norm(dim=1).median())
    factor = (clip_norm * (1 - MARGIN) / per_patient.norm(dim=1)).clamp(max=1)

    got = summed(network, batch, clip_norm)

    assert relative(got, (factor[:, None] * per_patient).sum(0).double()) < 5e-5


# --- what one patient can do ---


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(NETS)),
    rows=st.integers(1, 4),
    clip_norm=st.floats(-4, 2).map(lambda power: 10**power),
    contrast=st.floats(-2, 6).map(lambda power: 10**power),
    seed=st.integers(0, 10**6),
)
def test_one_patient_moves_the_sum_by_at_most_the_clip_norm(
    name: str, rows: int, clip_norm: float, contrast: float, seed: int
) -> None:
    network, batch = build(name, seed), patients(1, 2, 3, rows, seed=seed)
    batch.inputs[-rows:] *= contrast

    difference = summed(network, batch, clip_norm) - summed(network, pick(batch, 0, 3), clip_norm)

    assert float(difference.norm()) <= clip_norm


def linear_only() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(128, CLASSES))


def one_convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, stride=2))  # the last row and column stay unread


@settings(max_examples=150, deadline=None)
@given(
    make=st.sampled_from([linear_only, one_convolution, plain_cnn, Residual, wide_and_small]),
    way=st.sampled_from(WAYS),
    clip_norm=st.floats(-6, 1).map(lambda power: 10**power),
    brightness=st.lists(st.floats(-38, 38), min_size=1, max_size=3),
    pull=st.floats(-38, 38),
    seed=st.integers(0, 10**6),
)
@example(linear_only, "by shape", 1e-6, [18.0], -22.7, 0)  # g * g is 0 in float32
@example(linear_only, "by shape", 1e-6, [17.8, 17.8, 17.8], -22.7, 0)
@example(linear_only, "by shape", 1e-6, [-23.0], 18.0, 0)  # x * x is
@example(one_convolution, "ghost", 1e-6, [18.0], -22.7, 0)
@example(one_convolution, "ghost", 1e-6, [0.0, 17.8, 17.8], -22.7, 0)
@example(one_convolution, "formed and kept", 1e-6, [0.0], -23.0, 0)
@example(one_convolution, "formed and kept", 1e-6, [38.0], 0.0, 0)  # so is the clip factor
@example(linear_only, "by shape", 1e-6, [38.0], -37.5, 0)  # and the clip factor times g
@example(one_convolution, "formed twice", 1e-6, [38.0], -37.5, 0)
def test_no_scale_of_numbers_lets_a_patient_exceed_the_clip_norm(
    make: Callable[[], nn.Module],
    way: str,
    clip_norm: float,
    brightness: list[float],
    pull: float,
    seed: int,
) -> None:
    # A hostile model makes the inputs of a layer as large as it likes and, in the tail of a
    # softmax, the gradients at its output as small: squares then leave the range of float32.
    torch.manual_seed(seed)
    network, rows = make(), len(brightness)
    inputs = (
        torch.randn(rows, 2, 8, 8)
        * torch.tensor([10.0**b for b in brightness])[:, None, None, None]
    )
    inputs[:, :, -1, -1] = 1.0  # a pixel on another scale
    batch = PatientBatch(inputs, torch.zeros(rows), torch.zeros(rows, dtype=torch.long), 1)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        ramp = torch.linspace(-1.0, 1.0, logits[0].numel())
        pulled: Tensor = logits.flatten(1) * (ramp * 10.0**pull)
        return pulled.sum(1)

    with pytest.MonkeyPatch.context() as monkeypatch:
        force(way, monkeypatch)
        sums = clipped_sums(network, loss, batch, clip_norm=clip_norm)

    assert float(flat(list(sums.values())).norm()) <= clip_norm


@pytest.mark.parametrize("tail", [50.0, 52.5, 55.0])
@pytest.mark.parametrize("name", ["medfed-small", "cnn28"])
def test_a_hostile_base_model_cannot_hide_a_patients_norm(name: str, tail: float) -> None:
    network = build_network(name, channels=1, size=28, classes=10, seed=0)
    before, head = [
        m for m in network.body.modules() if any(True for _ in m.parameters(recurse=False))
    ][-2:]
    batch = PatientBatch(
        torch.rand(1, 1, 28, 28), torch.tensor([1]), torch.zeros(1, dtype=torch.long), 1
    )
    features: list[Tensor] = []
    with head.register_forward_pre_hook(lambda _, x: features.append(x[0])), torch.no_grad():
        network(batch.inputs)
        for weight in before.parameters():
            weight.mul_(1.2e19 / features[0].norm())
        for weight in head.parameters():
            weight.zero_()
        head.get_parameter("bias")[1] = tail  # the other classes' gradients: exp(-tail)

    sums = clipped_sums(network, loss_per_scan, batch, clip_norm=1e-6)

    assert 0 < float(flat(list(sums.values())).norm()) <= 1e-6  # once 5e-4


@pytest.mark.parametrize("spread", [1e-12, 1e-25])
def test_a_glaring_pixel_that_no_weight_reads_cannot_hide_a_norm(spread: float, way: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 1, stride=2, bias=False))
    inputs = torch.randn(1, 2, 8, 8)
    inputs[:, :, -1, -1] = 1 / spread  # at an odd place, which stride 2 leaves out
    batch = PatientBatch(inputs, torch.zeros(1), torch.zeros(1, dtype=torch.long), 1)
    pull = torch.randn(1, 4, 4, 4)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits * pull).sum((1, 2, 3))

    sums = clipped_sums(network, loss, batch, clip_norm=1e-6)

    assert float(flat(list(sums.values())).norm()) <= 1e-6


def test_a_patient_with_a_large_gradient_moves_the_sum_by_the_clip_norm(way: str) -> None:
    network, batch = build("plain_cnn"), patients(1, 2, 2)
    batch.inputs[-2:] *= 100

    difference = summed(network, batch, 0.5) - summed(network, pick(batch, 0, 2), 0.5)

    assert float(difference.norm()) == pytest.approx(0.5 * 0.999, rel=1e-4)  # the margin is 1e-3


@pytest.mark.parametrize("brightness", [0.0, 1e2, 1e4, 1e6, 1e9])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_bright_flat_scan_cannot_hide_its_norm_in_rounding(
    brightness: float, rows: int, way: str
) -> None:
    # Output gradients that add up to 0 over a map cancel the brightness out of the gradient,
    # but not out of the ghost norm's terms: without its slack the norm comes out as 0 and the
    # sum as 50 clip norms. A gradient that is formed twice is rounded in two ways.
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(64, 64, 3, bias=False))
    pull = torch.randn(rows, 64, 4, 4)
    pull -= pull.mean((2, 3), keepdim=True)
    inputs = brightness + torch.randn(rows, 64, 6, 6)
    batch = PatientBatch(inputs, torch.zeros(rows), torch.zeros(rows, dtype=torch.long), 1)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits * pull).sum((1, 2, 3))

    def norm(clip_norm: float) -> float:
        sums = clipped_sums(network, loss, batch, clip_norm=clip_norm)
        return float(flat(list(sums.values())).norm())

    clip_norm = norm(1e6) / 50
    assert norm(clip_norm) <= clip_norm


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("name", NETS)
def test_a_scan_that_is_not_finite_contributes_exactly_zero(
    name: str, bad: float, way: str
) -> None:
    network, batch = build(name), patients(2, 1, 3)
    batch.inputs[2, 0, 3, 3] = bad  # the one scan of the second patient
    others = PatientBatch(
        batch.inputs[[0, 1, 3, 4, 5]], batch.labels[[0, 1, 3, 4, 5]],
        torch.tensor([0, 0, 1, 1, 1]), 2,
    )  # fmt: skip
    before = batch.inputs.clone()

    got = summed(network, batch, 0.3)

    if bad != 3e38:  # finite, and may give a finite gradient: bounded below
        assert relative(got, summed(network, others, 0.3)) < 1e-6
    assert got.isfinite().all()
    assert float((got - summed(network, others, 0.3)).norm()) <= 0.3
    assert torch.equal(batch.inputs, before) or math.isnan(bad)  # the scans are not overwritten


def test_a_patient_with_one_bad_scan_of_many_contributes_exactly_zero(way: str) -> None:
    network, batch = build("Residual"), patients(2, 3)
    batch.inputs[4] = math.nan

    assert relative(summed(network, batch, 0.3), summed(network, pick(batch, 0, 1), 0.3)) < 1e-6


@pytest.mark.parametrize("layer", [nn.Linear(4, 2), nn.Conv2d(2, 3, 2), nn.GroupNorm(1, 2)])
def test_an_infinite_gradient_contributes_exactly_zero(layer: nn.Module, way: str) -> None:
    # A loss linear in the logits keeps NaN out of it: the gradient is infinite and nothing else.
    batch = patients(1, 1, shape=(4,) if isinstance(layer, nn.Linear) else (2, 4, 4))
    batch.inputs[1] = math.inf if not isinstance(layer, nn.GroupNorm) else 3e38

    def linear(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.flatten(1).sum(1)

    both, first = (
        flat(list(clipped_sums(layer, linear, b, clip_norm=0.3).values()))
        for b in (batch, pick(batch, 0, 1))
    )
    assert relative(both, first) < 1e-6


def test_a_patient_without_rows_contributes_exactly_zero() -> None:
    network, batch = build("Residual"), patients(2)

    assert torch.equal(summed(network, batch._replace(units=2), 0.3), summed(network, batch, 0.3))


@pytest.mark.parametrize("name", NETS)
def test_padding_contributes_exactly_zero(name: str, way: str) -> None:
    network, batch = build(name).double(), patients(2, 1, 3)
    batch = batch._replace(inputs=batch.inputs.double())
    clip_norm = sorted(float(g.norm()) for g in patient_gradients(network, batch))[1]

    got = summed(network, padded(batch, 4), clip_norm)

    assert relative(got, summed(network, batch, clip_norm)) < 1e-12  # 1e4 roundings of 1e-16


@pytest.mark.parametrize("name", NETS)
def test_padding_alone_gives_exactly_nothing(name: str, way: str) -> None:
    assert not summed(build(name), padded(patients(), 3), 0.3).any()


@pytest.mark.parametrize(
    "layer", [nn.Linear(128, 2, bias=False), nn.Conv2d(2, 3, 2, bias=False)], ids=["linear", "conv"]
)
def test_padding_whose_gradient_is_not_finite_disturbs_nobody(layer: nn.Module, way: str) -> None:
    network = nn.Sequential(nn.Flatten(), layer) if isinstance(layer, nn.Linear) else layer

    def pole_at_zero(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.flatten(1).square().sum(1).reciprocal()

    both, alone = (
        flat(list(clipped_sums(network, pole_at_zero, batch, clip_norm=1e-3).values()))
        for batch in (padded(patients(1, 2), 2), patients(1, 2))
    )

    assert alone.any()
    assert relative(both, alone) < 1e-6


def test_only_bad_scans_give_exactly_nothing() -> None:
    network, batch = build("Residual"), patients(2, 1)
    batch.inputs[:] = math.nan

    assert not summed(network, batch, 0.3).any()


# --- a step ---


def steps_on(network: nn.Module, **changes: object) -> PrivateSteps:
    arguments: dict[str, object] = {
        "optimizer": torch.optim.SGD(network.parameters(), lr=1.0),
        "loss": cross_entropy,
        "clip_norm": 0.5,
        "noise_multiplier": 0.0,
        "lot": 4,
        "randomness": SeededRandomness("step"),
    } | changes
    return PrivateSteps(network, **arguments)  # type: ignore[arg-type]  # a test's short form


def moved(network: nn.Module, act: Callable[[], None]) -> Tensor:
    """How far an action moved the parameters, downhill being positive."""
    before = flat(network.parameters())
    act()
    return before - flat(network.parameters())


def test_a_step_without_noise_is_the_sum_over_the_lot() -> None:
    network, batch = build("Residual"), patients(1, 3, 2)
    expected = summed(network, batch, 0.5) / 4

    step = moved(network, lambda: steps_on(network).step([batch]))

    assert relative(step, expected) < 1e-5  # parameters of size 1 round at 6e-8, steps are 0.1


@pytest.mark.parametrize("name", NETS)
def test_chunking_does_not_matter(name: str) -> None:
    batch = patients(1, 3, 2, 1, 2)
    whole, parts = build(name).double(), build(name).double()
    batch = batch._replace(inputs=batch.inputs.double())

    together = moved(whole, lambda: steps_on(whole).step([batch]))
    pieces = [pick(batch, 0, 2), pick(batch, 2, 2), pick(batch, 2, 3), pick(batch, 3, 5)]
    apart = moved(parts, lambda: steps_on(parts).step(iter(pieces)))

    assert relative(apart, together) < 1e-6


def test_noise_has_the_standard_deviation_that_the_accountant_was_told() -> None:
    network = nn.Linear(300, 100)
    sigma, clip_norm, lot = 1.3, 0.4, 25.0
    steps = steps_on(network, noise_multiplier=sigma, clip_norm=clip_norm, lot=lot)

    first, second = (moved(network, lambda: steps.step([])) for _ in range(2))

    scale, count = sigma * clip_norm / lot, len(first)  # 30,100 coordinates
    for noise in (first, second):
        # standard errors: of a mean scale / sqrt n, of a variance sqrt(2 / n); 5 of them
        assert abs(float(noise.mean())) < 5 * scale / math.sqrt(count)
        assert float(noise.var()) / scale**2 == pytest.approx(1, abs=5 * math.sqrt(2 / count))
    product = float((first * second).mean()) / scale**2
    assert abs(product) < 5 / math.sqrt(count)  # drawn anew in each step


def test_noise_is_added_once_in_float64_and_rounded_to_float32() -> None:
    network, batch = build("Residual"), patients(1, 2, 2, 1)
    sums = clipped_sums(network, cross_entropy, batch, clip_norm=0.5)
    noise = torch.from_numpy(SeededRandomness("step").normal(len(flat(network.parameters()))))
    expected = (flat([sums[p] for p in network.parameters()]) + 2.0 * 0.5 * noise).float() / 4
    seen: list[Tensor | None] = []

    steps_on(network, noise_multiplier=2.0).step(
        [batch], after_noise=lambda: seen.extend(p.grad for p in network.parameters())
    )

    assert torch.equal(flat([grad for grad in seen if grad is not None]).float(), expected)


def test_a_step_for_nobody_is_the_same_noise_as_one_for_an_empty_batch() -> None:
    one, other = build("Residual"), build("Residual")

    nobody = moved(one, lambda: steps_on(one, noise_multiplier=1.0).step([]))
    empty = moved(other, lambda: steps_on(other, noise_multiplier=1.0).step([patients()]))

    assert nobody.count_nonzero() > 0.99 * len(nobody)  # some noise is lost in rounding
    assert torch.equal(nobody, empty)


def test_parameters_that_no_patient_reaches_get_noise_too() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)  # type: ignore[no-any-return]  # a module's call is untyped

    network = Branch()
    before = network.unused.weight.detach().clone()

    steps_on(network, noise_multiplier=1.0).step([patients(1, 2, shape=(4,))])

    assert (network.unused.weight != before).all()


def test_terms_after_the_noise_are_added_to_the_divided_sum_and_reach_the_optimizer() -> None:
    network, batch = build("plain_cnn"), patients(1, 2)
    expected = summed(network, batch, 0.5) / 4 + 0.25

    def pull() -> None:
        for p in network.parameters():
            assert p.grad is not None
            p.grad += 0.25

    steps = steps_on(network)
    assert relative(moved(network, lambda: steps.step([batch], after_noise=pull)), expected) < 1e-5
    # and the next step does without
    expected = summed(network, batch, 0.5) / 4
    assert relative(moved(network, lambda: steps.step([batch])), expected) < 1e-5


def test_steps_leave_nothing_behind() -> None:
    network, batch = build("Residual"), patients(1, 3)
    names, optimizer = list(network.state_dict()), torch.optim.SGD(network.parameters(), lr=0.1)
    modules = {name: dict(vars(module)) for name, module in network.named_modules()}

    with steps_on(network, optimizer=optimizer, noise_multiplier=1.0) as steps:
        steps.step([batch])
        steps.step([])

    assert list(network.state_dict()) == names
    assert {name: dict(vars(module)) for name, module in network.named_modules()} == modules
    for p in network.parameters():
        assert p.grad is None and not vars(p)
    torch.autograd.backward(cross_entropy(network(batch.inputs), batch.labels).mean())
    assert all(p.grad is not None for p in network.parameters())  # an ordinary network again


def test_a_step_that_fails_changes_nothing_and_the_next_one_is_clean() -> None:
    network, batch = build("Residual"), patients(1, 3)

    def interrupted() -> Iterator[PatientBatch]:
        yield patients(4, 4, seed=1)
        raise KeyboardInterrupt

    steps, expected = steps_on(network), summed(network, batch, 0.5) / 4
    with pytest.raises(KeyboardInterrupt):
        moved(network, lambda: steps.step(interrupted()))
    assert all(p.grad is None for p in network.parameters())

    assert relative(moved(network, lambda: steps.step([batch])), expected) < 1e-5


def test_the_given_optimizer_takes_the_step() -> None:
    network, batch = build("plain_cnn"), patients(1, 2)
    expected = (summed(network, batch, 0.5) / 4).sign() * 0.01  # Adam's first step: lr times sign

    adam = torch.optim.Adam(network.parameters(), lr=0.01, eps=1e-12)
    step = moved(network, lambda: steps_on(network, optimizer=adam).step([batch]))

    assert torch.allclose(step, expected, atol=1e-4)


def test_frozen_layers_are_passed_through_and_stay() -> None:
    network, batch = build("Residual"), patients(1, 2)
    frozen = [network.get_submodule("inner"), network.get_submodule("stem")]
    for module in frozen:
        module.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    steps_on(network, noise_multiplier=1.0).step([batch])

    changed = {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {n for n, p in network.named_parameters() if p.requires_grad}


def test_autocast_narrows_the_forward_pass_and_not_the_bound() -> None:
    network, batch = build("Residual"), patients(1, 2, 2)
    exact = summed(network, batch, 0.5)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = summed(network, batch, 0.5)
        without_last = summed(network, pick(batch, 0, 2), 0.5)

    assert 1e-5 < relative(narrow, exact) < 0.3  # bfloat16 keeps 8 bits
    assert not torch.equal(narrow, narrow.bfloat16().double())
    assert float((narrow - without_last).norm()) <= 0.5


def test_autocast_leaves_the_norms_exact(way: str) -> None:
    network, batch = build("wide_and_small"), patients(3)
    batch = batch._replace(inputs=10 * batch.inputs)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        clipped = summed(network, batch, 0.5)

    assert float(clipped.norm()) == pytest.approx(0.5 * 0.999, rel=2e-5)
    assert (clipped != clipped.bfloat16()).float().mean() > 0.5  # all but the zeros


# --- refusals ---


def shared_weights() -> nn.Module:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    return network


def partly_frozen() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(1, 1, 3))
    network[0].bias.requires_grad_(False)
    return network


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def extra_weight() -> nn.Module:
    network = nn.Sequential(nn.Linear(4, 4))
    network[0].register_parameter("scale", nn.Parameter(torch.ones(())))
    return network


def replaced_forward() -> nn.Module:
    network = nn.Sequential(nn.Linear(4, 4))
    network[0].forward = lambda x: x
    return network


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
            r"'1' \(BatchNorm2d\) mixes the pat",
        ),
        (nn.Sequential(nn.BatchNorm1d(2, affine=False)), r"'0' \(BatchNorm1d\) mixes"),
        (
            nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True)),
            "keeps statistics of the sc",
        ),
        (
            nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))),
            r"'0.1' \(ReLU\) overwrites its input[\s\S]*Next step: set inplace=False",
        ),
        (shared_weights(), r"'0.weight' and '1.weight' share their weights"),
        (partly_frozen(), r"'0' \(Conv2d\) is frozen in part"),
        (replaced_forward(), r"'0' \(Linear\) has had its forward method replaced"),
        (nn.Sequential(nn.Conv1d(1, 1, 3)), r"'0' \(Conv1d\) has weights whose gradient"),
        (nn.Sequential(nn.LayerNorm(3)), r"'0' \(LayerNorm\) has weights whose"),
        (nn.ModuleDict({"rnn": nn.GRU(2, 2)}), r"'rnn' \(GRU\) has weights whose"),
        (nn.Sequential(Scaled(2, 2)), r"'0' \(Scaled\) has weights whose"),
        (extra_weight(), r"'0' \(Linear\) has weights whose"),
        (nn.Sequential(nn.PReLU()), r"'0' \(PReLU\) has weights whose"),
        (
            nn.Sequential(nn.Conv2d(1, 1, 3, padding="same")),
            r"'0' \(Conv2d\) pads with 'zeros' by 'same'",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")),
            r"'0' \(Conv2d\) pads with 'reflect' by \(1, 1\)",
        ),
        (nn.Sequential(nn.ReLU()), "no trainable parameter"),
    ],
)
def test_a_network_that_cannot_be_bounded_is_refused_by_name(
    network: nn.Module, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_supported(network)


def test_steps_cannot_be_made_for_a_network_that_is_not_supported() -> None:
    with pytest.raises(ConfigError, match=r"'1' \(BatchNorm1d\) mixes"):
        steps_on(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))


@pytest.mark.parametrize("name", NETS)
def test_supported_networks_are_accepted(name: str) -> None:
    check_supported(build(name))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))  # type: ignore[no-any-return]  # a module's call is untyped


class Bypassed(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 0.1 * self.layer.weight.sum()  # type: ignore[no-any-return]  # as above


class Folded(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.view(-1, 2).repeat(1, 2))[::2]  # type: ignore[no-any-return]  # as above


class ThreeDimensional(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, None])[:, 0]  # type: ignore[no-any-return]  # as above


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Twice(), r"'layer' \(Linear\) is used twice"),
        (Bypassed(), r"'layer.weight' is used outside of its own layer"),
        (Folded(), r"'layer' \(Linear\) got an input of 2 dimensions and 6 rows"),
        (ThreeDimensional(), r"'layer' \(Linear\) got an input of 3 dimensions"),
    ],
)
def test_a_layer_used_in_a_way_that_defeats_clipping_is_refused_by_name(
    network: nn.Module, message: str
) -> None:
    steps = steps_on(network)
    with pytest.raises(ConfigError, match=message):
        moved(network, lambda: steps.step([patients(1, 2, shape=(4,))]))


def test_a_loss_that_mixes_rows_is_refused() -> None:
    steps = steps_on(build("plain_cnn"), loss=functional.cross_entropy)
    with pytest.raises(ValueError, match=r"one value per row, shape \(3,\), got \(\)"):
        steps.step([patients(1, 2)])


@pytest.mark.parametrize("unit", [[0, 1, 0], [-1, 0, 1], [0, 1, 2], [0, 1]])
def test_rows_that_are_not_grouped_by_patient_are_refused(unit: list[int]) -> None:
    batch = patients(1, 2)._replace(unit=torch.tensor(unit))
    with pytest.raises(ValueError, match="unit"):
        steps_on(build("plain_cnn")).step([batch])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm must be in"),
        ({"clip_norm": math.nan}, "clip_norm must be in"),
        ({"clip_norm": 1e7}, "clip_norm must be in"),
        ({"noise_multiplier": -1.0}, "noise_multiplier must be finite and >= 0"),
        ({"noise_multiplier": math.inf}, "noise_multiplier must be finite"),
        ({"lot": 0}, "lot must be finite and > 0"),
        ({"lot": math.nan}, "lot must be finite and > 0"),
    ],
)
def test_a_number_that_voids_the_guarantee_is_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        steps_on(build("plain_cnn"), **changes)


def test_an_optimizer_over_other_parameters_is_refused() -> None:
    network = build("plain_cnn")
    some = torch.optim.SGD(list(network.parameters())[1:], lr=0.1)
    with pytest.raises(ValueError, match="exactly the network's trainable parameters"):
        steps_on(network, optimizer=some)


def test_inexact_products_are_refused() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(ConfigError, match="set to be inexact"):
            steps_on(build("plain_cnn"))
    finally:
        torch.set_float32_matmul_precision("highest")
