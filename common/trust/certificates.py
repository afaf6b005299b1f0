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

from cryptography import x509
from cryptography.exceptions import InvalidSignature
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

_AUTHORITY_DAYS = 3650
_LEAF_DAYS = 730
_RENEW_DAYS = 30
_CLOCK_SLACK = datetime.timedelta(minutes=10)


def new_authority(folder: Path) -> Path:
    """Make a certificate authority: ``ca.pem`` and ``ca.key`` (mode 0600).

    Args:
        folder: The server's ``trust`` folder; made if missing.

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
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "medfed authority")])
    certificate = (
        _builder(name, name, key.public_key(), key.public_key(), _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, SHA384())
    )
    write_private(folder / "ca.key", _key_bytes(key), replace=True)  # left over from a kill, if any
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
    names = [_host_name(host) for host in dict.fromkeys(("localhost", "127.0.0.1", *hosts))]
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
    """Read and check a ``ca.pem``.

    Returns:
        Its bytes, PEM.

    Raises:
        ConfigError: the file cannot be read.
        TrustError: it is no certificate authority, or is no longer valid.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: the server's authority cannot be read ({error.strerror}).",
            advice="ask the coordinator for the file ca.pem of the server.",
        ) from error
    try:
        certificate = x509.load_pem_x509_certificate(data)
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature) as error:
        raise _not_an_authority(path, "no self-signed certificate authority") from error
    if not basic.ca:
        raise _not_an_authority(path, "a certificate that is no authority")
    if certificate.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        raise _not_an_authority(path, "an authority that has expired")
    return data


def _issue(
    folder: Path,
    target: Path,
    stem: str,
    name: str,
    usage: x509.ObjectIdentifier,
    hosts: Sequence[x509.GeneralName],
) -> Path:
    authority, authority_key = _load_authority(folder)
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = authority_key.public_key()
    builder = (
        _builder(subject, authority.subject, key.public_key(), signer, _LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    certificate = builder.sign(authority_key, SHA384())
    write_private(target / f"{stem}.key", _key_bytes(key), replace=True)
    pem = certificate.public_bytes(Encoding.PEM)
    return write_private(target / f"{stem}.pem", pem, replace=True)


def _load_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate = x509.load_pem_x509_certificate(read_authority(folder / "ca.pem"))
    try:
        key = load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder / 'ca.key'}: the authority's key cannot be read.",
            advice="restore the trust folder from its backup.",
        ) from error
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey)
        or key.public_key() != certificate.public_key()
    ):
        raise TrustError(
            f"{folder}: ca.key does not belong to ca.pem.",
            advice="restore the trust folder from its backup.",
        )
    return certificate, key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
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


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _not_an_authority(path: Path, found: str) -> TrustError:
    return TrustError(
        f"{path}: found {found}; allowed is the ca.pem of the medfed server.",
        advice="ask the coordinator for ca.pem again.",
    )
