"""Flower's SuperLink as a child process, spoken to through the ``flwr`` command.

Only public command lines are used: ``flower-superlink`` and ``flwr``. Flower's control
API has no login, so its port belongs on loopback, behind the guard.

Source:
    Flower 1.41, https://flower.ai/docs/framework/ref-api-cli.html
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import json
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from medfed.common.errors import ConfigError, TransportError, TrustError
from medfed.common.processes import (
    Child,
    flower_environment,
    program,
    require_free_port,
    start_child,
)
from medfed.common.trust.private_files import write_private
from medfed.server.data_root import DataRoot

FLOWER_VERSION = "1.41.0"
_CALL_LIMIT_S = 60.0
_POLL_S = "0.2"


class SuperLink:
    """One SuperLink on one port.

    Args:
        root: The server's data root, prepared.
        host: Address to listen on.
        port: Port to listen on.
        stop: Once set, waiting for anything ends.
    """

    def __init__(self, root: DataRoot, host: str, port: int, stop: threading.Event) -> None:
        self._root, self.host, self.port, self.stop = root, host, port, stop
        self._trust = root.superlink_trust
        self._reach = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self.log = root.flower / "superlink.log"
        self.child: Child | None = None

    def start(self) -> Child:
        """Start it; ``wait_healthy`` says when it answers.

        Raises:
            TransportError: the port cannot be used. Nothing was started.
            ConfigError: another version of Flower is installed.
        """
        require_flower_version()
        require_free_port(self.host, self.port, purpose="the port for the sites")
        trust, flower = self._trust, self._root.flower
        command = [
            "flower-superlink", "--host", self.host, "--port", str(self.port),
            "--ssl-ca-certfile", str(trust / "ca.pem"),
            "--ssl-certfile", str(trust / "server.pem"),
            "--ssl-keyfile", str(trust / "server.key"),
            "--enable-supernode-auth",
            "--database", str(flower / "state.db"),
            "--isolation", "subprocess",
            "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        environment = flower_environment(flower / "home") | {
            "MEDFED_SERVER_ROOT": str(self._root.path),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": _POLL_S,
        }
        self.child = start_child(
            command, name="SuperLink", environment=environment, output=self.log, folder=flower
        )
        return self.child

    def wait_healthy(self, limit_s: float) -> bool:
        """Wait until the SuperLink answers.

        Args:
            limit_s: Seconds to wait.

        Returns:
            True once it answers; False if ``stop`` was set before.

        Raises:
            TransportError: it ended, or did not answer in time.
        """
        assert self.child is not None, "start() comes first"
        deadline = time.monotonic() + limit_s
        while not self.stop.is_set():
            if self._answers():
                return True
            code = self.child.exit_code()
            if code is not None or time.monotonic() > deadline:
                what = "did not answer" if code is None else f"ended with exit code {code}"
                raise TransportError(
                    f"Flower's SuperLink {what} on {self.host}:{self.port} while starting.",
                    advice=f"read the end of {self.log}.",
                )
            self.stop.wait(0.1)
        return False

    def _answers(self) -> bool:
        trust = ssl.create_default_context(cafile=str(self._trust / "ca.pem"))
        link = http.client.HTTPSConnection(self._reach, self.port, timeout=3.0, context=trust)
        with contextlib.closing(link):
            try:
                link.request("GET", "/health")
                return link.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False

    def register(self, site: str, key_file: Path) -> int:
        """Register a site's public key; returns Flower's node id.

        Raises:
            TrustError: the key was registered and unregistered before; it cannot come back.
            TransportError: Flower refused.
        """
        try:
            answer = self._flwr("supernode", "register", str(key_file), "hub", "--name", site)
        except TransportError as error:
            if "already in use" not in str(error):
                raise
            raise TrustError(
                f"site {site!r}: this key was thrown out of this server before, and a key that "
                "was thrown out cannot come back.",
                advice="have the site make a new data root with `medfed site init`.",
            ) from error
        return int(answer["node-id"])

    def unregister(self, node: int) -> None:
        """Take a node's registration back.

        Raises:
            TransportError: Flower refused.
        """
        self._flwr("supernode", "unregister", str(node), "hub")

    def nodes(self) -> dict[int, str]:
        """Give the state (``registered``, ``online``, ``offline``) of every node, by id.

        Flower goes on listing a node whose registration was taken back; it is left out here.
        """
        answer = self._flwr("supernode", "list", "hub")
        states = {int(node["node-id"]): str(node["status"]) for node in answer["nodes"]}
        return {node: state for node, state in states.items() if state != "unregistered"}

    def start_run(self, bundle: Path, run: str) -> int:
        """Start a Flower run of a bundle; returns Flower's run id.

        Args:
            bundle: Folder with the thin ``pyproject.toml``.
            run: Name of the medfed run, which the server app is told.

        Raises:
            TransportError: Flower refused.
        """
        config = f"medfed-run={json.dumps(run)}"
        return int(self._flwr("run", str(bundle), "hub", "--run-config", config)["run-id"])

    def run_state(self, flower_run: int) -> str:
        """Give Flower's state of a run, such as ``running`` or ``finished:failed``."""
        runs = self._flwr("list", "hub", "--run-id", str(flower_run))["runs"]
        return str(runs[0]["status"]) if runs else "unknown"

    def stop_run(self, flower_run: int) -> None:
        """End a Flower run at once, without asking its server app."""
        self._flwr("stop", str(flower_run), "hub")

    def run_log(self, flower_run: int) -> str:
        """Give what the server app of a run has printed."""
        return self._call("log", str(flower_run), "hub", "--show").stdout

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """Run a ``flwr`` command and read its JSON answer."""
        done = self._call(*arguments, "--format", "json")
        with contextlib.suppress(ValueError):
            answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
            if answer.get("success"):
                return answer
            raise _refused(arguments, str(answer.get("error-message", answer)))
        raise _refused(arguments, (done.stdout + done.stderr).strip()[-800:])

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        home = self._root.flower / "cli"
        environment = flower_environment(home)
        reach = f"[{self._reach}]" if ":" in self._reach else self._reach
        authority = json.dumps(str(self._trust / "ca.pem"))
        config = (
            '[superlink]\ndefault = "hub"\n\n[superlink.hub]\n'
            f'address = "{reach}:{self.port}"\nroot-certificates = {authority}\n'
        )
        write_private(home / "config.toml", config.encode(), replace=True)
        with subprocess.Popen(
            [program("flwr"), *arguments],
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as call:
            deadline = time.monotonic() + _CALL_LIMIT_S
            while True:
                try:
                    out, err = call.communicate(timeout=0.2)
                    return subprocess.CompletedProcess(call.args, call.returncode, out, err)
                except subprocess.TimeoutExpired:
                    if self.stop.is_set() or time.monotonic() > deadline:
                        call.kill()
                        why = "the server is stopping" if self.stop.is_set() else "no answer"
                        raise _refused(arguments, why) from None


def require_flower_version() -> None:
    """Refuse every version of Flower but the one whose command lines we know.

    Raises:
        ConfigError: another one is installed.
    """
    found = importlib.metadata.version("flwr")
    if found != FLOWER_VERSION:
        raise ConfigError(
            f"found flwr {found}; medfed works with flwr {FLOWER_VERSION} only.",
            advice=f"install flwr=={FLOWER_VERSION}.",
        )


def _refused(arguments: tuple[str, ...], why: str) -> TransportError:
    words = " ".join(why.split()).removeprefix("Using SuperLink: hub ").rstrip(".")
    return TransportError(
        f"Flower refused `flwr {arguments[0]}`: {words}.",
        advice="read flower/superlink.log in the server's data root.",
    )
