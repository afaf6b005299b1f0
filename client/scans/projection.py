"""Several pictures of one size, one after the other, into one: the brightest or the mean value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Picture(NamedTuple):
    """Values and where they show something. Private."""

    values: NDArray[np.float64]
    """``(rows, columns)``, or ``(rows, columns, 3)``; in [0, 1], 0 black, where it is DICOM."""
    valid: NDArray[np.bool_] | None = None
    """``(rows, columns)``, False where a pixel is padding; None: none is."""

    def __repr__(self) -> str:
        return "Picture()"


def projected(pictures: Iterable[Picture], take: Literal["maximum", "mean"]) -> Picture:
    """Project pictures onto one.

    Args:
        pictures: At least one, all of one shape. Taken one at a time; none is kept.
        take: The greatest value at each place, or the mean.

    Returns:
        New storage, float64. Padding has no part in it; where all pictures have padding, so has
        the result, and its value is 0.

    Raises:
        ValueError: there is no picture, or shapes differ (a defect).

    Example:
        >>> one, two = Picture(np.asarray([[0.0, 0.5]])), Picture(np.asarray([[1.0, 0.0]]))
        >>> projected([one, two], "maximum").values.tolist()
        [[1.0, 0.5]]
        >>> projected([one, two], "mean").values.tolist()
        [[0.5, 0.25]]
    """
    total: NDArray[np.float64] | None = None
    count = np.zeros(())
    for values, valid in pictures:
        shape = (*values.shape[:2], *(1,) * (values.ndim - 2))
        seen = np.ones(shape, dtype=np.bool_) if valid is None else valid.reshape(shape)
        nothing = -np.inf if take == "maximum" else 0.0
        part = values if valid is None else np.where(seen, values, nothing)
        if total is None:
            total, count = part.copy(), seen.astype(np.int64)
        elif part.shape != total.shape:
            raise ValueError("pictures of a projection differ in shape")
        else:
            (np.maximum if take == "maximum" else np.add)(total, part, out=total)
            count += seen
    if total is None:
        raise ValueError("a projection needs a picture")
    if take == "mean":
        total /= np.maximum(count, 1)
    total[np.broadcast_to(count == 0, total.shape)] = 0.0
    shown = (count > 0).reshape(total.shape[:2])
    return Picture(total, None if shown.all() else shown)
