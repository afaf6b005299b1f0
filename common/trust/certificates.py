"""A small certificate authority of our own: one server, its coordinators.

Everyone who talks to a medfed server holds its ``ca.pem`` and trusts nothing else, so
no public authority can vouch for a false server. The server's port shows a server
certificate; a coordinator shows a client certificate at the control port.

Keys are ECDSA on P-384. A certificate carries what strict checkers of RFC 5280 ask for:
key usage, extended key usage, subject and authority key identifiers.

Source:
    RFC 5280, sections 4.2.1.1 (authority key identifier), 4.2.1.2 (subject key
    identifier), 4.2.1.3 (key usage), 4.2.1.9 (basic constraints) and 4.2.1.12
    (extended key usage). https://www.rfc-editor.org/rfc/rfc5280
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medfed.common.errors import ConfigError, TrustError
from medfed.common.trust.private_files import private_folder, write_private
from medfed.common.trust.received_files import read_secret

_AUTHORITY_DAYS = 3650
_LEAF_DAYS = 730
_RENEW_DAYS = 30
CLOCK_SLACK = datetime.timedelta(minutes=10)
"""How far the clocks of two machines may be apart: a certificate is valid so long before."""


class Authority(NamedTuple):
    """A certificate authority, able to sign. Private.

    Attributes:
        certificate: What others trust.
        key: What only its owner has.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"Authority({self.certificate.subject.rfc4514_string()})"


def new_authority(folder: Path, at: datetime.datetime | None = None) -> Path:
    """Make a certificate authority: ``ca.pem`` and ``ca.key`` (mode 0600).

    Each has a name of its own, so that one can be told from the next where both are trusted.

    Args:
        folder: Where; made if missing.
        at: When it begins; None: now.

    Returns:
        Path of ``ca.pem``, which everyone who talks to this server needs.

    Raises:
        ConfigError: an authority is there already (it is kept: a new one would shut every
            site out), or the folder cannot be written.
    """
    folder = private_folder(folder)
    if (folder / "ca.pem").exists():
        raise ConfigError(
            f"{folder}: holds a certificate authority already, which is kept.",
            advice="use it, or give an empty folder for another server.",
        )
    key = ec.generate_private_key(ec.SECP384R1())
    mark = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()[:8]
    name = _name(f"medfed authority {mark}")
    certificate = (
        _builder(name, name, key.public_key(), key.public_key(), _AUTHORITY_DAYS, at)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, SHA384())
    )
    write_private(folder / "ca.key", key_bytes(key), replace=True)  # left over from a kill, if any
    return write_private(folder / "ca.pem", certificate.public_bytes(Encoding.PEM))


def issue_server_certificate(folder: Path, hosts: Sequence[str]) -> Path:
    """Make the server's certificate: ``server.pem`` and ``server.key`` (mode 0600).

    A pair that is there is replaced: sites trust the authority, not this pair.

    Args:
        folder: The ``trust`` folder, with the authority in it.
        hosts: Host names and IP addresses by which clients reach the server.
            ``localhost`` and ``127.0.0.1`` are added.

    Returns:
        Path of ``server.pem``.

    Raises:
        ConfigError: a host is neither a name nor an address, or there is no authority.
    """
    names = host_names(hosts)
    return _issue(folder, folder, "server", "medfed server", ExtendedKeyUsageOID.SERVER_AUTH, names)


def issue_client_certificate(folder: Path, target: Path, name: str) -> Path:
    """Make a coordinator's certificate: ``client.pem`` and ``client.key`` (mode 0600).

    Args:
        folder: The ``trust`` folder, with the authority in it.
        target: Where to write the pair, and a copy of ``ca.pem``; made if missing.
        name: Whom the certificate names; 1 to 64 characters.

    Returns:
        Path of ``client.pem``.

    Raises:
        ConfigError: there is no authority, or the folder cannot be written.
    """
    private_folder(target)
    authority = (folder / "ca.pem").read_bytes()
    write_private(target / "ca.pem", authority, replace=True)
    return _issue(folder, target, "client", name, ExtendedKeyUsageOID.CLIENT_AUTH, [])


def server_certificate_serves(folder: Path, hosts: Sequence[str]) -> bool:
    """Whether the server's pair is there, names all hosts and is good for 30 more days."""
    try:
        data = (folder / "server.pem").read_bytes()
        key_is_there = (folder / "server.key").is_file()
    except FileNotFoundError:
        return False
    certificate = x509.load_pem_x509_certificate(data)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    margin = datetime.timedelta(days=_RENEW_DAYS)
    lasts = certificate.not_valid_after_utc > datetime.datetime.now(datetime.UTC) + margin
    return key_is_there and lasts and all(_host_name(host) in names for host in hosts)


def read_authority(path: Path) -> bytes:
    """Read and check a ``ca.pem``: one authority, or for a time after a rotation two.

    Returns:
        Its bytes, PEM.

    Raises:
        ConfigError: the file cannot be read.
        TrustError: one in it is no certificate authority, or is no longer valid.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: the server's authority cannot be read ({error.strerror}).",
            advice="ask the coordinator for the file ca.pem of the server.",
        ) from error
    parse_authorities(data, source=str(path))
    return data


def parse_authorities(
    pem: bytes, *, source: str, at: datetime.datetime | None = None
) -> list[x509.Certificate]:
    """Check the authorities in a PEM file.

    Args:
        pem: One or more certificates.
        source: Where they come from, for messages.
        at: When they must be valid; None: now.

    Returns:
        In the file's order, at least one.

    Raises:
        TrustError: one is no certificate authority, or has expired.
    """
    try:
        found = x509.load_pem_x509_certificates(pem)
        for certificate in found:
            basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
            certificate.verify_directly_issued_by(certificate)
            if not basic.ca:
                raise _not_an_authority(source, "a certificate that is no authority")
    except (
        ValueError,
        TypeError,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        InvalidSignature,
        UnsupportedAlgorithm,
    ) as error:
        raise _not_an_authority(source, "no self-signed certificate authority") from error
    now = at or datetime.datetime.now(datetime.UTC)
    if any(certificate.not_valid_after_utc < now for certificate in found):
        raise _not_an_authority(source, "an authority that has expired")
    return found


def load_authority(folder: Path) -> Authority:
    """Read an authority with its key: ``ca.pem`` and ``ca.key``.

    Raises:
        ConfigError: a file cannot be read, or others may read the key.
        TrustError: they are no authority, or do not belong together.
    """
    certificate = x509.load_pem_x509_certificate(read_authority(folder / "ca.pem"))
    data = read_secret(folder / "ca.key", what="the authority's key")
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{folder / 'ca.key'}: the authority's key cannot be read.",
            advice="restore the folder from its backup.",
        ) from error
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey)
        or key.public_key() != certificate.public_key()
    ):
        raise TrustError(
            f"{folder}: ca.key does not belong to ca.pem.",
            advice="restore the folder from its backup.",
        )
    return Authority(certificate, key)


def issue(
    authority: Authority,
    key: ec.EllipticCurvePublicKey,
    *,
    name: str,
    usage: x509.ObjectIdentifier,
    names: Sequence[x509.GeneralName],
    days: int,
    at: datetime.datetime | None = None,
) -> x509.Certificate:
    """Sign a certificate that is no authority's; its serial number is random.

    Args:
        authority: Who signs.
        key: What it is about.
        name: Common name; 1 to 64 characters.
        usage: The one extended key usage.
        names: Subject alternative names; may be empty.
        days: How long it is valid.
        at: From when, less ``CLOCK_SLACK``; None: now.
    """
    signer = authority.key.public_key()
    builder = (
        _builder(_name(name), authority.certificate.subject, key, signer, days, at)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(authority.key, SHA384())


def host_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """Write hosts as a server's certificate names them; ``localhost`` and ``127.0.0.1`` are added.

    Raises:
        ConfigError: a host is neither a name nor an address.
    """
    return [_host_name(host) for host in dict.fromkeys(("localhost", "127.0.0.1", *hosts))]


def key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Write a private key as PEM (PKCS#8) without a password. Private."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _issue(
    folder: Path,
    target: Path,
    stem: str,
    name: str,
    usage: x509.ObjectIdentifier,
    hosts: Sequence[x509.GeneralName],
) -> Path:
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = issue(
        load_authority(folder),
        key.public_key(),
        name=name,
        usage=usage,
        names=hosts,
        days=_LEAF_DAYS,
    )
    write_private(target / f"{stem}.key", key_bytes(key), replace=True)
    pem = certificate.public_bytes(Encoding.PEM)
    return write_private(target / f"{stem}.pem", pem, replace=True)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
    days: int,
    at: datetime.datetime | None,
) -> x509.CertificateBuilder:
    now = at or datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode("ascii").lower())
    except (UnicodeError, ValueError) as error:
        raise ConfigError(
            f"host {host!r} is neither a host name nor an IP address.",
            advice="give the name or address by which the hospitals reach this server.",
        ) from error


def _not_an_authority(source: str, found: str) -> TrustError:
    return TrustError(
        f"{source}: found {found}; allowed is the ca.pem of the medfed server.",
        advice="ask the coordinator for ca.pem again.",
    )
