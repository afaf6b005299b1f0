"""A program that is started again whenever it ends, with a growing pause.

Its output goes to a file of the site, and what is new in that file can be read, so that
nothing is lost when the reader is busy and nothing blocks when nobody reads.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from medfed.common.processes import Child, start_child

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_STEADY_S = 60.0
_LARGEST_LOG_BYTES = 5_000_000
_TROUBLE = re.compile(r"(?:\S+ \S+ (?:WARNING|ERROR)|(?=  Next step:) ) (.+)")


def trouble_in(line: str) -> str | None:
    """What a line of one of medfed's own programs warns of; None: nothing.

    Example:
        >>> trouble_in("2026-01-01 00:00:00,1 WARNING the clock is off")
        'the clock is off'
        >>> trouble_in("2026-01-01 00:00:00,1 INFO tunnel.ready port=1") is None
        True
    """
    found = _TROUBLE.match(line)
    return None if found is None else found[1]


class Tail:
    """Reads the lines that a program appends to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def lines(self) -> list[str]:
        """The lines that were completed since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        self._at += len(new)
        *whole, self._rest = (self._rest + new).split(b"\n")
        return [line.decode("utf-8", "replace") for line in whole]


class KeptProgram:
    """One program of a site, kept running.

    Attributes:
        name: What the admin reads.
        pauses: Ends in a row, without a minute of steady work between them.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        *,
        environment: Mapping[str, str],
        log: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.pauses = 0
        self._command, self._environment, self._log = command, environment, log
        self._clock = clock
        self._child: Child | None = None
        self._started_at = self._start_at = 0.0
        if log.exists() and log.stat().st_size > _LARGEST_LOG_BYTES:
            log.replace(log.with_suffix(".old.log"))
        self._tail = Tail(log)

    @property
    def child(self) -> Child | None:
        """The running program, if it was started and its end was not yet noticed."""
        return self._child

    def start(self) -> None:
        """Start it now."""
        self._child = start_child(
            self._command(), name=self.name, environment=self._environment, output=self._log
        )
        self._started_at = self._clock()

    def start_if_due(self) -> bool:
        """Start it if it ended and its pause is over; whether it was started."""
        if self._child is not None or self._clock() < self._start_at:
            return False
        self.start()
        return True

    def lines(self) -> list[str]:
        """What it wrote since the last call."""
        return self._tail.lines()

    def ended(self) -> int | None:
        """Notice its end, once.

        Returns:
            Its exit code (negative: the signal that ended it), or None while it runs. After
            a code, ``start_if_due`` starts it again when the pause is over.
        """
        code = None if self._child is None else self._child.exit_code()
        if code is None:
            return None
        steady = self._clock() - self._started_at >= _STEADY_S
        self.pauses = 1 if steady else self.pauses + 1
        self._start_at = self._clock() + self.pause_s
        self._child = None
        return code

    @property
    def pause_s(self) -> float:
        """How long the next start waits, seconds."""
        return float(min(_FIRST_PAUSE_S * 2 ** max(self.pauses - 1, 0), _LONGEST_PAUSE_S))
