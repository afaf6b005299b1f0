"""Keep book of every patient's gradient norm during one backward pass, then build the clipped sum.

The layers (``layer_gradients.py``) note squared norms while the pass runs and leave a part of
the sum to be finished. When all norms are known, each part is weighted with the patients'
clip factors. Everything here is private: no noise has been added (``private_gradients.py``).

No scale of numbers may hide a norm: a hostile model can make a layer's inputs 1e19 and the
gradients at its output 1e-23, whose squares are infinity and 0 in float32. So the rows of large
gradients are computed in units of their own, powers of two (`Again`), small ones in float64.

Source:
    Bu, Wang, Zha, Karypis. Differentially Private Optimization on Large Model at Small Cost.
    ICML 2023. https://arxiv.org/abs/2210.00038 (book-keeping: one backward pass).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

_GHOST_SLACK = 1e-6  # rounding error of a ghost norm, relative to what cancels in it
_FLOOR = 1e-13  # least norm of a row in its own unit; what underflows in float32 is below 1e-15
_LARGE = 4096.0  # numbers up to here need no unit: their fourth powers are far from overflow
_KEEP_BYTES = 64 << 20  # gradients kept for the sum; beyond it they are computed a second time

Inner = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""``inner(x, g, x2, g2)``: of the weight gradients of pairs of rows, from a layer's inputs ``x``
and output gradients ``g``; and, of a row with itself, its `Size`. Both of shape ``(pairs,)``."""

Size = Callable[[Tensor, Tensor], Tensor]
"""``size(x, g)``, shape ``(rows,)``: bounds what may cancel within a row's weight gradient."""


class Chunk:
    """What is known of the patients of one physical batch, while its backward pass runs.

    Args:
        unit: int64, shape ``(rows - padding,)``, non-decreasing, in [0, units): the patient of
            each row.
        units: Number of patients.
        scans_per_patient: About how many rows a patient has; public.
        padding: Rows after those, which belong to nobody and contribute exactly zero.
    """

    def __init__(self, unit: Tensor, units: int, scans_per_patient: int, padding: int = 0) -> None:
        # Each row of padding is a unit of its own, past the patients, whose factor will be 0.
        self._patients, self._units = units, units + padding
        unit = torch.cat([unit, torch.arange(units, self._units, device=unit.device)])
        self.rows, self.scans_per_patient = len(unit), scans_per_patient
        self.seen: set[nn.Module] = set()
        self._unit = unit
        count = torch.bincount(unit, minlength=self._units)
        self.row_weight = count.double().reciprocal()[unit]  # makes sums over rows means
        self._one_row_each = bool((count == 1).all())
        self._pairs = list(_pairs(unit))
        self._norms: list[Tensor] = []  # of a part of the parameters each; shape (units,)
        self._parts: list[_Part] = []
        self._small: list[tuple[Tensor, Tensor]] = []  # parameters and their gradients per row
        self._kept_bytes = 0

    def keep(self, parameter: Tensor, rows: Tensor) -> None:
        """Take a small gradient per row, shape ``(rows, numbers)``: keep it for norms and sum."""
        self._small.append((parameter, rows))

    def keep_if_it_fits(self, rows: Tensor, size: Size, again: Again) -> None:
        """Take a large gradient per row, in its rows' units: note the norms; keep it, or not.

        What is not kept is computed again later, and rounded in another way: what may cancel
        in it counts as in `never_form`.
        """
        gradient, scale = self._per_patient_scaled(rows, again.scale)
        # Norms of norms: in float32 two short sums lose less than a long one.
        norm = vector_norm(vector_norm(gradient.flatten(2), dim=2), dim=1).double()
        self._norms.append(scale * norm.hypot(norm.new_tensor(_FLOOR)))
        self._kept_bytes += gradient.nbytes
        if self._kept_bytes <= _KEEP_BYTES:
            self._parts.append(_Kept([again.parameter], gradient, scale))
        else:
            self._norms.append(self._slack(size(again.x, again.g), again))
            self._parts.append(again)

    def never_form(self, inner: Inner, again: Again, block: int) -> None:
        """Note the norms of a weight gradient from inner products, without forming it.

        Rounding errs by a share of the square of the rows' sizes, which is added so that no
        patient's norm comes out too small. ``block`` rows at a time, so that they stay in the
        cache.
        """
        x, g, scale = again.x, again.g, again.scale
        own = [
            inner(*both, *both)
            for both in zip(torch.split(x, block), torch.split(g, block), strict=True)
        ]
        squares, sizes = (torch.cat(parts) for parts in zip(*own, strict=True))
        square = self._per_patient(squares.double() * scale.square())
        for pairs in self._pairs:
            for i, j in zip(*(torch.split(rows, block) for rows in pairs), strict=True):
                products = inner(x[i], g[i], x[j], g[j])[0].double() * scale[i] * scale[j]
                square.index_add_(0, self._unit[i], 2.0 * products)
        self._norms += [square.clamp(min=0.0).sqrt(), self._slack(sizes, again)]
        self._parts.append(again)

    def clipped_sums(self, bound: float) -> dict[Tensor, Tensor]:
        """Build the sums over patients of ``min(1, bound / norm)`` times the gradient."""
        if self._small:
            parameters, rows = zip(*self._small, strict=True)
            gradient = self._per_patient(torch.cat(rows, dim=1).double())
            self._norms.append(vector_norm(gradient, dim=1))
            self._parts.append(_Kept(parameters, gradient, torch.ones_like(self._norms[-1])))
        if not self._parts:
            return {}
        norm = vector_norm(torch.stack(self._norms), dim=0)
        finite = norm.isfinite()
        unit = torch.where(finite, (bound / norm).clamp(max=1.0), 0.0)  # norm 0 gives factor 1
        unit[self._patients :] = 0.0
        bad_units, bad_rows = _where(~finite), _where(~finite[self._unit])
        factors = _Factors(unit, unit[self._unit], bad_units, bad_rows)
        sums = {p: gradient for part in self._parts for p, gradient in part.clipped(factors)}
        # The graph holds this chunk and the parts hold tensors of the graph: a circle that runs
        # through C++, where no collector sees it. Cut it, or every step's memory is lost.
        self._parts, self._norms, self._small = [], [], []
        return sums

    def _per_patient(self, rows: Tensor) -> Tensor:
        """Add up the rows of each patient."""
        if self._one_row_each:
            return rows
        return rows.new_zeros(self._units, *rows.shape[1:]).index_add_(0, self._unit, rows)

    def _slack(self, size: Tensor, again: Again) -> Tensor:
        """What rounding may hide of each patient's norm."""
        return self._per_patient((math.sqrt(_GHOST_SLACK) * size.double() + _FLOOR) * again.scale)

    def _per_patient_scaled(self, rows: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Add up the rows of each patient, in the largest of their units; returns that too."""
        if self._one_row_each:
            return rows, scale
        largest = scale.new_zeros(self._units).scatter_reduce_(0, self._unit, scale, "amax")
        share = (scale / largest[self._unit]).to(rows.dtype)
        return self._per_patient(rows * share.view(-1, *[1] * (rows.dim() - 1))), largest


class Again:
    """A weight gradient to compute at the end, from the rows scaled by their clip factors.

    Each row of ``x`` and of ``g`` is held in a unit of its own, a power of two near its
    largest number; ``scale`` (float64, shape ``(rows,)``) is the product of the two.

    Args:
        parameter: The weight.
        weight_gradient: ``weight_gradient(x, g)``: its gradient, summed over rows.
        x: The layer's input, rows first.
        g: The gradient at its output, rows first.
    """

    def __init__(
        self,
        parameter: Tensor,
        weight_gradient: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        g: Tensor,
    ) -> None:
        self.parameter, self.weight_gradient = parameter, weight_gradient
        if _is_moderate(x) and _is_moderate(g):  # nearly always: spares copies
            self.x, self.g = x, g
            self.scale = torch.ones(len(x), dtype=torch.float64, device=x.device)
        else:
            (self.x, x_unit), (self.g, g_unit) = _in_units(x), _in_units(g)
            self.scale = x_unit * g_unit

    def clipped(self, factors: _Factors) -> Iterator[tuple[Tensor, Tensor]]:
        """Compute it."""
        x, g = (_without(rows, factors.bad_rows) for rows in (self.x, self.g))
        factor = _without(factors.row * self.scale, factors.bad_rows).to(g.dtype)
        factor = factor.view(-1, *[1] * (g.dim() - 1))
        yield self.parameter, self.weight_gradient(x, g * factor).view_as(self.parameter)


class _Kept:
    """A gradient per patient, kept from the backward pass, in units of ``scale``.

    It is that of one parameter or, with shape ``(units, numbers)``, of several, side by side.
    """

    def __init__(self, parameters: Sequence[Tensor], gradient: Tensor, scale: Tensor) -> None:
        self.parameters, self.gradient, self.scale = parameters, gradient, scale

    def clipped(self, factors: _Factors) -> Iterator[tuple[Tensor, Tensor]]:
        """Weight it."""
        gradient = _without(self.gradient, factors.bad_units).flatten(1)
        factor = _without(factors.unit * self.scale, factors.bad_units).to(gradient.dtype)
        total = (factor @ gradient).to(self.parameters[0].dtype)
        pieces = torch.split_with_sizes(total, [parameter.numel() for parameter in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            yield parameter, piece.view_as(parameter)


class _Part(Protocol):
    """Part of the sum."""

    def clipped(self, factors: _Factors) -> Iterator[tuple[Tensor, Tensor]]:
        """Give parameters and the clipped sums of their gradients."""


class _Factors(NamedTuple):
    """How much of each patient, and so of each row, goes into the sum; which are not finite.

    The shares are float64: beside the units of the rows, float32 would round them to nothing.
    """

    unit: Tensor
    row: Tensor
    bad_units: Tensor
    bad_rows: Tensor


def _without(rows: Tensor, bad: Tensor) -> Tensor:
    """Zero the bad rows, where a factor of 0 would leave NaN. The original stays as it is."""
    return rows.index_fill(0, bad, 0.0) if len(bad) else rows


def _is_moderate(rows: Tensor) -> bool:
    """Whether no number exceeds `_LARGE`; False if one is NaN.

    Such numbers need no units: what underflows in their products is far below any clip norm.
    """
    return float(rows.amax()) <= _LARGE and float(rows.amin()) >= -_LARGE


def _in_units(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each row by a power of two near its largest number; returns these too, in float64.

    Exact, but for numbers 1e-38 times the largest. The unit of a row that is not finite is NaN,
    and so is its patient's norm.
    """
    flat = rows.flatten(1)
    largest = torch.maximum(flat.amax(1), -flat.amin(1))  # 20 times as fast as aminmax
    power = largest.frexp().exponent.clamp(-126, 126)  # 2 to the +-126 is normal in float32
    unit = power.double().exp2()
    inverse = unit.reciprocal().to(rows.dtype).view(-1, *[1] * (rows.dim() - 1))
    return rows * inverse, torch.where(largest.isfinite(), unit, math.nan)


def _where(mask: Tensor) -> Tensor:
    """Positions at which a mask holds."""
    return mask.nonzero().flatten()


def _pairs(unit: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the index pairs ``(i, i + lag)`` within one patient, for lag 1, 2, ... in turn."""
    for lag in range(1, len(unit)):
        first = _where(unit[lag:] == unit[:-lag])
        if not len(first):
            return
        yield first, first + lag
