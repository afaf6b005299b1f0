"""An enrolled site, a server that stands for the guard, and the site's tunnel between them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from medfed.client.enrolment import take_up, write_request
from medfed.client.tunnel import Limits, Tunnel
from medfed.common.trust.certificates import host_names, issue, key_bytes, load_authority
from medfed.deploy.coordinator_root import Coordinator, new_coordinator
from tests.support.enrolling import Clock, bare_site, bring_bundle
from tests.support.flower_hub import FlowerHub

Handler = Callable[[ssl.SSLSocket], None]


def echo(link: ssl.SSLSocket) -> None:
    """Send back what comes."""
    while piece := link.recv(1 << 16):
        link.sendall(piece)


def healthy(link: ssl.SSLSocket) -> None:
    """Answer one request as the guard answers ``/health``."""
    link.recv(1 << 16)
    link.sendall(b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n")


def relay(link: ssl.SSLSocket, hub: FlowerHub) -> None:
    """Carry a connection to the SuperLink until a side ends."""
    tls = ssl.create_default_context(cafile=str(hub.ca))
    with socket.create_connection(("127.0.0.1", hub.port)) as plain:
        with tls.wrap_socket(plain, server_hostname="127.0.0.1") as far:
            while True:
                ready = [side for side in (link, far) if side.pending()]
                for side in ready or select.select([link, far], [], [], 10)[0]:
                    other = far if side is link else link
                    side.settimeout(0.05)
                    try:
                        piece = side.recv(1 << 16)
                    except TimeoutError:  # a record of TLS itself
                        continue
                    if not piece:
                        return
                    other.settimeout(20)
                    other.sendall(piece)


class FarServer:
    """A TLS server on loopback that demands a certificate of its authority.

    Attributes:
        port: Where it listens.
        handler: What it does with a connection, in a thread.
        tls: For new connections.
        accepted: TCP connections that came in.
        serials: Serial numbers of the certificates that it was shown.
        revoked: Serial numbers whose connections it closes after the handshake, as the guard.
    """

    def __init__(self, handler: Handler = echo) -> None:
        self.handler = handler
        self.tls: ssl.SSLContext | None = None
        self.accepted = 0
        self.serials: list[int] = []
        self.revoked: set[int] = set()
        self._links: list[socket.socket] = []
        self.port = 0
        self.open()

    def open(self) -> None:
        """Listen; again after it was closed, on the same port."""
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def trust(self, folder: Path) -> None:
        """Use the certificates of a server's bundle."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(folder / "server.pem", folder / "server.key")
        tls.load_verify_locations(folder / "ca.pem")
        tls.verify_mode = ssl.CERT_REQUIRED
        self.tls = tls

    def close(self) -> None:
        """End it, with all its connections."""
        self._ended.set()
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                link, _ = self._listener.accept()
                self.accepted += 1
                thread = threading.Thread(target=self._serve, args=(link,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(plain)
            plain.settimeout(20)
            assert self.tls is not None
            link = stack.enter_context(self.tls.wrap_socket(plain, server_side=True))
            self._links.append(link)
            shown = link.getpeercert(binary_form=True)
            assert shown is not None
            serial = x509.load_der_x509_certificate(shown).serial_number
            self.serials.append(serial)
            if serial not in self.revoked:
                self.handler(link)


@dataclass
class House:
    """A coordinator, its server, and site A with an approval."""

    coordinator: Coordinator
    server: FarServer
    trust: Path
    root: Path
    clock: Clock
    address: str

    @property
    def serial(self) -> int:
        """Of the site's certificate."""
        pem = (self.root / "trust" / "site.pem").read_bytes()
        return x509.load_pem_x509_certificate(pem).serial_number

    def renew(self) -> None:
        """The site takes up a new certificate."""
        take_up(self.root, self.coordinator.renew("A").file, clock=self.clock)


@contextlib.contextmanager
def house(
    folder: Path, handler: Handler = echo, *, host: str = "localhost", age_days: int = 0
) -> Iterator[House]:
    """Enrol a site with a server that runs until the block ends.

    Args:
        folder: For everybody's files.
        handler: What the server does with a connection.
        host: By which the approval names the server.
        age_days: How long ago all was issued.
    """
    server = FarServer(handler)
    try:
        clock, address = Clock(age_days), f"{host}:{server.port}"
        coordinator = new_coordinator(folder / "medfed-coordinator", address, clock=clock)
        trust = bring_bundle(coordinator, folder / "server-trust")
        server.trust(trust)
        root = bare_site(folder, "A", address)
        done = coordinator.approve_request(write_request(root).file.read_bytes(), "A")
        take_up(root, done.file, coordinator.fingerprint, clock=clock)
        yield House(coordinator, server, trust, root, clock, address)
    finally:
        server.close()


def expired_server(home: House) -> ssl.SSLContext:
    """A server of the right authority whose certificate ended a day ago."""
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = issue(
        load_authority(home.coordinator.folder),
        key.public_key(),
        name="medfed server",
        usage=ExtendedKeyUsageOID.SERVER_AUTH,
        names=host_names([]),
        days=1,
        at=datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=2),
    )
    both = home.trust / "expired.pem"
    both.write_bytes(certificate.public_bytes(Encoding.PEM) + key_bytes(key))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(both)
    tls.load_verify_locations(home.trust / "ca.pem")
    tls.verify_mode = ssl.CERT_REQUIRED
    return tls


class RunningTunnel:
    """A tunnel in a thread with an event loop of its own.

    Attributes:
        said: What the admin was told.
    """

    def __init__(self, root: Path, limits: Limits) -> None:
        self.said: list[str] = []
        self._root, self._limits = root, limits
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> RunningTunnel:
        self._thread.start()
        try:
            self.tunnel = self.do(self._start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self.tunnel.close())
        self._end()

    def _end(self) -> None:
        self.do(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> Tunnel:
        tunnel = Tunnel(self._root, self.said.append, limits=self._limits)
        await tunnel.start()
        return tunnel

    def do(self, work: Any) -> Any:
        """Do something in the tunnel's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def call(self) -> ssl.SSLSocket:
        """Connect as Flower's node does."""
        return call(self.tunnel.port, self.tunnel.certificate)


def running(root: Path, **limits: Any) -> RunningTunnel:
    """A tunnel to be entered with ``with``."""
    return RunningTunnel(root, Limits(**{"sweep_s": 0.05} | limits))


def call(port: int, certificate: Path) -> ssl.SSLSocket:
    """Connect to a tunnel as Flower's node does (``flwr/supercore/protobuf/client.py``)."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.load_verify_locations(cadata=certificate.read_text("ascii"))
    plain = socket.create_connection(("127.0.0.1", port), 20)
    try:
        return tls.wrap_socket(plain, server_hostname="127.0.0.1")
    except BaseException:
        plain.close()
        raise


def ask(link: ssl.SSLSocket, data: bytes = b"ping") -> bytes:
    """Send something and read as much back; less where the connection ended."""
    link.sendall(data)
    return read(link, len(data))


def read(link: ssl.SSLSocket, count: int) -> bytes:
    """Read so many bytes; fewer where the connection ended."""
    got = b""
    while len(got) < count and (piece := link.recv(count - len(got))):
        got += piece
    return got


def within(true: Callable[[], bool], limit_s: float = 10.0) -> bool:
    """Wait for something that another thread does; whether it came."""
    end = time.monotonic() + limit_s
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()
