"""An HTTP CONNECT proxy on loopback, as a hospital has one, with its bad days."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping


class ConnectProxy:
    """A running proxy.

    Attributes:
        asked: Heads of the requests, in order.
        passed: Connections that it let through.

    Args:
        routes: ``host:port`` as asked for -> port on loopback; others are dialled as asked.
        login: ``user:password`` that it wants; None: none.
        answer: Sent instead of letting anybody through; b"": closes without a word.
        hangs: Whether it says nothing at all.
        idle_s: Drops a connection that is silent for so long; None: never.
    """

    def __init__(
        self,
        *,
        routes: Mapping[str, int] | None = None,
        login: str | None = None,
        answer: bytes | None = None,
        hangs: bool = False,
        idle_s: float | None = None,
    ) -> None:
        self._routes, self._login, self._answer = dict(routes or {}), login, answer
        self._hangs, self.idle_s = hangs, idle_s
        self.asked: list[str] = []
        self.passed = 0
        self._ended = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
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
        with client, contextlib.suppress(OSError):
            client.settimeout(10)
            head = b""
            while b"\r\n\r\n" not in head:
                piece = client.recv(4096)
                if not piece:
                    return
                head += piece
            self.asked.append(head.decode())
            if self._hangs:
                self._ended.wait()
            elif self._answer is not None:
                client.sendall(self._answer)
            elif self._login and self._written_login() not in self.asked[-1]:
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            else:
                self._pass_on(client, self.asked[-1].split()[1])

    def _written_login(self) -> str:
        assert self._login is not None
        return f"Proxy-Authorization: Basic {base64.b64encode(self._login.encode()).decode()}\r\n"

    def _pass_on(self, client: socket.socket, target: str) -> None:
        host, _, port = target.rpartition(":")
        where = ("127.0.0.1", self._routes[target]) if target in self._routes else (host, int(port))
        try:
            far = socket.create_connection(where, 5)
        except OSError:
            client.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            return
        with far:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self.passed += 1
            self._copy(client, far)

    def _copy(self, client: socket.socket, far: socket.socket) -> None:
        moved_at = time.monotonic()
        while not self._ended.is_set():
            for source in select.select([client, far], [], [], 0.02)[0]:
                piece = source.recv(1 << 16)
                if not piece:
                    return
                (far if source is client else client).sendall(piece)
                moved_at = time.monotonic()
            if self.idle_s is not None and time.monotonic() - moved_at > self.idle_s:
                return


@contextlib.contextmanager
def connect_proxy(
    *,
    routes: Mapping[str, int] | None = None,
    login: str | None = None,
    answer: bytes | None = None,
    hangs: bool = False,
    idle_s: float | None = None,
) -> Iterator[ConnectProxy]:
    """Run a proxy until the block ends; arguments as ``ConnectProxy``."""
    running = ConnectProxy(routes=routes, login=login, answer=answer, hangs=hangs, idle_s=idle_s)
    try:
        yield running
    finally:
        running.close()
