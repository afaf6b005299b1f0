"""A real server and real sites, in processes of their own, and the killing of sites."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from medfed.client.site_root import SiteRoot
from medfed.common.processes import free_port
from medfed.server.control_client import ControlClient
from medfed.server.data_root import DataRoot
from medfed.server.hub import serve
from tests.faults.phases import PHASES, Phase

BUNDLE = Path(__file__).with_name("recording_bundle")
CLIENT = Path(__file__).with_name("telling_client.py")
REPOSITORY = Path(__file__).parents[2]

Victim = Literal["worker", "client"]


@dataclass(frozen=True)
class Server:
    """A server that runs in this process, with its SuperLink in others."""

    root: DataRoot
    address: str
    control: ControlClient

    def result(self, run: str) -> dict[str, object]:
        return dict(json.loads((self.root.run_folder(run) / "result.json").read_bytes()))

    def received(self, run: str) -> list[tuple[int, str]]:
        """Round and SHA-256 of every update that arrived, in order."""
        lines = (self.root.run_folder(run) / "received.jsonl").read_text().splitlines()
        return [(number, sha256) for number, sha256 in map(json.loads, lines)]


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    root, port, control_port = DataRoot(folder / "server"), free_port(), free_port()
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=serve,
        args=(root,),
        kwargs={
            "host": "127.0.0.1", "port": port, "control_port": control_port, "names": [],
            "stop": stop, "ready": ready.set, "bundle": BUNDLE,
        },
    )  # fmt: skip
    thread.start()
    try:
        assert ready.wait(120.0), "the server does not answer"
        with ControlClient(root.coordinator) as control:
            yield Server(root, f"127.0.0.1:{port}", control)
    finally:
        stop.set()
        thread.join()


class Client:
    """One site's client, which can be started again, and what its worker tells."""

    def __init__(self, site: SiteRoot) -> None:
        self.site = site
        self._folder = tempfile.TemporaryDirectory()  # a socket's path must be short
        self._path = Path(self._folder.name) / "phases"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self.ended = False
        self._output = (site.folder.parent / f"{site.name}.out").open("ab")
        self.start()

    def start(self) -> None:
        assert not self.ended
        self._process = subprocess.Popen(
            [
                sys.executable, str(CLIENT), "--root", str(self.site.folder),
                "--tell", str(self._path),
            ],
            stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True,
            cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip

    def told(self, limit_s: float) -> tuple[Phase, int] | None:
        """The next phase and the worker's process id; None after ``limit_s`` seconds."""
        self._socket.settimeout(max(limit_s, 1e-4))
        try:
            phase, process = self._socket.recv(100).decode().split()
        except TimeoutError:
            return None
        return cast(Phase, phase), int(process)

    def kill_all(self) -> None:
        """Kill -9 whatever runs for this site, until nothing does."""
        while found := processes_of(self.site):
            for process in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self._process.poll()
        self._process.wait()

    def end(self) -> None:
        """End it as its admin would; a thread that waits for it fails."""
        self.ended = True
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
            self._process.wait(30.0)
        self._socket.close()
        self._output.close()
        self._folder.cleanup()


def processes_of(site: SiteRoot) -> list[int]:
    """Every living process that names the site's folder in its command or environment."""
    marker, found = str(site.folder).encode(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            about = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if marker in about:
            found.append(int(entry.name))
    return found


DEFAULT_S = {"reserve": 0.01, "training": 0.05, "commit": 0.01, "sending": 0.1}
ACKNOWLEDGEMENT_S = 3.0
"""After the worker handed its reply over, the node sends it; measured: within about 3 s."""


class Kill:
    """One kill, aimed at a phase of a round; it hits at a random moment of that phase, or later."""

    def __init__(self, rng: random.Random, phase: Phase, rounds: int, victim: Victim) -> None:
        self.phase, self.round, self.victim = phase, rng.randint(1, rounds), victim
        self._share = rng.random()
        self.hit: Phase | None = None

    def carry_out(self, client: Client, limit_s: float) -> None:
        """Watch the phases of a run that starts now, kill, and start the client again."""
        until, number, began = time.monotonic() + limit_s, 0, dict[Phase, float]()
        lasted = dict[str, float](DEFAULT_S)
        while (said := client.told(until - time.monotonic())) is not None:
            phase, worker = said
            now, number = time.monotonic(), number + (phase == "reserve")
            began[phase] = now
            before = PHASES[PHASES.index(phase) - 1]
            if phase != "reserve" and before in began:
                lasted[before] = now - began[before]
            if (phase, number) == (self.phase, self.round):
                self.hit = phase
                self._kill(client, worker, lasted.get(phase, ACKNOWLEDGEMENT_S) * self._share)
                return
        raise AssertionError(f"phase {self.phase} of round {self.round} did not come")

    def _kill(self, client: Client, worker: int, after_s: float) -> None:
        time.sleep(after_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        if self.victim == "client":
            client.kill_all()
        while Path(f"/proc/{worker}").exists():
            time.sleep(0.01)
        while (said := client.told(0.0)) is not None and said[1] == worker:
            self.hit = said[0]
        if self.victim == "client":
            client.start()
