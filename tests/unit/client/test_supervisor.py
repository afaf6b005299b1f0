"""The supervisor with stand-ins for its two programs; the real ones: integration/test_client.py."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medfed.client import supervisor
from medfed.client.preflight import Notice
from medfed.client.supervisor import Supervisor
from medfed.common.errors import ConfigError, TransportError, TrustError
from tests.support.flower_hub import wait_until
from tests.support.sites import make_site

JOINED = "print('SuperNode ID: 5', flush=True)\n"
STAYS = "import time; time.sleep(60)\n"
READY = "print('INFO worker.ready threads=1', flush=True)\n"


class Running:
    """A supervisor on the main thread, and a second thread that plays the admin."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[Notice] = []
        self.site = make_site(tmp_path)
        self._folder, self._monkeypatch = tmp_path, monkeypatch
        monkeypatch.setattr(supervisor, "preflight", lambda *_, **__: None)

    def run(self, node: str, worker: str, play: Callable[[], Any] = lambda: None) -> None:
        """Run with stand-ins until ``play`` is done and has sent a signal, or an error."""
        for name, code in (("node", node), ("worker", worker)):
            (self._folder / f"{name}.py").write_text(code)
        program = (sys.executable, str(self._folder / "node.py"))
        self._monkeypatch.setattr(supervisor, "NODE", program)
        made = Supervisor(
            self.site,
            self.told.append,
            worker=(sys.executable, str(self._folder / "worker.py")),
        )
        actor = threading.Thread(target=play)
        watchdog = threading.Timer(45.0, os.kill, (os.getpid(), signal.SIGTERM))
        actor.start()
        watchdog.start()  # a test that waits in vain fails instead of hanging
        try:
            made.run(retry_for_s=0.0)
        finally:
            watchdog.cancel()
            actor.join()

    def texts(self) -> str:
        return "\n".join(notice.text for notice in self.told)

    def wait_for(self, text: str, times: int = 1) -> None:
        wait_until(lambda: self.texts().count(text) >= times, f"{text!r} is told {times} times")


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    yield Running(tmp_path, monkeypatch)


def programs_of(site_folder: Path) -> list[int]:
    """Process ids of everything whose command line names the site."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(site_folder).encode() in line:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(running: Running, number: signal.Signals) -> None:
    def play() -> None:
        running.wait_for("worker ready")
        assert len(programs_of(running.site.folder)) == 4  # two programs, a keeper each
        os.kill(os.getpid(), number)

    if number is signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            running.run(JOINED + STAYS, READY + STAYS, play)
    else:
        running.run(JOINED + STAYS, READY + STAYS, play)

    assert programs_of(running.site.folder) == []
    assert not (running.site.flower / "worker.secret").exists()
    assert running.told[-1].text == "ended; nothing is left running"


def test_each_state_is_told_once(running: Running) -> None:
    def play() -> None:
        running.wait_for("answered; the reply")
        os.kill(os.getpid(), signal.SIGTERM)

    link = "print('Connection attempt failed, retrying');" * 3
    back = "print('Connection successful after 3 seconds', flush=True)\n"
    task = "".join(
        f"print('INFO task.{event} type=train round=2', flush=True)\n"
        for event in ("started", "done")
    )
    running.run(JOINED + link + "\n" + back + STAYS, READY + task + STAYS, play)

    assert [notice.text for notice in running.told] == [
        "joining",
        "joined: the server knows this site; waiting for rounds",
        "the server does not answer; the node keeps trying",
        "the server answers again",
        "worker ready",
        "round 2: train started",
        "round 2: train answered; the reply goes to the server",
        "ended; nothing is left running",
    ]


def test_the_workers_warnings_reach_the_admin(running: Running) -> None:
    def play() -> None:
        running.wait_for("Next step")
        os.kill(os.getpid(), signal.SIGTERM)

    line = "print('2026-01-01 00:00:00,1 WARNING round.refused\\n  Next step: x', flush=True)\n"
    running.run(JOINED + STAYS, READY + line + STAYS, play)

    assert [notice.text for notice in running.told if notice.kind == "warning"] == [
        "round.refused",
        "Next step: x",
    ]


@pytest.mark.parametrize("refusal", ["[code: 2001] x", "[code: 2004] x"])
def test_a_site_that_is_not_enrolled_is_told_and_nothing_is_left(
    running: Running, refusal: str
) -> None:
    with pytest.raises(TrustError, match=r"does not know site 'A'.*\n.*node_key\.pub"):
        running.run(f"print({refusal!r}); raise SystemExit(1)", STAYS)
    assert programs_of(running.site.folder) == []


def test_a_refused_signature_ends_the_node_with_code_0_and_is_told_too(running: Running) -> None:
    with pytest.raises(TrustError, match="does not know site"):
        running.run("print('SuperNode terminated gracefully.')", STAYS)


def test_a_site_that_vanished_a_moment_ago_waits_until_it_is_counted_out(
    running: Running,
) -> None:
    (running.site.flower / "connected").touch()  # as a killed client leaves it
    count = running.site.folder / "starts"
    node = (
        f"import pathlib; p = pathlib.Path({str(count)!r})\n"
        "p.write_text(p.read_text() + 'x' if p.exists() else 'x')\n"
        "if p.read_text() == 'x': print('[code: 2004]'); raise SystemExit(1)\n"
    )

    def play() -> None:
        running.wait_for("joined")
        os.kill(os.getpid(), signal.SIGTERM)

    running.run(node + JOINED + STAYS, READY + STAYS, play)

    assert "still counts this site's last connection" in running.texts()


def test_a_site_that_vanished_long_ago_does_not_wait(running: Running) -> None:
    mark = running.site.flower / "connected"
    mark.touch()
    os.utime(mark, (time.time() - 80.0,) * 2)  # the server counts a node out after 60 s

    with pytest.raises(TrustError):
        running.run("print('[code: 2004]'); raise SystemExit(1)", STAYS)


def test_a_node_that_never_starts_is_given_up(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medfed.client.kept_program._FIRST_PAUSE_S", 0.01)

    with pytest.raises(TransportError, match="ended 5 times before it joined"):
        running.run("raise SystemExit(3)", STAYS)


def test_a_killed_worker_is_started_again(running: Running) -> None:
    def play() -> None:
        running.wait_for("worker ready")
        for process in programs_of(running.site.folder):
            line = Path(f"/proc/{process}/cmdline").read_bytes()
            if b"worker.py" in line and b"process_keeper" not in line:
                os.kill(process, signal.SIGKILL)
        running.wait_for("worker ready", times=2)
        os.kill(os.getpid(), signal.SIGTERM)

    running.run(JOINED + STAYS, READY + STAYS, play)

    assert "the worker ended (code -9); again in 1 s" in running.texts()


def test_a_node_that_joined_is_started_again_whatever_its_code(running: Running) -> None:
    def play() -> None:
        running.wait_for("joined", times=2)
        os.kill(os.getpid(), signal.SIGTERM)

    running.run(JOINED + "raise SystemExit(0)", READY + STAYS, play)

    assert "the node ended (code 0); again in 1 s" in running.texts()


def test_a_reply_that_got_stuck_restarts_the_node(running: Running) -> None:
    def play() -> None:
        running.wait_for("joined", times=2)
        os.kill(os.getpid(), signal.SIGTERM)

    once = running.site.folder / "once"
    worker = (
        f"import pathlib; p = pathlib.Path({str(once)!r})\n"
        f"if not p.exists(): p.touch(); raise SystemExit({TransportError.exit_code})\n"
    )
    running.run(JOINED + STAYS, worker + READY + STAYS, play)


@pytest.mark.parametrize(
    ("said", "restarted"),
    [
        (["task.started type=train round=3"], True),
        (["task.started type=train round=3", "task.done type=train round=3 seconds=1.0"], False),
    ],
)
def test_a_worker_that_dies_with_a_task_in_hand_restarts_the_node(
    running: Running, said: list[str], restarted: bool
) -> None:
    # Found by killing workers while they handed over a reply: the node waited for the rest for
    # ever, and the run until the round's deadline.
    def play() -> None:
        running.wait_for("worker ready", times=2)
        if restarted:
            running.wait_for("joined", times=2)
        os.kill(os.getpid(), signal.SIGTERM)

    once = running.site.folder / "once"
    lines = "".join(f"print({line!r}, flush=True)\n" for line in said)
    worker = (
        f"{READY}import os, pathlib, signal; p = pathlib.Path({str(once)!r})\n"
        f"if not p.exists():\n    p.touch()\n"
        + "".join(f"    {line}\n" for line in lines.splitlines())
        + "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    running.run(JOINED + STAYS, worker + STAYS, play)

    assert (
        running.texts().count("joined: the server knows this site; waiting for rounds") > 1
    ) == (restarted)


def test_one_root_has_one_client(running: Running) -> None:
    refused: list[Exception] = []

    def play() -> None:
        running.wait_for("joined")
        with pytest.raises(ConfigError, match="another medfed client runs") as caught:
            Supervisor(running.site, lambda notice: None).run(retry_for_s=0.0)
        refused.append(caught.value)
        os.kill(os.getpid(), signal.SIGTERM)

    running.run(JOINED + STAYS, READY + STAYS, play)
    assert len(refused) == 1


def test_the_worker_is_the_installed_one_and_takes_no_code_from_the_folder() -> None:
    assert supervisor.WORKER == (sys.executable, "-I", "-m", "medfed.client.worker")


def test_the_programs_are_killed_before_the_ten_seconds_of_ctrl_c_are_over() -> None:
    assert supervisor._END_LIMIT_S + 1.5 < 10.0  # `end_children` promises its limit plus 1.5 s


def test_what_programs_print_cannot_steer_the_admins_terminal(tmp_path: Path) -> None:
    told: list[Notice] = []
    made = Supervisor(make_site(tmp_path), told.append)

    made._hear_worker("2026-01-01 00:00:00,1 WARNING a\x1b[2J\u202eb\x9b31m")
    made._hear_worker("2026-01-01 00:00:00,1 INFO task.started type=train round=\x1b[2J")
    made._hear_worker("2026-01-01 00:00:00,1 INFO task.started type=evil round=1")
    made._hear_worker("2026-01-01 00:00:00,1 INFO task.started type=train round=1")

    assert [notice.text for notice in told] == [
        "a\ufffd[2J\ufffdb\ufffd31m",
        "round 1: train started",
    ]


def test_a_task_that_could_not_be_pulled_is_told(tmp_path: Path) -> None:
    told: list[Notice] = []
    made = Supervisor(make_site(tmp_path), told.append)

    made._hear_worker("2026-01-01 00:00:00,1 ERROR task.not_pulled ValueError")

    assert "a task could not be read from the node" in told[0].text
