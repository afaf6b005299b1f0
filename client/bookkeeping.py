"""Keep book of every patient's gradient norm during one backward pass, then build the clipped sum.

The layers (``layer_gradients.py``) note squared norms while the pass runs and leave a part of
the sum to be finished. When all norms are known, each part is weighted with the patients'
clip factors. Everything here is private: no noise has been added (``private_gradients.py``).

Source:
    Bu, Wang, Zha, Karypis. Differentially Private Optimization on Large Model at Small Cost.
    ICML 2023. https://arxiv.org/abs/2210.00038 (book-keeping: one backward pass).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

_GHOST_SLACK = 1e-6  # rounding error of a ghost norm, relative to what cancels in it
_KEEP_BYTES = 64 << 20  # gradients kept for the sum; beyond it they are computed a second time

Inner = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``inner(x, g, x2, g2)``: of the weight gradients of pairs of rows, from a layer's inputs ``x``
and output gradients ``g``; shape ``(pairs,)``."""


class Chunk:
    """What is known of the patients of one physical batch, while its backward pass runs.

    Args:
        unit: int64, shape ``(rows,)``, non-decreasing, in [0, units): the patient of each row.
        units: Number of patients.
        scans_per_patient: About how many rows a patient has; public.
    """

    def __init__(self, unit: Tensor, units: int, scans_per_patient: int) -> None:
        self.rows, self.scans_per_patient = len(unit), scans_per_patient
        self.seen: set[nn.Module] = set()
        self._unit, self._units = unit, units
        count = torch.bincount(unit, minlength=units)
        self.row_weight = count.double().reciprocal()[unit]  # makes sums over rows means
        self._one_row_each = bool((count == 1).all())
        self._pairs = list(_pairs(unit))
        self._norms: list[Tensor] = []  # of a part of the parameters each; shape (units,)
        self._parts: list[_Part] = []
        self._kept_bytes = 0

    def keep(self, parameter: Tensor, rows: Tensor) -> None:
        """Take a small gradient per row: note the norms and keep it for the sum."""
        self._parts.append(_Kept(parameter, self._noted(parameter, rows)))

    def keep_if_it_fits(self, rows: Tensor, again: Again) -> None:
        """Take a large gradient per row: note the norms; keep it, or compute it again later."""
        gradient = self._noted(again.parameter, rows)
        self._kept_bytes += gradient.nbytes
        fits = self._kept_bytes <= _KEEP_BYTES
        self._parts.append(_Kept(again.parameter, gradient) if fits else again)

    def never_form(self, inner: Inner, size: Tensor, again: Again) -> None:
        """Note the norms of a weight gradient from inner products, without forming it.

        ``size``, shape ``(rows,)``, bounds what may cancel within an inner product: the sum
        over positions of ``|patch| |output gradient|``. Rounding errs by a share of its
        square, which is added so that no patient's norm comes out too small.
        """
        x, g = again.x, again.g
        square = self._per_patient(inner(x, g, x, g).double())
        for i, j in self._pairs:
            square.index_add_(0, self._unit[i], 2.0 * inner(x[i], g[i], x[j], g[j]).double())
        size = self._per_patient(size.double())
        norm = (square.clamp(min=0.0) + _GHOST_SLACK * size.square()).sqrt()
        self._norms.append(norm.to(x.dtype))
        self._parts.append(again)

    def clipped_sums(self, bound: float) -> dict[Tensor, Tensor]:
        """Build the sums over patients of ``min(1, bound / norm)`` times the gradient."""
        if not self._parts:
            return {}
        norm = vector_norm(torch.stack(self._norms).double(), dim=0)
        finite = norm.isfinite()
        unit = torch.where(finite, (bound / norm).clamp(max=1.0), 0.0)  # norm 0 gives factor 1
        unit = unit.to(self._parts[0].parameter.dtype)
        bad_units, bad_rows = _where(~finite), _where(~finite[self._unit])
        factors = _Factors(unit, unit[self._unit], bad_units, bad_rows)
        sums = {part.parameter: part.clipped(factors) for part in self._parts}
        # The graph holds this chunk and the parts hold tensors of the graph: a circle that runs
        # through C++, where no collector sees it. Cut it, or every step's memory is lost.
        self._parts, self._norms = [], []
        return sums

    def _per_patient(self, rows: Tensor) -> Tensor:
        """Add up the rows of each patient."""
        if self._one_row_each:
            return rows
        return rows.new_zeros(self._units, *rows.shape[1:]).index_add_(0, self._unit, rows)

    def _noted(self, parameter: Tensor, rows: Tensor) -> Tensor:
        """Gradients per patient, their norms noted."""
        gradient = self._per_patient(rows)
        # Norms of norms: in float32 two short sums lose less than a long one.
        norm = gradient if parameter.dim() == 1 else vector_norm(gradient.flatten(2), dim=2)
        self._norms.append(vector_norm(norm, dim=1))
        return gradient


class Again:
    """A weight gradient to compute at the end, from the rows scaled by their clip factors.

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
        self.parameter, self.weight_gradient, self.x, self.g = parameter, weight_gradient, x, g

    def clipped(self, factors: _Factors) -> Tensor:
        """Compute it."""
        x, g = (_without(rows, factors.bad_rows) for rows in (self.x, self.g))
        factor = factors.row.view(-1, *[1] * (g.dim() - 1))
        return self.weight_gradient(x, g * factor).view_as(self.parameter)


class _Kept:
    """A gradient per patient, kept from the backward pass."""

    def __init__(self, parameter: Tensor, gradient: Tensor) -> None:
        self.parameter, self.gradient = parameter, gradient

    def clipped(self, factors: _Factors) -> Tensor:
        gradient = _without(self.gradient, factors.bad_units).flatten(1)
        return (factors.unit @ gradient).view_as(self.parameter)


class _Part(Protocol):
    """One parameter's part in the sum."""

    parameter: Tensor

    def clipped(self, factors: _Factors) -> Tensor: ...


class _Factors(NamedTuple):
    """How much of each patient, and so of each row, goes into the sum; which are not finite."""

    unit: Tensor
    row: Tensor
    bad_units: Tensor
    bad_rows: Tensor


def _without(rows: Tensor, bad: Tensor) -> Tensor:
    """Zero the bad rows, where a factor of 0 would leave NaN. The original stays as it is."""
    return rows.index_fill(0, bad, 0.0) if len(bad) else rows


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
