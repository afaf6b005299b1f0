"""A stock SuperLink on loopback with TLS and node authentication, and a run that asks sites.

It stands for the coordinator's server where a test is about the site: the run's ServerApp
sends each connected site one train message and writes the replies to a file.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medfed.common.processes import flower_environment, free_port, program, start_child
from medfed.common.trust.certificates import issue_server_certificate, new_authority

BUNDLE = """
[project]
name = "shipped"
version = "0.1.0"
description = "a run of tests"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "medfed"
[tool.flwr.app.components]
serverapp = "shipped_server:app"
clientapp = "medfed.client.flower_app:app"
[tool.flwr.app.config]
content = '%s'
report = '%s'
"""

SERVER_APP = """
import json, time
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    given = json.loads(context.run_config["content"])
    records = {"round": ConfigRecord(given["round"])} if "round" in given else {}
    records["model"] = ArrayRecord({"bytes": Array(np.frombuffer(b"weights", np.uint8))})
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.1)
    asked = [Message(
        content=RecordDict(records), message_type="train", dst_node_id=nodes[0], group_id="1"
    )]
    waiting, replies = set(grid.push_messages(asked)), []
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            facts = {} if reply.has_error() else dict(reply.content.config_records.get("fact", {}))
            replies.append({
                "error": reply.error.reason if reply.has_error() else None, "fact": facts
            })
        time.sleep(0.1)
    with open(context.run_config["report"] + ".part", "w") as file:
        json.dump(replies, file)
    import os
    os.replace(context.run_config["report"] + ".part", context.run_config["report"])
"""

SHIPPED_CLIENT = """
import os
with open({marker!r}, "a") as file:
    file.write(os.environ.get("FLWR_HOME", "?") + "\\n")
from flwr.clientapp import ClientApp
app = ClientApp()
"""


class FlowerHub:
    """One SuperLink; use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = new_authority(folder / "trust")
        issue_server_certificate(folder / "trust", ["127.0.0.1"])
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._cli = flower_environment(folder / "cli")
        (folder / "cli" / "config.toml").write_text(
            f'[superlink]\ndefault = "hub"\n[superlink.hub]\naddress = "{self.address}"\n'
            f'root-certificates = "{self.ca}"\n'
        )

    def __enter__(self) -> FlowerHub:
        trust = self.folder / "trust"
        self.child = start_child(
            [
                "flower-superlink", "--host", "127.0.0.1", "--port", str(self.port),
                "--ssl-ca-certfile", str(self.ca), "--ssl-certfile", str(trust / "server.pem"),
                "--ssl-keyfile", str(trust / "server.key"), "--enable-supernode-auth",
                "--database", str(self.folder / "state.db"),
                "--disable-runtime-dependency-installation",
            ],
            name="SuperLink",
            environment=flower_environment(self.folder / "home")
            | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"},
            output=self.folder / "superlink.log",
        )  # fmt: skip
        wait_until(lambda: "Application startup complete" in self.log(), "the SuperLink starts")
        return self

    def __exit__(self, *_: object) -> None:
        self.child.end()

    def log(self) -> str:
        """What the SuperLink wrote."""
        path = self.folder / "superlink.log"
        return path.read_text() if path.exists() else ""

    def enrol(self, public_key: Path) -> None:
        """Register a site's key."""
        self._flwr("supernode", "register", str(public_key), "hub")

    def start_run(self, content: Mapping[str, Any], *, marker: Path) -> Path:
        """Start a run whose bundle ships a ``medfed.client.flower_app`` of its own.

        Args:
            content: What the ServerApp sends: ``round``, or nothing.
            marker: A process that imports the shipped module appends its FLWR_HOME here.

        Returns:
            Where the replies will be written, as JSON.
        """
        bundle = self.folder / f"bundle-{time.monotonic_ns()}"
        shipped = bundle / "medfed" / "client"
        shipped.mkdir(parents=True)
        report = bundle / "report.json"
        (bundle / "pyproject.toml").write_text(BUNDLE % (json.dumps(content), report))
        (bundle / "shipped_server.py").write_text(SERVER_APP)
        for name in ("__init__.py", "flower_app.py"):
            (shipped / name).write_text(SHIPPED_CLIENT.format(marker=str(marker)))
        self._flwr("run", str(bundle), "hub")
        return report

    def _flwr(self, *arguments: str) -> str:
        done = subprocess.run(
            [program("flwr"), *arguments],
            env=self._cli, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def wait_until(true: Any, what: str, limit_s: float = 30.0) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, f"not within {limit_s} s: {what}"
        time.sleep(0.05)
