"""A coordinator, sites and a server that enrol each other in folders of a test's own."""

from __future__ import annotations

import datetime
import shutil
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from medfed.client.enrolment import read_node_key, take_up, write_request
from medfed.client.site_settings import site_toml
from medfed.common.trust.keys import new_node_key
from medfed.deploy.coordinator_root import Coordinator, new_coordinator
from medfed.deploy.server_bundle import issue_server_bundle

SERVER = "hub.example:8443"


class Clock:
    """A clock that tests turn.

    Args:
        days_ago: Where it starts. TLS goes by the real time, so a test with handshakes starts so
            early that it ends today.
    """

    def __init__(self, days_ago: int = 0) -> None:
        self.at = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        self.turn(days=-days_ago)

    def __call__(self) -> datetime.datetime:
        return self.at

    def turn(self, **by: float) -> None:
        """Move it: ``turn(days=40)``."""
        self.at += datetime.timedelta(**by)


def make_coordinator(folder: Path, clock: Callable[[], datetime.datetime]) -> Coordinator:
    """A coordinator's folder for ``SERVER``."""
    return new_coordinator(folder / "medfed-coordinator", SERVER, clock=clock)


def bare_site(folder: Path, name: str = "A", server: str = SERVER) -> Path:
    """What enrolment needs of a site's folder: ``site.toml`` and the node key."""
    root = folder / f"medfed-{name}"
    new_node_key(root / "keys")
    text = site_toml(name, server, folder / "scans", None, folder / "witness", folder / "p.key")
    (root / "site.toml").write_text(text)
    return root


def enrolled_site(folder: Path, coordinator: Coordinator, clock: Clock, name: str = "A") -> Path:
    """A site that took up its approval."""
    root = bare_site(folder, name)
    done = coordinator.approve_request(write_request(root).file.read_bytes(), name)
    take_up(root, done.file, coordinator.fingerprint, clock=clock)
    return root


def bring_bundle(coordinator: Coordinator, trust: Path) -> Path:
    """Make a server's bundle and copy it into the server's trust folder."""
    made = issue_server_bundle(coordinator, coordinator.folder / "server-bundle")
    shutil.copytree(made, trust, dirs_exist_ok=True)
    return trust


def shake_hands(trust: Path, root: Path) -> str:
    """One mutual TLS handshake of a site with a server, and the name that the server sees.

    Raises:
        OSError: one of the two refused (``ssl.SSLError`` is one).
    """
    listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listening.load_cert_chain(trust / "server.pem", trust / "server.key")
    listening.load_verify_locations(trust / "ca.pem")
    listening.verify_mode = ssl.CERT_REQUIRED
    listening.verify_flags |= ssl.VERIFY_X509_STRICT
    calling = ssl.create_default_context(cafile=str(root / "trust" / "ca.pem"))
    calling.verify_flags |= ssl.VERIFY_X509_STRICT
    secret = read_node_key(root / "keys" / "node_key").private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    (root / "key.pem").write_bytes(secret)
    calling.load_cert_chain(root / "trust" / "site.pem", root / "key.pem")
    return _over_a_pair(listening, calling)


def _over_a_pair(listening: ssl.SSLContext, calling: ssl.SSLContext) -> str:
    there, here = socket.socketpair()
    seen: list[str] = []

    def answer() -> None:
        try:
            with listening.wrap_socket(there, server_side=True) as link:
                shown = link.getpeercert(binary_form=True)
                assert shown is not None
                subject = x509.load_der_x509_certificate(shown).subject
                seen.append(subject.rfc4514_string())
                link.send(b"x")
        except OSError:
            there.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with calling.wrap_socket(here, server_hostname="hub.example") as link:
            if link.recv(1) != b"x":
                raise ConnectionResetError("the server refused")
    finally:
        here.close()
        thread.join()
    return seen[0]
