"""A TCP port on loopback in front of a Unix socket; it can speak TLS and break off."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path


class Relay:
    """A running relay.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        cut_after_bytes: After so many bytes from behind, it breaks off that connection and
            sets this to None; None: never.
    """

    def __init__(self, target: Path, tls: ssl.SSLContext | None) -> None:
        self._target, self._tls = target, tls
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.cut_after_bytes: int | None = None
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """End it, with all its connections."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._server.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            if select.select([self._server], [], [], 0.05)[0]:
                client, _ = self._server.accept()
                thread = threading.Thread(target=self._serve, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as open_:
            open_.enter_context(client)
            client.settimeout(20)
            if self._tls is not None:
                client = open_.enter_context(self._tls.wrap_socket(client, server_side=True))
            inner = open_.enter_context(socket.socket(socket.AF_UNIX))
            inner.connect(str(self._target))
            while not self._ended.is_set():
                ready = [client] if isinstance(client, ssl.SSLSocket) and client.pending() else []
                ready = ready or select.select([client, inner], [], [], 0.05)[0]
                for source in ready:
                    piece = source.recv(1 << 14)
                    if not piece or (source is inner and self._cuts(len(piece))):
                        return
                    (inner if source is client else client).sendall(piece)

    def _cuts(self, count: int) -> bool:
        if self.cut_after_bytes is None:
            return False
        self.cut_after_bytes -= count
        if self.cut_after_bytes > 0:
            return False
        self.cut_after_bytes = None
        return True


@contextlib.contextmanager
def relay(target: Path, *, trust: Path | None = None, ask_client: bool = False) -> Iterator[Relay]:
    """Run a relay until the block ends.

    Args:
        target: A Unix socket.
        trust: Folder with ``server.pem``, ``server.key`` and ``ca.pem``; None: no TLS.
        ask_client: Whether a client must show a certificate of that authority.
    """
    tls = None
    if trust is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(trust / "server.pem", trust / "server.key")
        if ask_client:
            tls.load_verify_locations(trust / "ca.pem")
            tls.verify_mode = ssl.CERT_REQUIRED
    running = Relay(target, tls)
    try:
        yield running
    finally:
        running.close()
