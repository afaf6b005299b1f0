"""The tunnel of an enrolled site, kept running beside its node.

Each start of the tunnel has a port and a certificate of its own, which the node reads when it
starts. So a node lives as long as the tunnel that it was started for.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from medfed.client.enrolment import settle
from medfed.client.kept_program import KeptProgram, trouble_in
from medfed.client.preflight import Notice, Tell
from medfed.client.site_root import SiteRoot
from medfed.common.errors import MedfedError, TransportError
from medfed.common.processes import flower_environment

TUNNEL: Final = (sys.executable, "-I", "-m", "medfed.client.tunnel")
"""The tunnel of a deployed site: no folder but the installed ones is searched for code."""

_READY = re.compile(r"\S+ \S+ INFO tunnel\.ready port=([1-9][0-9]{0,4})")
_TAKEN_UP = "INFO tunnel.files-taken-up"
_TRIES: Final = 5
_SETTLE_EVERY_S: Final = 86400.0


class KeptTunnel:
    """A site's tunnel, started again whenever it ends.

    Attributes:
        port: Where it listens on 127.0.0.1; None: it is not ready.

    Args:
        site: An enrolled site.
        tell: Where lines for the admin go.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, site: SiteRoot, tell: Tell, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.port: int | None = None
        self._site, self._tell, self._clock = site, tell, clock
        self._was_ready = False
        self._settle_at = clock() + _SETTLE_EVERY_S
        self.program = KeptProgram(
            "tunnel",
            lambda: [*TUNNEL, "--root", str(site.folder), "--port", "0"],
            environment=flower_environment(site.flower / "tunnel"),
            log=site.log / "tunnel.log",
        )

    @property
    def certificate(self) -> Path:
        """What the node is to trust for this link."""
        return self._site.flower / "tunnel.pem"

    def watch(self) -> bool:
        """Look after it; to be called a few times a second.

        Returns:
            Whether it ended since the last call; what used it must end too.

        Raises:
            TransportError: it ended 5 times and was never ready.
        """
        self._settle_daily()
        code = self.program.ended()
        for line in self.program.lines():
            self._hear(line)
        if code is not None:
            self.port = None
            self._tell_end(code)
        self.program.start_if_due()
        return code is not None

    def _hear(self, line: str) -> None:
        if match := _READY.match(line):
            self.port, self._was_ready = int(match[1]), True
        elif _TAKEN_UP in line:
            self._tell(Notice("state", "the tunnel uses the site's new certificate"))
        elif text := trouble_in(line):
            self._tell(Notice("warning", text))

    def _tell_end(self, code: int) -> None:
        log = self._site.log / "tunnel.log"
        if not self._was_ready and self.program.pauses >= _TRIES:
            raise TransportError(
                f"the site's tunnel ended {_TRIES} times and was never ready.",
                advice=f"read the end of {log}.",
            )
        pause = self.program.pause_s
        text = f"the tunnel ended (code {code}); again in {pause:.0f} s, see {log}"
        self._tell(Notice("warning", text))

    def _settle_daily(self) -> None:
        if self._clock() < self._settle_at:
            return
        self._settle_at = self._clock() + _SETTLE_EVERY_S
        try:
            settle(self._site.folder)
        except MedfedError as error:
            self._tell(Notice("warning", str(error)))
