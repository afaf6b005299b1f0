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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medfed.common.errors import BudgetExceededError, LedgerError
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
    """The durable record of one site's spends and releases.

    Args:
        path: The SQLite file, or None for one in memory that forgets released bytes (simulation).
        site: The site's name, for messages.
        epsilon_limit: Ceiling per patient over all studies, at ``delta_limit``; infinity: none.
        delta_limit: The delta of the ceiling, in (0, 1).
    """

    def __init__(
        self,
        path: Path | None,
        *,
        site: str,
        epsilon_limit: float = math.inf,
        delta_limit: float = 1e-5,
    ) -> None:
        self._site, self._limit, self._delta = site, epsilon_limit, delta_limit
        self._durable = path is not None
        try:
            self._db = sqlite3.connect(
                path or ":memory:", isolation_level=None, timeout=30.0, check_same_thread=False
            )
            if path is not None:
                path.chmod(0o600)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(
                f"site {site!r}: the ledger {path} cannot be opened ({type(error).__name__}).",
                advice="restore the newest copy of the ledger; never start with an empty one.",
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def paid(self, key: RoundKey) -> tuple[bytes, Receipt] | None:
        """The bytes already paid for under this key, to be sent again for free.

        Raises:
            LedgerError: the round was paid for from another base model, or the bytes do not
                match their digest any more.
        """
        rows = self._db.execute(
            "SELECT sequence, base, payload, payload_sha256 FROM entry WHERE kind = 'commit'"
            " AND digest = ? AND run = ? AND round = ?",
            (key.digest, key.run, key.round),
        ).fetchall()
        for sequence, base, payload, sha256 in rows:
            if base != key.base:
                raise LedgerError(
                    f"site {self._site!r}: round {key.round} of run {key.run!r} was already paid "
                    "for, from another global model. A second training is refused.",
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

    def reserve(self, key: RoundKey, mechanism: Mechanism | None) -> None:
        """Set the cost of a round aside, before its first look at data.

        An earlier, unfinished reservation of the same round is voided: nothing of it left.

        Args:
            key: The round.
            mechanism: What will be done; None without privacy (allowed by policy only).

        Raises:
            BudgetExceededError: the ceiling would be passed. Nothing is written.
            LedgerError: the round was already paid for.
        """
        if self.paid(key) is not None:
            raise LedgerError(
                f"site {self._site!r}: round {key.round} of run {key.run!r} is paid for; another "
                "training of it is refused.",
                advice="send the stored release again.",
            )
        cost = _spend(mechanism)
        with self._transaction():
            for open_key in self._open_reservations(key):
                self._append("void", open_key, None)
            self._check_ceiling(cost)
            self._append("reserve", key, cost)

    def commit(self, key: RoundKey, payload: bytes, mechanism: Mechanism | None) -> Receipt:
        """Record spend and bytes in one transaction; only then may the bytes leave.

        Raises:
            LedgerError: the round was not reserved, or is already paid for.
        """
        if self.paid(key) is not None or key not in self._open_reservations(key):
            raise LedgerError(
                f"site {self._site!r}: round {key.round} of run {key.run!r} was not reserved.",
                advice="this is a defect of medfed; please report it.",
            )
        with self._transaction():
            sha256 = hashlib.sha256(payload).hexdigest()
            stored = payload if self._durable else None
            sequence = self._append("commit", key, _spend(mechanism), stored, sha256)
        return Receipt(sequence, sha256)

    def rounds_paid(self, digest: str) -> int:
        """Rounds of a study that were paid for, over all its runs."""
        row = self._db.execute(
            "SELECT COUNT(*) FROM entry WHERE kind = 'commit' AND digest = ?", (digest,)
        ).fetchone()
        return int(row[0])

    def epsilon(self, delta: float, *, also: Spend | None = None) -> float:
        """Epsilon spent by a patient who was eligible in every round, over all studies.

        Args:
            delta: In (0, 1).
            also: A spend to add in thought.

        Returns:
            Epsilon under add-or-remove one patient. Infinity once a study without privacy ran.
        """
        rows = self._db.execute(
            "SELECT noise_multiplier, sampling_rate, steps FROM entry WHERE kind = 'commit'"
        ).fetchall()
        spends = [Spend(*row) if row[0] is not None else None for row in rows]
        if None in spends:
            return math.inf
        return composed_epsilon([s for s in (*spends, also) if s is not None], delta)

    def _check_ceiling(self, cost: Spend | None) -> None:
        if cost is None or math.isinf(self._limit):
            return
        needed = self.epsilon(self._delta, also=cost)
        if needed > self._limit:
            raise BudgetExceededError(
                site=self._site,
                spent=self.epsilon(self._delta),
                needed=needed,
                limit=self._limit,
                delta=self._delta,
            )

    def _open_reservations(self, key: RoundKey) -> list[RoundKey]:
        rows = self._db.execute(
            "SELECT base, SUM(kind = 'reserve') - SUM(kind IN ('commit', 'void')) FROM entry"
            " WHERE digest = ? AND run = ? AND round = ? GROUP BY base",
            (key.digest, key.run, key.round),
        ).fetchall()
        return [RoundKey(key.digest, key.run, key.round, base) for base, left in rows if left > 0]

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

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _spend(mechanism: Mechanism | None) -> Spend | None:
    if mechanism is None:
        return None
    return Spend(mechanism.noise_multiplier, mechanism.sampling_rate, mechanism.steps_per_round)
