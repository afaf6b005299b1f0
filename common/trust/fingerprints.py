"""Fingerprints that two people compare by phone: four groups of four letters and digits.

80 bits of SHA-256 in base32 (A to Z, 2 to 7). Who wants to pass off another key must find one with
the same 80 bits, about 2^80 tries; two keys of his own with one fingerprint (2^40) help nobody,
since one of the two must be the coordinator's or the site's.

Source:
    RFC 4648, section 6 (base32). https://www.rfc-editor.org/rfc/rfc4648
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from medfed.common.errors import TrustError
from medfed.common.trust.received_files import shown
from medfed.common.trust.signatures import VerifyingKey

_BYTES = 10
_TYPED = re.compile(r"[A-Z2-7]{16}")


def trust_fingerprint(authority: x509.Certificate, study_key: VerifyingKey) -> str:
    """Give the fingerprint of a coordinator: of the authority and the study key together.

    Returns:
        As in ``K7QX-2MNA-RT5P-WZ3D``. Public.
    """
    return _grouped(b"medfed trust 1", authority.public_bytes(Encoding.DER), study_key.raw)


def site_fingerprint(public_key: bytes) -> str:
    """Give the fingerprint of a site's node key, to tell the coordinator.

    Args:
        public_key: As ``keys.parse_public_key`` returns it.
    """
    return _grouped(b"medfed site 1", base64.b64decode(public_key.split()[1]))


def check_fingerprint(typed: str, expected: str, *, source: str) -> None:
    """Compare what a person typed with a fingerprint; case, blanks and dashes do not matter.

    Args:
        typed: What the other side read out.
        expected: The fingerprint of what is here.
        source: What to call it in messages.

    Raises:
        TrustError: they differ, or ``typed`` is no fingerprint.

    Example:
        >>> check_fingerprint("k7qx 2mna rt5pwz3d", "K7QX-2MNA-RT5P-WZ3D", source="a file")
    """
    letters = re.sub(r"[\s-]", "", typed[:100]).upper()
    if _TYPED.fullmatch(letters) is None:
        raise TrustError(
            f"{source}: {shown(typed)} is no fingerprint; allowed are four groups of four of the "
            "letters A to Z and the digits 2 to 7.",
            advice="ask the coordinator by phone to read it out again.",
        )
    if not hmac.compare_digest(letters, expected.replace("-", "")):
        raise TrustError(
            f"{source}: its fingerprint is {expected}, not {shown(typed)}. It is not from the "
            "coordinator who read this out.",
            advice="do not use the file; ask the coordinator by phone, at a number that you knew "
            "before.",
        )


def _grouped(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(4, "big") + part)
    letters = base64.b32encode(digest.digest()[:_BYTES]).decode()
    return "-".join(letters[i : i + 4] for i in range(0, len(letters), 4))
