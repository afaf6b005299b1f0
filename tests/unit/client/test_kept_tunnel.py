"""An enrolled site's supervisor with stand-ins; the real programs: integration/test_enrolled_site.

The tunnel's stand-in prints the lines that the supervisor reads; the node's prints its arguments.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medfed.client import kept_tunnel, supervisor
from medfed.client.kept_tunnel import KeptTunnel
from medfed.client.preflight import Notice
from medfed.client.supervisor import Supervisor
from medfed.common.errors import TransportError, TrustError
from tests.support.flower_hub import wait_until
from tests.support.sites import make_site

STAYS = "import time; time.sleep(60)\n"
COUNTS = (
    "import pathlib, sys\n"
    "count = pathlib.Path(__file__).with_suffix('.starts')\n"
    "starts = len(count.read_text()) + 1 if count.exists() else 1\n"
    "count.write_text('x' * starts)\n"
)
TUNNEL = COUNTS + "print(f'd t INFO tunnel.ready port={1000 + starts}', flush=True)\n"
NODE = (
    COUNTS + "print('SuperNode ID: 5', flush=True)\n"
    "count.with_suffix('.arguments').write_text(' '.join(sys.argv[1:]))\n"
)


class Running:
    """A supervisor of an enrolled site on the main thread, and a thread that plays the admin."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[Notice] = []
        self.site, self._folder = make_site(folder), folder
        (self.site.folder / "trust" / "site.pem").touch()
        monkeypatch.setattr(supervisor, "preflight", lambda *_, **__: None)
        monkeypatch.setattr(supervisor, "NODE", self._program("node"))
        monkeypatch.setattr(kept_tunnel, "TUNNEL", self._program("tunnel"))

    def _program(self, name: str) -> tuple[str, ...]:
        return sys.executable, str(self._folder / f"{name}.py")

    def run(self, tunnel: str, node: str = NODE + STAYS, play: Callable[[], Any] = bool) -> None:
        """Run until ``play`` is done and has sent a signal, or an error."""
        for name, code in (("tunnel", tunnel), ("node", node), ("worker", STAYS)):
            (self._folder / f"{name}.py").write_text(code)
        made = Supervisor(self.site, self.told.append, worker=self._program("worker"))
        actor = threading.Thread(target=play)
        watchdog = threading.Timer(45.0, os.kill, (os.getpid(), signal.SIGTERM))
        actor.start()
        watchdog.start()  # a test that waits in vain fails instead of hanging
        try:
            made.run(retry_for_s=0.0)
        finally:
            watchdog.cancel()
            actor.join()

    def kill_tunnel(self) -> None:
        """Kill -9 the program, not its keeper."""
        for process, line in self.processes().items():
            if b"tunnel.py" in line and b"process_keeper" not in line:
                os.kill(process, signal.SIGKILL)

    def processes(self) -> dict[int, bytes]:
        """Process id -> command line, of what runs from this test's folder."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    line = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if str(self._folder).encode() in line:
                    found[int(entry.name)] = line
        return found

    def texts(self) -> str:
        return "\n".join(notice.text for notice in self.told)

    def wait_for(self, text: str, times: int = 1) -> None:
        wait_until(lambda: self.texts().count(text) >= times, f"{text!r} is told {times} times")

    def arguments(self) -> str:
        """What the node was started with last."""
        return (self._folder / "node.arguments").read_text()


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    yield Running(tmp_path, monkeypatch)


def end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_node_waits_for_the_tunnel_and_goes_through_it(running: Running) -> None:
    def play() -> None:
        running.wait_for("joined")
        end()

    running.run("import time; time.sleep(1)\n" + TUNNEL + STAYS, play=play)

    assert "--superlink 127.0.0.1:1001 " in running.arguments()  # the first start's port
    assert f"--root-certificates {running.site.flower / 'tunnel.pem'} " in running.arguments()
    assert running.processes() == {}


def test_a_killed_tunnel_comes_back_with_a_node_that_uses_the_new_one(running: Running) -> None:
    def play() -> None:
        running.wait_for("joined")
        running.kill_tunnel()
        running.wait_for("joined", times=2)
        end()

    running.run(TUNNEL + STAYS, play=play)

    assert "--superlink 127.0.0.1:1002 " in running.arguments()  # the second start's port
    assert "the tunnel ended (code -9); again in 1 s" in running.texts()
    assert running.processes() == {}


def test_a_node_that_was_ended_for_its_tunnel_is_not_taken_for_refused(running: Running) -> None:
    # A node that ends with code 0 before it joined was refused; this one was told to end.
    quiet = COUNTS + "import signal; signal.signal(2, lambda *_: sys.exit(0))\n"

    def play() -> None:
        wait_until((running.site.folder.parent / "node.starts").exists, "the node starts")
        running.kill_tunnel()
        running.wait_for("joined")
        end()

    joins_later = quiet + "if starts > 1: print('SuperNode ID: 5', flush=True)\n"
    running.run(TUNNEL + STAYS, joins_later + STAYS, play)


def test_what_the_tunnel_warns_of_reaches_the_admin(running: Running) -> None:
    def play() -> None:
        running.wait_for("new certificate")
        end()

    said = "d t WARNING the server is away\\n  Next step: wait\\nd t INFO tunnel.files-taken-up"
    running.run(TUNNEL + f"print('{said}', flush=True)\n" + STAYS, play=play)

    assert [notice.text for notice in running.told if notice.kind == "warning"] == [
        "the server is away",
        "Next step: wait",
    ]


def test_a_tunnel_that_is_never_ready_is_given_up(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medfed.client.kept_program._FIRST_PAUSE_S", 0.01)

    with pytest.raises(TransportError, match="tunnel ended 5 times and was never ready"):
        running.run("raise SystemExit(10)")
    assert running.processes() == {}


def test_an_enrolled_site_that_the_server_does_not_know_is_told_what_helps(
    running: Running,
) -> None:
    with pytest.raises(TrustError, match=r"does not know site 'A'(.|\n)*newest server bundle"):
        running.run(TUNNEL + STAYS, "print('[code: 2001] x'); raise SystemExit(1)")
    assert running.processes() == {}


def test_both_are_ended_before_the_ten_seconds_of_ctrl_c_are_over() -> None:
    # `end_children` and `end` promise their limit plus 1.5 s each.
    assert supervisor._END_LIMIT_S + 1.5 + supervisor._TUNNEL_END_LIMIT_S + 1.5 < 10.0


def test_the_files_of_trust_are_settled_once_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, settled = [0.0], list[Path]()
    monkeypatch.setattr(kept_tunnel, "settle", settled.append)
    kept = KeptTunnel(make_site(tmp_path), lambda notice: None, clock=lambda: now[0])

    for now[0] in (0.0, 86399.0, 86400.0, 86401.0, 172801.0):  # a day has 86400 s
        kept._settle_daily()

    assert len(settled) == 2


def test_the_tunnel_is_the_installed_one_and_takes_no_code_from_the_folder() -> None:
    assert kept_tunnel.TUNNEL == (sys.executable, "-I", "-m", "medfed.client.tunnel")
