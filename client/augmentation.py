"""Vary training scans: small turns, shifts, zooms, flips, contrast and noise, anew at every draw.

Within the bounds of the study's ``[augmentation]`` table. The caller hands in the uniform numbers
that decide, so a simulation and a deployed site with the same numbers see the same pictures.
Validation and test scans never come here.

Privacy: a scan is varied by its own uniform numbers, which do not depend on any scan, and before
its patient's gradient is clipped. Whatever the numbers are, adding or removing a patient changes
the clipped sum by at most the clip norm: sensitivity and epsilon are those without augmentation,
even for one who knows the numbers.

Source:
    Simard, Steinkraus, Platt. Best Practices for Convolutional Neural Networks Applied to Visual
    Document Analysis. ICDAR 2003 (affine distortions of training pictures).
    Salmon, Moraes, Dror, Shaw. Parallel Random Numbers: As Easy as 1, 2, 3. SC 2011 (Philox, the
    counter-based generator of the pixel noise).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medfed.common.study_scans import Augmentation

DRAWS_PER_SCAN: Final = 8
"""Uniform numbers that one scan takes, whatever the study asks for: mirrored, upside down, turn,
down, right, zoom, contrast, noise."""
_SEEDS: Final = 2**53
"""A uniform float64 number holds a seed below this."""


def augment(
    images: Tensor, how: Augmentation, draws: Tensor, *, black: float, white: float
) -> Tensor:
    """Vary each scan as its own draws say.

    In this order: mirror, zoom and turn about the centre, shift (together one bilinear warp);
    contrast; noise.

    Args:
        images: float32, ``(scans, channels, rows, columns)``, in [black, white], on any device.
            Private.
        how: The study's bounds.
        draws: Floating point, ``(scans, DRAWS_PER_SCAN)``, uniform in [0, 1), on the CPU. Their
            columns: below 1/2 mirrors left and right; below 1/2 mirrors up and down; turn, from
            clockwise to counter-clockwise as one sees it; shift, up to down; shift, left to
            right; zoom, small to large; contrast, low to high; seed of the noise. 1/2 is the
            middle of each range, no change.
        black: What black becomes in the study's normalisation.
        white: What white becomes; > black.

    Returns:
        float32, the shape and device of ``images``. Private. What comes in from beyond the border
        is black.

    Raises:
        ValueError: a shape, a dtype or a number is not as said.

    Guarantee:
        Without noise every value lies in [black, white]; noise is not cut off, so that it changes
        no mean. A scan whose draws leave it in place and in contrast keeps its bits. A scan's
        result depends on its own values and draws alone, on the CPU to the bit whatever else is
        in the batch; equal draws give equal results (noise: with one version of numpy). How long
        it takes depends on shapes and draws, not on the values of the scans.

    Example:
        >>> how = Augmentation(flip_left_right=True, rotate_degrees=0.0, contrast=0.0)
        >>> draws = torch.full((1, DRAWS_PER_SCAN), 0.5)
        >>> draws[:, 0] = 0.25  # mirrored
        >>> augment(torch.tensor([[[[0.0, 1.0]]]]), how, draws, black=0.0, white=1.0).tolist()
        [[[[1.0, 0.0]]]]
    """
    _check(images, draws, black, white)
    draws = draws.double()
    result = _moved(images, _sources(how, draws, images.shape), black, white)
    result = _contrasted(result, 1.0 + how.contrast * _spread(draws[:, 6]), black, white)
    if how.noise:
        noise = _normals(draws[:, 7], images.shape).to(images.device)
        result = result + how.noise * (white - black) * noise
    return result


def _spread(draws: Tensor) -> Tensor:
    """From [0, 1) to [-1, 1); exactly 0 at 1/2."""
    return 2.0 * draws - 1.0


def _sources(how: Augmentation, draws: Tensor, shape: torch.Size) -> Tensor:
    """Where each pixel comes from: ``source = matrix · (x, y, 1)``, float64 ``(scans, 2, 3)``.

    In pixels from the centre, x to the right and y down. It is the inverse of mirror, then zoom
    and turn, then shift.
    """
    mirrored = 1.0 - 2.0 * (draws[:, 0:2] < 0.5) * torch.tensor(
        [how.flip_left_right, how.flip_up_down]
    )
    turn = math.radians(how.rotate_degrees) * _spread(draws[:, 2])
    down = how.shift * shape[2] * _spread(draws[:, 3])
    right = how.shift * shape[3] * _spread(draws[:, 4])
    zoom = 1.0 + how.scale * _spread(draws[:, 5])
    cos, sin = turn.cos(), turn.sin()
    across = torch.stack([cos, -sin, sin * down - cos * right], dim=1)
    along = torch.stack([sin, cos, -sin * right - cos * down], dim=1)
    return torch.stack([across, along], dim=1) * (mirrored / zoom[:, None])[:, :, None]


def _moved(images: Tensor, sources: Tensor, black: float, white: float) -> Tensor:
    """Warp the scans that move; leave the others alone, for a warp in place would round them."""
    moves = (sources != torch.eye(2, 3)).flatten(1).any(1)
    if not moves.any():
        return images
    grid = _grid(sources.float().to(images.device), images.shape)
    warped = functional.grid_sample(
        images - black, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return torch.where(_per_scan(moves, images), (warped + black).clamp(black, white), images)


def _grid(sources: Tensor, shape: torch.Size) -> Tensor:
    """The sources of all pixels as `grid_sample` wants them, ``(scans, rows, columns, 2)``.

    Not by `affine_grid`: it is a matrix product, which autocast does in bfloat16 and CUDA
    may do in TF32, too coarse for positions.
    """
    _, _, rows, columns = shape
    y = torch.arange(rows, device=sources.device)[:, None] - (rows - 1) / 2
    x = torch.arange(columns, device=sources.device) - (columns - 1) / 2
    matrix = sources[:, :, :, None, None]
    across = matrix[:, 0, 0] * x + matrix[:, 0, 1] * y + matrix[:, 0, 2]
    along = matrix[:, 1, 0] * x + matrix[:, 1, 1] * y + matrix[:, 1, 2]
    return torch.stack([across * (2 / columns), along * (2 / rows)], dim=-1)


def _contrasted(images: Tensor, factors: Tensor, black: float, white: float) -> Tensor:
    """Multiply the distance from mid-grey, cut off at black and white."""
    changes = factors != 1.0
    if not changes.any():
        return images
    middle = (black + white) / 2
    stretched = middle + _per_scan(factors.float(), images) * (images - middle)
    return torch.where(_per_scan(changes, images), stretched.clamp(black, white), images)


def _normals(draws: Tensor, shape: torch.Size) -> Tensor:
    """Standard normal numbers, float32, a stream of its own for each scan.

    Made on the CPU, so that they do not depend on the device.
    """
    normals = np.empty(shape, dtype=np.float32)
    for scan, draw in zip(normals, draws.tolist(), strict=True):
        stream = np.random.Generator(np.random.Philox(key=int(draw * _SEEDS)))
        stream.standard_normal(dtype=np.float32, out=scan)
    return torch.from_numpy(normals)


def _per_scan(values: Tensor, images: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1).to(images.device)


def _check(images: Tensor, draws: Tensor, black: float, white: float) -> None:
    if images.ndim != 4 or images.dtype != torch.float32:
        raise ValueError(
            "images must be float32 of shape (scans, channels, rows, columns), got "
            f"{images.dtype} of shape {tuple(images.shape)}"
        )
    if draws.shape != (len(images), DRAWS_PER_SCAN) or not draws.is_floating_point():
        raise ValueError(
            f"draws must be floating point of shape ({len(images)}, {DRAWS_PER_SCAN}), got "
            f"{draws.dtype} of shape {tuple(draws.shape)}"
        )
    if not ((draws >= 0.0) & (draws < 1.0)).all():
        raise ValueError("draws must be in [0, 1)")
    if not (math.isfinite(black) and math.isfinite(white) and black < white):
        raise ValueError(f"black must be below white, got {black!r} and {white!r}")
