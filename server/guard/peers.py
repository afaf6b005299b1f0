"""Who is at the other end of a connection: the site that its certificate names.

TLS has checked the certificate and that the caller holds its key. Here it must also be a site's:
a coordinator's certificate, of the same authority, does not open this port.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from medfed.common.errors import TrustError
from medfed.common.trust.identities import check_identity


@dataclass(frozen=True)
class Peer:
    """A site, by its certificate.

    Attributes:
        site: Its name.
        serial: Of the certificate.
        expires: When the certificate ends, seconds since 1970.
        public_key: The key that the certificate is about (PEM), byte for byte as Flower's node
            sends it in a request's header.
    """

    site: str
    serial: int
    expires: float
    public_key: bytes


def read_peer(certificate: bytes, authorities: Sequence[x509.Certificate]) -> Peer:
    """Read the certificate that a caller showed in the TLS handshake.

    Args:
        certificate: DER.
        authorities: Those that may have signed it.

    Raises:
        TrustError: it is no site's certificate.
    """
    parsed = x509.load_der_x509_certificate(certificate)
    pem = parsed.public_bytes(Encoding.PEM)
    identity = check_identity(pem, authorities, source="the caller's certificate")
    if identity.role is not None:
        raise TrustError(
            f"the guard was shown a {identity.role.value}'s certificate; allowed is a site's.",
            advice="use the control service with it.",
        )
    key = parsed.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return Peer(identity.name, identity.serial, identity.expires.timestamp(), key)
