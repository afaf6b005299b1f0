"""The one way out lets two types through and nothing that looks like them."""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import medfed.client
from medfed.client.ledger import Ledger, Receipt
from medfed.client.release import PrivateValue, PublicFact, Released, fact_about, release
from medfed.common import errors
from medfed.common.errors import (
    LedgerMismatchError,
    MedfedError,
    PrivacyError,
)
from tests.support.ledgers import KEY, TERMS, pay

PAYLOAD = b"noised weights"
LEDGER = Ledger.in_memory("A")
LEDGER.approve(KEY.digest, "study", TERMS, None)
RECEIPT = pay(LEDGER, KEY, PAYLOAD)
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()


@dataclass(frozen=True, repr=False)
class Lookalike(PrivateValue):
    """A subclass could carry more, or answer differently the second time."""


class SlyBytes(bytes):
    """Bytes of a subclass: what it hashes to and what is sent need not be the same."""


def test_paid_bytes_leave_as_they_are() -> None:
    assert release(PrivateValue(PAYLOAD, RECEIPT), LEDGER) == Released(PAYLOAD, None, RECEIPT.entry)


def test_paid_bytes_leave_with_the_head_as_it_is_when_they_leave() -> None:
    ledger = Ledger.in_memory("A")
    ledger.approve(KEY.digest, "study", TERMS, None)
    first = PrivateValue(PAYLOAD, pay(ledger, KEY, PAYLOAD))
    later = pay(ledger, replace(KEY, round=2))

    assert release(first, ledger).head == later.entry != first.receipt.entry


def test_what_another_ledger_paid_for_stays() -> None:
    other = Ledger.in_memory("A")
    other.approve(KEY.digest, "study", TERMS, None)
    other.reserve(KEY)

    with pytest.raises(PrivacyError, match="no entry 3 that paid for these bytes"):
        release(PrivateValue(PAYLOAD, RECEIPT), other)


@pytest.mark.parametrize("fact", PublicFact)
def test_a_public_fact_leaves_as_its_code(fact: PublicFact) -> None:
    assert release(fact, LEDGER) == Released(None, fact.value)


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
        release(item, LEDGER)  # type: ignore[arg-type]  # the point of the test

    assert "patient" not in str(caught.value)
    assert "1437" not in str(caught.value)
    assert caught.value.exit_code == 11


@pytest.mark.parametrize(
    ("payload", "receipt"),
    [
        (PAYLOAD + b"!", RECEIPT),
        (b"", RECEIPT),
        (PAYLOAD, Receipt(RECEIPT.entry, "0" * 64)),
        (PAYLOAD, Receipt(RECEIPT.entry, SHA256.upper())),
        (PAYLOAD, Receipt(RECEIPT.entry._replace(sequence=2), SHA256)),
        (PAYLOAD, Receipt(RECEIPT.entry._replace(sequence=4), SHA256)),
        (PAYLOAD, Receipt(RECEIPT.entry._replace(hash="0" * 64), SHA256)),
        (b"never paid", Receipt(RECEIPT.entry, hashlib.sha256(b"never paid").hexdigest())),
        (bytearray(PAYLOAD), RECEIPT),  # could be changed after the check
        (SlyBytes(PAYLOAD), RECEIPT),
        (memoryview(PAYLOAD), RECEIPT),
        (PAYLOAD, None),
        (PAYLOAD, (RECEIPT.entry, SHA256)),
    ],
)
def test_bytes_without_their_own_receipt_stay(payload: bytes, receipt: Receipt) -> None:
    with pytest.raises(PrivacyError, match="Nothing was released"):
        release(PrivateValue(payload, receipt), LEDGER)


def test_no_bytes_are_shown_by_what_is_printed_or_logged() -> None:
    value = PrivateValue(PAYLOAD, RECEIPT)

    for shown in (value, release(value, LEDGER)):
        assert "noised" not in repr(shown)
        assert "noised" not in str(shown)


# ---- what the server learns of an error ----------------------------------------------------------
ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, MedfedError)
]


@pytest.mark.parametrize("kind", ERRORS)
def test_the_text_of_an_error_never_leaves(kind: type[MedfedError]) -> None:
    fact = fact_about(kind("patient-7 has no label", advice="look at row 12"))
    released = release(fact, LEDGER)

    assert released.code in {fact.value for fact in PublicFact}
    assert released.payload is None
    assert released.head is None


def test_a_ledger_that_is_behind_is_told_so_that_the_coordinator_can_ask() -> None:
    assert fact_about(LedgerMismatchError("behind")) is PublicFact.LEDGER_MISMATCH


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
