"""Keeps a site's node and worker running, and tells the admin what they do.

``medfed client`` is this: after the preflight it starts the stock ``flower-supernode``, which
keeps the one outbound connection, and our worker, which trains. An enrolled site's node goes
through the site's tunnel, which is started before it and ended after it. Whatever ends is started
again, whatever its exit code: Flower's node ends with code 0 when it is refused. Nothing is
left running when the supervisor ends, however it ends (``common/processes.py``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from medfed.client.enrolment import settle
from medfed.client.kept_program import KeptProgram, trouble_in
from medfed.client.kept_tunnel import KeptTunnel
from medfed.client.preflight import Notice, Tell, preflight
from medfed.client.site_root import SiteRoot
from medfed.common.errors import ConfigError, TransportError, TrustError
from medfed.common.processes import (
    end_children,
    flower_environment,
    free_port,
    require_free_port,
)
from medfed.common.report.words import clean
from medfed.common.trust.private_files import private_folder, write_private

NODE = ("flower-supernode",)
WORKER = (sys.executable, "-I", "-m", "medfed.client.worker")
"""The worker of a deployed site: no folder but the installed ones is searched for code."""

_LOOK_S = 0.2
_END_LIMIT_S = 6.0
_TUNNEL_END_LIMIT_S = 0.5
"""Its node has signed off by then; what it still carries is for nobody."""
_CUT_OFF_LIMIT_S = 1.0
"""A node without a tunnel cannot sign off."""
_STILL_COUNTED_S = 75.0
"""A node that vanished is refused until the server has counted it out: measured 49 to 60 s."""
_TRIES_TO_JOIN = 5
_REFUSED = re.compile(r"\[code: (2001|2004)\]")
_TASK = re.compile(
    r"task\.(?:(started|done|failed|unwanted) type=(train|evaluate|query|other) "
    r"round=([0-9]{1,6}|-)|(not_pulled))(?!\S)"
)
_TASK_TEXT = {
    "started": "{kind} started",
    "done": "{kind} answered; the reply goes to the server",
    "failed": "{kind} failed; the server is told the kind of error only, see {log}",
    "unwanted": "{kind} done, but the server no longer waits for it",
    "not_pulled": "a task could not be read from the node, see {log}",
}


class Supervisor:
    """One site, joined and kept joined.

    Args:
        site: The site.
        tell: Where lines for the admin go.
        worker: Command line of the worker, without its arguments. For a caller in Python
            only: no file, flag or variable reaches it.
    """

    def __init__(self, site: SiteRoot, tell: Tell, *, worker: Sequence[str] = WORKER) -> None:
        self._site, self._worker_command = site, tuple(worker)
        self._tell: Tell = lambda said: tell(Notice(said.kind, clean(said.text)))
        self._secret = site.flower / "worker.secret"
        self._port = free_port()
        self._mark = site.flower / "connected"
        self._refused = self._connected = self._lost = self._waiting = False
        self._in_task = self._cut_off = False
        log = private_folder(site.log)
        self._node = KeptProgram(
            "node",
            self._node_command,
            environment=flower_environment(site.flower / "node"),
            log=log / "node.log",
        )
        self._worker = KeptProgram(
            "worker",
            self._full_worker_command,
            environment=flower_environment(site.flower / "worker"),
            log=log / "worker.log",
        )
        self._tunnel = KeptTunnel(site, self._tell) if site.is_enrolled else None

    def run(self, *, retry_for_s: float = 60.0) -> None:
        """Check, join, and stay until told to stop. Only on the main thread, which signals reach.

        Args:
            retry_for_s: How long to go on trying to reach the server at first, seconds.

        Raises:
            KeyboardInterrupt: SIGINT ended it.
            MedfedError: the preflight failed, the server does not know this site, or another
                client runs on this root. Nothing was left running.

        Guarantee:
            When this returns or raises, every program it started has ended, within 10 s of
            the signal. SIGTERM makes it return.
        """
        with _alone(self._site):
            settle(self._site.folder)
            preflight(self._site, self._tell, retry_for_s=retry_for_s)
            with _signals() as told:
                write_private(self._secret, secrets.token_bytes(32), replace=True)
                try:
                    self._keep(told)
                finally:
                    self._end()
                    self._secret.unlink(missing_ok=True)
        if told.number == signal.SIGINT:
            raise KeyboardInterrupt

    def _keep(self, told: _Told) -> None:
        self._say("joining")
        while not told.event.wait(_LOOK_S):
            for line in self._node.lines():
                self._hear_node(line)
            for line in self._worker.lines():
                self._hear_worker(line)
            self._watch_tunnel()
            self._watch_node()
            if self._connected:
                self._watch_worker()

    def _hear_node(self, line: str) -> None:
        if "SuperNode ID:" in line:
            self._refused, self._connected, self._lost = False, True, False
            self._mark.touch(mode=0o600)
            self._say("joined: the server knows this site; waiting for rounds")
        elif _REFUSED.search(line):
            self._refused = True
        elif "Connection attempt failed" in line and not self._lost:
            self._lost = True
            self._say("the server does not answer; the node keeps trying")
        elif "Connection successful after" in line and self._lost:
            self._lost = False
            self._say("the server answers again")

    def _hear_worker(self, line: str) -> None:
        if "worker.ready" in line:
            self._say("worker ready")
        elif match := _TASK.search(line):
            event, kind, round_ = match[1] or match[4], match[2], match[3]
            what = f"round {round_}: {kind}" if round_ not in (None, "-") else str(kind)
            self._in_task = event == "started"
            text = _TASK_TEXT[event].format(kind=what, log=self._site.log / "worker.log")
            self._tell(Notice("warning" if "see " in text else "state", text))
        elif trouble := trouble_in(line):
            self._tell(Notice("warning", trouble))

    def _watch_tunnel(self) -> None:
        if self._tunnel is not None and self._tunnel.watch() and self._node.child is not None:
            self._cut_off = True
            self._node.child.end(_CUT_OFF_LIMIT_S)

    def _watch_node(self) -> None:
        if self._connected and self._node.child is not None:
            self._mark.touch(mode=0o600)
        code = self._node.ended()
        if code is not None:
            for line in self._node.lines():
                self._hear_node(line)
            if self._may_try_again(code):
                why = ": the server refuses this site for now" if self._refused else ""
                pause = self._node.pause_s
                self._say(f"the node ended (code {code}){why}; again in {pause:.0f} s")
            self._refused = self._cut_off = False
        if self._tunnel is None or self._tunnel.port is not None:
            self._node.start_if_due()

    def _may_try_again(self, code: int) -> bool:
        """What an end of the node means; False: to be tried again, and said already."""
        if self._connected or self._cut_off:
            return True
        address, log = self._site.settings.server.address, self._site.log / "node.log"
        if not self._refused and code != 0:  # not the server's doing: a port, a full disk, ...
            if self._node.pauses < _TRIES_TO_JOIN:
                return True
            raise TransportError(
                f"the node ended {self._node.pauses} times before it joined {address}.",
                advice=f"read the end of {log}.",
            )
        if self._counted_until() > time.time():
            if not self._waiting:
                self._say("the server still counts this site's last connection; waiting")
            self._waiting = True
            return False
        raise TrustError(
            f"server {address} does not know site {self._site.name!r}: its key is not enrolled.",
            advice=self._how_to_be_enrolled(),
        )

    def _how_to_be_enrolled(self) -> str:
        if self._tunnel is not None:
            return (
                "ask the coordinator to bring the newest server bundle to the server; this "
                "site's certificate is in it. Then start again."
            )
        return (
            f"send {self._site.public_key} to the coordinator as {self._site.name}.pub to be "
            "enrolled, then start again."
        )

    def _counted_until(self) -> float:
        try:
            return self._mark.stat().st_mtime + _STILL_COUNTED_S
        except FileNotFoundError:
            return 0.0

    def _watch_worker(self) -> None:
        if self._worker.pauses == 0 and self._worker.child is None:
            self._worker.start()
        code = self._worker.ended()
        if code is not None:
            for line in self._worker.lines():
                self._hear_worker(line)
            pause = self._worker.pause_s
            text = f"the worker ended (code {code}); again in {pause:.0f} s"
            self._tell(Notice("warning", f"{text}, see {self._site.log / 'worker.log'}"))
            stuck = self._in_task or code == TransportError.exit_code
            if stuck and self._node.child is not None:
                # It waits for the rest of a reply that will not come, for ever if part of it
                # did. Ended, it signs off, and the server asks again once the site is back.
                self._node.child.end()
            self._in_task = False
        self._worker.start_if_due()

    def _end(self) -> None:
        children = [c for c in (self._worker.child, self._node.child) if c is not None]
        codes = end_children(children, _END_LIMIT_S)
        if self._connected and self._node.child is not None and codes[-1] == 0:
            self._mark.unlink(missing_ok=True)  # it signed off: the server has counted it out
        if self._tunnel is not None and self._tunnel.program.child is not None:
            self._tunnel.program.child.end(_TUNNEL_END_LIMIT_S)
        self._say("ended; nothing is left running")

    def _say(self, text: str) -> None:
        self._tell(Notice("state", text))

    def _node_command(self) -> list[str]:
        if not _is_free(self._port):
            self._port = free_port()
            if self._worker.child is not None:
                self._worker.child.end()
        address, authority = self._site.settings.server.address, self._site.ca
        if self._tunnel is not None:
            address, authority = f"127.0.0.1:{self._tunnel.port}", self._tunnel.certificate
        return [
            *NODE,
            "--superlink", address,
            "--root-certificates", str(authority),
            "--auth-supernode-private-key", str(self._site.node_key),
            "--host", "127.0.0.1", "--port", str(self._port),
            "--isolation", "process",
            "--superexec-auth-secret-file", str(self._secret),
        ]  # fmt: skip

    def _full_worker_command(self) -> list[str]:
        return [
            *self._worker_command,
            "--root", str(self._site.folder),
            "--runtime", f"127.0.0.1:{self._port}",
            "--secret", str(self._secret),
            "--parent", str(os.getpid()),
        ]  # fmt: skip


def _is_free(port: int) -> bool:
    try:
        require_free_port("127.0.0.1", port, purpose="the node's local interface")
    except TransportError:
        return False
    return True


@contextlib.contextmanager
def _alone(site: SiteRoot) -> Iterator[None]:
    """Hold the site's root for this process, so that one ledger has one writer."""
    with (private_folder(site.flower) / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"site {site.name!r}: another medfed client runs on {site.folder}.",
                advice="end it first; one site runs one client.",
            ) from None
        yield


class _Told:
    """What a signal said."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.number = 0


@contextlib.contextmanager
def _signals() -> Iterator[_Told]:
    """Take SIGINT and SIGTERM as a wish to end; further ones change nothing."""
    told = _Told()

    def note(number: int, _frame: FrameType | None) -> None:
        told.number = told.number or number
        told.event.set()

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
