"""What happened in every run, written down as it happens: one SQLite file, append-only.

The rounds write each transition, the control service reads them, and the wish to stop
travels the other way through the same file. Rows are added and never changed; a trigger
in the database refuses anything else. WAL mode lets one process write while others read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

ENDED = frozenset({"finished", "incomplete", "failed", "stopped"})
"""States in which nothing of a run happens any more."""
STATES = ENDED | {"waiting", "running"}

_TABLES = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    run TEXT NOT NULL,
    event TEXT NOT NULL,
    content TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_run ON events (run, event, number);
CREATE TRIGGER IF NOT EXISTS no_change BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_removal BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
"""


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands. Everything in it is public.

    Attributes:
        run: Name of the run, ``<study>-<first 8 digits of the digest>-<number>``.
        study: Name of the study.
        digest: Digest of the study, 64 hexadecimal digits.
        state: ``waiting`` (for sites), ``running``, ``finished``, ``incomplete`` (finished,
            but not as planned), ``failed`` or ``stopped``.
        round: The round in progress or the last one, from 1; 0 before the first.
        rounds: Rounds that the study asks for.
        sites: What each site does, by name.
        headline: One sentence for the people who wait.
        exit_code: How ``medfed launch`` ends; None while the run goes on.
        updated_at: Unix time of the writing, in seconds.
        pid: Process id of the server app that runs the rounds; None before it started.
    """

    run: str
    study: str
    digest: str
    state: str
    round: int
    rounds: int
    sites: Mapping[str, str]
    headline: str
    exit_code: int | None
    updated_at: float
    pid: int | None

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"state must be one of {sorted(STATES)}, got {self.state!r}")
        object.__setattr__(self, "sites", MappingProxyType(dict(self.sites)))

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self.state in ENDED


@dataclass(frozen=True)
class Event:
    """One line of the journal.

    Attributes:
        number: Its place, counted from 1 over all runs.
        time: Unix time in seconds.
        run: The run it belongs to.
        event: What kind it is: ``status``, ``stop requested`` or a caller's own.
        content: Its facts.
    """

    number: int
    time: float
    run: str
    event: str
    content: Mapping[str, Any]


class Journal:
    """The journal of one server. Safe to share between threads and processes.

    Args:
        path: The file, made (mode 0600) if missing; ``":memory:"`` keeps it in this process.
    """

    def __init__(self, path: Path | str) -> None:
        if str(path) != ":memory:":
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._lock = threading.Lock()
        self._database = sqlite3.connect(
            path, timeout=30.0, isolation_level=None, check_same_thread=False
        )
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(_TABLES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def write(self, status: RunStatus) -> None:
        """Append a run's status. It is on the disk when this returns."""
        content = {field.name: getattr(status, field.name) for field in dataclasses.fields(status)}
        content["sites"] = dict(status.sites)
        content["born"] = _birth_of(status.pid)
        self.append(status.run, "status", content)

    def append(self, run: str, event: str, content: Mapping[str, Any]) -> None:
        """Append an event.

        Args:
            run: The run it belongs to.
            event: What kind it is.
            content: What JSON can hold; public facts only.
        """
        with self._lock:
            self._database.execute(
                "INSERT INTO events (time, run, event, content) VALUES (?, ?, ?, ?)",
                (time.time(), run, event, json.dumps(content, sort_keys=True)),
            )

    def read(self, run: str) -> RunStatus:
        """Read a run's newest status.

        Returns:
            As it was written, unless the run should be going on and its server app is
            gone: then a status that says ``failed``.

        Raises:
            KeyError: the journal knows no such run.
        """
        rows = self._select(
            "SELECT content FROM events WHERE run = ? AND event = 'status' "
            "ORDER BY number DESC LIMIT 1",
            run,
        )
        if not rows:
            raise KeyError(run)
        content: dict[str, Any] = json.loads(rows[0][0])
        born = content.pop("born")
        status = RunStatus(**content)
        lives = born is not None and _birth_of(status.pid) == born
        if status.ended or status.pid is None or lives:
            return status
        return dataclasses.replace(
            status,
            state="failed",
            exit_code=14,
            headline=f"the server app ended in round {status.round} of {status.rounds}, before the "
            "run did: the server was stopped, or the process was killed",
        )

    def events(self, run: str) -> list[Event]:
        """Give all events of a run, oldest first."""
        rows = self._select(
            "SELECT number, time, run, event, content FROM events WHERE run = ? ORDER BY number",
            run,
        )
        return [Event(number, at, of, kind, json.loads(c)) for number, at, of, kind, c in rows]

    def runs(self) -> list[str]:
        """Give the names of all runs, the one that began last at the end."""
        rows = self._select("SELECT run FROM events GROUP BY run ORDER BY MIN(number)")
        return [str(row[0]) for row in rows]

    def newest(self) -> str | None:
        """Name the run that began last; None when there is none."""
        runs = self.runs()
        return runs[-1] if runs else None

    def request_stop(self, run: str) -> None:
        """Write down that somebody wants this run to stop."""
        self.append(run, "stop requested", {})

    def stop_requested(self, run: str) -> bool:
        """Whether somebody wants this run to stop."""
        sql = "SELECT 1 FROM events WHERE run = ? AND event = 'stop requested' LIMIT 1"
        return bool(self._select(sql, run))

    def _select(self, sql: str, *values: object) -> list[Any]:
        with self._lock:
            return self._database.execute(sql, values).fetchall()


def _birth_of(pid: int | None) -> int | None:
    """When a process started, in clock ticks since boot; None when it does not run.

    Told apart from the process id alone, this recognises an id that was given again.
    """
    if pid is None:
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # fields 3 and 22 of proc(5)
