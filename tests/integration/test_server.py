"""A real server on loopback: hub, stock SuperLink, control service; its rounds only count.

``tests/support/tiny_bundle`` stands in for the rounds. Processes of a server are found by
its data root, which all of them carry in their environment or command line.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from medfed.common.errors import ConfigError, TransportError
from medfed.common.processes import free_port
from medfed.common.study import parse_study
from medfed.common.trust.keys import fingerprint, new_node_key, read_public_key
from medfed.deploy.cli import coordinator
from medfed.server.control_client import ControlClient
from medfed.server.data_root import DataRoot
from medfed.server.hub import serve

SUPPORT = Path(__file__).parents[1] / "support"
pytestmark = [pytest.mark.slow, pytest.mark.network]


def study_text(name: str, rounds: int = 3) -> str:
    text = (SUPPORT / "tiny_study.toml").read_text()
    return text.replace("{name}", name).replace("{rounds}", str(rounds))


def canonical(name: str) -> bytes:
    return parse_study(study_text(name)).canonical()


@dataclass
class Server:
    """A server in a process of its own."""

    root: DataRoot
    process: subprocess.Popen[str]

    @property
    def access(self) -> Path:
        return self.root.coordinator

    def processes(self) -> list[int]:
        """Every process of this server that is not a zombie."""
        marker = str(self.root.path).encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    about = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if marker in about:
                    found.append(int(entry.name))
        return found


def start(folder: Path) -> Server:
    root = DataRoot(folder / "root")
    ports = [str(free_port()), str(free_port())]
    process = subprocess.Popen(
        [sys.executable, str(SUPPORT / "tiny_server.py"), str(root.path), *ports],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return Server(root, process)


def end(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    server.process.wait()
    assert server.process.stdout is not None
    server.process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start(tmp_path_factory.mktemp("server"))
    yield running
    end(running)


def medfed(*words: str) -> tuple[int, str]:
    """Run a command line of the coordinator; its exit code and output."""
    app = typer.Typer()
    coordinator.register(app)
    done = CliRunner().invoke(app, list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def test_a_site_is_enrolled_by_command(server: Server, tmp_path: Path) -> None:
    public = new_node_key(tmp_path / "keys")
    sent = public.rename(tmp_path / "A.pub")
    mark = fingerprint(read_public_key(sent))

    first = medfed("enrol", "approve", str(sent), "--access", str(server.access))
    again = medfed("enrol", "approve", str(sent), "--access", str(server.access))

    assert first == (0, f"Site A is enrolled with the key {mark}.\n")
    assert again == (0, f"Site A is already enrolled with the key {mark}.\n")
    assert list(server.root.nodes()) == ["A"]


def test_a_launch_is_followed_to_its_end(server: Server, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(study_text("counts"))

    code, output = medfed("launch", str(tmp_path / "study.toml"), "--access", str(server.access))

    assert code == 0
    assert output.splitlines()[-1].split() == "finished round 3/3 finished in round 3".split()


def test_a_run_goes_on_without_its_launcher_until_it_is_stopped(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "study.toml").write_text(study_text("waits"))
    launch = ["launch", str(tmp_path / "study.toml"), "--detach", "--format", "json"]
    access = ["--access", str(server.access)]

    _, first = medfed(*launch, *access)
    _, again = medfed(*launch, *access)
    run = json.loads(first)["run"]
    _, between = medfed("status", "--format", "json", *access)
    code, _ = medfed("stop", run, *access)
    watched, _ = medfed("watch", run, *access)

    assert json.loads(first)["was_running"] is False
    assert json.loads(again) == {**json.loads(first), "was_running": True}
    assert json.loads(between)["state"] == "running"
    assert code == 0
    assert watched == 18  # finished, but not as planned
    assert json.loads(medfed("status", run, "--format", "json", *access)[1])["state"] == "stopped"


def test_rounds_that_fail_before_their_first_word_leave_their_log(server: Server) -> None:
    with ControlClient(server.access) as client:
        with pytest.raises(TransportError, match="did not start"):
            client.launch(canonical("broken"))
        status = client.status()

    assert (status.state, status.exit_code) == ("failed", 14)
    log = server.root.run_folder(status.run) / "server_app.log"
    assert "broken on purpose" in log.read_text()


def test_the_control_service_and_flower_listen_on_loopback_only(server: Server) -> None:
    listening = set()
    for pid in server.processes():
        for line in _listening_sockets(pid):
            listening.add(line)
    assert listening <= {
        "127.0.0.1",
        "0000000000000000FFFF00000100007F",
    }  # the same, mapped to IPv6
    assert listening


def _listening_sockets(pid: int) -> list[str]:
    inodes = set()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            inodes.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
    except OSError:
        return []
    found = []
    for table, width in (("tcp", 8), ("tcp6", 32)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # 0A: LISTEN
                address = fields[1].partition(":")[0]
                octets = bytes.fromhex(address)[::-1]
                found.append(".".join(map(str, octets)) if width == 8 else address)
    return found


def test_ctrl_c_ends_everything_even_rounds_that_hear_nothing(tmp_path: Path) -> None:
    server = start(tmp_path)
    with ControlClient(server.access) as client:
        client.launch(canonical("deaf"))
        running = client.status()
        assert len(server.processes()) >= 5  # hub, keeper, SuperLink, SuperExec, server app

        server.process.send_signal(signal.SIGINT)
        server.process.wait()

        assert server.processes() == []
        with pytest.raises(TransportError, match="does not answer"):
            client.status()
    assert running.state == "running"

    again = start(tmp_path)  # the run is not taken for alive after a restart
    with ControlClient(again.access) as client:
        assert (client.status().state, client.status().exit_code) == ("failed", 14)
    end(again)
    assert server.process.stdout is not None
    server.process.stdout.close()


def test_killing_the_hub_leaves_no_orphan(tmp_path: Path) -> None:
    server = start(tmp_path)
    with ControlClient(server.access) as client:
        client.launch(canonical("deaf"))

    server.process.kill()
    server.process.wait()

    while server.processes():
        time.sleep(0.1)
    assert server.process.stdout is not None
    server.process.stdout.close()


def test_a_second_server_on_the_same_root_is_refused_and_changes_nothing(server: Server) -> None:
    files = [path for path in server.root.path.rglob("*") if path.suffix in (".toml", ".pem")]
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(ConfigError, match="another medfed server is running on this data root"):
        serve(
            server.root,
            host="127.0.0.1",
            port=free_port(),
            control_port=free_port(),
            names=["new.example"],
            stop=threading.Event(),
            ready=lambda: None,
        )
    assert {path: path.read_bytes() for path in files} == before


@pytest.mark.parametrize("which", ["sites", "control"])
def test_a_port_in_use_is_refused_before_anything_is_made(tmp_path: Path, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = (port, free_port()) if which == "sites" else (free_port(), port)
        with pytest.raises(TransportError, match=f"port {port} on 127.0.0.1") as error:
            serve(
                DataRoot(tmp_path / "root"),
                host="127.0.0.1",
                port=ports[0],
                control_port=ports[1],
                names=[],
                stop=threading.Event(),
                ready=lambda: None,
            )
    assert error.value.exit_code == 14
    assert not (tmp_path / "root").exists()
