"""The site's tunnel: it adds the client certificate that Flower's node cannot present.

::

    flower-supernode ──TLS──► tunnel ──[hospital's proxy]──TLS 1.3, site's certificate──► guard
                    127.0.0.1                    one host, one port

It passes bytes on and reads none of them, and whatever a caller asks for, there is one place they
go to: the server that the signed approval names. It connects when its node sends something and at
no other time, and opens no other socket.

Who may use it: processes of the same user. The stock node can be given no secret for this link,
so a caller's user is read from the kernel's table of connections (``tunnel_peers.py``), and
another user's is refused. A program of the same user is not kept out; it could read the site's
key anyway. The node in turn trusts one certificate for this link, made at this start; its key is
in this process's memory only, so nobody who takes over the port is taken for the tunnel.

A new certificate of the site (``trust/site.pem``) is used for the next connection to the server.
Older ones are ended between two requests of the node, which then opens another.

Long polls: the guard holds an empty answer back for 20 s, in which no byte moves. TCP keep-alive
every 15 s satisfies firewalls; a proxy that counts bytes only must allow 30 s of silence.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from medfed.client.tunnel_flow import Flow, close
from medfed.client.tunnel_identity import EXPIRES_SOON, Identity, local_side
from medfed.client.tunnel_outbound import (
    PIECE_BYTES,
    Streams,
    open_outbound,
    refusal,
    take_inbound,
    unanswered,
)
from medfed.client.tunnel_peers import is_own, require_table
from medfed.client.tunnel_trouble import Tell, Trouble
from medfed.common.errors import MedfedError, TransportError
from medfed.common.trust.private_files import private_folder, write_private

log = logging.getLogger(__name__)

_HOST: Final = "127.0.0.1"
_NO_ROOM_S: Final = 0.05
_CUT_OFF_S: Final = 5.0
_CUT_OFF_TIMES: Final = 3


@dataclass(frozen=True)
class Limits:
    """What the node may use.

    Attributes:
        connections: At once; further ones wait until one has ended. The node uses two or three,
            and the guard takes 16 of one certificate.
        handshake_s: For the node's handshake, and from it to the first byte.
        connect_s: A connection of the node waits so long for one to the server. Below the 30 s
            for which Flower's node waits for an answer.
        idle_s: A connection on which no byte moves for so long ends. Above the guard's 75 s.
        drain_s: A connection of an older certificate ends when the node has asked nothing for so
            long. Below the 3 s after which Flower's node asks again.
        sweep_s: Between two looks for such connections and for new files.
    """

    connections: int = 16
    handshake_s: float = 10.0
    connect_s: float = 20.0
    idle_s: float = 120.0
    drain_s: float = 1.0
    sweep_s: float = 1.0


class Tunnel:
    """A site's tunnel. Make, start, use and close it in one event loop.

    Attributes:
        port: Where it listens on 127.0.0.1, once started.
        certificate: File (PEM) that the node is given as ``--root-certificates``.

    Args:
        root: The site's folder.
        tell: Hears each trouble with the server once, for the site's admin.
        port: Port to listen on; 0: any that is free.
        limits: What the node may use.

    Raises:
        ConfigError: the site took up no approval, a file cannot be read, others may read the
            key, or the kernel does not tell whose connections are whose.
        TrustError: a certificate is wrong, or the clock is.
    """

    def __init__(
        self, root: Path, tell: Tell, *, port: int = 0, limits: Limits | None = None
    ) -> None:
        require_table()
        self.port, self._limits = port, limits or Limits()
        self._identity = Identity(root)
        self._trouble = Trouble(tell)
        self._tls, pem = local_side()
        self.certificate = private_folder(root / "flower") / "tunnel.pem"
        write_private(self.certificate, pem, replace=True)
        self._room = asyncio.Semaphore(self._limits.connections)
        self._turn = asyncio.Lock()
        self._flows: set[Flow] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._cut_off = 0

    async def start(self) -> None:
        """Listen; returns at once. Nothing is connected to yet.

        Raises:
            TransportError: the port cannot be used.
        """
        try:
            self._listener = socket.create_server((_HOST, self.port))
        except OSError as error:
            raise TransportError(
                f"the site's tunnel: port {self.port} on {_HOST} cannot be used "
                f"({error.strerror}).",
                advice="end the program that uses it, or let a free port be chosen.",
            ) from error
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept(self._listener))
        self._spawn(self._sweep())

    async def close(self) -> None:
        """Stop listening and end all connections, at once."""
        if self._listener is not None:
            self._listener.close()
        for flow in self._flows:
            flow.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- the node's side ----------------------------------------------------------------------
    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                taken, _ = await loop.sock_accept(listener)
            except OSError:  # out of file descriptors, or the caller has gone again
                self._room.release()
                await asyncio.sleep(_NO_ROOM_S)
                continue
            self._spawn(self._serve(taken)).add_done_callback(lambda _: self._room.release())

    async def _serve(self, taken: socket.socket) -> None:
        if not is_own(taken):
            taken.close()
            self._trouble.note(
                "another user's program on this machine tried to use the site's tunnel; it was "
                "refused."
            )
            return
        try:
            node = await take_inbound(taken, self._tls, self._limits.handshake_s)
        except OSError:
            taken.close()
            return
        try:
            await self._join(node)
        except Exception:
            log.exception("tunnel.defect")
        finally:
            node.writer.transport.abort()

    async def _join(self, node: Streams) -> None:
        """Wait for the node's first bytes, connect to the server, and carry."""
        try:
            async with asyncio.timeout(self._limits.handshake_s):
                first = await node.reader.read(PIECE_BYTES)
        except OSError:
            return
        server = await self._reach_server() if first else None
        if server is None or node.writer.is_closing():
            # Ended in order: for a broken TLS connection Flower's node would give up for good.
            await asyncio.gather(*(close(side) for side in (node, server) if side is not None))
            return
        flow = Flow(
            node, server, generation=self._identity.generation, on_answer=self._has_answered
        )
        self._flows.add(flow)
        try:
            await flow.carry(first)
            self._judge(flow)
            await flow.close()
        finally:
            flow.end()
            self._flows.discard(flow)

    # ---- the server's side --------------------------------------------------------------------
    async def _reach_server(self) -> Streams | None:
        """Connect, again and again while the node waits; None: not within ``connect_s``."""
        until = time.monotonic() + self._limits.connect_s
        self._refresh()
        while (pause := self._trouble.pause_s) <= until - time.monotonic():
            await asyncio.sleep(pause)
            async with self._turn:
                if self._trouble.pause_s > 0:  # another's try failed meanwhile
                    continue
                try:
                    return await open_outbound(self._identity.outward)
                except MedfedError as error:
                    self._trouble.begin(error)
        return None

    def _has_answered(self) -> None:
        if self._trouble.end():
            log.info("tunnel.server-answers-again")

    def _judge(self, flow: Flow) -> None:
        """Look at how a connection ended: whether the server refused, or something cut it off."""
        address = self._identity.outward.address
        if not flow.server_ended or (flow.has_answer and not flow.awaits_answer):
            return
        if isinstance(flow.error, ssl.SSLError):
            self._trouble.begin(refusal(flow.error, address))
        elif not flow.has_answer:
            self._trouble.begin(unanswered(address))
        elif flow.silent_before_end_s >= _CUT_OFF_S:
            self._cut_off += 1
            if self._cut_off >= _CUT_OFF_TIMES:
                self._trouble.note(
                    f"the connection to {address} was ended {_CUT_OFF_TIMES} times while the site "
                    "waited for an answer.\n  Next step: have the hospital's IT let the proxy or "
                    f"firewall keep connections to {address} open for at least 30 s of silence."
                )

    # ---- all along ----------------------------------------------------------------------------
    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._limits.sweep_s)
            try:
                self._refresh()
                self._warn_of_expiry()
                for flow in list(self._flows):
                    self._look_at(flow)
            except Exception:
                log.exception("tunnel.defect")  # and look again

    def _look_at(self, flow: Flow) -> None:
        is_old = flow.generation != self._identity.generation
        can_go = flow.is_between_requests and flow.quiet_s >= self._limits.drain_s
        if (is_old and can_go) or flow.quiet_s >= self._limits.idle_s:
            flow.end()

    def _refresh(self) -> None:
        """Take up new files; what cannot be used is told, and the old goes on."""
        try:
            if self._identity.refresh():
                self._trouble.try_at_once()
                log.info("tunnel.files-taken-up generation=%d", self._identity.generation)
        except MedfedError as error:
            self._trouble.note(str(error))

    def _warn_of_expiry(self) -> None:
        expires = self._identity.outward.expires
        if expires.timestamp() - time.time() < EXPIRES_SOON.total_seconds():
            self._trouble.note(
                f"this site's certificate expires on {expires:%Y-%m-%d}.\n  Next step: ask the "
                "coordinator for a new approval, and take it up with `medfed enrol accept`."
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


# ---- the process ------------------------------------------------------------------------------
cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


async def serve(root: Path, port: int) -> None:
    """Run a tunnel until SIGINT or SIGTERM.

    Raises:
        MedfedError: as ``Tunnel``.
    """
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    tunnel = Tunnel(root, log.warning, port=port)
    await tunnel.start()
    log.info("tunnel.ready port=%d", tunnel.port)
    await told.wait()
    await tunnel.close()


@cli.command()
def main(
    root: Annotated[Path, typer.Option(help="The site's data root.")],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0: any that is free.")] = 0,
) -> None:
    """Start a site's tunnel. Started by ``medfed client``, not by hand."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the site's key
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        asyncio.run(serve(root.absolute(), port))
    except MedfedError as error:
        log.error("%s", error)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    cli()
