"""An append-only file of entries, each chained to the one before by hash and signed by the site.

One SQLite file. What an entry means is ``ledger.py``'s business; here is only that none can be
changed, removed, inserted or reordered without being found, that an entry is on the disk in
full or not at all, and that several processes may write in turn. Beside the entries lie the
patient sets and the released bytes that entries name by their SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from medfed.common.errors import LedgerError, TrustError
from medfed.common.trust.ledger_head import Head, HeadSigner, check_head

FIRST = "0" * 64
"""What stands for the hash before the first entry."""

_SCHEMA = """
CREATE TABLE entry (
    sequence INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL, signature TEXT NOT NULL
);
CREATE TABLE patient_set (sha256 TEXT PRIMARY KEY, members BLOB NOT NULL);
CREATE TABLE payload (sha256 TEXT PRIMARY KEY, bytes BLOB NOT NULL);
CREATE TRIGGER no_update BEFORE UPDATE ON entry
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON entry
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER no_set_update BEFORE UPDATE ON patient_set
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER no_set_delete BEFORE DELETE ON patient_set
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE UNIQUE INDEX paid_once ON entry (
    json_extract(body, '$.digest'), json_extract(body, '$.run'),
    json_extract(body, '$.round'), json_extract(body, '$.purpose')
) WHERE json_extract(body, '$.kind') = 'commit';
"""


_DISK_TROUBLE = frozenset(
    (
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    )
)


class Entry(NamedTuple):
    """One line of a ledger.

    Attributes:
        sequence: From 1, without gaps.
        body: What it says; ``kind`` is among its keys.
        hash: SHA-256 over this entry and the hash before it.
        signature: Of the head that this entry made, in hexadecimal digits.
    """

    sequence: int
    body: Mapping[str, Any]
    hash: str
    signature: str

    @property
    def head(self) -> Head:
        """The ledger's head when this entry was its last."""
        return Head(self.sequence, self.hash, self.signature)


class LedgerFile:
    """The entries of one ledger. For threads and processes to share.

    Args:
        path: The SQLite file, which exists; None for one in memory (simulation).
        signer: Signs every entry; None signs nothing (simulation).
        site: The site's name, for messages.

    Raises:
        LedgerError: the file is missing, is no ledger, or was altered. Every method raises it
            too when the disk is full or another process holds the file for 30 s.
    """

    def __init__(self, path: Path | None, signer: HeadSigner | None, *, site: str) -> None:
        self._path, self._signer, self._site = path, signer, site
        self.lock = threading.RLock()
        """Held while the entries must not change; one thread may take it again."""
        self._entries: list[Entry] = []
        if path is not None and not path.is_file():
            raise self.broken(f"{path} is missing")
        try:
            self._db = _connect(path)
        except (sqlite3.Error, OSError) as error:
            raise self._not_opened(error) from error
        self._identity = None if path is None else _identity(path)
        if path is None:
            self._db.executescript(_SCHEMA)
        try:
            self.refresh()
        except LedgerError:
            self._db.close()
            raise

    @classmethod
    def create(
        cls, path: Path, signer: HeadSigner, first: Mapping[str, Any], *, site: str
    ) -> LedgerFile:
        """Make a new file with its first entry.

        Raises:
            LedgerError: the file is there already, or cannot be written.
        """
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            with sqlite3.connect(path) as db:
                db.executescript(_SCHEMA)
            db.close()
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(
                f"site {site!r}: the ledger {path} cannot be made ({type(error).__name__}).",
                advice="check the folder and the disk; a ledger that is there is never replaced.",
            ) from error
        made = cls(path, signer, site=site)
        with made.transaction():
            made.append(first)
        return made

    def close(self) -> None:
        """Close the file."""
        with self.lock:
            self._db.close()

    @property
    def entries(self) -> list[Entry]:
        """All entries, as of the last ``refresh``."""
        return self._entries

    @property
    def head(self) -> Head:
        """The last entry's head; sequence 0 where there is none."""
        return self._entries[-1].head if self._entries else Head(0, FIRST, "")

    def refresh(self) -> None:
        """Read and check what was appended since, by this or another process.

        Also that the last entry read or written is still there: somebody may have put an older
        file in place, or a trigger into this one that swallows what is written.

        Raises:
            LedgerError: the chain is broken, its end is not signed by the site's key, or the
                file was replaced or put back while it was open.
        """
        before = self.head
        rows = self._select(
            "SELECT sequence, body, hash, signature FROM entry WHERE sequence >= ? ORDER BY 1",
            before.sequence,
        )
        if self._path is not None and _identity(self._path) != self._identity:
            raise self.broken(f"{self._path} was replaced or removed while it was open")
        if self._entries:
            last = rows.pop(0) if rows else (0, "", "", "")
            if (last[0], last[2]) != (before.sequence, before.hash):
                raise self.broken(f"entry {before.sequence} was changed or removed")
        new: list[Entry] = []
        for sequence, body, hash_, signature in rows:
            if sequence != before.sequence + 1 or _hash(before.hash, sequence, body) != hash_:
                raise self.broken(f"entry {before.sequence + 1} was changed or removed")
            new.append(Entry(sequence, _read_body(body), hash_, signature))
            before = new[-1].head
        if new:
            self._check_signature(new[-1])
        self._entries += new

    def check_all_signatures(self) -> None:
        """Check the signature of every entry; `refresh` checks the last, which covers all hashes.

        Raises:
            LedgerError: one is not the site's.
        """
        for entry in self._entries:
            self._check_signature(entry)

    def check_signed_here(self, head: Head) -> None:
        """Check that a head was signed by this site.

        Raises:
            TrustError: it was not.
        """
        if self._signer is not None:
            check_head(head, self._signer.public_key, who=f"site {self._site!r}")

    def _check_signature(self, entry: Entry) -> None:
        try:
            self.check_signed_here(entry.head)
        except TrustError as error:
            raise LedgerError(
                f"site {self._site!r}: entry {entry.sequence} of the ledger is not signed by "
                "keys/node_key: the ledger was altered, or the key is another one.",
                advice="restore keys/node_key and the newest copy of ledger.db together; nothing "
                "is released until they match.",
            ) from error

    def append(self, body: Mapping[str, Any]) -> Entry:
        """Add an entry. Only within `transaction`."""
        assert self._db.in_transaction
        sequence = self.head.sequence + 1
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        hash_ = _hash(self.head.hash, sequence, text)
        head = Head(sequence, hash_, "")
        if self._signer is not None:
            head = self._signer.sign(sequence, hash_)
        self._db.execute("INSERT INTO entry VALUES (?, ?, ?, ?)", (sequence, text, *head[1:]))
        entry = Entry(sequence, json.loads(text), hash_, head.signature)
        self._entries.append(entry)
        return entry

    def store_set(self, members: bytes) -> str:
        """Keep a set of patients; returns its SHA-256. Only within `transaction`."""
        return self._store("patient_set", members)

    def store_payload(self, payload: bytes) -> str:
        """Keep released bytes; returns their SHA-256. Only within `transaction`."""
        return self._store("payload", payload)

    def read_set(self, sha256: str) -> bytes:
        """Read a set of patients.

        Raises:
            LedgerError: it is gone or was altered.
        """
        members = self._read("patient_set", "members", sha256)
        if members is None:
            raise self.broken(f"the patient set {sha256[:8]} is gone or was altered")
        return members

    def read_payload(self, sha256: str) -> bytes | None:
        """Read released bytes; None if they are gone or were altered."""
        return self._read("payload", "bytes", sha256)

    def drop_payload(self, sha256: str) -> None:
        """Forget released bytes that nobody will ask for again. Only within `transaction`."""
        self._db.execute("DELETE FROM payload WHERE sha256 = ?", (sha256,))

    def _store(self, table: str, content: bytes) -> str:
        assert self._db.in_transaction
        sha256 = hashlib.sha256(content).hexdigest()
        self._db.execute(f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", (sha256, content))
        return sha256

    def _read(self, table: str, column: str, sha256: str) -> bytes | None:
        rows = self._select(f"SELECT {column} FROM {table} WHERE sha256 = ?", sha256)
        content = rows[0][0] if rows else None
        whole = isinstance(content, bytes) and hashlib.sha256(content).hexdigest() == sha256
        return content if whole else None

    def _select(self, sql: str, *values: object) -> list[Any]:
        with self.lock, self._errors_named():
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the entries still while they are read, as they are now on the disk."""
        with self.lock:
            self.refresh()
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, alone among all processes; begins with `refresh`.

        A commit that fails is undone, here and on the disk, so that no later read believes it.
        """
        with self.lock, self._errors_named():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self.refresh()
                before = len(self._entries)
                try:
                    yield
                    self._db.execute("COMMIT")
                except BaseException:
                    del self._entries[before:]
                    raise
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            self._fold_log()

    def _fold_log(self) -> None:
        """Bring the file itself up to date, so that a copy of it alone is whole.

        What was committed is on the disk already, in the log beside the file: if there is no
        room for this now, the next entry's turn does it.
        """
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _not_opened(self, error: sqlite3.Error | OSError) -> LedgerError:
        """A full disk or a busy file is told apart from a file that is no ledger any more."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if isinstance(error, OSError) or code in _DISK_TROUBLE:
            return self._unusable(error)
        return self.broken(f"{self._path} cannot be opened ({type(error).__name__})")

    def _unusable(self, error: sqlite3.Error | OSError) -> LedgerError:
        return LedgerError(
            f"site {self._site!r}: the ledger cannot be read or written "
            f"({type(error).__name__}: {error}). Nothing was released.",
            advice="check the disk, and that one client at a time runs for this site.",
        )

    def broken(self, found: str) -> LedgerError:
        """The error for a ledger that cannot be trusted."""
        return LedgerError(
            f"site {self._site!r}: the ledger cannot be trusted: {found}.",
            advice="stop, keep the file for your auditor, and restore the newest copy of "
            "ledger.db with its -wal file; never start with an empty one.",
        )


def _connect(path: Path | None) -> sqlite3.Connection:
    db = sqlite3.connect(
        path or ":memory:", isolation_level=None, timeout=30.0, check_same_thread=False
    )
    if path is not None:
        try:
            path.chmod(0o600)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("SELECT sequence, body, hash, signature FROM entry LIMIT 1")
        except (sqlite3.Error, OSError):
            db.close()
            raise
    return db


def _read_body(text: str) -> Mapping[str, Any]:
    """An entry's content; empty if it is none, which its signature then shows."""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {}


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file lies at a path; None: none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _hash(before: str, sequence: int, body: str) -> str:
    return hashlib.sha256(f"{before} {sequence} {body}".encode()).hexdigest()
