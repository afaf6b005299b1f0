"""The site's end of a connection: requests read, answers written, neither for ever.

Nothing of a body is held but the piece that is under way, and no answer is written before the
request has ended: a byte that comes too early ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from email.utils import formatdate
from typing import Any, Final, TypeVar

import h11

from medfed.server.guard import heads
from medfed.server.guard.heads import Head
from medfed.server.guard.pace import PIECE_BYTES, Pace, read_within, write_within
from medfed.server.guard.refusal import RefusedRequest
from medfed.server.guard.settings import Limits

T = TypeVar("T")

_LINGER_S: Final = 1.0
_LINGER_PIECES: Final = 16


class SiteLink:
    """HTTP/1.1 with one site, over TLS that is up.

    Attributes:
        last: Whether the connection ends after the answer that is under way.

    Args:
        reader: From the site.
        writer: To the site.
        limits: Sizes and times.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits
    ) -> None:
        self.last = False
        self._reader, self._writer, self._limits = reader, writer, limits
        self._wire = h11.Connection(h11.SERVER)
        writer.transport.set_write_buffer_limits(PIECE_BYTES)

    async def wait(self) -> bytes:
        """Wait for the first bytes of the next request; empty: there is none."""
        try:
            return await read_within(self._reader, self._limits.idle_s)
        except TimeoutError:
            return b""

    async def head(self, data: bytes) -> Head | None:
        """Read the rest of a head; None: the site broke off.

        Raises:
            RefusedRequest: it is none that can be served.
            TimeoutError: it did not come in time.
        """
        longest = self._limits.head_bytes
        async with asyncio.timeout(self._limits.head_s):
            while heads.END not in data[:longest]:
                if len(data) >= longest:
                    raise RefusedRequest(400, "head-too-long")
                heads.check_unfinished(data)
                piece = await self._reader.read(PIECE_BYTES)
                if not piece:
                    return None
                data += piece
        end = data.index(heads.END) + len(heads.END)
        head = heads.read_head(data[:end], self._wire)
        if end < len(data):
            self._wire.receive_data(data[end:])
        return head

    async def body(self) -> AsyncIterator[bytes]:
        """Give a body's pieces as they come; the last once it is known that nothing follows.

        Raises:
            RefusedRequest: more follows.
            TimeoutError: it is too slow.
            ConnectionResetError: it breaks off.
        """
        pace, held = Pace(self._limits), b""
        while not isinstance(event := self._wire.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                piece = await read_within(self._reader, pace.left_s())
                if not piece:
                    raise ConnectionResetError
                pace.moved(len(piece))
                self._wire.receive_data(piece)
            elif isinstance(event, h11.Data):
                if held:
                    yield held
                held = bytes(event.data)
        if self._wire.trailing_data[0]:
            raise RefusedRequest(400, "pipelined")
        if held:
            yield held

    async def whole_body(self) -> bytes:
        """Give a body at once; its length was looked at before."""
        return b"".join([piece async for piece in self.body()])

    async def while_here(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something while the site waits; end it when the site closes, or sends more.

        Raises:
            ConnectionResetError: the site has gone.
            RefusedRequest: it sent before it was answered.
        """
        doing = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(self._reader.read(1))
        try:
            await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not watching.done():
                return doing.result()
            if watching.result():
                raise RefusedRequest(400, "pipelined")
            raise ConnectionResetError
        finally:
            doing.cancel()
            watching.cancel()
            await asyncio.gather(doing, watching, return_exceptions=True)

    async def answer(
        self, status: int, fields: Sequence[tuple[str, str]], body: AsyncIterator[bytes]
    ) -> None:
        """Answer a request.

        Args:
            status: HTTP status.
            fields: Headers; the date is added. Without a length the body is sent in chunks.
            body: Its pieces.

        Raises:
            TimeoutError: the site does not take it.
        """
        pace = Pace(self._limits)
        closing = [("connection", "close")] if self.last else []
        headers = [("date", formatdate(usegmt=True)), *fields, *closing]
        data = self._wire.send(h11.Response(status_code=status, headers=headers)) or b""
        async for piece in body:
            pace.moved(len(piece))
            data += self._wire.send(h11.Data(data=piece)) or b""
            await write_within(self._writer, data, pace.left_s())
            data = b""
        data += self._wire.send(h11.EndOfMessage()) or b""
        if data:
            await write_within(self._writer, data, pace.left_s())

    async def say(self, status: int, body: bytes = b"", kind: str = "text/plain") -> None:
        """Answer in the guard's own words."""
        fields = [("content-type", kind), ("content-length", str(len(body)))]
        await self.answer(status, fields, pieces_of(body))

    def next_request(self) -> bool:
        """Make ready for another request; False: the connection ends here."""
        if self.last or self._wire.our_state is not h11.DONE:
            return False
        self._wire.start_next_cycle()
        return True

    async def refuse(self, status: int) -> None:
        """Tell the site a status and nothing more, unless an answer is under way already."""
        self.last = True
        if self._wire.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        words = (
            f"HTTP/1.1 {status} Refused\r\ndate: {formatdate(usegmt=True)}\r\n"
            "content-length: 0\r\nconnection: close\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            await write_within(self._writer, words.encode("ascii"), _LINGER_S)
            async with asyncio.timeout(_LINGER_S):  # else a site that still sends loses it
                for _ in range(_LINGER_PIECES):
                    if not await self._reader.read(PIECE_BYTES):
                        return

    async def close(self) -> None:
        """End the connection, in order if the site answers soon."""
        self._writer.close()
        try:
            async with asyncio.timeout(_LINGER_S):
                await self._writer.wait_closed()
        except OSError:
            self.abort()

    def abort(self) -> None:
        """End it at once, in the middle of whatever is under way."""
        self._writer.transport.abort()


async def pieces_of(body: bytes) -> AsyncIterator[bytes]:
    """A body that is there, in one piece or none."""
    if body:
        yield body
