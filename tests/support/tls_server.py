"""A small HTTPS server on loopback that answers ``/health`` as a test wants."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Server(ThreadingHTTPServer):
    """Says nothing when a caller breaks off the handshake."""

    def handle_error(self, request: object, client_address: object) -> None:
        return


@contextlib.contextmanager
def health_server(
    trust: Path | None,
    *,
    status: int = 200,
    clock_s: float | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    headers: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Serve until the block ends.

    Args:
        trust: Folder with ``server.pem`` and ``server.key``; None: plain HTTP.
        status: What ``/health`` answers.
        clock_s: The server's clock, seconds since 1970; None: right.
        host: Address to listen on.
        port: Port; 0: any.
        headers: Further headers of the answer; a ``Date`` is sent instead of the right one.

    Yields:
        ``host:port``.
    """

    further = dict(headers or {})
    date = further.pop("Date", None)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "2")
            for name, value in further.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"ok")

        def date_time_string(self, timestamp: float | None = None) -> str:
            if date is not None:
                return date
            return formatdate(clock_s if timestamp is None else timestamp, usegmt=True)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = _Server((host, port), Handler)
    if trust is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(trust / "server.pem", trust / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
