"""The one way out lets two types through and nothing that looks like them."""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import medfed.client
from medfed.client.ledger import Receipt
from medfed.client.release import PrivateValue, PublicFact, Released, fact_about, release
from medfed.common import errors
from medfed.common.errors import BudgetExceededError, LedgerError, MedfedError, PrivacyError

PAYLOAD = b"noised weights"
RECEIPT = Receipt(1, hashlib.sha256(PAYLOAD).hexdigest())


@dataclass(frozen=True, repr=False)
class Lookalike(PrivateValue):
    """A subclass could carry more, or answer differently the second time."""


class SlyBytes(bytes):
    """Bytes of a subclass: what it hashes to and what is sent need not be the same."""


def test_paid_bytes_leave_as_they_are() -> None:
    assert release(PrivateValue(PAYLOAD, RECEIPT)) == Released(PAYLOAD, None)


@pytest.mark.parametrize("fact", PublicFact)
def test_a_public_fact_leaves_as_its_code(fact: PublicFact) -> None:
    assert release(fact) == Released(None, fact.value)


@pytest.mark.parametrize(
    "item",
    [
        PAYLOAD,
        "unavailable",
        1437,
        0.93,
        None,
        True,
        np.ones(3),
        {"patients": 12},
        (PAYLOAD, RECEIPT),
        Released(PAYLOAD, None),
        Lookalike(PAYLOAD, RECEIPT),
        ValueError("patient-7"),
        PrivateValue,
        PublicFact,
    ],
)
def test_anything_else_stays_and_is_not_shown(item: object) -> None:
    with pytest.raises(PrivacyError, match="Nothing was released") as caught:
        release(item)  # type: ignore[arg-type]  # the point of the test

    assert "patient" not in str(caught.value)
    assert "1437" not in str(caught.value)
    assert caught.value.exit_code == 11


@pytest.mark.parametrize(
    ("payload", "receipt"),
    [
        (PAYLOAD + b"!", RECEIPT),
        (b"", RECEIPT),
        (PAYLOAD, Receipt(1, "0" * 64)),
        (PAYLOAD, Receipt(1, RECEIPT.payload_sha256.upper())),
        (bytearray(PAYLOAD), RECEIPT),  # could be changed after the check
        (SlyBytes(PAYLOAD), RECEIPT),
        (memoryview(PAYLOAD), RECEIPT),
        (PAYLOAD, None),
        (PAYLOAD, (1, RECEIPT.payload_sha256)),
    ],
)
def test_bytes_without_their_own_receipt_stay(payload: bytes, receipt: Receipt) -> None:
    with pytest.raises(PrivacyError, match="Nothing was released"):
        release(PrivateValue(payload, receipt))


def test_no_bytes_are_shown_by_what_is_printed_or_logged() -> None:
    for shown in (PrivateValue(PAYLOAD, RECEIPT), release(PrivateValue(PAYLOAD, RECEIPT))):
        assert "noised" not in repr(shown)
        assert "noised" not in str(shown)


# ---- what the server learns of an error ----------------------------------------------------------
ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, MedfedError) and kind is not BudgetExceededError
]


@pytest.mark.parametrize("kind", ERRORS)
def test_the_text_of_an_error_never_leaves(kind: type[MedfedError]) -> None:
    released = release(fact_about(kind("patient-7 has no label", advice="look at row 12")))

    assert released.code in {fact.value for fact in PublicFact}
    assert released.payload is None


def test_a_ceiling_and_a_damaged_ledger_look_the_same_from_outside() -> None:
    ceiling = BudgetExceededError(site="A", spent=7.9, needed=8.1, limit=8.0, delta=1e-5)

    assert fact_about(ceiling) is fact_about(LedgerError("altered")) is PublicFact.REFUSED_BY_POLICY


def test_facts_are_codes_without_a_place_for_a_number() -> None:
    assert all(set(fact.value) <= set("abcdefghijklmnopqrstuvwxyz-") for fact in PublicFact)


# ---- nobody goes round it ------------------------------------------------------------------------
def calls_of(name: str) -> set[str]:
    """The client's files that make a value of this class."""
    folder = Path(str(medfed.client.__file__)).parent
    return {
        str(file.relative_to(folder))
        for file in folder.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name
    }


def test_releases_are_made_in_the_gate_and_private_values_in_the_session_only() -> None:
    assert calls_of("Released") == {"release.py"}
    assert calls_of("PrivateValue") == {"session.py"}
    assert calls_of("Receipt") == {"ledger.py"}


def test_scans_a_set_up_and_a_defect_look_the_same_from_outside() -> None:
    # Which of them it was may depend on patients: the admin is told, the server is not.
    facts = {fact_about(kind("x")) for kind in (errors.ScanError, errors.ConfigError, MedfedError)}

    assert facts == {PublicFact.UNAVAILABLE}
