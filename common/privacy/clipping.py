"""Bound how far one site's update can move the global model.

This protects the model from a site, not a patient from the world: the patient's bound acts
on gradients inside the site. The server scales an update that is too long, before adding it.

Notation, as in the source:
    S   clip norm: the L2 bound on one contribution, in model-parameter units
    Δ   one contribution: site parameters minus global parameters

Source:
    McMahan, Ramage, Talwar, Zhang. Learning Differentially Private Recurrent Language Models.
    ICLR 2018. https://arxiv.org/abs/1710.06963 (flat clipping).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from medfed.common.errors import UpdateRejectedError
from medfed.common.updates import Parameters


class ClippedUpdate(NamedTuple):
    """An update inside the ball of radius ``clip_norm``, and the norm it arrived with."""

    update: Parameters
    norm_before: float


def clip_update(update: Parameters, clip_norm: float) -> ClippedUpdate:
    """Scale an update so that its L2 norm is at most ``clip_norm``.

    The norm is taken over all arrays together, as if they were one vector.

    Args:
        update: Change per parameter; floating point, any shapes. An empty mapping has norm 0.
        clip_norm: ``S``, in the units of the parameters. Finite, > 0.

    Returns:
        The update (same names and shapes, float64) and its norm before scaling. Both are
        public where the update is a release.

    Raises:
        ValueError: ``clip_norm`` is not a finite positive number.
        UpdateRejectedError: a value is NaN or infinite; scaling cannot bound it.

    Guarantee:
        ``norm(result) <= clip_norm * (1 + 1e-6)``. An update inside the bound keeps its values.

    Source:
        arXiv:1710.06963: ``Δ · min(1, S / ‖Δ‖)``.

    Example:
        >>> clipped, norm = clip_update({"w": np.array([3.0, 4.0])}, clip_norm=1.0)
        >>> norm, [round(v, 4) for v in clipped["w"].tolist()]
        (5.0, [0.6, 0.8])
    """
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise ValueError(f"clip_norm must be finite and > 0, got {clip_norm!r}")
    for name, array in update.items():
        if not bool(np.isfinite(array).all()):
            raise UpdateRejectedError(
                f"parameter {name!r} of shape {array.shape} holds NaN or infinity",
                advice="lower the learning rate or check the site's input range.",
            )
    wide = {name: array.astype(np.float64) for name, array in update.items()}
    # The largest value is taken out first: the square of a float64 may overflow, or vanish.
    largest = max((float(np.abs(array).max(initial=0.0)) for array in wide.values()), default=0.0)
    if largest == 0.0:
        return ClippedUpdate(wide, 0.0)
    norm = math.sqrt(sum(float(np.square(a / largest).sum()) for a in wide.values()))
    if norm * largest <= clip_norm:
        return ClippedUpdate(wide, norm * largest)
    scale = clip_norm / norm
    return ClippedUpdate({k: a / largest * scale for k, a in wide.items()}, norm * largest)
