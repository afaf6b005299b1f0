"""The site's tunnel, in short: TLS towards Flower's node, TLS with a certificate to the guard."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

from tests.support.guard_callers import Caller


class Tunnel:
    """A running tunnel; make and close it in one event loop.

    Attributes:
        port: Where the node reaches it.
        requests: The first line of each piece that the node sent, if it is a request.
    """

    def __init__(self, caller: Caller, own: tuple[Path, Path]) -> None:
        self._caller, self.requests = caller, list[str]()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(*own)
        self.port = 0

    async def start(self) -> None:
        """Listen on any port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Listen no more; what is open ends with its other side."""
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(
                "127.0.0.1", self._caller.port, ssl=self._caller.tls(), server_hostname="127.0.0.1"
            )
            out = asyncio.create_task(self._pump(reader, far_writer, note=True))
            back = asyncio.create_task(self._pump(far_reader, writer, note=False))
            await asyncio.wait({out, back}, return_when=asyncio.FIRST_COMPLETED)
            far_writer.transport.abort()
        writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, note: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                if note and piece.startswith(b"POST "):
                    self.requests.append(piece.split(b" ", 2)[1].decode())
                writer.write(piece)
                await writer.drain()
