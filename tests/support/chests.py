"""Chests and other bodies whose outline is known, for tests of masks."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.masks import Box
from medfed.simulations.thorax import Pose, Thorax, draw

FIELD_MM: Final = 330.0
Picture = NDArray[np.float64]


class Chest(NamedTuple):
    """A drawn radiograph and the smallest box around its two lungs."""

    picture: Picture
    lungs: Box


def chest(seed: int, matrix: int = 128, *, opacity: bool = False, noise: float = 0.03) -> Chest:
    """Draw a chest: ``(matrix, matrix)``, in [0, 1]; lungs to half their depth."""
    random = np.random.default_rng(seed)
    thorax, pose = Thorax.of(random, opacity=opacity), Pose.of(random)
    clear = thorax._replace(vessels=(), opacities=())
    filled = draw(clear._replace(lung_depth=0.0), pose, matrix, FIELD_MM)
    lungs = filled - draw(clear, pose, matrix, FIELD_MM) > thorax.lung_depth / 2
    picture = draw(thorax, pose, matrix, FIELD_MM) + noise * random.normal(size=lungs.shape)
    return Chest(np.clip(picture, 0.0, 1.0), around(lungs))


def around(mask: NDArray[np.bool_]) -> Box:
    """The smallest box around a mask; of no size where the mask is empty."""
    if not mask.any():
        return Box(0, 0, 0, 0)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def disc(side: int, centre: tuple[float, float], radii: tuple[float, float]) -> NDArray[np.bool_]:
    """An upright ellipse in a square picture; centre and radii in rows, then columns."""
    y, x = np.mgrid[:side, :side] + 0.5
    inside: NDArray[np.bool_] = ((y - centre[0]) / radii[0]) ** 2 + (
        (x - centre[1]) / radii[1]
    ) ** 2 < 1
    return inside


def slice_in_a_lung_window(
    side: int, lungs: tuple[float, ...] = (0.31, 0.69), seed: int = 0
) -> Chest:
    """A CT slice, window -600/1500: air, a body of soft tissue on a table, lungs, an air tube.

    Args:
        side: Rows and columns.
        lungs: Where their centres are, as fractions of a row.
        seed: Of the noise.
    """
    field = np.full((side, side), -1000.0)
    field[disc(side, (side / 2, side / 2), (0.28 * side, 0.42 * side))] = 40.0
    field[int(0.9 * side) : int(0.92 * side)] = 0.0
    field[disc(side, (0.5 * side, 0.5 * side), (0.015 * side, 0.015 * side))] = -1000.0
    mask = np.zeros((side, side), dtype=bool)
    for column in lungs:
        mask |= disc(side, (side / 2, column * side), (0.2 * side, 0.13 * side))
    field[mask] = -850.0
    field += np.random.default_rng(seed).normal(0.0, 20.0, field.shape)
    return Chest(np.clip((field + 1350.0) / 1500.0, 0.0, 1.0), around(mask))


def area(box: Box) -> int:
    """Pixels in a box; 0 where its ends have crossed."""
    return max(0, box.bottom - box.top) * max(0, box.right - box.left)


def common(one: Box, other: Box) -> Box:
    """What two boxes share."""
    top, left = max(one.top, other.top), max(one.left, other.left)
    return Box(top, left, min(one.bottom, other.bottom), min(one.right, other.right))
