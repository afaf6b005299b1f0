"""Roots of trust, and how one hands over to the next.

A root is a certificate authority and a study key, made together at the coordinator's. Who knows
one accepts the next if the old authority *and* the old study key signed it; either key alone
cannot hand over. Until ``until`` both roots are accepted, so that a server and its sites can
change at different times; then only the next.

A rotation, in the order that keeps every site connected:

    1. The coordinator makes the next root. From now on approvals are signed by its study key
       and certificates by its authority.
    2. The server gets a new bundle: it accepts both authorities and still shows a certificate of
       the old one, which every site knows.
    3. Each site takes up its new approval: it learns the next root by its handover (nothing to
       compare by phone) and accepts both.
    4. After ``until`` the server gets a bundle with the next root only; sites forget the old one.

A handover is for a change that was planned. After a theft of the keys the thief can sign one too:
then a new coordinator's folder is made, and each site compares its fingerprint by phone.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Sequence
from typing import Annotated, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import AwareDatetime, Field

from medfed.common.errors import TrustError
from medfed.common.strict_toml import StrictTable
from medfed.common.trust.certificates import Authority, parse_authorities
from medfed.common.trust.fingerprints import trust_fingerprint
from medfed.common.trust.signatures import (
    SigningKey,
    VerifyingKey,
    open_document,
    parse_verifying_key,
    sign_document,
)

HANDOVER = "medfed-handover-1"
"""Kind of the signed document."""

Pem = Annotated[str, Field(max_length=4096)]
Number = Annotated[int, Field(ge=1, lt=2**53)]


class Root(NamedTuple):
    """What to trust. Public.

    Attributes:
        authority: Who signs certificates.
        study_key: Who signs studies, approvals and revocation lists.
    """

    authority: x509.Certificate
    study_key: VerifyingKey

    @property
    def fingerprint(self) -> str:
        """What two people compare by phone."""
        return trust_fingerprint(self.authority, self.study_key)


class RootText(StrictTable):
    """A root as it stands in a document."""

    authority: Pem
    study_key: Pem
    until: AwareDatetime | None
    """When it is no longer accepted; None: it is the one in use."""

    @classmethod
    def of(cls, root: Root, until: datetime.datetime | None) -> RootText:
        """Write a root."""
        pem = root.authority.public_bytes(Encoding.PEM).decode()
        return cls(authority=pem, study_key=root.study_key.pem, until=until)

    def parsed(self, *, source: str, at: datetime.datetime | None = None) -> Root:
        """Read it.

        Raises:
            TrustError: it is not one valid authority and one study key.
        """
        authorities = parse_authorities(self.authority.encode(), source=source, at=at)
        if len(authorities) != 1:
            raise TrustError(
                f"{source}: found {len(authorities)} authorities in one root; allowed is one.",
                advice="ask the coordinator for the file again.",
            )
        return Root(authorities[0], parse_verifying_key(self.study_key, source=source))


class _Handover(StrictTable):
    number: Number
    issued: AwareDatetime
    authority: Pem
    study_key: Pem
    endorsement: Annotated[str, Field(max_length=256)]
    """The old authority's signature over the next root, base64."""


def sign_handover(
    old: Authority, old_key: SigningKey, new: Root, *, number: int, issued: datetime.datetime
) -> bytes:
    """Write the document by which a root hands over to the next."""
    endorsement = old.key.sign(_endorsed(number, new), ec.ECDSA(SHA384()))
    text = RootText.of(new, None)
    body = _Handover(
        number=number,
        issued=issued,
        authority=text.authority,
        study_key=text.study_key,
        endorsement=base64.b64encode(endorsement).decode(),
    )
    return sign_document(old_key, HANDOVER, body)


def open_handover(data: bytes, by: Root, *, source: str) -> Root:
    """Check a handover and give the root that it hands over to.

    Args:
        data: The document.
        by: The root that must have signed it, with both its keys.
        source: What to call it in messages.

    Raises:
        TrustError: it is no handover, or one of the two signatures is not ``by``'s.
    """
    body = open_document(data, HANDOVER, _Handover, [by.study_key], source=source)
    text = RootText(authority=body.authority, study_key=body.study_key, until=None)
    root = text.parsed(source=source)
    key = by.authority.public_key()
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("another kind of authority")
        signature = base64.b64decode(body.endorsement, validate=True)
        key.verify(signature, _endorsed(body.number, root), ec.ECDSA(SHA384()))
    except (InvalidSignature, ValueError) as error:
        raise TrustError(
            f"{source}: the authority that is trusted here did not sign the next one.",
            advice="do not use the file; ask the coordinator by phone whether the root changed.",
        ) from error
    return root


def newest_root(known: Root, handovers: Sequence[str], *, source: str) -> Root:
    """Follow handovers from a root that is known to the newest that they lead to.

    Args:
        known: Where to start. Only the root in use may hand over, none that is on its way out.
        handovers: Documents, oldest first. Those before ``known``'s own are passed over.
        source: What to call them in messages.
    """
    root = known
    for text in handovers:
        try:
            root = open_handover(text.encode(), root, source=source)
        except TrustError:
            continue
    return root


def _endorsed(number: int, root: Root) -> bytes:
    digest = hashlib.sha256(root.authority.public_bytes(Encoding.DER)).hexdigest()
    return f"{HANDOVER} {number} {digest} {root.study_key.raw.hex()}".encode("ascii")
