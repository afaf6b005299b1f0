"""What the tunnel shows to the server and to the node, and whom it takes for the server.

All of it is read from the site's folder: the address that the signed approval names, the
authorities that may have signed the server's certificate, the site's own certificate and key.
The key is handed to TLS in memory and is on disk only where it always was.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medfed.client.enrolment import Clock, now, read_node_key, taken_up
from medfed.client.site_settings import read_settings
from medfed.common.errors import ConfigError, TrustError
from medfed.common.trust.certificates import key_bytes, parse_authorities, read_authority
from medfed.common.trust.identities import check_identity
from medfed.common.trust.received_files import read_received

EXPIRES_SOON: Final = datetime.timedelta(days=14)
"""A certificate that expires sooner is told to the admin."""

_LARGEST_CERTIFICATE_BYTES: Final = 16 * 1024
_ALPN: Final = ["http/1.1"]
_WITHOUT_DATES: Final = datetime.timedelta(days=3650)
"""The node's link is between two processes of one start: a wrong clock must not break it."""


class Outward(NamedTuple):
    """How the server is reached.

    Attributes:
        address: ``host:port``, as the approval names it.
        host: Its host; an IPv6 address without brackets.
        port: Its port.
        tls: TLS 1.3 with the site's certificate, trusting the site's authorities only.
        expires: When the site's certificate does, UTC.
    """

    address: str
    host: str
    port: int
    tls: ssl.SSLContext
    expires: datetime.datetime


def read_outward(root: Path, *, clock: Clock = now) -> Outward:
    """Read how a site reaches its server.

    Args:
        root: The site's folder.
        clock: For tests; the dates of the certificate are compared with it.

    Raises:
        ConfigError: a file cannot be read, others may read the key, no approval was taken up, or
            ``site.toml`` names another server than the approval.
        TrustError: the approval was damaged; the site's certificate has expired, is not valid
            yet, is another authority's, another site's or over another key.
    """
    address = _address(root)
    ca, own = root / "trust" / "ca.pem", root / "trust" / "site.pem"
    authorities = read_authority(ca)
    certificate = read_received(own, _LARGEST_CERTIFICATE_BYTES, what="the site's certificate")
    trusted = parse_authorities(authorities, source=str(ca))
    who = check_identity(certificate, trusted, source=str(own), at=clock())
    if who.role is not None or who.name != read_settings(root).site:
        raise _not_ours(own, "another site's certificate")
    key = read_node_key(root / "keys" / "node_key")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # its own default: no SSLKEYLOGFILE is read
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.verify_flags |= ssl.VERIFY_X509_STRICT
    tls.set_alpn_protocols(_ALPN)
    tls.load_verify_locations(cadata=authorities.decode("ascii"))
    try:
        _show(tls, certificate, key)
    except ssl.SSLError as error:
        raise _not_ours(own, "a certificate over another key than keys/node_key") from error
    host, _, port = address.rpartition(":")
    return Outward(address, host.strip("[]"), int(port), tls, who.expires)


class Identity:
    """What ``read_outward`` found, read anew when its files change.

    Attributes:
        outward: For new connections.
        generation: Goes up when ``outward`` changes.

    Args:
        root: The site's folder.
        clock: For tests.

    Raises:
        MedfedError: as ``read_outward``.
    """

    def __init__(self, root: Path, *, clock: Clock = now) -> None:
        self._root, self._clock = root, clock
        self._files = self._stamps()
        self.outward = read_outward(root, clock=clock)
        self.generation = 0

    def refresh(self) -> bool:
        """Take up changed files; whether there were any.

        Raises:
            MedfedError: as ``read_outward``, once for each change; ``outward`` stays as it was.
        """
        found = self._stamps()
        if found == self._files:
            return False
        self._files = found
        self.outward = read_outward(self._root, clock=self._clock)
        self.generation += 1
        return True

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        trust = self._root / "trust"
        return [
            _stamp(self._root / "site.toml"),
            _stamp(self._root / "keys" / "node_key"),
            *(_stamp(trust / name) for name in ("ca.pem", "site.pem", "approval.json")),
        ]


def local_side() -> tuple[ssl.SSLContext, bytes]:
    """Make a throw-away certificate for the node's link.

    Returns:
        TLS for the listener, and the certificate (PEM) that the node is to trust for it. The key
        is nowhere but in the context.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "medfed tunnel")])
    at = now()
    hosts = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - _WITHOUT_DATES)
        .not_valid_after(at + _WITHOUT_DATES)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .sign(key, SHA384())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.num_tickets = 0
    tls.set_alpn_protocols(_ALPN)
    _show(tls, pem, key)
    return tls, pem


def _show(tls: ssl.SSLContext, certificate: bytes, key: ec.EllipticCurvePrivateKey) -> None:
    with _in_memory(certificate.rstrip() + b"\n" + key_bytes(key)) as path:
        tls.load_cert_chain(path, password=_no_password)


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """A file for a library that takes only a path: on no disk, 0600, gone after the block."""
    handle = os.memfd_create("medfed", os.MFD_CLOEXEC)
    try:
        os.fchmod(handle, 0o600)
        os.write(handle, data)  # a few kilobytes: a memory file takes them whole
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def _address(root: Path) -> str:
    approval, settings = taken_up(root), read_settings(root)
    if approval is None:
        raise ConfigError(
            f"{root}: the site has no certificate; no approval was taken up.",
            advice="send the coordinator what `medfed enrol request` writes, and take up the "
            "approval that comes back with `medfed enrol accept`.",
        )
    if approval.server != settings.server.address:
        raise ConfigError(
            f"{root / 'site.toml'}: names the server {settings.server.address}; the approval that "
            f"was taken up names {approval.server}.",
            advice="ask the coordinator which is right; site.toml names it under [server].",
        )
    return approval.server


def _not_ours(path: Path, found: str) -> TrustError:
    return TrustError(
        f"{path}: found {found}; allowed is what this site's approval holds.",
        advice="take up the newest approval again with `medfed enrol accept`.",
    )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _no_password() -> str:
    raise ssl.SSLError("the key has a password")
