"""What medfed starts, it ends: all of it, also when it is killed itself."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medfed.common.errors import ConfigError, MedfedError, TransportError
from medfed.common.processes import (
    Child,
    end_children,
    flower_environment,
    free_port,
    require_free_port,
    start_child,
)

# Starts a grandchild in a session of its own (as Flower does with its helpers), both deaf to
# SIGINT and SIGTERM, and writes the process ids: the worst child that can be met.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
other = subprocess.Popen(sleep, start_new_session=True)
with open(sys.argv[1] + ".new", "w") as file:
    file.write(f"{os.getpid()} {other.pid}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""


def wait_for_pids(path: Path) -> list[int]:
    until(path.exists)
    return [int(word) for word in path.read_text().split()]


def until(condition: object, limit_s: float = 20.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def python(code: str, *arguments: str, output: Path | None = None) -> Child:
    return start_child([sys.executable, "-c", code, *arguments], name="test", output=output)


def test_ending_a_child_ends_a_deaf_grandchild_in_another_session(tmp_path: Path) -> None:
    child = python(STUBBORN, str(tmp_path / "pids"), output=tmp_path / "log")
    pids = wait_for_pids(tmp_path / "pids")
    assert all(runs(pid) for pid in pids)

    code = child.end(limit_s=0.4)

    assert code == -signal.SIGKILL
    assert not any(runs(pid) for pid in [*pids, child.pid])


def test_a_program_that_ends_by_itself_leaves_no_grandchild(tmp_path: Path) -> None:
    child = python(
        STUBBORN.replace("time.sleep(600)\n", "sys.exit(7)\n"),
        str(tmp_path / "pids"),
        output=tmp_path / "log",
    )

    assert child.wait(20.0) == 7
    assert not any(runs(pid) for pid in wait_for_pids(tmp_path / "pids"))


def test_killing_the_parent_leaves_no_orphan(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from pathlib import Path\n"
            "from medfed.common.processes import start_child\n"
            f"start_child([sys.executable, '-c', {STUBBORN!r}, sys.argv[1]], name='x', "
            "output=Path(sys.argv[1] + '.log'))\n"
            "time.sleep(600)\n",
            str(tmp_path / "pids"),
        ]
    )
    pids = wait_for_pids(tmp_path / "pids")

    parent.kill()
    parent.wait()

    until(lambda: not any(runs(pid) for pid in pids))


def test_killing_the_keeper_ends_the_program(tmp_path: Path) -> None:
    child = python(
        "import os, sys, time\nopen(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(600)",
        str(tmp_path / "pids"),
        output=tmp_path / "log",
    )
    until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text())
    pids = wait_for_pids(tmp_path / "pids")

    os.kill(child.pid, signal.SIGKILL)

    until(lambda: not any(runs(pid) for pid in pids))
    assert child.wait(5.0) == -signal.SIGKILL


def test_a_program_that_listens_to_sigint_ends_in_its_own_way(tmp_path: Path) -> None:
    child = python(
        "import sys, time\n"
        "try:\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
        "except KeyboardInterrupt:\n"
        "    print('signed off', flush=True)\n"
        "    sys.exit(3)\n",
        output=tmp_path / "log",
    )
    until(lambda: "ready" in (tmp_path / "log").read_text())

    assert child.end() == 3
    assert "signed off" in (tmp_path / "log").read_text()


def test_several_children_end_at_once(tmp_path: Path) -> None:
    children = [python(STUBBORN, str(tmp_path / f"{n}"), output=tmp_path / "log") for n in "ab"]
    pids = wait_for_pids(tmp_path / "a") + wait_for_pids(tmp_path / "b")

    assert end_children(children, limit_s=0.4) == [-signal.SIGKILL, -signal.SIGKILL]
    assert not any(runs(pid) for pid in pids)


def test_a_child_lives_in_a_session_of_its_own(tmp_path: Path) -> None:
    child = python("import time; time.sleep(600)", output=tmp_path / "log")
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    assert child.exit_code() is None
    child.end()


def test_output_can_be_read_through_a_pipe() -> None:
    child = python("print('one line')")
    assert child.output is not None
    assert child.output.read() == b"one line\n"
    assert child.end() == 0


def test_files_of_a_child_are_for_their_owner_only(tmp_path: Path) -> None:
    made = tmp_path / "made"
    child = python("import sys; open(sys.argv[1], 'w').close()", str(made), output=tmp_path / "log")
    assert child.wait(20.0) == 0
    assert stat.S_IMODE(made.stat().st_mode) == 0o600  # umask 077
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_flower_environment_hides_what_could_steer_flower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("MEDFED_SERVER_ROOT", "/elsewhere")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("NO_PROXY", "hub.example")

    variables = flower_environment(tmp_path / "flower")

    assert variables["FLWR_TELEMETRY_ENABLED"] == "0"
    assert not {"FLWR_LOG_LEVEL", "MEDFED_SERVER_ROOT", "PYTHONPATH"} & set(variables)
    assert variables["NO_PROXY"] == "127.0.0.1,localhost,hub.example"
    assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert stat.S_IMODE((tmp_path / "flower").stat().st_mode) == 0o700


def test_flower_environment_keeps_a_no_proxy_in_small_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "hub.example")

    variables = flower_environment(tmp_path / "flower")

    assert variables["no_proxy"] == "127.0.0.1,localhost,hub.example"


def test_a_missing_program_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'flower-nonsense' is not installed"):
        start_child(["flower-nonsense"], name="x")


def test_a_port_in_use_is_refused_with_its_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TransportError, match=rf"control: port {port} on 127\.0\.0\.1") as error:
            require_free_port("127.0.0.1", port, purpose="control")
    assert isinstance(error.value, MedfedError) and error.value.exit_code == 14


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port()
    require_free_port("127.0.0.1", port, purpose="test")
    with socket.create_server(("127.0.0.1", port)):
        pass
