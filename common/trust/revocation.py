"""The revocation list: which certificates are no longer good, signed by the study key.

It names serial numbers, with a sequence number that only grows: who has seen a list takes no
lower one, so an old list cannot bring a revoked certificate back. A list has no expiry. It goes
from the coordinator to the server, and who could hold it back there could also not ask it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import AwareDatetime, Field

from medfed.common.errors import TrustError
from medfed.common.strict_toml import StrictTable
from medfed.common.trust.signatures import SigningKey, VerifyingKey, open_document, sign_document
from medfed.common.trust.succession import Number

REVOCATIONS = "medfed-revocations-1"
"""Kind of the signed document."""

LARGEST_LIST_BYTES = 2**20
"""Room for about 20,000 certificates that have not expired."""

Serial = Annotated[str, Field(pattern=r"^[0-9a-f]{1,40}$")]


class RevocationList(StrictTable):
    """What a list says. Public."""

    sequence: Number
    issued: AwareDatetime
    serials: tuple[Serial, ...]
    """Of revoked certificates, in lower-case hexadecimal digits."""

    @property
    def numbers(self) -> frozenset[int]:
        """The serial numbers."""
        return frozenset(int(serial, 16) for serial in self.serials)


def serial_text(serial: int) -> str:
    """Write a certificate's serial number as it stands in lists and files."""
    return format(serial, "x")


def sign_revocations(key: SigningKey, revoked: RevocationList) -> bytes:
    """Write a list with its signature."""
    return sign_document(key, REVOCATIONS, revoked)


def open_revocations(data: bytes, keys: Sequence[VerifyingKey], *, source: str) -> RevocationList:
    """Check a list's signature and read it.

    Raises:
        TrustError: it is too long, no list, or by none of ``keys``.
    """
    if len(data) > LARGEST_LIST_BYTES:
        raise TrustError(
            f"{source}: found {len(data)} bytes; a revocation list has at most "
            f"{LARGEST_LIST_BYTES}.",
            advice="use the list that `medfed enrol revoke` wrote.",
        )
    return open_document(data, REVOCATIONS, RevocationList, keys, source=source)
