"""The error tree: one exit code per remedy, and messages that carry no private value."""

from __future__ import annotations

import inspect
import re

import pytest

from medfed.common import errors
from medfed.common.errors import LedgerError, LedgerMismatchError, MedfedError, PrivacyError

# Exit codes as the house style fixes them; 0, 1, 2 and 130 are no errors of this tree.
CODES = {
    "MedfedError": 1,
    "ConfigError": 10,
    "PrivacyError": 11,
    "LedgerError": 11,
    "LedgerMismatchError": 11,
    "UpdateRejectedError": 12,
    "CohortError": 13,
    "TransportError": 14,
    "TrustError": 15,
    "ScanError": 16,
    "ApprovalError": 17,
    "NotNowError": 17,
    "IncompleteRunError": 18,
}

CLASSES: dict[str, type[MedfedError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, MedfedError)
}


def test_every_class_has_the_exit_code_of_its_remedy() -> None:
    assert {name: kind.exit_code for name, kind in CLASSES.items()} == CODES


def test_the_drawing_at_the_top_shows_every_class_with_its_code() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+) +(\d+)", errors.__doc__ or ""))

    assert drawn == {
        name: str(code)
        for name, code in CODES.items()
        if name not in ("MedfedError", "LedgerError", "LedgerMismatchError", "NotNowError")
    }
    for name in ("LedgerMismatchError", "NotNowError"):
        assert f"── {name}" in (errors.__doc__ or "")


def test_the_next_step_is_printed_below_the_message_and_only_if_there_is_one() -> None:
    assert str(MedfedError("it broke", advice="mend it.")) == "it broke\n  Next step: mend it."
    assert str(MedfedError("it broke")) == "it broke"
    assert MedfedError("it broke", advice="mend it.").args == ("it broke",)


@pytest.mark.parametrize("kind", [LedgerError, LedgerMismatchError])
def test_who_catches_privacy_errors_catches_ledgers(kind: type) -> None:
    assert issubclass(kind, PrivacyError)
