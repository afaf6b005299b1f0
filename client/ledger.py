"""What this hospital's patients have spent, and the bytes that were paid for.

One SQLite file per site. A round is keyed by (study digest, run, round, base model) and goes
through ``reserve`` -> train -> ``commit``; spend and released bytes enter in one transaction,
*before* the bytes may leave. Entries are appended, never changed. So after any crash:

* committed: the same bytes may be sent again, for free; another training is refused;
* reserved only: nothing left the site; the reservation is voided and the round starts anew.

The ceiling of ``site.toml`` holds over all studies together, composed by PLD.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medfed.common.errors import BudgetExceededError, LedgerError, PrivacyError
from medfed.common.privacy.accounting import Spend, composed_epsilon
from medfed.common.privacy.mechanism import Mechanism

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('reserve', 'commit', 'void')),
    digest TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL, base TEXT NOT NULL,
    noise_multiplier REAL, sampling_rate REAL, steps INTEGER,
    payload BLOB, payload_sha256 TEXT, time REAL NOT NULL
);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entry
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entry
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE INDEX IF NOT EXISTS of_round ON entry (digest, run, round);
CREATE UNIQUE INDEX IF NOT EXISTS paid_once ON entry (digest, run, round) WHERE kind = 'commit';
"""


@dataclass(frozen=True)
class RoundKey:
    """Names one training of one site: what a payment is for. Public.

    Attributes:
        digest: Digest of the study.
        run: The run's name at the server.
        round: Counted from 1.
        base: Fingerprint of the global model that was trained from.
    """

    digest: str
    run: str
    round: int
    base: str


@dataclass(frozen=True)
class Receipt:
    """Proof that bytes were paid for.

    Attributes:
        sequence: The ledger entry, counted from 1.
        payload_sha256: Digest of the bytes it covers.
    """

    sequence: int
    payload_sha256: str


class Ledger:
    """The durable record of one site's spends and releases. For threads and processes to share.

    Args:
        path: The SQLite file, or None for one in memory that forgets released bytes (simulation).
        site: The site's name, for messages.
        epsilon_limit: Ceiling per patient over all studies, at ``delta_limit``; infinity: none.
        delta_limit: The delta of the ceiling, in (0, 1).

    Raises:
        LedgerError: the file cannot be opened or is no ledger. Every method raises it too, when
            the disk is full, the file is damaged, or another process holds it for 30 s.
        ValueError: a limit outside its range.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        site: str,
        epsilon_limit: float = math.inf,
        delta_limit: float = 1e-5,
    ) -> None:
        if not (epsilon_limit > 0.0 and 0.0 < delta_limit < 1.0):
            raise ValueError(f"no ceiling: epsilon {epsilon_limit!r} at delta {delta_limit!r}")
        self._site, self._limit, self._delta = site, epsilon_limit, delta_limit
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(
                path or ":memory:", isolation_level=None, timeout=30.0, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._cannot_open(path, error) from error
        try:
            if path is not None:
                path.chmod(0o600)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            self._db.close()
            raise self._cannot_open(path, error) from error

    def _cannot_open(self, path: Path | None, error: Exception) -> LedgerError:
        return LedgerError(
            f"site {self._site!r}: the ledger {path} cannot be opened ({type(error).__name__}).",
            advice="restore the newest copy of the ledger; never start with an empty one.",
        )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def paid(self, key: RoundKey) -> tuple[bytes, Receipt] | None:
        """The bytes already paid for under this key, to be sent again for free.

        Raises:
            LedgerError: the round was paid for from another base model, or the bytes do not
                match their digest any more.
        """
        rows = self._select(
            "SELECT sequence, base, payload, payload_sha256 FROM entry WHERE kind = 'commit'"
            " AND digest = ? AND run = ? AND round = ?",
            *(key.digest, key.run, key.round),
        )
        for sequence, base, payload, sha256 in rows:
            if base != key.base:
                raise LedgerError(
                    f"site {self._site!r}: {_named(key)} was already paid for, from another global "
                    "model. A second training is refused.",
                    advice="the coordinator starts a new run; sites approve it anew.",
                )
            if payload is None or hashlib.sha256(payload).hexdigest() != sha256:
                raise LedgerError(
                    f"site {self._site!r}: the stored release of round {key.round} is gone or "
                    "was altered.",
                    advice="stop, keep the file, and restore the newest copy of the ledger.",
                )
            return payload, Receipt(sequence, sha256)
        return None

    def reserve(
        self, key: RoundKey, mechanism: Mechanism | None, *, most_rounds: int | None = None
    ) -> None:
        """Set the cost of a round aside, before its first look at data.

        An earlier, unfinished reservation of the same round is voided: nothing of it left.

        Args:
            key: The round.
            mechanism: What will be done; None without privacy (allowed by policy only).
            most_rounds: Rounds of this study that may be paid for in all, over every run of it:
                its approved schedule. None: no such bound.

        Raises:
            BudgetExceededError: the ceiling would be passed. Nothing is written.
            PrivacyError: the study's whole schedule is paid for. Nothing is written.
            LedgerError: the round was already paid for.
        """
        cost = _spend(mechanism)
        with self._transaction():
            if self.paid(key) is not None:
                raise LedgerError(
                    f"site {self._site!r}: {_named(key)} is paid for; another training of it is "
                    "refused.",
                    advice="send the stored release again.",
                )
            if most_rounds is not None and self.rounds_paid(key.digest) >= most_rounds:
                raise PrivacyError(
                    f"site {self._site!r}: all {most_rounds} rounds that were approved of study "
                    f"{key.digest[:8]} are paid for; {_named(key)} would be one more.",
                    advice="to train on, the coordinator raises the study's serial and the site "
                    "approves what that costs.",
                )
            for reservation in self._open_reservations(key):
                self._append("void", reservation.key, None)
            self._check_ceiling(cost)
            self._append("reserve", key, cost)

    def commit(self, key: RoundKey, payload: bytes, mechanism: Mechanism | None) -> Receipt:
        """Record spend and bytes in one transaction; only then may the bytes leave.

        Args:
            key: The round.
            payload: What was made.
            mechanism: What was done: the one that was reserved.

        Raises:
            LedgerError: the round was not reserved, not with this mechanism, or is already paid
                for.
            BudgetExceededError: another round was paid for since the reservation, and both
                together pass the ceiling.
        """
        cost, sha256 = _spend(mechanism), hashlib.sha256(payload).hexdigest()
        with self._transaction():
            paid = self.paid(key) is not None
            reserved = {r.key: r for r in self._open_reservations(key)}.get(key)
            if paid or reserved is None or reserved.cost != cost:
                raise LedgerError(
                    f"site {self._site!r}: {_named(key)} was not reserved like this, or is paid "
                    "for by now. Nothing was released.",
                    advice="let one client at a time train for a site; if only one did, this is "
                    "a defect of medfed: please report it.",
                )
            if self._last_commit() > reserved.sequence:
                self._check_ceiling(cost)
            sequence = self._append("commit", key, cost, payload, sha256)
        return Receipt(sequence, sha256)

    def rounds_paid(self, digest: str) -> int:
        """Rounds of a study that were paid for, over all its runs."""
        rows = self._select(
            "SELECT COUNT(*) FROM entry WHERE kind = 'commit' AND digest = ?", digest
        )
        return int(rows[0][0])

    def epsilon(self, delta: float, *, also: Spend | None = None) -> float:
        """Epsilon spent by a patient who was eligible in every round, over all studies.

        Args:
            delta: In (0, 1).
            also: A spend to add in thought.

        Returns:
            Epsilon under add-or-remove one patient. Infinity once a study without privacy ran.
        """
        rows = self._select(
            "SELECT noise_multiplier, sampling_rate, SUM(steps) FROM entry WHERE kind = 'commit'"
            " GROUP BY noise_multiplier, sampling_rate"
        )
        if any(sigma is None for sigma, _, _ in rows):
            return math.inf
        spends = [Spend(*row) for row in rows]
        return composed_epsilon(spends if also is None else [*spends, also], delta)

    def _check_ceiling(self, cost: Spend | None) -> None:
        if cost is None or math.isinf(self._limit):
            return
        needed = self.epsilon(self._delta, also=cost)
        if not needed <= self._limit:
            raise BudgetExceededError(
                site=self._site,
                spent=self.epsilon(self._delta),
                needed=needed,
                limit=self._limit,
                delta=self._delta,
            )

    def _open_reservations(self, key: RoundKey) -> list[_Reservation]:
        """Reservations of the same round, from any base model, without a commit or void since."""
        rows = self._select(
            "SELECT sequence, base, noise_multiplier, sampling_rate, steps FROM entry AS r"
            " WHERE kind = 'reserve' AND digest = ? AND run = ? AND round = ?"
            " AND NOT EXISTS (SELECT 1 FROM entry AS e WHERE e.kind IN ('commit', 'void')"
            " AND (e.digest, e.run, e.round, e.base) = (r.digest, r.run, r.round, r.base)"
            " AND e.sequence > r.sequence)",
            *(key.digest, key.run, key.round),
        )
        return [
            _Reservation(
                RoundKey(key.digest, key.run, key.round, base),
                sequence,
                None if cost[0] is None else Spend(*cost),
            )
            for sequence, base, *cost in rows
        ]

    def _last_commit(self) -> int:
        return int(self._select("SELECT MAX(sequence) FROM entry WHERE kind = 'commit'")[0][0] or 0)

    def _append(
        self,
        kind: Literal["reserve", "commit", "void"],
        key: RoundKey,
        cost: Spend | None,
        payload: bytes | None = None,
        sha256: str | None = None,
    ) -> int:
        values: tuple[float | None, ...] = tuple(cost) if cost else (None, None, None)
        cursor = self._db.execute(
            "INSERT INTO entry (kind, digest, run, round, base, noise_multiplier, sampling_rate,"
            " steps, payload, payload_sha256, time) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (kind, key.digest, key.run, key.round, key.base, *values, payload, sha256, time.time()),
        )
        return int(cursor.lastrowid or 0)

    def _select(self, sql: str, *values: object) -> list[Any]:
        with self._lock, self._errors_named():
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing; a commit that fails is undone, so that no later read believes it."""
        with self._lock, self._errors_named():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(
                f"site {self._site!r}: the ledger cannot be read or written "
                f"({type(error).__name__}: {error}).",
                advice="check the disk, and that one client at a time runs for this site.",
            ) from error


@dataclass(frozen=True)
class _Reservation:
    key: RoundKey
    sequence: int
    cost: Spend | None


def _named(key: RoundKey) -> str:
    """A round as messages name it; the server chose the run's name, so it is cut short."""
    return f"round {key.round} of run {key.run[:80]!r}"


def _spend(mechanism: Mechanism | None) -> Spend | None:
    if mechanism is None:
        return None
    return Spend(mechanism.noise_multiplier, mechanism.sampling_rate, mechanism.steps_per_round)
