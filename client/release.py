"""The one way out of a hospital.

Everything that leaves a site passes ``release``. It takes exactly two types: a
``PrivateValue``, made by the privacy mechanism and carrying its receipt from the ledger, and a
``PublicFact``, an enumerated code that depends on no patient. Never a tensor, a count, a text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import Enum

from medfed.client.ledger import Receipt
from medfed.common.errors import (
    ApprovalError,
    MedfedError,
    PrivacyError,
    TrustError,
    UpdateRejectedError,
)


class PublicFact(Enum):
    """What a site may say without paying. The value is what the server reads.

    The first two depend on approvals, policy and the agreed schedule, the third on what the
    server sent. Everything else, whether a scan, a disk or a defect is behind it, is one and
    the same ``unavailable``: which of them it was may depend on patients.
    """

    # The values are the keys of ``medfed.common.refusals``; a test holds the two together.
    NOT_APPROVED = "not-approved"
    REFUSED_BY_POLICY = "refused-by-policy"
    WRONG_MESSAGE = "wrong-message"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, repr=False)
class PrivateValue:
    """Bytes made by the privacy mechanism, with the proof that they were paid for."""

    payload: bytes
    receipt: Receipt


@dataclass(frozen=True)
class Released:
    """What may be put on the wire: either the payload or the code is set."""

    payload: bytes | None = field(repr=False)
    code: str | None


def release(item: PrivateValue | PublicFact) -> Released:
    """Let one item out.

    Raises:
        PrivacyError: any other type, or bytes that are not those of the receipt.
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
            f"the bytes are not those that ledger entry {item.receipt.sequence} paid for. "
            "Nothing was released.",
            advice="this is a defect of medfed; please report it.",
        )
    return Released(item.payload, None)


def fact_about(error: MedfedError) -> PublicFact:
    """The code that the server may learn of an error: its class, never its text."""
    match error:
        case ApprovalError():
            return PublicFact.NOT_APPROVED
        case PrivacyError():
            return PublicFact.REFUSED_BY_POLICY
        case UpdateRejectedError() | TrustError():
            return PublicFact.WRONG_MESSAGE
        case _:
            return PublicFact.UNAVAILABLE
