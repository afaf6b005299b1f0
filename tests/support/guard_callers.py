"""Sites and those who would like to be one: an authority, certificates, TLS by raw sockets."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.datetime.now(datetime.UTC)
ONE_DAY = datetime.timedelta(days=1)


class TestAuthority:
    """A certificate authority on P-384, as the coordinator's."""

    __test__ = False

    def __init__(self, folder: Path, name: str = "medfed authority") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(
            self.name, self.key.public_key(), usage=None, names=[], begins=NOW - ONE_DAY,
            ends=NOW + 30 * ONE_DAY,
        )  # fmt: skip
        self.pem = folder / "ca.pem"
        self.pem.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def server(self, stem: str = "server") -> tuple[Path, Path]:
        """Issue a server's certificate for 127.0.0.1; its file and its key's, made anew."""
        key = ec.generate_private_key(ec.SECP384R1())
        names: list[x509.GeneralName] = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        return self._write(stem, key, ExtendedKeyUsageOID.SERVER_AUTH, "medfed server", names)

    def site(
        self,
        name: str,
        *,
        key: ec.EllipticCurvePrivateKey | None = None,
        uri: str | None = None,
        lasts: datetime.timedelta = ONE_DAY,
        usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
        port: int = 0,
    ) -> Caller:
        """Issue a site's certificate; a caller that shows it."""
        key = key or ec.generate_private_key(ec.SECP384R1())
        uris: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(uri or f"urn:medfed:site:{name}")
        ]
        files = self._write(name, key, usage, name, uris, lasts)
        return Caller(name, key, files, self.pem, port)

    def _write(
        self,
        stem: str,
        key: ec.EllipticCurvePrivateKey,
        usage: x509.ObjectIdentifier,
        common_name: str,
        names: list[x509.GeneralName],
        lasts: datetime.timedelta = ONE_DAY,
    ) -> tuple[Path, Path]:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        now = datetime.datetime.now(datetime.UTC)
        certificate = self._sign(
            subject, key.public_key(), usage=usage, names=names, begins=now - 2 * ONE_DAY,
            ends=now + lasts,
        )  # fmt: skip
        pem, secret = self.folder / f"{stem}.pem", self.folder / f"{stem}.key"
        pem.write_bytes(certificate.public_bytes(Encoding.PEM))
        secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return pem, secret

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *,
        usage: x509.ObjectIdentifier | None,
        names: list[x509.GeneralName],
        begins: datetime.datetime,
        ends: datetime.datetime,
    ) -> x509.Certificate:
        root = usage is None
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(root, 0 if root else None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not root, key_cert_sign=root, crl_sign=root,
                    content_commitment=False, key_encipherment=False, data_encipherment=False,
                    key_agreement=False, encipher_only=False, decipher_only=False,
                ),
                critical=True,
            )
        )  # fmt: skip
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, SHA384())


@dataclass
class Caller:
    """A site, or somebody who would like to be one, with TLS by raw sockets."""

    name: str
    key: ec.EllipticCurvePrivateKey
    files: tuple[Path, Path] | None
    authority: Path
    port: int = 0

    @property
    def serial(self) -> int:
        """Of its certificate."""
        assert self.files is not None
        return x509.load_pem_x509_certificate(self.files[0].read_bytes()).serial_number

    def tls(self) -> ssl.SSLContext:
        """TLS of this caller."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.authority)
        if self.files is not None:
            context.load_cert_chain(*self.files)
        return context

    def connect(
        self, tls: ssl.SSLContext | None = None, *, source: str = "127.0.0.1"
    ) -> ssl.SSLSocket:
        """Connect and shake hands."""
        plain = socket.create_connection(("127.0.0.1", self.port), 10, (source, 0))
        try:
            return (tls or self.tls()).wrap_socket(plain, server_hostname="127.0.0.1")
        except BaseException:
            plain.close()
            raise

    def node_headers(self, *, at: str | None = None, key: Any = None) -> dict[str, str]:
        """The headers of Flower's node, signed now."""
        at = at or datetime.datetime.now(datetime.UTC).isoformat()
        signature = self.key.sign(at.encode(), ec.ECDSA(SHA256()))
        public = (key or self.key).public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return {
            "flwr-public-key": base64.b64encode(pem).decode(),
            "flwr-timestamp": at,
            "flwr-signature": base64.b64encode(signature).decode(),
        }

    def request(
        self,
        path: str = "/v1/fleet/pull-messages",
        body: bytes = b"node",
        *,
        method: str = "POST",
        fields: dict[str, str] | None = None,
        signed: dict[str, str] | None = None,
        length: int | None = None,
    ) -> bytes:
        """A request as Flower's node would send it; ``fields`` add to it or replace."""
        headers = {
            "host": f"127.0.0.1:{self.port}",
            "content-type": "application/protobuf",
            "content-length": str(len(body) if length is None else length),
            **(self.node_headers() if signed is None else signed),
            **(fields or {}),
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body

    def ask(self, data: bytes) -> Reply:
        """Send bytes on a connection of their own and read the answer."""
        with self.connect() as link:
            link.sendall(data)
            return read_reply(link)


@dataclass
class Reply:
    """An answer: status 0 where the connection was closed without one."""

    status: int
    fields: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    closed: bool = False


def read_reply(link: ssl.SSLSocket) -> Reply:
    """Read one answer; ``closed`` tells whether it said that the connection ends."""
    data = b""
    with contextlib.suppress(OSError):
        while b"\r\n\r\n" not in data:
            piece = link.recv(65536)
            if not piece:
                break
            data += piece
    if b"\r\n\r\n" not in data:
        return Reply(0, closed=True)
    head, body = data.split(b"\r\n\r\n", 1)
    lines = head.decode().split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines[1:])
    while len(body) < int(fields.get("content-length", 0)):
        piece = link.recv(65536)
        if not piece:
            break
        body += piece
    return Reply(int(lines[0].split()[1]), fields, body, fields.get("connection", "") == "close")


def ended(link: socket.socket, within_s: float = 10.0) -> bool:
    """Whether the other side closes a connection, without a byte more."""
    link.settimeout(within_s)
    try:
        return link.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@contextlib.contextmanager
def many(open_: Callable[[], socket.socket], count: int) -> Iterator[list[socket.socket]]:
    """So many sockets, all closed at the end."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(open_()) for _ in range(count)]
