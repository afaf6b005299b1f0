"""The bytes of one connection, carried both ways as they come and not looked at.

What one side cannot take the other side is not asked for, so that memory stays flat however long
a body is. When a side ends, what it had sent is delivered and then the other side is ended: TLS
as asyncio speaks it, and HTTP over it, know no connection that is open in one direction only.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from medfed.client.tunnel_outbound import CLOSE_S, PIECE_BYTES, Streams


class Flow:
    """One connection of the node and the connection to the server that carries it.

    Attributes:
        generation: Of the identity that the connection to the server was made with.
        has_answer: Whether the server ever sent a byte.
        awaits_answer: Whether the last bytes came from the node.
        server_ended: Whether the server, or something on the way to it, ended it.
        error: Why, where it was no orderly end.
        silent_before_end_s: For how long no byte had moved when it ended, seconds.

    Args:
        node: Towards the node.
        server: Towards the server.
        generation: As the attribute.
        on_answer: Called at the server's first byte.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        node: Streams,
        server: Streams,
        *,
        generation: int,
        on_answer: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node, self._server = node, server
        self._on_answer, self._clock = on_answer, clock
        self._moved_at = clock()
        self.generation = generation
        self.has_answer = self.awaits_answer = self.server_ended = False
        self.error: OSError | None = None
        self.silent_before_end_s = 0.0
        self._ended_here = False

    @property
    def quiet_s(self) -> float:
        """For how long no byte has moved in either direction."""
        return self._clock() - self._moved_at

    @property
    def is_between_requests(self) -> bool:
        """Whether the last bytes came from the server: it may be ended without loss."""
        return self.has_answer and not self.awaits_answer

    async def carry(self, first: bytes) -> None:
        """Carry until a side ends; ``close`` is to follow.

        Args:
            first: What the node has sent already.
        """
        out = asyncio.create_task(self._copy(self._node, self._server, first))
        back = asyncio.create_task(self._copy(self._server, self._node))
        try:
            await asyncio.wait({out, back}, return_when=asyncio.FIRST_COMPLETED)
            self.silent_before_end_s = self.quiet_s
            by_server = back.done() and (self.error is not None or not out.done())
            self.server_ended = by_server and not self._ended_here
        finally:
            for task in (out, back):
                task.cancel()
            await asyncio.gather(out, back, return_exceptions=True)

    async def close(self) -> None:
        """Deliver what is held back and end both sides in order."""
        await asyncio.gather(close(self._node), close(self._server))

    def end(self) -> None:
        """End it now. What is under way is lost."""
        self._ended_here = True
        self._node.writer.transport.abort()
        self._server.writer.transport.abort()

    async def _copy(self, source: Streams, sink: Streams, piece: bytes = b"") -> None:
        from_server = source is self._server
        while True:
            if piece and not await self._pass_on(piece, sink.writer, from_server=from_server):
                # Nobody takes it any more; the other direction says why, if anything does.
                await asyncio.sleep(CLOSE_S)
                return
            try:
                piece = await source.reader.read(PIECE_BYTES)
            except OSError as error:  # ssl.SSLError is one
                self.error = error if from_server else None
                return
            if not piece:
                return

    async def _pass_on(
        self, piece: bytes, writer: asyncio.StreamWriter, *, from_server: bool
    ) -> bool:
        self._moved_at, self.awaits_answer = self._clock(), not from_server
        if from_server and not self.has_answer:
            self.has_answer = True
            self._on_answer()
        try:
            writer.write(piece)
            await writer.drain()
        except OSError:
            return False
        self._moved_at = self._clock()
        return True


async def close(streams: Streams) -> None:
    """Send what is still held back, say the end, and close; at most ``CLOSE_S`` seconds."""
    with contextlib.suppress(OSError):
        streams.writer.close()
        await streams.writer.wait_closed()
