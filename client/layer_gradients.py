"""Run a network so that each layer notes what every patient contributes to its gradient.

While `recording` is active, the layers with weights run a backward pass that passes on the
gradients of activations, forms none for the weights, and reports to a
`medfed.client.bookkeeping.Chunk` instead. Per layer, the cheapest exact way to the norms;
which one depends on shapes and public numbers only:

    Conv2d, large maps    the gradient of each row, all in one grouped convolution
    Conv2d, small maps    inner products of patches times those of output gradients ("ghost")
    Linear                the same, of inputs
    GroupNorm             the gradient of each row, from the native backward pass

Any other layer with weights is refused by `check_supported`, with its name and a remedy.

Source:
    Goodfellow. Efficient Per-Example Gradient Computations. https://arxiv.org/abs/1510.01799
    Rochette, Manoel, Tramel. Efficient Per-Example Gradient Computations in Convolutional
    Neural Networks. https://arxiv.org/abs/1912.06015 (one grouped convolution).
    Bu, Mao, Xu. Scalable and Efficient Training of Large Convolutional Neural Networks with
    Differential Privacy. https://arxiv.org/abs/2205.10683 (the cheaper one, per layer).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import combinations
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.linalg import vector_norm

from medfed.client.bookkeeping import Again, Chunk
from medfed.common.errors import ConfigError

_BLOCK = 1 << 19  # numbers worked on at once: 2 MiB
_BLOCK_ON_CUDA = 1 << 26  # there, large pieces are faster
_ROWS_OF_GROUPS = 32  # of a grouped convolution on the CPU; more are no faster

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def check_supported(network: nn.Module) -> None:
    """Refuse a network whose gradients cannot be bounded per patient.

    Raises:
        ConfigError: a layer mixes patients (BatchNorm) or keeps statistics of them, works in
            place, shares its weights, is frozen in part, or has weights and is not one of
            Conv2d (zero padding given as numbers), Linear, affine GroupNorm; or nothing is
            trainable. Names the layer.
    """
    for name, layer in network.named_modules():
        if fault := _fault(layer):
            what, advice = fault
            raise ConfigError(
                f"network layer {name!r} ({type(layer).__name__}) {what}", advice=advice
            )
    owners: dict[nn.Parameter, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if parameter.requires_grad and owners.setdefault(parameter, name) != name:
            raise ConfigError(
                f"network parameters {owners[parameter]!r} and {name!r} share their weights, "
                "so that a patient's gradient is not the sum of its parts",
                advice="give each layer weights of its own.",
            )
    if not owners:
        raise ConfigError(
            "the network has no trainable parameter",
            advice="unfreeze the layers that shall learn.",
        )


def _fault(layer: nn.Module) -> tuple[str, str] | None:
    """What is wrong with a layer, and what to do about it."""
    weights = dict(layer.named_parameters(recurse=False))
    trainable = [name for name, weight in weights.items() if weight.requires_grad]
    if isinstance(layer, _BATCH_NORMS):
        return "mixes the patients of a batch", "use nn.GroupNorm instead."
    if isinstance(layer, _INSTANCE_NORMS) and layer.track_running_stats:
        return "keeps statistics of the scans, without noise", "set track_running_stats=False."
    if getattr(layer, "inplace", False) is True:
        return "overwrites its input, which the backward pass needs", "set inplace=False."
    if not trainable:
        return None
    if type(layer) not in _RULES or not set(weights) <= {"weight", "bias"}:
        return (
            "has weights whose gradient per patient is not known",
            "build it from nn.Conv2d, nn.Linear and nn.GroupNorm, or freeze it.",
        )
    if "forward" in vars(layer):
        return "has had its forward method replaced", "use the layer as PyTorch ships it."
    if len(trainable) < len(weights):
        return "is frozen in part", "freeze all of its parameters or none."
    if isinstance(layer, nn.Conv2d) and (
        layer.padding_mode != "zeros" or isinstance(layer.padding, str)
    ):
        return (
            f"pads with {layer.padding_mode!r} by {layer.padding!r}",
            "use padding_mode='zeros' and a number of pixels.",
        )
    return None


@contextmanager
def recording(network: nn.Module, chunk: Chunk) -> Iterator[None]:
    """Make the layers of a supported network report to ``chunk``; afterwards all is as before."""
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if type(layer) in _RULES and layer.weight is not None and layer.weight.requires_grad
    }
    try:
        for name, layer in layers.items():
            vars(layer)["forward"] = partial(_forward, name, layer, chunk)
        yield
    finally:
        for layer in layers.values():
            vars(layer).pop("forward", None)


def _forward(name: str, layer: nn.Module, chunk: Chunk, x: Tensor) -> Tensor:
    """Run a layer, having checked that its norms will be right."""
    rule = _RULES[type(layer)]
    who = f"network layer {name!r} ({type(layer).__name__})"
    if layer in chunk.seen:
        raise ConfigError(
            f"{who} is used twice in one pass, so that a patient's gradient is not the sum of "
            "its parts",
            advice="give each use a layer of its own.",
        )
    if len(x) != chunk.rows or (rule.dims is not None and x.dim() != rule.dims):
        raise ConfigError(
            f"{who} got an input of {x.dim()} dimensions and {len(x)} rows, needs "
            f"{rule.dims or 'any number of'} dimensions and the {chunk.rows} rows of the batch",
            advice="keep scans as rows; flatten before a Linear layer.",
        )
    chunk.seen.add(layer)
    y = _Recorded.apply(x, layer.weight, rule, layer, chunk)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return cast(Tensor, y)


class _Recorded(torch.autograd.Function):
    """A layer that reports to its chunk in the backward pass, and has no weight gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, rule: _Rule, layer: nn.Module, chunk: Chunk
    ) -> Tensor:
        y, *saved = rule.forward(layer, x)
        ctx.save_for_backward(x, *saved)
        ctx.rule, ctx.layer, ctx.chunk = rule, layer, chunk
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        g, wanted = gradients[0].contiguous(), ctx.needs_input_grad[0]
        gx = ctx.rule.backward(ctx.layer, ctx.chunk, wanted, g, *ctx.saved_tensors)
        return gx, None, None, None, None


class _Rule(Protocol):
    """How one type of layer runs forward and backward. ``wanted``: the input's gradient."""

    dims: int | None

    def forward(self, layer: Any, x: Tensor) -> tuple[Tensor, ...]: ...

    def backward(
        self, layer: Any, chunk: Chunk, wanted: bool, g: Tensor, x: Tensor, *saved: Tensor
    ) -> Tensor | None: ...


class _LinearRule:
    dims: int | None = 2

    def forward(self, layer: nn.Linear, x: Tensor) -> tuple[Tensor, ...]:
        return (F.linear(x, layer.weight, layer.bias),)

    def backward(
        self, layer: nn.Linear, chunk: Chunk, wanted: bool, g: Tensor, x: Tensor, *saved: Tensor
    ) -> Tensor | None:
        again = Again(layer.weight, lambda x, g: g.mT @ x, *_wide(layer, x, g))
        if layer.bias is not None:
            chunk.keep(layer.bias, g)
        chunk.never_form(_inner_of_vectors, again, most=chunk.rows)
        return (g @ layer.weight.to(g.dtype)).to(x.dtype) if wanted else None


class _GroupNormRule:
    """With the rows folded into the channels, the native backward gives gradients per row."""

    dims: int | None = None

    def forward(self, layer: nn.GroupNorm, x: Tensor) -> tuple[Tensor, ...]:
        (x,) = _wide(layer, x.contiguous())
        rows, channels, area = x.shape[0], x.shape[1], x.shape[2:].numel()
        return torch.native_group_norm(
            x, layer.weight, layer.bias, rows, channels, area, layer.num_groups, layer.eps
        )

    def backward(
        self, layer: nn.GroupNorm, chunk: Chunk, wanted: bool, g: Tensor, x: Tensor, *saved: Tensor
    ) -> Tensor | None:
        rows, channels, area = x.shape[0], x.shape[1], x.shape[2:].numel()
        groups, folded = rows * layer.num_groups, (1, rows * channels, *x.shape[2:])
        g, wide = (t.reshape(folded) for t in _wide(layer, g, x))
        mean, rstd = (t.view(1, groups) for t in saved)
        gx, gw, gb = torch.ops.aten.native_group_norm_backward(
            g, wide, mean, rstd, layer.weight.repeat(rows), 1, rows * channels, area, groups,
            (wanted, True, True),
        )  # fmt: skip
        chunk.keep(layer.weight, gw.view(rows, channels))
        chunk.keep(layer.bias, gb.view(rows, channels))
        return cast(Tensor, gx.view(x.shape).to(x.dtype)) if wanted else None


class _ConvRule:
    dims: int | None = 4

    def forward(self, layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, ...]:
        return (nn.Conv2d.forward(layer, x),)

    def backward(
        self, layer: nn.Conv2d, chunk: Chunk, wanted: bool, g: Tensor, x: Tensor, *saved: Tensor
    ) -> Tensor | None:
        again = Again(layer.weight, partial(_weight_gradient, layer), *_wide(layer, x, g))
        if layer.bias is not None:
            chunk.keep(layer.bias, g.to(layer.weight.dtype).sum((2, 3)))
        with _full_precision(x):
            _record_convolution(layer, chunk, x, g, again)
        if not wanted:
            return None
        weight, wide = layer.weight.to(g.dtype), x.to(g.dtype)
        gx = _convolution_backward(layer, g, wide, weight, layer.groups, (True, False, False))[0]
        return gx.to(x.dtype)


def _record_convolution(layer: nn.Conv2d, chunk: Chunk, x: Tensor, g: Tensor, again: Again) -> None:
    """Report to the chunk, in the way that is cheapest for these shapes."""
    scans, weights = chunk.scans_per_patient, layer.weight.numel()
    pixels, positions = x.shape[2:].numel(), g.shape[2:].numel()
    size = partial(_size, layer)
    if _ghost_is_cheaper(layer, x, g, scans):
        chunk.never_form(partial(_inner, layer), again, _at_once(x, pixels**2))
    elif _unfolds(layer, x, g, scans):
        most = _at_once(x, scans * positions * layer.weight[0].numel())
        form, arrange = partial(_from_patches, layer), partial(_channels_first, layer)
        chunk.keep_if_it_fits(form, arrange, size, again, most)
    else:
        most = min(_at_once(x, 4 * weights), max(1, _ROWS_OF_GROUPS // scans))
        chunk.keep_if_it_fits(partial(_from_groups, layer), torch.flatten, size, again, most)


def _convolution_backward(
    layer: nn.Conv2d, g: Tensor, x: Tensor, weight: Tensor, groups: int, wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias, those that are wanted."""
    gradients = torch.ops.aten.convolution_backward(
        g, x, weight, None, layer.stride, layer.padding, layer.dilation, False, [0, 0], groups,
        wanted,
    )  # fmt: skip
    return cast(tuple[Tensor, Tensor, Tensor], gradients)


def _weight_gradient(layer: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """Weight gradient, summed over the rows."""
    with _full_precision(x):
        wanted = (False, True, False)
        return _convolution_backward(layer, g, x, layer.weight, layer.groups, wanted)[1]


def _at_once(x: Tensor, numbers: int) -> int:
    """How many patients to work on at once, when each needs so many numbers."""
    return max(1, (_BLOCK_ON_CUDA if x.is_cuda else _BLOCK) // numbers)


def _from_groups(layer: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """Weight gradients, the patients as groups of a single convolution over their rows."""
    patients, rows = x.shape[:2]
    x, g = (t.transpose(0, 1).reshape(rows, -1, *t.shape[3:]) for t in (x, g))
    # of the weight only the shape is read
    weight = x.new_empty(1).expand(patients * len(layer.weight), *layer.weight.shape[1:])
    wanted = (False, True, False)
    out = _convolution_backward(layer, g, x, weight, patients * layer.groups, wanted)[1]
    return out.view(patients, len(layer.weight), -1)


def _from_patches(layer: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """Weight gradients, as products of the output gradients with the patches they came from.

    With the channels last a patch is one run of numbers per kernel row: quick to copy.
    """
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    ph, pw = cast(tuple[int, int], layer.padding)
    (patients, rows, channels), (outputs, height, width) = x.shape[:3], g.shape[2:]
    image = F.pad(x.flatten(0, 1).permute(0, 2, 3, 1), (0, 0, pw, pw, ph, ph)).contiguous()
    row, down, right, _ = image.stride()
    patches = image.as_strided(
        (len(image), height, width, kh, kw, channels),
        (row, sh * down, sw * right, dh * down, dw * right, 1),
    ).reshape(patients, rows * height * width, -1)
    g = g.transpose(1, 2).reshape(patients, outputs, -1)
    return torch.bmm(g, patches)


def _channels_first(layer: nn.Conv2d, total: Tensor) -> Tensor:
    """Put the numbers of `_from_patches` into the order of the weight."""
    return total.view(-1, *layer.kernel_size, layer.in_channels).permute(0, 3, 1, 2)


def _unfolds(layer: nn.Conv2d, x: Tensor, g: Tensor, scans_per_patient: int) -> bool:
    """Whether patches are faster than groups, as measured. On CUDA they are.

    Groups suffer from small maps, large kernels, and channels that do not fill oneDNN's blocks
    of 8 (a few it treats by themselves).
    """
    taps, positions, channels = layer.weight[0, 0].numel(), g.shape[2:].numel(), x.shape[1]
    small = scans_per_patient * positions < 2 * len(layer.weight)
    ragged = channels > 8 and channels % 8 > 0
    return layer.groups == 1 and (small or taps > 9 or ragged or x.is_cuda)


def _ghost_is_cheaper(layer: nn.Conv2d, x: Tensor, g: Tensor, scans_per_patient: int) -> bool:
    """Compare the costs per patient, in multiplications, of the two ways.

    The constants are measured on the CPU: inner products, in float64, run at a fifth of the speed
    of a weight gradient, forming one for each patient takes a third longer than for all together,
    and each number of it costs as much as 50 multiplications. Reads shapes and public numbers
    only.
    """
    positions, outputs, weights = g.shape[2:].numel(), len(layer.weight), layer.weight[0].numel()
    pixels, additions = x.shape[2:].numel(), 4 * sum(layer.kernel_size)
    ghost = 5 * (pixels**2 * (x.shape[1] + additions) + positions**2 * outputs)
    pairs = scans_per_patient * (scans_per_patient + 1) / 2
    formed = outputs * weights * (scans_per_patient * positions / 3 + 50)
    return layer.groups == 1 and pairs * ghost < formed


def _inner_of_vectors(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Norms of a Linear layer's weight gradients, and sizes: of a single row the same."""
    size = (vector_norm(x, dim=2) * vector_norm(g, dim=2)).sum(1)
    if x.shape[1] == 1:
        return size, size
    x, g = x.double(), g.double()  # rows may cancel; see `_inner_of_rows`
    square = (torch.bmm(x, x.mT) * torch.bmm(g, g.mT)).sum((1, 2))
    return square.clamp_(min=0.0).sqrt_(), size


def _inner(layer: nn.Conv2d, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Norms of a convolution's weight gradients, and sizes."""
    (square, size), *others = (
        _inner_of_rows(layer, x[:, i], g[:, i], x[:, i], g[:, i]) for i in range(x.shape[1])
    )
    for more, size_too in others:
        square, size = square + more, size + size_too
    for i, j in combinations(range(x.shape[1]), 2):
        square += 2.0 * _inner_of_rows(layer, x[:, i], g[:, i], x[:, j], g[:, j])[0]
    return square.clamp_(min=0.0).sqrt_(), size


def _inner_of_rows(
    layer: nn.Conv2d, x: Tensor, g: Tensor, x2: Tensor, g2: Tensor
) -> tuple[Tensor, Tensor]:
    """Inner products of the weight gradients of rows ``x, g`` with those of ``x2, g2``, and sizes.

    Each is the sum over two positions of <patch, patch'> <output gradient, output gradient'>.
    Those of patches follow from those of pixels: one shifted addition per kernel column, then
    one per kernel row. Pixels of the padding are 0 and left out. In float64: the products may
    cancel, and in float32 the error of a long sum is larger than any slack that costs nothing.
    """
    x, g, x2, g2 = x.double(), g.double(), x2.double(), g2.double()
    (sh, sw), (dh, dw), (ph, pw) = (
        layer.stride,
        layer.dilation,
        cast(tuple[int, int], layer.padding),
    )
    (kh, kw), (rows, _, height, width) = layer.kernel_size, g.shape
    pixels = torch.bmm(x.flatten(2).mT, x2.flatten(2)).view(-1, *x.shape[2:], *x.shape[2:])
    strips = pixels.new_zeros(rows, x.shape[2], width, x.shape[2], width)
    for right in range(0, kw * dw, dw):
        to, of = _meeting(right - pw, sw, width, x.shape[3])
        strips[:, :, to, :, to] += pixels[:, :, of, :, of]
    patches = pixels.new_zeros(rows, height, width, height, width)
    for down in range(0, kh * dh, dh):
        to, of = _meeting(down - ph, sh, height, x.shape[2])
        patches[:, to, :, to] += strips[:, of, :, of]
    outputs = torch.bmm(g.flatten(2).mT, g2.flatten(2))
    products = patches.view_as(outputs).mul_(outputs)
    return products.sum((1, 2)), products.diagonal(dim1=1, dim2=2).abs().sqrt().sum(1)


def _meeting(shift: int, stride: int, positions: int, pixels: int) -> tuple[slice, slice]:
    """The positions ``t`` with a pixel at ``stride * t + shift``, and those pixels."""
    first = max(0, -(shift // stride))
    count = max(0, min(positions, (pixels - 1 - shift) // stride + 1) - first)
    begin = stride * first + shift
    return slice(first, first + count), slice(begin, begin + stride * count, stride)


def _size(layer: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """Per patient, the sum over positions of ``|patch| |output gradient|``."""
    patients, (x, g) = len(x), (t.flatten(0, 1) for t in (x, g))
    energy, ones = x.square().sum(1, keepdim=True), x.new_ones(1, 1, *layer.kernel_size)
    patch: Tensor = F.conv2d(energy, ones, None, layer.stride, layer.padding, layer.dilation)
    size: Tensor = patch.clamp(min=0.0).sqrt() * vector_norm(g, dim=1, keepdim=True)
    return size.view(patients, -1).sum(1)


def _wide(layer: nn.Conv2d | nn.Linear | nn.GroupNorm, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the weights' precision, where autocast had narrowed them."""
    return tuple(tensor.to(layer.weight.dtype) for tensor in tensors)


def _full_precision(x: Tensor) -> AbstractContextManager[None]:
    """Keep TF32 out of cuDNN: norms and sums must come from the same numbers."""
    if not x.is_cuda:
        return nullcontext()
    cudnn = torch.backends.cudnn
    flags = cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )
    return cast(AbstractContextManager[None], flags)


_RULES: dict[type[nn.Module], _Rule] = {
    nn.Conv2d: _ConvRule(),
    nn.Linear: _LinearRule(),
    nn.GroupNorm: _GroupNormRule(),
}
