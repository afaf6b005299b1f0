"""A small HTTPS server on loopback that answers ``/health`` as a test wants."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
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
) -> Iterator[str]:
    """Serve until the block ends.

    Args:
        trust: Folder with ``server.pem`` and ``server.key``; None: plain HTTP.
        status: What ``/health`` answers.
        clock_s: The server's clock, seconds since 1970; None: right.
        host: Address to listen on.
        port: Port; 0: any.

    Yields:
        ``host:port``.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def date_time_string(self, timestamp: float | None = None) -> str:
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
