"""A site without Flower: a real session and ledger in a process of its own, asked over a pipe.

``serve`` runs in the child; ``PipedSite`` is its other end. The child is forked from a server
that has PyTorch loaded already, so that a start takes milliseconds.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

from medfed.client.flower_app import open_session
from medfed.client.session import RoundRequest
from tests.faults.phases import Phase, tell_phases

PIECE_BYTES = 4096


def serve(root: Path, link: Connection) -> None:
    """Answer rounds until killed. A release is sent piece by piece, each waited for."""
    session = open_session(root)
    tell_phases(session, lambda phase: link.send(phase))
    while True:
        released = session.answer(RoundRequest(*link.recv()))
        if released.payload is None:
            raise AssertionError(f"refused: {released.code}")
        for at in range(0, len(released.payload), PIECE_BYTES):
            link.send(released.payload[at : at + PIECE_BYTES])
            link.recv()
        link.send("acknowledgement")
        link.send(b"")
        link.recv()


def start_fork_server() -> None:
    """Start the process that children are forked from, with all that this file imports.

    Before anything else starts it without: the import of a site's scans forks from it, too.
    """
    root = str(Path(__file__).parents[2])
    if root not in sys.path:
        sys.path.append(root)  # where `tests` is found by name
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    forkserver.ensure_running()


Look = Callable[[Phase, int], bool]
"""``look(phase, pieces)``: told each phase and, while sending, each piece; True: kill it now."""


class PipedSite:
    """One start of the site.

    Attributes:
        phase: The phase it told last.
        partial: What it sent of its last update.
        began: Phase -> when it began, in every round.
    """

    def __init__(self, root: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        self._link, other = context.Pipe()
        self._process = context.Process(target=serve, args=(root, other))
        self._process.start()
        other.close()
        self.phase: Phase | None = None
        self.began: dict[Phase, list[float]] = {}

    def ask(self, request: RoundRequest, look: Look = lambda phase, pieces: False) -> bytes | None:
        """Ask for a round.

        Returns:
            The whole update; None if ``look`` had the site killed, see ``phase`` and ``partial``.
        """
        self.phase, self.partial = None, b""
        pieces = 0
        self._link.send((request.digest, request.run, request.round, request.model))
        while True:
            said = self._link.recv()
            if isinstance(said, str):
                self.phase = cast(Phase, said)
                self.began.setdefault(self.phase, []).append(time.monotonic())
            elif said:
                self.partial, pieces = self.partial + said, pieces + 1
            if self.phase is not None and look(self.phase, pieces):
                self._kill()
                return None
            if said == b"":
                self._link.send("acknowledged")
                return self.partial
            if isinstance(said, bytes):
                self._link.send("go on")

    def _kill(self) -> None:
        """Kill -9, then note the last phase that it still told and what it still sent."""
        self._process.kill()
        self._process.join()
        try:
            while True:
                said = self._link.recv()
                if isinstance(said, str):
                    self.phase = cast(Phase, said)
                else:
                    self.partial += said
        except EOFError:
            self.end()

    def end(self) -> None:
        """End it, as a test ends; the kill was something else."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._link.close()
