"""The only port that hospitals reach: connections taken in, handshakes, and who has to leave.

In front of Flower's SuperLink, whose one port serves everybody: what comes in here has shown a
site's certificate, is on the list of ``routes.py``, and is written anew before it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Coroutine
from typing import Any, Final

from medfed.common.errors import ConfigError, TransportError, TrustError
from medfed.server.guard.admission import Buckets, Handshakes, address_key
from medfed.server.guard.audit import Audit, Told
from medfed.server.guard.connection import Connection, House, Revoked
from medfed.server.guard.forwarding import SuperLinkPool
from medfed.server.guard.pace import PIECE_BYTES
from medfed.server.guard.peers import read_peer
from medfed.server.guard.replays import Replays
from medfed.server.guard.settings import GuardSettings
from medfed.server.guard.site_link import SiteLink
from medfed.server.guard.site_messages import SiteDesk
from medfed.server.guard.tls import HospitalTls, superlink_side

log = logging.getLogger(__name__)

_BACKLOG: Final = 1024
_SHUTDOWN_S: Final = 1.0
_DEAD_PEER_MS: Final = 30_000
_NO_ROOM_S: Final = 0.05


class Guard:
    """A guard. Make, start, use and close it in one event loop.

    Args:
        settings: Where it listens, whom it trusts, its limits.
        revoked: The revocation list.
        audit: The server's audit log.
        desk: Who hears what sites say at ``/v1/site``.

    Raises:
        ConfigError: a file of certificates or keys cannot be used.
    """

    def __init__(
        self, settings: GuardSettings, *, revoked: Revoked, audit: Audit, desk: SiteDesk
    ) -> None:
        limits = settings.limits
        self._settings, self._tls = settings, HospitalTls(settings)
        self._told = Told(audit)
        self._handshakes = Handshakes(limits, time.monotonic)
        self._house = House(
            limits=limits,
            revoked=revoked,
            desk=desk,
            told=self._told,
            superlink=SuperLinkPool(settings, superlink_side(settings)),
            replays=Replays(),
            paces=Buckets(limits.requests_per_s, 2 * limits.requests_per_s, time.monotonic),
        )
        self._open: dict[Connection, int] = {}  # -> generation of its TLS; in order of arrival
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    async def start(self) -> None:
        """Listen; returns at once.

        Raises:
            TransportError: the port cannot be used.
        """
        host, port = self._settings.host, self._settings.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise TransportError(
                f"the guard: port {port} on {host} cannot be used ({error.strerror}).",
                advice="end the program that uses it, or choose another port.",
            ) from error
        self._listener.setblocking(False)
        # What it takes in has these too: small answers leave at once, and a peer that is gone
        # without a word is noticed.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_PEER_MS)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._spawn(self._accept(self._listener))
        self._spawn(self._sweep())

    async def close(self) -> None:
        """End all connections and stop listening."""
        if self._listener is not None:
            self._listener.close()
        for connection in self._open:
            connection.link.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._house.superlink.close()

    def listeners(self) -> list[tuple[str, int]]:
        """Every address and port it listens on: one."""
        if self._listener is None:
            return []
        host, port = self._listener.getsockname()[:2]
        return [(str(host), int(port))]

    # ---- coming in ----------------------------------------------------------------------------
    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                taken, address = await loop.sock_accept(listener)
            except OSError:  # out of file descriptors, or the caller has gone again
                await asyncio.sleep(_NO_ROOM_S)
                continue
            caller = address_key(address[0])
            if self._handshakes.may_come(caller):
                task = self._spawn(self._greet(taken, caller))
                self._handshakes.begin(task, caller)
            else:
                taken.close()
                self._told.tell("guard.too-many-handshakes", caller)
            await asyncio.sleep(0)  # the new task begins, and others get their turn in a flood

    async def _greet(self, taken: socket.socket, caller: str) -> None:
        """Do the handshake, look at the certificate, and serve."""
        generation = self._tls.generation
        try:
            reader, writer = await self._shake_hands(taken)
        except OSError as error:  # ssl.SSLError and TimeoutError are some
            reason = str(getattr(error, "reason", None) or type(error).__name__)
            self._told.tell("guard.handshake-failed", caller, reason=reason)
            return
        finally:
            self._handshakes.end(_this_task())
        try:
            connection = self._admit(reader, writer, caller)
            if connection is not None:
                self._open[connection] = generation
                await self._serve(connection)
        except Exception:
            log.exception("guard.defect")
        finally:
            writer.transport.abort()

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.serve()
        finally:
            del self._open[connection]

    async def _shake_hands(
        self, taken: socket.socket
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=PIECE_BYTES, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            taken,
            ssl=self._tls.context,
            ssl_handshake_timeout=self._settings.limits.handshake_s,
            ssl_shutdown_timeout=_SHUTDOWN_S,
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def _admit(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: str
    ) -> Connection | None:
        """Look at the certificate before a byte of a request is read; None: not admitted."""
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True)
        try:
            if certificate is None or tls.session_reused:
                raise TrustError("a caller without a certificate of this handshake")
            peer = read_peer(certificate, self._tls.authorities)
        except TrustError:
            self._told.tell("guard.no-site", caller)
            return None
        connection = Connection(self._house, peer, SiteLink(reader, writer, self._settings.limits))
        why = connection.barred() or self._full(peer.serial)
        if why:
            self._told.tell(f"guard.{why}", peer.site, serial=f"{peer.serial:x}")
            return None
        return connection

    def _full(self, serial: int) -> str:
        """Why there is no room for another connection; may make room by ending an idle one."""
        limits = self._settings.limits
        same = [open_ for open_ in self._open if open_.peer.serial == serial]
        if len(same) >= limits.connections_per_certificate and not _end_idle(same):
            return "too-many-connections"
        if len(self._open) >= limits.connections and not _end_idle(list(self._open)):
            return "no-room"
        return ""

    # ---- going out ----------------------------------------------------------------------------
    async def _sweep(self) -> None:
        """Look for connections that have to end, and for new files, again and again."""
        while True:
            await asyncio.sleep(self._settings.limits.sweep_s)
            try:
                self._tls.refresh(self._not_taken_up)
                for connection, generation in list(self._open.items()):
                    self._look_at(connection, generation)
            except Exception:
                log.exception("guard.defect")  # and look again

    def _look_at(self, connection: Connection, generation: int) -> None:
        with contextlib.suppress(ConnectionAbortedError):
            connection.end_if_barred()
        if generation != self._tls.generation:
            connection.link.last = True
            if connection.idle_since is not None:
                connection.link.abort()

    def _not_taken_up(self, error: ConfigError) -> None:
        self._told.tell("guard.files-not-taken-up", "server", reason=type(error).__name__)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _this_task() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _end_idle(connections: list[Connection]) -> bool:
    """End the connection that has been idle longest; False: none is."""
    idle = [open_ for open_ in connections if open_.idle_since is not None]
    if not idle:
        return False
    min(idle, key=lambda open_: open_.idle_since or 0.0).link.abort()
    return True
