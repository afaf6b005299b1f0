"""The guard of a guarded server: started as a child, told what it needs, and watched.

The guard is the only port that hospitals reach; the SuperLink behind it listens on loopback.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Final

from medfed.common.errors import MedfedError, TransportError
from medfed.common.processes import Child, start_child
from medfed.common.trust.private_files import write_private
from medfed.server.data_root import DataRoot
from medfed.server.guard.settings import GuardSettings
from medfed.server.revocations import Revocations

log = logging.getLogger(__name__)

SUPERLINK_HOST: Final = "127.0.0.1"
_START_LIMIT_S: Final = 60.0
_LOOK_S: Final = 0.05
_FIRST_LINE: Final = b"guard.listening "
_KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")


class Gatehouse:
    """The guard of one server, and the revocation list that server and guard go by.

    Attributes:
        revoked: The list. The guard reads the same files.
        log: What the guard wrote.

    Args:
        root: The data root, guarded and prepared.
        host: Address for the sites.
        port: Port for the sites.

    Raises:
        ConfigError: there is no revocation list, or it cannot be read.
        TrustError: the revocation list has no good signature, or is older than one taken before.
    """

    def __init__(self, root: DataRoot, host: str, port: int) -> None:
        self._root, self._host, self._port = root, host, port
        self.revoked = Revocations(root.trust, _tell)
        self.log = root.guard / "guard.log"
        self.child: Child | None = None
        self._log_from = 0

    def start(self, superlink_port: int) -> Child:
        """Start the guard; ``wait_listening`` says when hospitals reach it.

        Args:
            superlink_port: Where the SuperLink listens on loopback.

        Raises:
            ConfigError: its settings cannot be written.
        """
        config = self._write_settings(superlink_port)
        self._log_from = self.log.stat().st_size if self.log.exists() else 0
        command = [sys.executable, "-I", "-m", "medfed.server.guard", "--config", str(config)]
        self.child = start_child(
            command,
            name="guard",
            environment={name: os.environ[name] for name in _KEPT if name in os.environ},
            output=self.log,
            folder=self._root.guard,
        )
        return self.child

    def wait_listening(self, stop: threading.Event) -> bool:
        """Wait for the guard's first line.

        Returns:
            True once it listens; False if ``stop`` was set before.

        Raises:
            TransportError: it ended, or does not listen after a minute.
        """
        assert self.child is not None, "start() comes first"
        deadline = time.monotonic() + _START_LIMIT_S
        while not stop.wait(_LOOK_S):
            if self._has_said_first_line():
                return True
            code = self.child.exit_code()
            if code is not None or time.monotonic() > deadline:
                what = "does not listen" if code is None else f"ended with exit code {code}"
                raise TransportError(
                    f"the guard {what} on {self._host}:{self._port} while starting.",
                    advice=f"read the end of {self.log}.",
                )
        return False

    def _has_said_first_line(self) -> bool:
        with self.log.open("rb") as file:
            file.seek(self._log_from)
            return _FIRST_LINE in file.read()

    def _write_settings(self, superlink_port: int) -> Path:
        trust = self._root.trust
        settings = GuardSettings(
            host=self._host,
            port=self._port,
            authority=trust / "ca.pem",
            certificate=trust / "server.pem",
            key=trust / "server.key",
            revocations=trust,
            superlink_host=SUPERLINK_HOST,
            superlink_port=superlink_port,
            superlink_authority=self._root.superlink_trust / "ca.pem",
        )
        data = settings.model_dump_json(indent=1).encode()
        return write_private(self._root.guard / "guard.json", data, replace=True)


def _tell(error: MedfedError) -> None:
    log.warning("revocations.not-taken %s", error.args[0])
