"""A guard with everything around it: sites with certificates and a SuperLink's double.

The guard is the real one, in a thread with an event loop of its own; callers are real sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from medfed.server.guard.door import Guard
from medfed.server.guard.settings import GuardSettings, Limits
from medfed.server.guard.site_messages import SiteMessage, SiteReply
from tests.support.guard_callers import Caller, Reply, TestAuthority, read_reply


@dataclass
class Seen:
    """A request as the SuperLink's double got it."""

    method: str
    path: str
    fields: list[tuple[str, str]]
    body: bytes


class SuperLinkDouble:
    """A TLS server that notes what it is asked.

    Attributes:
        seen: The requests, in order.
        answer: What it says: status and body, or None to break off.
    """

    def __init__(self, authority: TestAuthority) -> None:
        self.seen: list[Seen] = []
        self.answer: Callable[[Seen], tuple[int, bytes] | None] = lambda seen: (200, b"answer")
        self.taken_bytes = 0
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                left, body = int(self.headers.get("content-length", 0)), b""
                while left:
                    piece = self.rfile.read(min(left, 1 << 16))
                    if not piece:
                        return
                    left -= len(piece)
                    double.taken_bytes += len(piece)
                    body = (body + piece)[:65536]
                seen = Seen(self.command, self.path, list(self.headers.items()), body)
                double.seen.append(seen)
                answer = double.answer(seen)
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer[0])
                self.send_header("content-type", "application/protobuf")
                self.send_header("x-inner", "not for hospitals")
                self.send_header("content-length", str(len(answer[1])))
                self.end_headers()
                self.wfile.write(answer[1])

            do_GET = do_POST

            def log_message(self, format: str, *args: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                return

        self._server = Server(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.server("superlink"))
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class GuardHouse:
    """A running guard and what is around it; use as a context manager.

    Attributes:
        revoked: Serials that the revocation list holds.
        lines: What the audit log was told: event and fields.
        heard: What sites said.
    """

    def __init__(
        self,
        folder: Path,
        *,
        superlink: tuple[int, Path] | None = None,
        **limits: Any,
    ) -> None:
        # superlink: port and authority of a real one; None: the double
        self.authority = TestAuthority(folder / "trust")
        self.superlink = SuperLinkDouble(self.authority)
        self.revoked: set[int] = set()
        self._numbers = itertools.count()
        self.lines: list[tuple[str, dict[str, int | str]]] = []
        self.heard: list[tuple[str, SiteMessage]] = []
        certificate, key = self.authority.server()
        inner_port, inner_ca = superlink or (self.superlink.port, self.authority.pem)
        self.settings = GuardSettings(
            host="127.0.0.1", port=0, authority=self.authority.pem, certificate=certificate,
            key=key, revocations=folder / "trust",
            superlink_port=inner_port, superlink_authority=inner_ca,
            limits=Limits(**{"hold_s": 0, "handshakes_per_s": 1000} | limits),
        )  # fmt: skip

    def __enter__(self) -> GuardHouse:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.guard = self.do(self._start())
        ((_, self.port),) = self.guard.listeners()
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self.guard.close())
        self.do(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.superlink.close()

    async def _start(self) -> Guard:
        guard = Guard(self.settings, revoked=self, audit=self._note, desk=self)
        await guard.start()
        return guard

    def do(self, work: Any) -> Any:
        """Do something in the guard's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def site(self, name: str = "A", **how: Any) -> Caller:
        """A site with a certificate of the guard's authority."""
        return self.authority.site(name, port=self.port, **how)

    def fresh_site(self) -> Caller:
        """A site of a new name, with all that was noted before forgotten.

        The audit log takes 20 lines of a kind about one site at once.
        """
        self.superlink.seen.clear()
        self.superlink.answer = lambda seen: (200, b"answer")
        self.lines.clear()
        return self.site(f"A{next(self._numbers)}")

    def shut_out(self, caller: Caller) -> bool:
        """Whether a caller is not answered, and the SuperLink not asked."""
        reply = Reply(0)
        with contextlib.suppress(OSError), caller.connect() as link:
            link.sendall(caller.request())
            reply = read_reply(link)
        return reply.status == 0 and self.superlink.seen == []

    def is_revoked(self, serial: int) -> bool:
        """The revocation list."""
        return serial in self.revoked

    def hear(self, site: str, message: SiteMessage) -> SiteReply:
        """The desk."""
        self.heard.append((site, message))
        return SiteReply(run="going")

    def _note(self, event: str, **fields: int | str) -> None:
        json.dumps(fields)  # a line of JSON is what becomes of it
        self.lines.append((event, fields))

    def open_handshakes(self) -> int:
        """Callers that have not shown a certificate yet."""
        return len(self.guard._handshakes)

    def events(self) -> list[str]:
        """What the audit log was told of, in order."""
        return [event for event, _ in self.lines]

    def wait_for(self, event: str) -> dict[str, int | str]:
        """Wait until the audit log was told of something; its fields."""
        end = time.monotonic() + 10
        while time.monotonic() < end:
            for found, fields in self.lines:
                if found == event:
                    return fields
            time.sleep(0.01)
        raise AssertionError(f"no {event} within 10 s, but {self.events()}")
