"""What a site sends to be let in: a PKCS#10 request over its node key, signed with it.

The request names the site and holds the public key; everything else in the certificate is the
coordinator's to say, so a request that asks for more is refused. The signature shows that who
asks has the key; whether that is the hospital, two people compare by phone.

Source:
    RFC 2986, section 4 (certification requests). https://www.rfc-editor.org/rfc/rfc2986
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from medfed.common.errors import TrustError
from medfed.common.trust.fingerprints import site_fingerprint
from medfed.common.trust.identities import check_site_name
from medfed.common.trust.received_files import shown

LARGEST_REQUEST_BYTES = 16 * 1024


@dataclass(frozen=True)
class SiteRequest:
    """A request, checked.

    Attributes:
        site: Whom it names.
        public_key: The node key, as ``keys.parse_public_key`` returns it.
        fingerprint: Of the key; the site's admin reads it out.
    """

    site: str
    public_key: bytes
    fingerprint: str


def write_site_request(key: ec.EllipticCurvePrivateKey, site: str) -> bytes:
    """Write a site's request, PEM.

    Raises:
        ConfigError: the site's name is not allowed.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, check_site_name(site))])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, SHA384())
    return request.public_bytes(Encoding.PEM)


def read_site_request(data: bytes, *, site: str, source: str) -> SiteRequest:
    """Check a site's request.

    Args:
        data: PEM, at most ``LARGEST_REQUEST_BYTES``.
        site: Which site the coordinator expects it from.
        source: What to call it in messages.

    Raises:
        ConfigError: ``site`` is no site's name.
        TrustError: it is no request, names another site, asks for more than a name, is over
            another kind of key, or was not signed with its key.
    """
    check_site_name(site)
    if b"PRIVATE KEY" in data:
        raise TrustError(
            f"{source}: found a private key; it must never leave the site.",
            advice="have the site make a new key and send only what `medfed enrol request` writes.",
        )
    try:
        if len(data) > LARGEST_REQUEST_BYTES:
            raise ValueError("too long")
        request = x509.load_pem_x509_csr(data)
        key = request.public_key()
        more = len(request.extensions) + len(request.attributes)
        names = [attribute for part in request.subject.rdns for attribute in part]
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise _refused(source, "no certification request") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _refused(source, "a request over another kind of key")
    if more:
        raise _refused(source, "a request that asks for more than a certificate in a site's name")
    if len(names) != 1 or names[0].oid != NameOID.COMMON_NAME:
        raise _refused(source, "a request with another subject than a site's name")
    if str(names[0].value) != site:
        raise TrustError(
            f"{source}: the request is in the name of {shown(str(names[0].value))}, not of "
            f"{site!r}.",
            advice="ask the site whose request this is, and give --site its name.",
        )
    if not _is_signed(request):
        raise _refused(source, "a request that was not signed with its own key")
    public = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"
    return SiteRequest(site, public, site_fingerprint(public))


def _is_signed(request: x509.CertificateSigningRequest) -> bool:
    try:
        return request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm):  # by an algorithm that is no longer taken
        return False


def _refused(source: str, found: str) -> TrustError:
    return TrustError(
        f"{source}: found {found}; allowed is a request over an ECDSA P-384 node key, with the "
        "site's name and nothing else.",
        advice="ask the site for the file that `medfed enrol request` wrote.",
    )
