"""The codes by which a site may refuse a round, and the words the server shows for them.

A closed list: what a site sends beside these is shown as unknown, so that no site can write
into a headline. None of the codes depends on a patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

REFUSALS: Mapping[str, str] = MappingProxyType(
    {
        "not-approved": "the study is not approved there",
        "refused-by-policy": "its limits or the agreed schedule forbid it",
        "ledger-mismatch": "its privacy ledger is not the one it released from before",
        "wrong-message": "it could not use the message",
        "unavailable": "it could not train",
    }
)
"""Code on the wire -> words."""


def words_of(code: str) -> str:
    """Say what a code means; an unknown one is not repeated.

    Example:
        >>> words_of("not-approved"), words_of("by order of hospital A")
        ('the study is not approved there', 'for a reason that is not known')
    """
    return REFUSALS.get(code, "for a reason that is not known")
