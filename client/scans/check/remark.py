"""One thing that a check has to say, and how much it matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much a remark matters; the gravest first."""

    STOP = "stop"
    """Training would refuse these scans, or its figures would be wrong."""
    LOOK = "look"
    """A person decides whether it matters."""
    FINE = "fine"
    """Looked for and not found."""


@dataclass(frozen=True, repr=False)
class Remark:
    """One thing that was found, or looked for and not found. Private: it stays at the site.

    Attributes:
        severity: How much it matters.
        kind: A name that stays, for programs.
        text: One plain sentence.
        next_step: What to do about it; empty where nothing is.
    """

    severity: Severity
    kind: str
    text: str
    next_step: str = ""


def worst(remarks: Sequence[Remark]) -> Severity:
    """The gravest severity among remarks."""
    return min((remark.severity for remark in remarks), key=list(Severity).index)
