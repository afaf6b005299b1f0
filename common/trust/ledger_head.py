"""The signed head of a site's ledger: how far it has come, and that it went there in a line.

Each entry of a ledger holds the hash of the one before, so one hash stands for all of them.
The site signs it with its node key, whose public half the server knows. Whoever keeps the
highest head can tell a ledger that was cut short, put back from a backup, or continued in two
places; a head says nothing about patients beyond how many entries there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from medfed.common.errors import TrustError

_HASH = re.compile(r"[0-9a-f]{64}")
_LARGEST_SEQUENCE = 2**53
_LONGEST_SIGNATURE = 256


class Head(NamedTuple):
    """Where a ledger stands. Public.

    Attributes:
        sequence: Number of its last entry, from 1.
        hash: SHA-256 over that entry and the hash before it, 64 hexadecimal digits.
        signature: ECDSA signature of both, in hexadecimal digits; empty in a simulation.
    """

    sequence: int
    hash: str
    signature: str


def head_from(found: Mapping[str, object]) -> Head:
    """Read a head from its fields, as they were kept or came over a wire; nothing is checked.

    Raises:
        KeyError: a field is missing.
        ValueError: the sequence is no whole number.
    """
    return Head(int(str(found["sequence"])), str(found["hash"]), str(found["signature"]))


class HeadSigner:
    """Signs heads with a site's node key.

    Args:
        node_key: The private key, an ECDSA key on P-384 in OpenSSH's format.

    Raises:
        TrustError: it cannot be read or is another kind of key.
    """

    def __init__(self, node_key: Path) -> None:
        try:
            key = load_ssh_private_key(node_key.read_bytes(), password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise _no_key(node_key) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != ec.SECP384R1.name:
            raise _no_key(node_key)
        self._key = key

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """What its signatures are checked with."""
        return self._key.public_key()

    def sign(self, sequence: int, hash_: str) -> Head:
        """Sign the head of a ledger."""
        signature = self._key.sign(_signed(sequence, hash_), ec.ECDSA(hashes.SHA384()))
        return Head(sequence, hash_, signature.hex())


def check_head(head: Head, public_key: bytes | ec.EllipticCurvePublicKey, *, who: str) -> None:
    """Check that a head was signed by a site.

    Args:
        head: As it came; every field may be anything.
        public_key: The site's, as ``parse_public_key`` returns it, or loaded.
        who: Whose head it claims to be, for the message.

    Raises:
        TrustError: it is no head, or its signature is not this site's.
    """
    key = load_ssh_public_key(public_key) if isinstance(public_key, bytes) else public_key
    assert isinstance(key, ec.EllipticCurvePublicKey)  # nothing else is enrolled
    try:
        if not 1 <= head.sequence <= _LARGEST_SEQUENCE or not _HASH.fullmatch(head.hash):
            raise ValueError("no head")
        if len(head.signature) > 2 * _LONGEST_SIGNATURE:
            raise ValueError("no signature")
        key.verify(
            bytes.fromhex(head.signature),
            _signed(head.sequence, head.hash),
            ec.ECDSA(hashes.SHA384()),
        )
    except (InvalidSignature, ValueError, TypeError) as error:
        raise TrustError(
            f"the ledger head of {who} is not signed by the key of {who}.",
            advice="find out who sent it before going on.",
        ) from error


def _signed(sequence: int, hash_: str) -> bytes:
    return f"medfed-ledger-head-1 {sequence} {hash_}".encode("ascii")


def _no_key(path: Path) -> TrustError:
    return TrustError(
        f"{path}: the site's private key cannot be read, or is no ECDSA P-384 key without a "
        "password.",
        advice="restore the file keys/node_key from a backup of the site's folder.",
    )
