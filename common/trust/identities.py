"""Whom a client certificate names: a site, or a person with a role.

    site     CN = the site's name, URI ``urn:medfed:site:NAME``, over the site's node key
    person   CN = their name, URI ``urn:medfed:role:coordinator`` or ``urn:medfed:role:observer``

A site's certificate is about the same key by which Flower's node signs its requests, so it is
bound to that node by being the same key, and it can be renewed while the key stays.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from medfed.common.errors import ConfigError, TrustError
from medfed.common.trust.certificates import CLOCK_SLACK, Authority, issue

SITE_DAYS = 90
ROLE_DAYS = 365
_URI = re.compile(r"urn:medfed:(site|role):([A-Za-z][A-Za-z0-9_-]{0,31})")
_SITE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


class Role(StrEnum):
    """What a person may ask of the control service."""

    COORDINATOR = "coordinator"
    OBSERVER = "observer"


@dataclass(frozen=True)
class Identity:
    """Whom a certificate names. Public.

    Attributes:
        name: The site's name, or the person's.
        role: The person's role; None: it is a site.
        serial: Number of the certificate.
        public_key: The key, as ``keys.parse_public_key`` returns it.
        begins: Valid from.
        expires: Valid until.
    """

    name: str
    role: Role | None
    serial: int
    public_key: bytes
    begins: datetime.datetime
    expires: datetime.datetime


def check_site_name(site: str) -> str:
    """Check a site's name, which becomes part of file names.

    Raises:
        ConfigError: it is not a letter followed by at most 31 letters, digits, _ or -.
    """
    if _SITE_NAME.fullmatch(site) is None:
        raise ConfigError(
            f"site name {site[:40]!r} is not allowed: a letter, then at most 31 letters, digits, "
            "'_' or '-'.",
            advice="use the name that stands in the study file.",
        )
    return site


def site_certificate(
    authority: Authority, public_key: bytes, site: str, *, at: datetime.datetime | None = None
) -> x509.Certificate:
    """Sign a site's certificate, for ``SITE_DAYS``.

    Args:
        authority: Who signs.
        public_key: The site's node key, as ``keys.parse_public_key`` returns it.
        site: The site's name.
        at: From when; None: now.

    Raises:
        ConfigError: the name is not allowed.
    """
    key = load_ssh_public_key(public_key)
    assert isinstance(key, ec.EllipticCurvePublicKey)  # nothing else is parsed
    return issue(
        authority,
        key,
        name=check_site_name(site),
        usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        names=[x509.UniformResourceIdentifier(f"urn:medfed:site:{site}")],
        days=SITE_DAYS,
        at=at,
    )


def role_certificate(
    authority: Authority,
    key: ec.EllipticCurvePublicKey,
    person: str,
    role: Role,
    *,
    at: datetime.datetime | None = None,
) -> x509.Certificate:
    """Sign a person's certificate, for ``ROLE_DAYS``.

    Raises:
        ConfigError: the name is empty, longer than 64 characters or not printable.
    """
    if not 1 <= len(person) <= 64 or not person.isprintable() or person != person.strip():
        raise ConfigError(
            "a person's name of this length or with these characters is not allowed: 1 to 64 "
            "printable characters, no blank at either end.",
            advice="give the name by which the audit log is to know the person.",
        )
    return issue(
        authority,
        key,
        name=person,
        usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        names=[x509.UniformResourceIdentifier(f"urn:medfed:role:{role.value}")],
        days=ROLE_DAYS,
        at=at,
    )


def check_identity(
    pem: bytes,
    authorities: Sequence[x509.Certificate],
    *,
    source: str,
    at: datetime.datetime | None = None,
) -> Identity:
    """Check a client certificate and say whom it names.

    Args:
        pem: The certificate.
        authorities: One of them must have signed it.
        source: What to call it in messages.
        at: When it must be valid; None: now.

    Raises:
        TrustError: it has expired, is not valid yet, is another authority's, is an authority, is
            not for clients, or names nobody in the form above.
    """
    now = at or datetime.datetime.now(datetime.UTC)
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        begins, expires = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except (ValueError, TypeError) as error:
        raise _refused(source, "no certificate") from error
    _check_dates(begins, expires, now, source=source)
    try:
        verifier = PolicyBuilder().store(Store(list(authorities))).time(now).build_client_verifier()
        verifier.verify(certificate, [])
    except (VerificationError, ValueError, UnsupportedAlgorithm) as error:
        raise _refused(
            source, "one that is another authority's, an authority, or not for clients"
        ) from error
    name, role = _named(certificate, source)
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _refused(source, "one over another kind of key than ECDSA P-384")
    return Identity(
        name=name,
        role=role,
        serial=certificate.serial_number,
        public_key=key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n",
        begins=begins,
        expires=expires,
    )


def _named(certificate: x509.Certificate, source: str) -> tuple[str, Role | None]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = [_URI.fullmatch(str(name.value)) for name in names]
    common_names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(found) != 1 or found[0] is None or len(common_names) != 1:
        raise _refused(source, "one that names neither a site nor a role")
    kind, named = found[0].groups()
    common_name = str(common_names[0].value)
    if kind == "site":
        if common_name != named:
            raise _refused(source, "one that names two sites")
        return named, None
    if named not in list(Role):
        raise _refused(source, "one with a role that is unknown")
    return common_name, Role(named)


def _check_dates(
    begins: datetime.datetime, expires: datetime.datetime, now: datetime.datetime, *, source: str
) -> None:
    if now < begins:
        raise TrustError(
            f"{source}: is valid from {begins:%Y-%m-%d %H:%M} UTC; the clock of this machine says "
            f"{now:%Y-%m-%d %H:%M} UTC.",
            advice=f"set the clock (NTP); it may be at most {CLOCK_SLACK.seconds // 60} minutes "
            "behind.",
        )
    if now > expires:
        raise TrustError(
            f"{source}: expired on {expires:%Y-%m-%d %H:%M} UTC; the clock of this machine says "
            f"{now:%Y-%m-%d %H:%M} UTC.",
            advice="ask the coordinator for a new approval, or set the clock if it is wrong.",
        )


def _refused(source: str, found: str) -> TrustError:
    return TrustError(
        f"{source}: found {found}; allowed is a certificate that the coordinator issued to a site "
        "or a person.",
        advice="ask the coordinator for it again.",
    )
