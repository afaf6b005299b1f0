"""The one way out of a hospital.

Everything that leaves a site passes ``release``. It takes exactly two types: a
``PrivateValue``, made by the privacy mechanism and carrying its receipt from the ledger, and a
``PublicFact``, an enumerated code that depends on no patient. Never a tensor, a count, a text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import Enum

from medfed.client.ledger import Ledger, Receipt
from medfed.common.errors import (
    ApprovalError,
    LedgerMismatchError,
    MedfedError,
    NotNowError,
    PrivacyError,
    TrustError,
    UpdateRejectedError,
)
from medfed.common.trust.ledger_head import Head


class PublicFact(Enum):
    """What a site may say without paying. The value is what the server reads.

    The first three depend on approvals, policy, the agreed schedule and what became of the
    ledger's file, the fourth on what the server sent. Everything else, whether a scan, a disk
    or a defect is behind it, is one and the same ``unavailable``: which of them it was may
    depend on patients.
    """

    # The values are the keys of ``medfed.common.refusals``; a test holds the two together.
    NOT_APPROVED = "not-approved"
    REFUSED_BY_POLICY = "refused-by-policy"
    LEDGER_MISMATCH = "ledger-mismatch"
    WRONG_MESSAGE = "wrong-message"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, repr=False)
class PrivateValue:
    """Bytes made by the privacy mechanism, with the proof that they were paid for."""

    payload: bytes
    receipt: Receipt


@dataclass(frozen=True)
class Released:
    """What may be put on the wire: either payload and head are set, or the code is.

    Attributes:
        payload: The paid bytes.
        code: A public fact.
        head: Where the site's ledger stands, so that the server notices if it ever goes back.
    """

    payload: bytes | None = field(repr=False)
    code: str | None
    head: Head | None = None


def release(item: PrivateValue | PublicFact, ledger: Ledger) -> Released:
    """Let one item out.

    Args:
        item: What is to leave.
        ledger: The site's, which must know the receipt.

    Raises:
        PrivacyError: any other type, bytes that are not those of the receipt, or a receipt
            that is not of this ledger.
    """
    if type(item) is PublicFact:
        return Released(None, item.value)
    if type(item) is not PrivateValue:
        raise PrivacyError(
            f"something of type {type(item).__name__} was about to leave the site; allowed: "
            "PrivateValue, PublicFact. Nothing was released.",
            advice="this is a defect of medfed; please report it.",
        )
    if type(item.payload) is not bytes or type(item.receipt) is not Receipt:
        raise PrivacyError(
            "a release must be plain bytes with a receipt of the ledger. Nothing was released.",
            advice="this is a defect of medfed; please report it.",
        )
    if hashlib.sha256(item.payload).hexdigest() != item.receipt.payload_sha256:
        raise PrivacyError(
            f"the bytes are not those that ledger entry {item.receipt.entry.sequence} paid for. "
            "Nothing was released.",
            advice="this is a defect of medfed; please report it.",
        )
    head = ledger.cleared(item.receipt)
    if head is None:
        raise PrivacyError(
            f"the ledger has no entry {item.receipt.entry.sequence} that paid for these bytes. "
            "Nothing was released.",
            advice="this is a defect of medfed; please report it.",
        )
    return Released(item.payload, None, head)


def fact_about(error: MedfedError) -> PublicFact:
    """The code that the server may learn of an error: its class, never its text."""
    match error:
        case NotNowError():  # the study is approved: its round is refused, not the study
            return PublicFact.REFUSED_BY_POLICY
        case ApprovalError():
            return PublicFact.NOT_APPROVED
        case LedgerMismatchError():
            return PublicFact.LEDGER_MISMATCH
        case PrivacyError():
            return PublicFact.REFUSED_BY_POLICY
        case UpdateRejectedError() | TrustError():
            return PublicFact.WRONG_MESSAGE
        case _:
            return PublicFact.UNAVAILABLE
