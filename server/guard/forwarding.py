"""The way to Flower's SuperLink: a pool of TLS connections on loopback.

A request is written anew from parts that were checked; an answer is read by ``h11`` and handed on
in pieces. A connection is used again only after both were read to their ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple

import h11

from medfed.server.guard.pace import PIECE_BYTES, read_within, write_within
from medfed.server.guard.settings import GuardSettings

_CONNECT_S: Final = 5.0
_REUSE_S: Final = 3.0
"""A connection that was unused for longer is not used again: the SuperLink ends it after 5 s."""

_KEPT: Final = 64


_KIND = re.compile(r"[a-z0-9.+/; =_-]{1,100}", re.IGNORECASE)


class Answer(NamedTuple):
    """The head of the SuperLink's answer.

    Attributes:
        status: HTTP status, 2xx, 4xx or 5xx.
        kind: Content type.
        length: Of the body, bytes; None: not known before its end.
    """

    status: int
    kind: str
    length: int | None


class BrokenLinkError(Exception):
    """The SuperLink is not reached, or what it sends is no answer. Never leaves the guard."""


class Link:
    """One connection to the SuperLink, for one request at a time.

    Args:
        reader: From the SuperLink.
        writer: To it.
        answer_s: How long it may take to answer, and to take a piece.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer_s: float
    ) -> None:
        self._reader, self._writer, self._answer_s = reader, writer, answer_s
        self._wire = h11.Connection(h11.CLIENT)
        self._idle_since = time.monotonic()

    async def ask(
        self,
        method: str,
        path: str,
        fields: Sequence[tuple[str, str]],
        body: AsyncIterator[bytes],
    ) -> None:
        """Send a request.

        Args:
            method: From the list.
            path: From the list.
            fields: All its headers; with ``content-length`` if there is a body.
            body: Its pieces, as they come.

        Raises:
            BrokenLinkError: the SuperLink does not take it.
        """
        data = self._wire.send(h11.Request(method=method, target=path, headers=list(fields))) or b""
        async for piece in body:
            await self._write(data + (self._wire.send(h11.Data(data=piece)) or b""))
            data = b""
        await self._write(data + (self._wire.send(h11.EndOfMessage()) or b""))

    async def answer(self) -> Answer:
        """Wait for the head of the answer.

        Raises:
            BrokenLinkError: there is none, or it is no answer to a program.
        """
        event = await self._next()
        if not isinstance(event, h11.Response):
            raise BrokenLinkError("no answer")
        if not 200 <= event.status_code < 300 and not 400 <= event.status_code < 600:
            raise BrokenLinkError("an answer of another kind")
        fields = dict(event.headers)
        kind = fields.get(b"content-type", b"").decode("latin-1")
        length = fields.get(b"content-length", b"")
        return Answer(
            event.status_code,
            kind if _KIND.fullmatch(kind) else "application/octet-stream",
            int(length) if length else None,
        )

    async def pieces(self) -> AsyncIterator[bytes]:
        """Give the body of the answer, piece by piece.

        Raises:
            BrokenLinkError: it breaks off.
        """
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise BrokenLinkError("no body")
            yield bytes(event.data)

    async def rest(self) -> None:
        """Read the body of the answer and forget it."""
        async for _ in self.pieces():
            pass

    def reusable(self) -> bool:
        """Make ready for the next request, if both sides are at the end of this one."""
        try:
            self._wire.start_next_cycle()
        except h11.LocalProtocolError:
            return False
        self._idle_since = time.monotonic()
        return True

    def fresh(self) -> bool:
        """Whether it may be used again."""
        rested_s = time.monotonic() - self._idle_since
        return rested_s < _REUSE_S and not (self._reader.at_eof() or self._writer.is_closing())

    def close(self) -> None:
        """End it, whatever is under way."""
        self._writer.transport.abort()

    async def _write(self, data: bytes) -> None:
        try:
            await write_within(self._writer, data, self._answer_s)
        except OSError as error:
            raise BrokenLinkError("not taken") from error

    async def _next(self) -> object:
        try:
            while (event := self._wire.next_event()) is h11.NEED_DATA:
                self._wire.receive_data(await read_within(self._reader, self._answer_s))
        except (OSError, h11.RemoteProtocolError) as error:
            raise BrokenLinkError("broken off") from error
        return event


class SuperLinkPool:
    """Connections to the SuperLink, kept for a few seconds between requests.

    Args:
        settings: Where it is.
        tls: How to know it.
    """

    def __init__(self, settings: GuardSettings, tls: ssl.SSLContext) -> None:
        self._settings, self._tls = settings, tls
        self._idle: list[Link] = []

    @contextlib.asynccontextmanager
    async def link(self) -> AsyncIterator[Link]:
        """Have a connection to oneself.

        Raises:
            BrokenLinkError: the SuperLink is not reached.
        """
        link = await self._take()
        try:
            yield link
        except BaseException:
            link.close()
            raise
        if len(self._idle) < _KEPT and link.reusable():
            self._idle.append(link)
        else:
            link.close()

    def close(self) -> None:
        """End the idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def _take(self) -> Link:
        while self._idle:
            link = self._idle.pop()
            if link.fresh():
                return link
            link.close()
        host, port = self._settings.superlink_host, self._settings.superlink_port
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=self._tls, server_hostname=host, limit=PIECE_BYTES
                )
        except OSError as error:
            raise BrokenLinkError("not reached") from error
        writer.transport.set_write_buffer_limits(PIECE_BYTES)
        return Link(reader, writer, self._settings.limits.answer_s)
