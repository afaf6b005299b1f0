"""Sum the patients' gradients, each clipped, at little more than the cost of a plain backward pass.

A stock per-sample engine stores one weight gradient per row and is 1.5 to 7 times as slow
as plain training. Here one backward pass forms only the gradients of the activations; on
its way each layer notes every patient's squared gradient norm. When all norms are known,
one weighted call per layer yields the clipped sum. Nothing is noised here
(``private_gradients.py``): everything this module returns is private.

Per layer, the cheapest exact way to the norms; which one depends on shapes only:
    Conv2d, large maps    the gradient itself, for all rows in one grouped convolution
    Conv2d, small maps    "ghost": inner products of patches times those of output gradients
    Linear                ghost
    GroupNorm             the gradient itself, from the native backward with rows as channels
Inner products of two different rows of one patient are added pair by pair, so patients
may have unequal numbers of rows.

Source:
    Bu, Wang, Zha, Karypis. Differentially Private Optimization on Large Model at Small Cost.
    ICML 2023. https://arxiv.org/abs/2210.00038 (book-keeping: one backward pass).
    Goodfellow. Efficient Per-Example Gradient Computations. https://arxiv.org/abs/1510.01799
    Rochette, Manoel, Tramel. Efficient Per-Example Gradient Computations in Convolutional
    Neural Networks. https://arxiv.org/abs/1912.06015 (grouped convolution).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfed.common.errors import ConfigError

MARGIN = 1e-3
"""Patients are clipped to ``clip_norm * (1 - MARGIN)``: room for rounding in float32."""

_GHOST_SLACK = 1e-6  # rounding of a ghost norm, as a share of what cancels in it; see _Chunk.add_pairs
_KEEP_BYTES = 64 << 20  # gradients kept for the sum; beyond it they are computed a second time

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits, labels)`` for rows: one value per row, shape ``(rows,)``, no mixing of rows."""


class PatientBatch(NamedTuple):
    """Some of the sampled patients with all their rows; one physical batch.

    Attributes:
        inputs: float32, shape ``(rows, ...)``: what the network takes.
        labels: int64, shape ``(rows,)``: what the loss takes.
        unit: int64, shape ``(rows,)``, non-decreasing: the patient of each row, numbered
            from 0 in this batch. Rows of the unit ``units`` (one past the last patient) are
            padding: computed, and thrown away.
        units: Number of patients in the batch; >= 0.
    """

    inputs: Tensor
    labels: Tensor
    unit: Tensor
    units: int


def clipped_sums(
    network: nn.Module,
    loss: Loss,
    batch: PatientBatch,
    *,
    clip_norm: float,
    scans_per_patient: int = 1,
) -> dict[str, Tensor]:
    """Add up the patients' mean gradients, each scaled to norm at most ``clip_norm``.

    Args:
        network: One that `check_supported` accepts. Its rows must not influence each other.
        loss: One value per row.
        batch: The patients. May be empty.
        clip_norm: ``S``, the L2 bound on one patient, over all parameters together.
        scans_per_patient: About how many rows a patient has; public. Only speed depends on it.

    Returns:
        Per trainable parameter (by name) the sum over patients, in the parameter's shape and
        dtype. Private: no noise has been added.

    Raises:
        ConfigError: a layer was used twice, on 3-D input, with rows folded together, or its
            weight was used outside of it: then norms would be wrong.
        ValueError: the batch or the loss has the wrong shape.

    Guarantee:
        One patient more changes the result by at most ``clip_norm``, in the L2 norm over all
        parameters, up to the rounding of the sum itself. A patient whose gradient is not
        finite contributes exactly zero and disturbs no other. ``network`` is left as it was:
        parameters, ``grad``, state-dict names and forward methods.
    """
    _check_batch(batch)
    parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
    if not len(batch.unit):
        return {name: torch.zeros_like(p) for name, p in parameters.items()}
    chunk = _Chunk(batch.unit.to(batch.inputs.device), batch.units, scans_per_patient)
    with torch.enable_grad(), _recording(network, chunk):
        rows = loss(network(batch.inputs), batch.labels)
        if rows.shape != batch.unit.shape:
            raise ValueError(f"loss must give one value per row, got shape {tuple(rows.shape)}")
        with torch.autocast(rows.device.type, enabled=False):
            total = (rows * chunk.row_weight).sum()
            strays = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    for name, stray in zip(parameters, strays, strict=True):
        if stray is not None:
            raise ConfigError(
                f"network parameter {name!r} is used outside of its own layer, where its "
                "gradient cannot be clipped per patient",
                advice="call the layer itself instead of using its weight.",
            )
    with torch.autocast(rows.device.type, enabled=False):
        sums = chunk.clipped(clip_norm * (1.0 - MARGIN))
    return {name: sums.get(p, torch.zeros_like(p)) for name, p in parameters.items()}


def _check_batch(batch: PatientBatch) -> None:
    """Refuse a batch whose rows are not grouped by patient: its norms would be wrong."""
    unit, rows = batch.unit, len(batch.inputs)
    if unit.shape != (rows,) or len(batch.labels) != rows:
        raise ValueError(
            f"a batch of {rows} rows needs as many labels and units, "
            f"got {len(batch.labels)} and shape {tuple(unit.shape)}"
        )
    if rows and (unit[0] < 0 or unit[-1] > batch.units or bool((unit.diff() < 0).any())):
        raise ValueError("unit must be non-decreasing, in [0, units], with units as padding")


# --- what one backward pass notes ------------------------------------------------------------


class _Factors(NamedTuple):
    """How much of each patient goes into the sum: its clip factor, 0 for one that is not finite."""

    unit: Tensor
    row: Tensor
    bad_units: Tensor
    bad_rows: Tensor


class _Term(Protocol):
    """One parameter's part in the sum, waiting for the clip factors."""

    parameter: nn.Parameter

    def clipped(self, factors: _Factors) -> Tensor: ...


class _Kept:
    """A gradient per patient, kept from the backward pass."""

    def __init__(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        self.parameter, self.gradient = parameter, gradient

    def clipped(self, factors: _Factors) -> Tensor:
        gradient = _without(self.gradient, factors.bad_units).flatten(1)
        return (factors.unit.to(gradient.dtype) @ gradient).view_as(self.parameter)


class _Again:
    """A weight gradient to be computed once more, from the rows scaled by their clip factors."""

    def __init__(
        self,
        parameter: nn.Parameter,
        weight_gradient: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        g: Tensor,
    ) -> None:
        self.parameter, self.weight_gradient, self.x, self.g = parameter, weight_gradient, x, g

    def clipped(self, factors: _Factors) -> Tensor:
        x, g = (_without(t, factors.bad_rows) for t in (self.x, self.g))
        row = factors.row.to(g.dtype).view(-1, *[1] * (g.dim() - 1))
        return self.weight_gradient(x, g * row).view_as(self.parameter)


class _Chunk:
    """The squared gradient norm of each patient so far, and the parts of the clipped sum."""

    def __init__(self, unit: Tensor, units: int, scans_per_patient: int) -> None:
        self.unit, self.patients, self.scans_per_patient = unit, units, scans_per_patient
        self.units = max(units, int(unit[-1]) + 1)  # one more if there is padding
        count = torch.bincount(unit, minlength=self.units)
        self.one_row_each = bool((count == 1).all())
        self.row_weight = count.to(torch.float32).reciprocal()[unit]  # a patient's mean gradient
        self.pairs = list(_pairs(unit))
        self.square = torch.zeros(self.units, dtype=torch.float64, device=unit.device)
        self.terms: list[_Term] = []
        self.seen: set[nn.Module] = set()
        self.kept_bytes = 0

    def per_unit(self, rows: Tensor) -> Tensor:
        """Add up the rows of each patient; shape ``(units, ...)``."""
        if self.one_row_each:
            return rows
        return rows.new_zeros(self.units, *rows.shape[1:]).index_add_(0, self.unit, rows)

    def add_gradients(self, parameter: nn.Parameter, rows: Tensor) -> Tensor:
        """Note the norms of gradients given per row, shape ``(rows, *parameter)``."""
        gradient = self.per_unit(rows)
        # Norms of norms: float32 loses less over two short sums than over one long one.
        norm = gradient.reshape(self.units, len(parameter), -1).norm(dim=2).norm(dim=1)
        self.square += norm.double().square()
        return gradient

    def keep(self, parameter: nn.Parameter, rows: Tensor) -> None:
        """Note the norms and keep the gradients for the sum."""
        self.terms.append(_Kept(parameter, self.add_gradients(parameter, rows)))

    def add_pairs(
        self,
        inner: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
        size: Tensor,
        x: Tensor,
        g: Tensor,
    ) -> None:
        """Note squared norms from inner products between the gradients of two rows.

        ``size`` (rows,) bounds what cancels within an inner product: the sum over positions
        of ``|patch| |output gradient|``. Its rounding error is a share of ``size`` squared,
        which is added so that no patient's norm comes out too small.
        """
        square = self.per_unit(inner(x, g, x, g).double())
        for i, j in self.pairs:
            square.index_add_(0, self.unit[i], 2.0 * inner(x[i], g[i], x[j], g[j]).double())
        self.square += square.clamp(min=0.0) + _GHOST_SLACK * self.per_unit(size.double()).square()

    def clipped(self, bound: float) -> dict[nn.Parameter, Tensor]:
        """Build the clipped sums now that the norms are complete."""
        norm = self.square.sqrt()
        finite = norm.isfinite()
        unit = torch.where(finite, (bound / norm).clamp(max=1.0), 0.0)  # norm 0: factor 1
        unit[self.patients :] = 0.0  # padding
        factors = _Factors(
            unit, unit[self.unit], (~finite).nonzero().flatten(), _where(~finite[self.unit])
        )
        return {term.parameter: term.clipped(factors) for term in self.terms}


def _where(mask: Tensor) -> Tensor:
    """Positions where a mask holds."""
    return mask.nonzero().flatten()


def _without(rows: Tensor, bad: Tensor) -> Tensor:
    """Zero the bad rows, since a factor of 0 would leave NaN. The original stays as it is."""
    return rows.index_fill(0, bad, 0.0) if len(bad) else rows


def _pairs(unit: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the index pairs ``(i, i + lag)`` within one patient, for lag 1, 2, ... in turn."""
    for lag in range(1, len(unit)):
        first = _where(unit[lag:] == unit[:-lag])
        if not len(first):
            return
        yield first, first + lag


# --- one layer's part of the backward pass ---------------------------------------------------

_convolution_backward = torch.ops.aten.convolution_backward


class _Rule(Protocol):
    """How one type of layer runs forward, backward, and notes its gradients."""

    def forward(self, layer: Any, x: Tensor) -> tuple[Tensor, ...]: ...

    def backward(
        self, layer: Any, chunk: _Chunk, wants_input: bool, g: Tensor, x: Tensor, *saved: Tensor
    ) -> Tensor | None: ...


class _Recorded(torch.autograd.Function):
    """A layer whose backward pass notes per-patient gradients and returns none for the weights."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, rule: _Rule, layer: nn.Module, chunk: _Chunk
    ) -> Tensor:
        y, *saved = rule.forward(layer, x)
        ctx.save_for_backward(x, *saved)
        ctx.rule, ctx.layer, ctx.chunk = rule, layer, chunk
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        wants_input = ctx.needs_input_grad[0]
        gx = ctx.rule.backward(
            ctx.layer, ctx.chunk, wants_input, g.contiguous(), *ctx.saved_tensors
        )
        return gx, None, None, None, None


class _ConvRule:
    def forward(self, layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, ...]:
        return (type(layer).forward(layer, x),)

    def backward(
        self, layer: nn.Conv2d, chunk: _Chunk, wants_input: bool, g: Tensor, x: Tensor
    ) -> Tensor | None:
        dtype = layer.weight.dtype
        with _full_precision(x):
            self._note(layer, chunk, x.to(dtype), g.to(dtype))
        if not wants_input:
            return None
        weight = layer.weight.to(g.dtype)
        return _conv_backward(layer, g, x.to(g.dtype), weight, (True, False, False))[0].to(x.dtype)

    def _note(self, layer: nn.Conv2d, chunk: _Chunk, x: Tensor, g: Tensor) -> None:
        if layer.bias is not None:
            chunk.keep(layer.bias, g.sum((2, 3)))
        again = _Again(layer.weight, partial(_conv_weight_gradient, layer), x, g)
        if _ghost_is_cheaper(layer, x, g, chunk.scans_per_patient):
            chunk.add_pairs(partial(_conv_inner, layer), _conv_size(layer, x, g), x, g)
            chunk.terms.append(again)
            return
        gradient = chunk.add_gradients(layer.weight, _conv_row_gradients(layer, x, g))
        chunk.kept_bytes += gradient.nbytes
        fits = chunk.kept_bytes <= _KEEP_BYTES
        chunk.terms.append(_Kept(layer.weight, gradient) if fits else again)


def _conv_backward(
    layer: nn.Conv2d, g: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    out = _convolution_backward(
        g, x, weight, None, layer.stride, layer.padding, layer.dilation, False, [0, 0],
        layer.groups, wanted,
    )  # fmt: skip
    return cast(tuple[Tensor, Tensor, Tensor], out)


def _conv_weight_gradient(layer: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """Sum of the rows' weight gradients."""
    with _full_precision(x):
        return _conv_backward(layer, g, x, layer.weight, (False, True, False))[1]


def _conv_row_gradients(layer: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """Each row's weight gradient, shape ``(rows, *weight)``."""
    rows, outputs = g.shape[:2]
    if layer.groups == 1 and (x.shape[1] == 1 or x.is_cuda):
        patches = F.unfold(x, layer.kernel_size, layer.dilation, _padding(layer), layer.stride)
        out = torch.bmm(g.flatten(2), patches.transpose(1, 2))
    else:  # the rows as groups of a single convolution
        shape = x.new_empty(rows * outputs, *layer.weight.shape[1:])  # only its shape is read
        out = _convolution_backward(
            g.reshape(1, rows * outputs, *g.shape[2:]), x.reshape(1, -1, *x.shape[2:]), shape,
            None, layer.stride, layer.padding, layer.dilation, False, [0, 0],
            rows * layer.groups, (False, True, False),
        )[1]  # fmt: skip
    return out.view(rows, *layer.weight.shape)


def _ghost_is_cheaper(layer: nn.Conv2d, x: Tensor, g: Tensor, scans_per_patient: int) -> bool:
    """Compare multiplications per row; shapes and public numbers only."""
    positions, (outputs, weights) = g.shape[2:].numel(), (len(layer.weight), layer.weight[0].numel())
    (kh, kw), (ph, pw) = layer.kernel_size, _padding(layer)
    pixels = (x.shape[2] + 2 * ph) * (x.shape[3] + 2 * pw)
    ghost = pixels**2 * x.shape[1] + positions**2 * (outputs + 4 * kh * kw)
    pairs = (scans_per_patient + 1) / 2
    return layer.groups == 1 and pairs * ghost < positions * outputs * weights


def _conv_inner(layer: nn.Conv2d, x: Tensor, g: Tensor, x2: Tensor, g2: Tensor) -> Tensor:
    """Inner product of the weight gradients of two rows, for many pairs of rows; ``(pairs,)``.

    It is the sum over two positions of <patch, patch'> <output gradient, output gradient'>.
    Those of patches come from those of pixels, by one shifted addition per kernel element.
    """
    height, width = g.shape[2:]
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    padded = [F.pad(t, (_padding(layer)[1],) * 2 + (_padding(layer)[0],) * 2) for t in (x, x2)]
    (h, w) = padded[0].shape[2:]
    pixels = torch.bmm(padded[0].flatten(2).mT, padded[1].flatten(2)).view(-1, h, w, h, w)
    patches = pixels.new_zeros(len(x), height, width, height, width)
    for down in range(0, kh * dh, dh):
        i = slice(down, down + sh * (height - 1) + 1, sh)
        for right in range(0, kw * dw, dw):
            j = slice(right, right + sw * (width - 1) + 1, sw)
            patches += pixels[:, i, j, i, j]
    outputs = torch.bmm(g.flatten(2).mT, g2.flatten(2))
    return patches.view_as(outputs).mul_(outputs).sum((1, 2))


def _conv_size(layer: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """Per row, the sum over positions of ``|patch| |output gradient|``."""
    ones = x.new_ones(1, 1, *layer.kernel_size)
    energy = x.square().sum(1, keepdim=True)
    patch = F.conv2d(energy, ones, None, layer.stride, layer.padding, layer.dilation)
    return (patch.clamp(min=0.0).sqrt() * g.norm(dim=1, keepdim=True)).sum((1, 2, 3))


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    """Zeros added above and below, left and right."""
    return cast(tuple[int, int], layer.padding)


class _LinearRule:
    def forward(self, layer: nn.Linear, x: Tensor) -> tuple[Tensor, ...]:
        return (F.linear(x, layer.weight, layer.bias),)

    def backward(
        self, layer: nn.Linear, chunk: _Chunk, wants_input: bool, g: Tensor, x: Tensor
    ) -> Tensor | None:
        x32, g32 = x.to(layer.weight.dtype), g.to(layer.weight.dtype)
        if layer.bias is not None:
            chunk.keep(layer.bias, g32)
        size = x32.norm(dim=1) * g32.norm(dim=1)
        chunk.add_pairs(lambda x, g, x2, g2: (x * x2).sum(1) * (g * g2).sum(1), size, x32, g32)
        chunk.terms.append(_Again(layer.weight, lambda x, g: g.mT @ x, x32, g32))
        return (g @ layer.weight.to(g.dtype)).to(x.dtype) if wants_input else None


class _GroupNormRule:
    """With the rows folded into the channels, the native backward gives gradients per row."""

    def forward(self, layer: nn.GroupNorm, x: Tensor) -> tuple[Tensor, ...]:
        full = x.to(layer.weight.dtype).contiguous()
        rows, channels, area = full.shape[0], full.shape[1], full.shape[2:].numel()
        return torch.native_group_norm(
            full, layer.weight, layer.bias, rows, channels, area, layer.num_groups, layer.eps
        )

    def backward(
        self, layer: nn.GroupNorm, chunk: _Chunk, wants_input: bool, g: Tensor, x: Tensor,
        mean: Tensor, rstd: Tensor,
    ) -> Tensor | None:  # fmt: skip
        full = x.to(layer.weight.dtype)
        rows, channels, area = full.shape[0], full.shape[1], full.shape[2:].numel()
        groups, folded = rows * layer.num_groups, (1, rows * channels, *full.shape[2:])
        gx, gw, gb = torch.ops.aten.native_group_norm_backward(
            g.to(full.dtype).reshape(folded), full.reshape(folded), mean.view(1, groups),
            rstd.view(1, groups), layer.weight.repeat(rows), 1, rows * channels, area, groups,
            [wants_input, True, True],
        )  # fmt: skip
        chunk.keep(layer.weight, gw.view(rows, channels))
        chunk.keep(layer.bias, gb.view(rows, channels))
        return gx.view(x.shape).to(x.dtype) if wants_input else None


def _full_precision(x: Tensor) -> AbstractContextManager[None]:
    """Keep TF32 out of cuDNN: norms and sums must come from the same numbers."""
    if not x.is_cuda:
        return nullcontext()
    cudnn = torch.backends.cudnn
    return cast(
        AbstractContextManager[None],
        cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False),
    )


_RULES: dict[type[nn.Module], _Rule] = {
    nn.Conv2d: _ConvRule(),
    nn.Linear: _LinearRule(),
    nn.GroupNorm: _GroupNormRule(),
}


# --- the network ------------------------------------------------------------------------------
