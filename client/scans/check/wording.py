"""How the numbers of a check are said."""

from __future__ import annotations

from collections.abc import Mapping

from medfed.common.report.words import clean


def plural(number: int, noun: str, nouns: str = "") -> str:
    """Say a number of things: ``1 scan``, ``1,200 scans``."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def share(number: float, whole: float) -> str:
    """Say a share; what is more than nothing is never ``0 %``, what is not all never ``100 %``.

    Example:
        >>> share(1, 8), share(1, 3000), share(2999, 3000), share(0, 5)
        ('12 %', 'under 1 %', 'over 99 %', '0 %')
    """
    percent = 100 * number / max(1, whole)
    if 0 < percent < 1:
        return "under 1 %"
    return "over 99 %" if 99 < percent < 100 else f"{percent:.0f} %"


def verb(number: int, one: str, many: str) -> str:
    """Choose the verb to a number of things."""
    return one if number == 1 else many


def most(counts: Mapping[str, int]) -> str:
    """The most frequent reason."""
    return clean(max(counts, key=lambda reason: (counts[reason], reason)))


def age(band: str) -> str:
    """Say a band of ages: ``040Y`` is ``40–49``.

    Example:
        >>> age("040Y"), age("000Y"), age("090Y"), age("")
        ('40–49', '0–9', '90 and over', '')
    """
    if not band[:3].isdigit():
        return band
    first = int(band[:3])
    return "90 and over" if first >= 90 else f"{first}–{first + 9}"
