"""The cache's index as a file: its key, its tables, its lock, and beginning anew.

What is in a cache can be made again from the scans, so an index that is damaged, or was written
with another key, is thrown away together with its records.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import sqlite3
import stat
from pathlib import Path
from typing import Final

from medfed.common.errors import ConfigError, ScanError
from medfed.common.trust.private_files import write_private

KEY_BYTES: Final = 32
INDEX: Final = "index.db"
TENSORS: Final = "tensors.bin"
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
  path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER,
  settled INTEGER, content BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS scans (
  content BLOB, frame INTEGER, row INTEGER, patient BLOB, about BLOB, refused TEXT,
  PRIMARY KEY (content, frame)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS scans_by_row ON scans (row);
"""


def load_key(path: Path) -> bytes:
    """Read the cache's key; make one where there is none.

    Raises:
        ConfigError: it cannot be read or made, has another length, or other users of the machine
            may read it.
    """
    if not path.exists():
        write_private(path, os.urandom(KEY_BYTES))
    try:
        mode, key = stat.S_IMODE(path.stat().st_mode), path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: the cache's key cannot be read ({error.strerror}).",
            advice="check that this user may read it.",
        ) from error
    if mode & 0o077:
        raise ConfigError(
            f"{path}: other users of this machine may read the key (mode {mode:04o}, allowed: "
            "0600).",
            advice=f"chmod 600 {path}",
        )
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"{path}: the cache's key has {len(key)} bytes, not {KEY_BYTES}.",
            advice="remove it: a new one is made, and the scans are imported again.",
        )
    return key


def lock(folder: Path) -> int:
    """Keep other processes out of a cache.

    Returns:
        The descriptor that holds the lock; it ends with it.

    Raises:
        ScanError: another process has it.
    """
    held = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        raise ScanError(
            f"{folder}: another process is importing into this cache.",
            advice="wait until it is done; nothing is lost if you end it.",
        ) from None
    return held


def open_index(folder: Path, key: bytes, about: str) -> tuple[sqlite3.Connection, bytes]:
    """Open a cache's index; begin anew where it is damaged, or of another key.

    Args:
        folder: The cache's.
        key: The site's cache key.
        about: What the cache is for: another text is another cache.

    Returns:
        The index and its salt, from which with the key all of its keys are made.

    Raises:
        ScanError: it cannot be written.
    """
    for _ in range(2):
        os.close(os.open(folder / INDEX, os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite makes 0644
        index = sqlite3.connect(folder / INDEX, timeout=60)
        try:
            salt = _salt(index, key, about)
        except sqlite3.DatabaseError:
            salt = None
        if salt is not None:
            return index, salt
        index.close()
        for name in (INDEX, f"{INDEX}-wal", f"{INDEX}-shm", TENSORS):
            (folder / name).unlink(missing_ok=True)
    raise ScanError(
        f"{folder}: the cache's index cannot be written.",
        advice="check that the disk has room and that this user may write there.",
    )


def _salt(index: sqlite3.Connection, key: bytes, about: str) -> bytes | None:
    """The index's salt, made with it; None where key or purpose are others than its own."""
    index.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;" + _TABLES)
    facts = dict(index.execute("SELECT name, value FROM facts"))
    if not facts:
        facts = {"salt": os.urandom(KEY_BYTES)}
        facts["check"] = _check(key, facts["salt"], about)
        index.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
        index.commit()
    salt = facts.get("salt", b"")
    fits = hmac.compare_digest(facts.get("check", b""), _check(key, salt, about))
    return salt if fits else None


def _check(key: bytes, salt: bytes, about: str) -> bytes:
    return hmac.digest(key, salt + b"check" + about.encode(), hashlib.sha256)
