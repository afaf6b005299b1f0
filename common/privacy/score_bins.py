"""Where the score bins of a histogram begin and end: equally wide in log-odds.

Networks are sure of themselves: half of all scores may lie above 0.99 or below 0.01, and bins
equally wide in probability put them all into the outermost two. In log-odds they lie apart. (On
the demo's model ten bins of equal probability lose .08 of the AUROC, ten of equal log-odds .004.)
The scale is public and the same for every study; the bins are symmetric about a score of 0.5.
"""

from __future__ import annotations

import math

LOG_ODDS = 10.0
"""Beyond plus or minus this, which is a score of 0.99995, all scores share the outermost bins."""

_WRITTEN = 5e-4  # a threshold is written with three digits


def score_at(place: float) -> float:
    """The score at a place of the scale, which goes from 0 to 1 with 0.5 in the middle.

    Example:
        >>> [round(score_at(place), 3) for place in (0.3, 0.5, 0.7)]
        [0.018, 0.5, 0.982]
    """
    return 1.0 / (1.0 + math.exp(-LOG_ODDS * (2.0 * place - 1.0)))


def inner_edges(bins: int) -> list[float]:
    """The scores at which bins 1, 2, ... begin, ascending."""
    return [score_at(k / bins) for k in range(1, bins)]


def middles(bins: int) -> list[float]:
    """The score that stands for each bin."""
    return [score_at((k + 0.5) / bins) for k in range(bins)]


def bin_from(threshold: float, bins: int) -> int | None:
    """The first bin at or above a threshold; None if no edge is there, to three digits."""
    found = min(range(1, bins), key=lambda k: abs(score_at(k / bins) - threshold), default=None)
    if found is None or abs(score_at(found / bins) - threshold) > _WRITTEN:
        return None
    return found
