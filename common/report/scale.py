"""Axes for the charts: where ticks stand and where a value falls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5)


@dataclass(frozen=True, slots=True)
class Scale:
    """A straight line from values to places.

    Attributes:
        low: Value at ``start``.
        high: Value at ``end``; > ``low``.
        start: Place of ``low``, in px.
        end: Place of ``high``, in px; may lie before ``start``.
        ticks: Values that are labelled, ascending, within [low, high].
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Place of a value in px; values beyond an end are held at it."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def share_scale(values: Iterable[float], start: float, end: float, *, most: int = 6) -> Scale:
    """Lay an axis for figures in [0, 1]; it ends at 1 and begins below the lowest value.

    Args:
        values: What must fit; at least one. Values beyond [0, 1] are held at the end.
        start: Place of the low end, in px.
        end: Place of the high end, in px.
        most: Ticks at most, >= 3.
    """
    lowest = min(max(min(values), 0.0), 0.95)
    for step in _STEPS:
        first = math.floor(lowest / step + 1e-9)
        last = round(1 / step)
        if last - first < most:
            break
    ticks = tuple(number * step for number in range(first, last + 1))
    return Scale(ticks[0], 1.0, start, end, ticks)


def count_scale(numbers: Iterable[int], start: float, end: float, *, most: int = 8) -> Scale:
    """Lay an axis for whole numbers, ticked at 1, 2 or 5 times a power of ten.

    Args:
        numbers: What must fit; at least one.
        start: Place of the smallest, in px.
        end: Place of the largest, in px.
        most: Ticks at most, >= 3.
    """
    found = sorted(numbers)
    low, high = found[0], max(found[-1], found[0] + 1)
    steps = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
    step = next(step for step in steps if high // step - math.ceil(low / step) < most)
    first = math.ceil(low / step) * step
    return Scale(low, high, start, end, tuple(map(float, range(first, high + 1, step))))
