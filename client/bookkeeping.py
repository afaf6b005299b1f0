"""Keep book of every patient's gradient norm during one backward pass, then build the clipped sum.

The layers (``layer_gradients.py``) note norms while the pass runs and leave a part of the sum
to be finished. When all norms are known, each part is weighted with the patients' clip factors.
Everything here is private: no noise has been added (``private_gradients.py``).

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
from itertools import accumulate, groupby
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

_GHOST_SLACK = 1e-6  # rounding error of a ghost norm's square, relative to what cancels in it
_FLOOR = 1e-13  # least norm of a row in its own unit; what underflows in float32 is below 1e-15
_LARGE = 4096.0  # numbers up to here need no unit: their fourth powers are far from overflow
_KEEP_BYTES = 128 << 20  # gradients kept for the sum; beyond it they are computed a second time

Size = Callable[[Tensor, Tensor], Tensor]
"""``size(x, g)``, shape ``(patients,)``: bounds what may cancel within each patient's weight
gradient, from a layer's inputs and output gradients, of shape ``(patients, rows, ...)``."""

Inner = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``inner(x, g)``: the norm of each patient's weight gradient, and its `Size`."""

Form = Callable[[Tensor, Tensor], Tensor]
"""``form(x, g)``: each patient's weight gradient, shape ``(patients, outputs, numbers)``, in any
one order of the numbers."""

Arrange = Callable[[Tensor], Tensor]
"""Puts the numbers of a sum of such gradients, shape ``(outputs * numbers,)``, into the weight's
order."""


class Chunk:
    """What is known of the patients of one physical batch, while its backward pass runs.

    Args:
        unit: int64, shape ``(rows - padding,)``, non-decreasing: the patient of each row.
        scans_per_patient: About how many rows a patient has; public.
        padding: Rows after those, which belong to nobody and contribute exactly zero.

    Attributes:
        order: int64, shape ``(rows,)``: the order in which the rows must enter the network, so
            that patients with equally many stand side by side; None if it is the one they have.
        row_weight: float64, shape ``(rows,)``, in that order: makes sums over rows means.
    """

    def __init__(self, unit: Tensor, scans_per_patient: int, padding: int = 0) -> None:
        # Each row of padding is a unit of its own, whose factor will be 0.
        counts = [len(list(rows)) for _, rows in groupby(unit.tolist())] + [1] * padding
        units = sorted(range(len(counts)), key=lambda i: -counts[i])  # stable: padding stays last
        self.order = _row_order(counts, units, unit.device)
        counts.sort(reverse=True)
        self._groups = [(len(list(same)), count) for count, same in groupby(counts)]
        self._patients, self._units, self.rows = len(counts) - padding, len(counts), sum(counts)
        self.scans_per_patient = scans_per_patient
        owners = [owner for owner, count in enumerate(counts) for _ in range(count)]
        self._unit = torch.tensor(owners, dtype=torch.long, device=unit.device)
        weights = [1.0 / counts[owner] for owner in owners]
        self.row_weight = torch.tensor(weights, dtype=torch.float64, device=unit.device)
        self.seen: set[nn.Module] = set()
        self._norms: list[Tensor] = []  # of a part of the parameters each; shape (units,)
        self._slacks: list[Tensor] = []  # what may cancel in some of them; the same shape
        self._parts: list[_Part] = []
        self._small: list[tuple[Tensor, Tensor]] = []  # parameters and their gradients per row
        self._kept_bytes = 0

    def keep(self, parameter: Tensor, rows: Tensor) -> None:
        """Take a small gradient per row, shape ``(rows, numbers)``: keep it for norms and sum."""
        self._small.append((parameter, rows))

    def keep_if_it_fits(
        self, form: Form, arrange: Arrange, size: Size, again: Again, most: int
    ) -> None:
        """Form a large gradient per patient: note the norms; keep it, or not.

        What is not kept is computed again later, and rounded in another way: what may cancel
        in it counts as in `never_form`. At most ``most`` patients at a time, so that they stay
        in the cache.
        """
        self._kept_bytes += self._units * again.parameter.nbytes
        fits = self._kept_bytes <= _KEEP_BYTES
        norms, sizes, kept = [], [], []
        g, scale, floor = self._in_units_of_patients(again)
        for x_block, g_block in self._blocks(most, again.x, g):
            gradient = form(x_block, g_block)
            # Norms of norms: in float32 two short sums lose less than a long one.
            norms.append(vector_norm(vector_norm(gradient, dim=2), dim=1))
            if fits:
                kept.append(gradient.flatten(1))
            else:
                sizes.append(size(x_block, g_block))
        self._note(norms, sizes, scale, floor)
        self._parts.append(_Kept([again.parameter], kept, scale, arrange) if fits else again)

    def never_form(self, inner: Inner, again: Again, most: int) -> None:
        """Note the norms of a weight gradient from inner products, without forming it.

        Rounding errs by a share of the square of the patients' sizes, which is added so that no
        patient's norm comes out too small. At most ``most`` patients at a time.
        """
        norms, sizes = [], []
        g, scale, floor = self._in_units_of_patients(again)
        for x_block, g_block in self._blocks(most, again.x, g):
            norm, size = inner(x_block, g_block)
            norms.append(norm)
            sizes.append(size)
        self._note(norms, sizes, scale, floor)
        self._parts.append(again)

    def clipped_sums(self, bound: float) -> dict[Tensor, Tensor]:
        """Build the sums over patients of ``min(1, bound / norm)`` times the gradient."""
        if self._small:
            parameters, rows = zip(*self._small, strict=True)
            gradient = self._sum_by_patient(torch.cat(rows, dim=1).double())
            self._norms.append(vector_norm(gradient, dim=1))
            self._parts.append(_Kept(parameters, [gradient], None))
        if not self._parts:
            return {}
        factors, parts = self._factors(bound), self._parts[::-1]
        # The graph holds this chunk and the parts hold tensors of the graph: a circle that runs
        # through C++, where no collector sees it. Cut it, or every step's memory is lost.
        self._parts, self._norms, self._slacks, self._small = [], [], [], []
        sums: dict[Tensor, Tensor] = {}
        while parts:  # in the order of the backward pass; what is done is freed
            sums.update(parts.pop().clipped(factors))
        return sums

    def _factors(self, bound: float) -> _Factors:
        """How much of each patient goes into the sum."""
        norms = torch.stack(self._norms + self._slacks).double()
        norms[len(self._norms) :] *= math.sqrt(_GHOST_SLACK)
        norm = vector_norm(norms, dim=0)
        unit = (bound / norm).clamp_(max=1.0)  # norm 0 gives factor 1
        if self._patients < self._units:
            unit[self._patients :] = 0.0
        finite = None
        if not math.isfinite(float(norm.sum())):
            finite = norm.isfinite()
            unit = torch.where(finite, unit, 0.0)
        if self.rows == self._units:
            return _Factors(unit, unit, finite, finite)
        finite_rows = None if finite is None else finite[self._unit]
        return _Factors(unit, unit[self._unit], finite, finite_rows)

    def _note(
        self,
        norms: list[Tensor],
        sizes: list[Tensor],
        scale: Tensor | None,
        floor: Tensor | float,
    ) -> None:
        """Note the patients' norms of one weight, and their sizes if rounding may hide much."""
        norm, size = torch.cat(norms), torch.cat(sizes) if sizes else None
        if scale is None:
            self._norms.append(norm)
        else:
            self._norms.append((norm.double() + floor) * scale)
        if size is not None:
            self._slacks.append(size if scale is None else size.double() * scale)

    def _blocks(self, most: int, x: Tensor, g: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Split rows into blocks of patients, of shape ``(patients, rows of each, ...)``."""
        first = 0
        for patients, count in self._groups:
            last = first + patients * count
            block = math.ceil(patients / math.ceil(patients / most))  # all about as large
            both = (torch.unflatten(t[first:last], 0, (patients, count)) for t in (x, g))
            yield from zip(*(torch.split(t, block) for t in both), strict=True)
            first = last

    def _in_units_of_patients(self, again: Again) -> tuple[Tensor, Tensor | None, Tensor | float]:
        """The output gradients with each patient's rows in one unit, the largest; and that.

        And the least norm in that unit, of patients with large numbers: what underflowed.
        """
        if again.scale is None or again.calm is None:
            return again.g, None, 0.0
        stirred = again.scale.new_zeros(self._units)
        stirred.scatter_reduce_(0, self._unit, (~again.calm).to(stirred.dtype), "amax")
        largest = again.scale.new_zeros(self._units)
        largest.scatter_reduce_(0, self._unit, again.scale, "amax")
        share = again.scale / largest[self._unit]
        return again.g * _broadcast(share, again.g), largest, _FLOOR * stirred

    def _sum_by_patient(self, rows: Tensor) -> Tensor:
        """Add up the rows of each patient."""
        if self.rows == self._units:
            return rows
        return rows.new_zeros(self._units, *rows.shape[1:]).index_add_(0, self._unit, rows)


class Again:
    """A weight gradient to compute at the end, from the rows scaled by their clip factors.

    Where a row has large numbers, its ``x`` and its ``g`` are held in units of their own, powers
    of two near their largest numbers; ``scale`` (float64, shape ``(rows,)``) is the product of
    the two, and 1 for the other rows, which ``calm`` marks: one patient's large numbers change
    nothing for others. Both are None where no row has any.

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
        self.x, self.g = x, g
        self.scale: Tensor | None = None
        self.calm: Tensor | None = None
        if not (_is_moderate(x) and _is_moderate(g)):
            x_largest, g_largest = _largest(x), _largest(g)
            self.calm = (x_largest <= _LARGE) & (g_largest <= _LARGE)
            self.x, x_unit = _in_units(x, x_largest, self.calm)
            self.g, g_unit = _in_units(g, g_largest, self.calm)
            self.scale = x_unit * g_unit

    def clipped(self, factors: _Factors) -> Iterator[tuple[Tensor, Tensor]]:
        """Compute it."""
        x, g, factor = self.x, self.g, factors.row
        if self.scale is not None:
            x, g = _without(x, factors.finite_rows), _without(g, factors.finite_rows)
            factor = _without(factor * self.scale, factors.finite_rows)
        gradient = self.weight_gradient(x, g * _broadcast(factor, g))
        yield self.parameter, gradient.view_as(self.parameter)


class _Kept:
    """A gradient per patient, kept from the backward pass, in units of ``scale``, or of 1.

    It is that of one parameter or of several, side by side, in blocks of shape
    ``(patients, numbers)``.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        blocks: Sequence[Tensor],
        scale: Tensor | None,
        arrange: Arrange = lambda total: total,
    ) -> None:
        self.parameters, self.blocks, self.scale = parameters, blocks, scale
        self.arrange = arrange

    def clipped(self, factors: _Factors) -> Iterator[tuple[Tensor, Tensor]]:
        """Weight it."""
        factor = factors.unit if self.scale is None else factors.unit * self.scale
        factor = _without(factor, factors.finite).to(self.blocks[0].dtype)
        first, total = 0, self.blocks[0].new_zeros(self.blocks[0].shape[1])
        for block in self.blocks:
            last = first + len(block)
            if factors.finite is not None:
                block = _without(block, factors.finite[first:last])
            total += factor[first:last] @ block
            first = last
        total = self.arrange(total).to(self.parameters[0].dtype)
        pieces = torch.split_with_sizes(total.flatten(), [p.numel() for p in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            yield parameter, piece.reshape(parameter.shape)


class _Part(Protocol):
    """Part of the sum."""

    def clipped(self, factors: _Factors) -> Iterator[tuple[Tensor, Tensor]]:
        """Give parameters and the clipped sums of their gradients."""


class _Factors(NamedTuple):
    """How much of each patient, and so of each row, goes into the sum; which are not finite.

    The shares are float64: beside the units of the rows, float32 would round them to nothing.
    Where all are finite, ``finite`` and ``finite_rows`` are None.
    """

    unit: Tensor
    row: Tensor
    finite: Tensor | None
    finite_rows: Tensor | None


def _row_order(counts: list[int], units: list[int], device: torch.device) -> Tensor | None:
    """The rows of those units, which have so many each; None if in order."""
    if units == list(range(len(units))):
        return None
    first = list(accumulate(counts, initial=0))
    rows = [row for i in units for row in range(first[i], first[i + 1])]
    return torch.tensor(rows, device=device)


def _broadcast(factor: Tensor, rows: Tensor) -> Tensor:
    """A number per row, in the rows' precision and ready to be multiplied with them."""
    return factor.to(rows.dtype).view(-1, *[1] * (rows.dim() - 1))


def _without(rows: Tensor, finite: Tensor | None) -> Tensor:
    """Zero the other rows, where a factor of 0 would leave NaN. The original stays as it is."""
    if finite is None:
        return rows
    return torch.where(finite.view(-1, *[1] * (rows.dim() - 1)), rows, 0.0)


def _is_moderate(rows: Tensor) -> bool:
    """Whether no number exceeds `_LARGE`; False if one is NaN.

    Such numbers need no units: what underflows in their products is far below any clip norm.
    """
    return float(rows.amax()) <= _LARGE and float(rows.amin()) >= -_LARGE


def _largest(rows: Tensor) -> Tensor:
    """The largest magnitude in each row; NaN if there is one."""
    flat = rows.flatten(1)
    return torch.maximum(flat.amax(1), -flat.amin(1))  # 20 times as fast as aminmax


def _in_units(rows: Tensor, largest: Tensor, calm: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each row by a power of two near its largest number; returns these too, in float64.

    Exact, but for numbers 1e-38 times the largest. Calm rows stay as they are. The unit of a row
    that is not finite is NaN, and so is its patient's norm.
    """
    power = largest.frexp().exponent.clamp(-126, 126)  # 2 to the +-126 is normal in float32
    unit = torch.where(calm, 1.0, power.double().exp2())
    inverse = _broadcast(unit.reciprocal(), rows)
    return rows * inverse, torch.where(largest.isfinite(), unit, math.nan)
