"""A site that is enrolled by files joins through its tunnel: only real programs of medfed.

The server is a stock SuperLink behind a relay that demands a certificate of the coordinator's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medfed.common.errors import MedfedError
from medfed.deploy.cli import app
from medfed.deploy.coordinator_root import Coordinator
from tests.support.enrolling import bring_bundle
from tests.support.flower_hub import FlowerHub, wait_until
from tests.support.sites import STUDY, write_scans
from tests.support.tunnels import FarServer, relay

pytestmark = [pytest.mark.network, pytest.mark.slow]

UNKNOWN = {
    "digest": "a" * 64,
    "run": "r-1",
    "round": "1",
    "purpose": "train",
}  # a study that nobody approved


def run(*words: object) -> Any:
    """A command's answer to a program."""
    arguments = [*(str(word) for word in words), "--format", "json"]
    done = CliRunner().invoke(app, arguments)
    if isinstance(done.exception, MedfedError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


class Joined:
    """A site whose ``medfed client`` runs, and the server that it reaches."""

    def __init__(self, folder: Path, server: FarServer, hub: FlowerHub) -> None:
        self.server, self.hub = server, hub
        self.root, self._out = folder / "medfed-A", folder / "client.out"
        _enrol(folder, self.root, server)
        hub.enrol(self.root / "keys" / "node_key.pub")
        with self._out.open("a") as out:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "medfed.deploy.cli"),
                    *("client", "--site", "A", "--root", str(self.root)),
                ],
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def text(self) -> str:
        """What the admin was told."""
        return self._out.read_text()

    def wait_for(self, text: str, times: int = 1) -> None:
        wait_until(
            lambda: self.text().count(text) >= times or self.process.poll() is not None,
            f"{text!r} is told {times} times",
            limit_s=120.0,
        )
        assert self.text().count(text) >= times, self.text()

    def processes(self) -> dict[int, str]:
        """Process id -> command line, of everything that names the site's folder."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    line = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                except OSError:
                    continue
                if str(self.root).encode() in line:
                    found[int(entry.name)] = line.replace(b"\0", b" ").decode()
        return found

    def pid_of(self, module: str) -> int:
        """The program itself, not its keeper."""
        (found,) = [
            number
            for number, line in self.processes().items()
            if re.search(rf"{module} ", line) and "process_keeper" not in line
        ]
        return found


def _enrol(folder: Path, root: Path, server: FarServer) -> None:
    """Everything that two people type and send, from nothing to an approved study."""
    own, study = folder / "medfed-coordinator", folder / "study.toml"
    study.write_text(STUDY)
    run("enrol", "init", "--server", f"localhost:{server.port}", "--folder", own)
    made = run(
        *("site", "init", "--site", "A", "--root", root, "--patient-array", "patient"),
        *("--scans", write_scans(folder / "scans.npz")),
        *("--server", f"localhost:{server.port}", "--witness", folder / "w" / "witness.json"),
        *("--epsilon-limit", 50, "--delta-limit", 1e-2),
    )
    approved = run("enrol", "approve", made["request"], "--folder", own)
    assert approved["key_fingerprint"] == made["fingerprint"]
    run(
        *("enrol", "accept", approved["file"], "--root", root),
        *("--fingerprint", approved["fingerprint"]),
    )
    signed = folder / "study.json"
    run("study", "sign", study, "--coordinator", own, "--out", signed)
    run("site", "approve", signed, "--root", root)
    server.trust(bring_bundle(Coordinator(own), folder / "server-trust"))


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Joined]:
    folder = tmp_path_factory.mktemp("enrolled")
    with FlowerHub(folder / "hub") as hub:
        server = FarServer(lambda link: relay(link, hub))
        with contextlib.closing(server):
            site = Joined(folder, server, hub)
            yield site
            if site.process.poll() is None:
                site.process.kill()
                site.process.wait()


def test_the_node_goes_through_the_tunnel_and_a_task_is_answered(
    joined: Joined, tmp_path: Path
) -> None:
    joined.wait_for("worker ready")

    report = joined.hub.start_run({"round": UNKNOWN}, marker=tmp_path / "imported")
    wait_until(report.exists, "the run ends")

    assert json.loads(report.read_text())[0]["fact"] == {"code": "not-approved"}
    node = next(line for line in joined.processes().values() if "flower-supernode --super" in line)
    assert "--superlink 127.0.0.1:" in node and "tunnel.pem" in node
    assert f":{joined.server.port}" not in node
    assert len(joined.server.serials) >= 2  # the preflight's connection, and the node's


def test_a_killed_tunnel_is_started_again_with_its_node(joined: Joined) -> None:
    joined.wait_for("worker ready")
    before = joined.pid_of("medfed.client.tunnel")

    os.kill(before, signal.SIGKILL)
    joined.wait_for("the tunnel ended (code -9); again in 1 s")
    # Only the SuperLink says so, and only through the new tunnel: for a minute it still counts the
    # node that could not sign off. After that the site joins again (unit/client/test_kept_tunnel).
    joined.wait_for("the server refuses this site for now")

    assert joined.pid_of("medfed.client.tunnel") != before
    assert joined.process.poll() is None


def test_ctrl_c_leaves_nothing_running(joined: Joined) -> None:
    joined.wait_for("joined")
    os.killpg(joined.process.pid, signal.SIGINT)

    assert joined.process.wait(30.0) == 130
    assert joined.processes() == {}
    assert "Traceback" not in joined.text() and "ended; nothing is left running" in joined.text()
