"""Train with DP-SGD whose privacy unit is the patient.

One step: clip each sampled patient's mean gradient, add them up, add Gaussian noise, divide
by a public number, hand the result to an ordinary optimizer. Nothing else comes out: norms,
losses and counts are private and stay here. Who is sampled is decided elsewhere
(``training.py``), and what it costs is counted elsewhere (``common/privacy/accounting.py``).
This is the only file that imports Opacus, whose import takes seconds.

Notation, as in the source:
    S       clip norm: the L2 bound on one patient's gradient, over all parameters together
    sigma   noise multiplier: the noise has standard deviation sigma S per coordinate
    lot     public divisor of the noised sum; the expected number of patients per step

Source:
    Abadi et al. Deep Learning with Differential Privacy. CCS 2016.
    https://arxiv.org/abs/1607.00133 (algorithm 1; here with patients for examples).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from opacus.optimizers import DPOptimizerFastGradientClipping
from torch import Tensor, nn

from medfed.client.bookkeeping import Chunk
from medfed.client.layer_gradients import check_supported, recording
from medfed.client.noise import Randomness
from medfed.common.errors import ConfigError

__all__ = ["MARGIN", "PatientBatch", "PrivateSteps", "check_supported", "clipped_sums"]

MARGIN = 1e-3
"""Patients are clipped to ``(1 - MARGIN) S``: room for the rounding of norms and sums."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits, labels)``: one value per row, shape ``(rows,)``; rows do not mix."""


class PatientBatch(NamedTuple):
    """Some of the sampled patients, each with all the rows drawn of it; one physical batch.

    Attributes:
        inputs: float32, shape ``(rows, ...)``: what the network takes.
        labels: shape ``(rows, ...)``: what the loss takes.
        unit: int64, shape ``(rows - padding,)``, non-decreasing, in [0, units): the patient of
            each row, numbered anew in each batch. Patients may have unequal numbers of rows,
            >= 1. Augmented copies of a scan are rows like others.
        units: Number of patients in this batch; >= 0.
        padding: The last so many rows belong to nobody. They cost what others cost, contribute
            exactly zero, and need a label that the loss takes.
    """

    inputs: Tensor
    labels: Tensor
    unit: Tensor
    units: int
    padding: int = 0


class PrivateSteps:
    """DP-SGD steps on one network. As a context manager it does what ``step`` does at its end.

    Args:
        network: One that `check_supported` accepts, on any device. Rows must not influence
            each other. Its parameters are updated in place; in between steps it is an
            ordinary network.
        optimizer: Any optimizer over all trainable parameters of ``network``. Its weight
            decay and momentum act on the noised gradient.
        loss: ``loss(logits, labels)``, one value per row, shape ``(rows,)``.
        clip_norm: ``S``, in [1e-6, 1e6].
        noise_multiplier: ``sigma``, finite, >= 0. With 0 no noise is drawn and **no privacy
            guarantee holds**: for tests and simulations.
        lot: Public divisor; finite, > 0. Never a count of the patients at hand.
        randomness: Where the noise comes from.
        scans_per_patient: About how many rows a patient has; public. Only speed depends on it.

    Raises:
        ConfigError: the network is not supported, or float32 products are set to be inexact.
        ValueError: a number is out of its range, or the optimizer has other parameters.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        *,
        clip_norm: float,
        noise_multiplier: float,
        lot: float,
        randomness: Randomness,
        scans_per_patient: int = 1,
    ) -> None:
        check_supported(network)
        _check_numbers(clip_norm, noise_multiplier, lot)
        _check_optimizer(network, optimizer)
        self._network, self._loss, self._clip_norm = network, loss, clip_norm
        self._scans_per_patient = scans_per_patient
        self._optimizer = _NoisingOptimizer(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm,
            expected_batch_size=lot,
            randomness=randomness,
        )

    def __enter__(self) -> PrivateSteps:
        return self

    def __exit__(self, *error: object) -> None:
        self._optimizer.forget()

    def step(
        self,
        batches: Iterable[PatientBatch],
        after_noise: Callable[[], None] | None = None,
    ) -> None:
        """Take one step over the patients sampled for it.

        May run under ``torch.autocast``: the forward pass follows it, norms, sums and noise
        do not.

        Args:
            batches: The sampled patients in physical batches; no patient in two of them.
                How they are split does not matter. None at all gives a step of noise only,
                as Poisson sampling demands.
            after_noise: Called when ``p.grad`` holds the noised, divided sum: adds terms that
                do not depend on patients (L1, L2, proximal).

        Raises:
            ConfigError: the network used a layer in a way that defeats clipping.
            ValueError: a batch or the loss has the wrong shape.

        Guarantee:
            ``p.grad`` is the float32 rounding of (sum of clipped gradients + Gaussian noise of
            standard deviation ``noise_multiplier * clip_norm``), formed in float64, over
            ``lot``. Adding or removing one patient changes the sum by at most ``clip_norm``.
            A patient whose gradient is not finite contributes exactly zero and disturbs no
            other. After an error in a batch the parameters are as before.
        """
        try:
            for batch in batches:
                self._optimizer.add(
                    clipped_sums(
                        self._network,
                        self._loss,
                        batch,
                        clip_norm=self._clip_norm,
                        scans_per_patient=self._scans_per_patient,
                    )
                )
            self._optimizer.attach_step_hook(lambda _: after_noise() if after_noise else None)
            self._optimizer.step()
        finally:
            self._optimizer.forget()


def clipped_sums(
    network: nn.Module,
    loss: Loss,
    batch: PatientBatch,
    *,
    clip_norm: float,
    scans_per_patient: int = 1,
) -> dict[nn.Parameter, Tensor]:
    """Add up the patients' mean gradients, each scaled to norm at most ``clip_norm``.

    Args:
        network: One that `check_supported` accepts.
        loss: One value per row.
        batch: The patients; may be none.
        clip_norm: ``S``, over all parameters together.
        scans_per_patient: About how many rows a patient has; public. Only speed depends on it.

    Returns:
        The sum for each trainable parameter, in its shape and dtype. Private: not noised.

    Raises:
        ConfigError: a layer was used twice, with rows folded together, on an input of the
            wrong dimensions, or its weight was used outside of it.
        ValueError: the batch or the loss has the wrong shape.

    Guarantee:
        One patient more or less changes the result by at most ``clip_norm`` in the L2 norm
        over all parameters together. A patient whose gradient is not finite contributes
        exactly zero. ``network`` is left as it was, gradients and forward methods included.
    """
    _check_batch(batch)
    names, parameters = zip(
        *((name, p) for name, p in network.named_parameters() if p.requires_grad), strict=True
    )
    sums: dict[Tensor, Tensor] = {}
    if len(batch.inputs):
        device = batch.inputs.device
        chunk = Chunk(batch.unit.to(device), scans_per_patient, batch.padding)
        with recording(network, chunk), torch.enable_grad():
            _check_strays(names, _run_backward(network, loss, batch, chunk, parameters))
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            sums = chunk.clipped_sums((1.0 - MARGIN) * clip_norm)
    return {p: sums[p] if p in sums else torch.zeros_like(p) for p in parameters}


def _run_backward(
    network: nn.Module,
    loss: Loss,
    batch: PatientBatch,
    chunk: Chunk,
    parameters: Sequence[nn.Parameter],
) -> tuple[Tensor | None, ...]:
    """Let the layers report to the chunk; returns the gradients that went past them."""
    inputs, labels = batch.inputs, batch.labels
    if chunk.order is not None:
        inputs, labels = inputs[chunk.order], labels[chunk.order.to(labels.device)]
    rows = loss(network(inputs), labels)
    if rows.shape != (chunk.rows,):
        raise ValueError(
            f"loss must give one value per row, shape ({chunk.rows},), got {tuple(rows.shape)}"
        )
    with torch.autocast(inputs.device.type, enabled=False):
        weight = chunk.row_weight.to(rows.dtype)
        return torch.autograd.grad([rows], parameters, [weight], allow_unused=True)


def _check_strays(names: Sequence[str], strays: Sequence[Tensor | None]) -> None:
    """Refuse gradients that went past the layers."""
    for name, stray in zip(names, strays, strict=True):
        if stray is not None:
            raise ConfigError(
                f"network parameter {name!r} is used outside of its own layer, where it is not "
                "clipped per patient",
                advice="call the layer instead of using its weight.",
            )


class _NoisingOptimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]  # opacus ships no types
    """Opacus' optimizer, fed with clipped sums and with noise from our own generator."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, randomness: Randomness, **mechanism: float
    ) -> None:
        super().__init__(optimizer, **mechanism)
        self._randomness = randomness
        self.forget()

    def add(self, sums: dict[nn.Parameter, Tensor]) -> None:
        """Add a physical batch to the sum of this step, in float64 as soon as there are two."""
        for p, clipped in sums.items():
            self._sums[p] = self._sums[p].double().add_(clipped) if p in self._sums else clipped

    def accumulate(self) -> None:
        """Take nothing from ``p.grad``, where Opacus looks: `add` was given the sums."""

    def add_noise(self) -> None:
        """Write the noised sum into ``p.grad``. Coordinates without any gradient get noise too."""
        params, std = self.params, self.noise_multiplier * self.max_grad_norm
        sums = (self._sums.pop(p) if p in self._sums else torch.zeros_like(p) for p in params)
        if not std > 0.0:
            for p, clipped in zip(params, sums, strict=True):
                p.grad = clipped.to(p.dtype)
            return
        sizes = [p.numel() for p in params]
        noises = torch.split_with_sizes(
            torch.from_numpy(self._randomness.normal(sum(sizes))), sizes
        )
        for p, clipped, noise in zip(params, sums, noises, strict=True):
            noised = clipped.double().add_(noise.view(p.shape).to(p.device), alpha=std)
            p.grad = noised.to(p.dtype)

    def scale_grad(self) -> None:
        """Divide by the lot."""
        torch._foreach_div_([p.grad for p in self.params], self.expected_batch_size)

    def forget(self) -> None:
        """Drop sums and gradients, so that nothing private outlives the step."""
        self._sums: dict[nn.Parameter, Tensor] = {}
        for p in self.params:
            p.grad = None
            vars(p).pop("summed_grad", None)  # Opacus' place for the sum


def _check_batch(batch: PatientBatch) -> None:
    """Refuse a batch whose rows are not grouped by patient: its norms would be wrong."""
    rows, unit = len(batch.inputs), batch.unit
    owned = rows - batch.padding
    if batch.padding < 0 or unit.shape != (owned,) or len(batch.labels) != rows:
        raise ValueError(
            f"a batch of {rows} rows, {batch.padding} of them padding, needs {rows} labels and "
            f"{owned} units, got {len(batch.labels)} and shape {tuple(unit.shape)}"
        )
    numbers = unit.tolist()
    if owned and (
        numbers[0] < 0 or numbers[-1] >= batch.units or any(a > b for a, b in pairwise(numbers))
    ):
        raise ValueError(f"unit must be non-decreasing and in [0, {batch.units})")


def _check_numbers(clip_norm: float, noise_multiplier: float, lot: float) -> None:
    """Refuse what would void the guarantee."""
    if not 1e-6 <= clip_norm <= 1e6:
        raise ValueError(f"clip_norm must be in [1e-6, 1e6], got {clip_norm!r}")
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise ValueError(f"noise_multiplier must be finite and >= 0, got {noise_multiplier!r}")
    if not (math.isfinite(lot) and lot > 0):
        raise ValueError(f"lot must be finite and > 0, got {lot!r}")
    if torch.get_float32_matmul_precision() != "highest":
        raise ConfigError(
            "float32 products are set to be inexact "
            f"({torch.get_float32_matmul_precision()!r}), which voids the bound on norms",
            advice="call torch.set_float32_matmul_precision('highest').",
        )


def _check_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer over anything but the network's trainable parameters."""
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    if set(trained) != {p for p in network.parameters() if p.requires_grad}:
        raise ValueError("optimizer must hold exactly the network's trainable parameters")
