"""What an audit found: one row per check, for people and for machines."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from medfed.simulations.privacy_audit.bounds import FALSE_ALARM, Range

FORMAT = 1
"""Raised when a key of the JSON changes its name or meaning; a new key does not raise it."""

NOTES = (
    "White box: what the training of a site does to one step, by planted patients. Black box: "
    "what its updates tell about planted canaries, each in the data by the toss of a coin.",
    "The one-run bound holds at 95 % for any mechanism, and alone misses noise scaled by half; "
    "the GDP bound, for Gaussian noise, does not.",
    "The canaries train a layer with one weight each, so that they do not disturb one another; "
    "all other checks but those of sampling train the study's own network.",
)


@dataclass(frozen=True)
class Check:
    """One number that was claimed, and what was found.

    Attributes:
        name: What was measured; with ``site`` unique in an audit.
        site: The site whose numbers were used; those of equal numbers are audited once.
        asked: What the study and the mechanism claim.
        measured: What was found on synthetic patients. Public.
        tolerance: What is accepted: the sample's statistics at the false-alarm rate, or a
            limit that honest code never passes.
    """

    name: str
    site: str
    asked: float
    measured: float
    tolerance: Range

    @property
    def passed(self) -> bool:
        """Whether the number lies in its tolerance; NaN does not."""
        return self.tolerance.holds(self.measured)


@dataclass(frozen=True)
class AuditResult:
    """All checks of one audit. Every field is public: only synthetic patients were used.

    Attributes:
        study: The study's name.
        digest: Of the study.
        code: SHA-256 over the source files of the mechanism that was audited.
        version: Of medfed.
        secret: Whether the noise came from a site's own generator; else it was seeded.
        false_alarm: Probability with which one check fails on honest code; at most.
        checks: In the order in which they ran.
    """

    study: str
    digest: str
    code: str
    version: str
    secret: bool
    checks: tuple[Check, ...]
    false_alarm: float = FALSE_ALARM

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def passed(self) -> bool:
        """Whether every check passed; false without any."""
        return bool(self.checks) and not self.failed


def audit_json(result: AuditResult) -> str:
    """Write a result as JSON.

    Returns:
        One object, indented, ASCII, ending in a newline; its keys are ``format`` and the names
        of `AuditResult` and `Check`, with ``passed``. Infinity and NaN are ``null``.

    Guarantee:
        The same result gives the same bytes.
    """
    checks = [
        {**_finite(dataclasses.asdict(check)), "passed": check.passed} for check in result.checks
    ]
    whole = {"format": FORMAT, "passed": result.passed, **dataclasses.asdict(result)}
    return json.dumps({**whole, "checks": checks}, indent=2, allow_nan=False) + "\n"


def _finite(entry: Any) -> Any:
    """Replace what JSON has no number for; a range becomes its two ends."""
    if isinstance(entry, dict):
        return {key: _finite(value) for key, value in entry.items()}
    if isinstance(entry, tuple):
        return [_finite(value) for value in entry]
    return None if isinstance(entry, float) and not math.isfinite(entry) else entry
