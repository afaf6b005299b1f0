"""From nothing to a trained model by the commands of the README: enrolled, guarded, signed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from medfed.common.processes import free_port
from tests.support.flower_hub import wait_until
from tests.support.sites import STUDY, write_scans

pytestmark = [pytest.mark.slow, pytest.mark.network]

ONE_SITE = STUDY[: STUDY.index('[[site]]\nname = "B"')]
MEDFED = [sys.executable, "-m", "medfed.deploy.cli"]


class Desk:
    """Where one person types: a folder, and a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = os.environ | {"HOME": str(folder / "home")}
        (folder / "home").mkdir(parents=True)

    def type(self, *words: str) -> str:
        """Run a command to its end; it must succeed."""
        done = subprocess.run(
            [*MEDFED, *words],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def running(self, *words: str, until: str) -> Iterator[None]:
        """Run a command that stays, from when it says ``until``; Ctrl-C ends it."""
        log = self.folder / f"{words[0]}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [*MEDFED, *words],
                cwd=self.folder,
                env=self._environment,
                stdout=output,
                stderr=output,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        try:
            wait_until(lambda: until in log.read_text(), f"{words[0]} says {until!r}", 120.0)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30.0) == 130


def test_four_commands_at_the_site_and_no_file_edited_by_hand(tmp_path: Path) -> None:
    coordinator, hospital = Desk(tmp_path / "coordinator"), Desk(tmp_path / "hospital")
    (coordinator.folder / "study.toml").write_text(ONE_SITE)
    scans = str(write_scans(hospital.folder / "scans.npz"))
    server, control = f"127.0.0.1:{free_port()}", free_port()
    trust = tmp_path / "server" / "trust"
    trust.parent.mkdir(mode=0o700)

    made = json.loads(coordinator.type("enrol", "init", "--server", server, "--format", "json"))
    hospital.type(
        "site", "init", "--site", "A", "--scans", scans, "--patient-array", "patient",
        "--server", server, "--epsilon-limit", "50", "--delta-limit", "0.01",
    )  # fmt: skip
    request = hospital.folder / "medfed-A" / "A.request.pem"
    coordinator.type("enrol", "approve", str(request))
    approval = coordinator.folder / "medfed-coordinator" / "approvals" / "A.approval.json"
    hospital.type(
        "enrol", "accept", str(approval), "--root", "medfed-A", "--fingerprint", made["fingerprint"]
    )
    coordinator.type("study", "sign", "study.toml", "--coordinator", "medfed-coordinator")
    study = str(coordinator.folder / "two_labels-1.study.json")
    hospital.type("site", "approve", study, "--root", "medfed-A")
    coordinator.type("enrol", "server-bundle", "--to", str(trust))
    coordinator.type("enrol", "role", "Ada", "--role", "coordinator", "--to", "access")

    port = server.rpartition(":")[2]
    reach = ("--access", "access", "--control", f"127.0.0.1:{control}")
    with (
        coordinator.running(
            *("server", "--root", str(trust.parent), "--port", port),
            *("--control-port", str(control)),
            until="The server answers",
        ),
        hospital.running("client", "--site", "A", until="worker ready"),
    ):
        coordinator.type("launch", "study.toml", *reach)
        ended = json.loads(coordinator.type("status", *reach, "--format", "json"))

    assert (ended["state"], ended["sites"]) == ("finished", {"A": "reported"})
