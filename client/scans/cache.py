"""The site's encrypted cache: each scan decoded once, found again by the content of its file.

A folder per recipe (``recipe.py``), under the site's own folder::

    tensors.bin    encrypted records, appended (cache_records.py)
    index.db       SQLite: which file had which content, which content is which record
    refused.csv    names of the files that were refused, for the admin
    lock           held while an import writes

The index says nothing without the key: paths and contents are keyed hashes, patient ids are
encrypted. All of it can be made again from the scans, so what does not fit is thrown away.

Records reach the disk before the transaction that names them. So after a crash at any moment the
index names whole records only, and what lies behind the last of them is written over.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sqlite3
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from medfed.client.scans.cache_index import INDEX, TENSORS, lock, open_index
from medfed.client.scans.cache_records import (
    NONCE_BYTES,
    CachedTensors,
    RecordWriter,
)
from medfed.client.scans.recipe import Recipe
from medfed.common.trust.private_files import private_folder

NAME_BYTES: Final = 40
"""What a record is authenticated with beside its number: keyed content (32) and frame (8)."""
REFUSED: Final = "refused.csv"
NO_FRAME: Final = -1
PIECE: Final = 512
"""Records looked up at a time when all are looked at."""
_BLOCK: Final = 64  # texts are padded to multiples of it
_FIND: Final = """
SELECT scans.content, scans.row, scans.patient, scans.refused FROM files
JOIN scans ON scans.content = files.content AND scans.frame = ?
WHERE path = ? AND size = ? AND mtime_ns = ? AND ctime_ns = ? AND inode = ?
  AND settled >= ?
"""


class FileState(NamedTuple):
    """By what a file is known to be the same as before without being read.

    Time of change (ctime) is among it because programs that copy set the time of modification
    back, and uncompressed scans all have one size.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class Source(NamedTuple):
    """Where a scan comes from. Private.

    Attributes:
        path: Its file.
        state: Of the file when it was looked at.
        frame: Which picture of the file; None: the one that its reader takes.
        settled: Whether a change of the file will show in its state. A file changed a moment ago
            may change again within one tick of the disk's clock.
    """

    path: Path
    state: FileState
    frame: int | None = None
    settled: bool = True

    def __repr__(self) -> str:
        return "Source()"


class Found(NamedTuple):
    """What the cache has of one scan. Private.

    Attributes:
        name: What its record is authenticated with.
        row: Its record; None: it was refused.
        patient: The patient key that its file gives; empty where it gives none.
        refused: Why it was refused; None: it was not.
    """

    name: bytes
    row: int | None
    patient: str
    refused: str | None

    def __repr__(self) -> str:
        return "Found()"


class ScanCache:
    """One cache, open for reading and writing.

    Args:
        folder: The site's folder of caches; made if there is none.
        key: The site's cache key.
        recipe: How its tensors are made; decides which cache it is.

    Attributes:
        folder: Where this cache lies.

    Raises:
        ScanError: another process has it open, or it cannot be written.

    Guarantee:
        What ``find`` gives was once committed or added here. Nothing in the folder can be read
        without the key.
    """

    def __init__(self, folder: Path, key: bytes, recipe: Recipe) -> None:
        self.folder = private_folder(private_folder(folder) / recipe.digest[:16])
        self._form = recipe.form
        self._lock = lock(self.folder)
        try:
            self._index, salt = open_index(self.folder, key, recipe.digest)
            self._keys = {
                use: hmac.digest(key, salt + use.encode(), hashlib.sha256)
                for use in ("records", "texts", "paths", "contents")
            }
            self._texts = AESGCM(self._keys["texts"])
            self._records = RecordWriter(self.folder / TENSORS, self._keys["records"], recipe.form)
            self._next_row = int(self._fact("next_row") or 0)
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def content_key(self) -> bytes:
        """With which children name contents; see ``content_name``."""
        return self._keys["contents"]

    def find(self, source: Source) -> Found | None:
        """Look up a scan by the state of its file.

        Args:
            source: Where ``settled`` is asked for, a file that was not so when it was read is
                not known.

        Returns:
            None where the file is not known in this state, or its scan is not.
        """
        frame = _frame(source.frame)
        place = (frame, self._path(source.path), *source.state, int(source.settled))
        found = self._index.execute(_FIND, place).fetchone()
        if found is None:
            return None
        content, row, sealed, refused = found
        name = _name(content, source.frame)
        try:
            return Found(name, row, self._open(sealed, name), refused)
        except InvalidTag:  # damaged
            self._index.execute(
                "DELETE FROM scans WHERE content = ? AND frame = ?", found[:1] + (frame,)
            )
            return None

    def add(self, source: Source, content: bytes, patient: str, about: str, plain: bytes) -> None:
        """Take a scan. It is durable after ``commit``.

        Args:
            source: Where it comes from.
            content: As ``content_name`` gives it.
            patient: The patient key that the file gives. Private.
            about: What ``about`` is to give. Private.
            plain: Its tensor, as ``packed`` gives it. Private.
        """
        name = _name(content, source.frame)
        self._records.write(self._next_row, name, plain)
        sealed = self._seal(patient, name), self._seal(about, name + b"about")
        self._put(source, content, self._next_row, sealed, None)
        self._next_row += 1

    def refuse(self, source: Source, content: bytes | None, why: str) -> None:
        """Remember that a scan was refused.

        Args:
            source: Where it comes from.
            content: As ``content_name`` gives it; None: the file could not be read so far.
            why: The reason.
        """
        if content is None:
            about = b"unread" + self._path(source.path) + repr(tuple(source.state)).encode()
            content = content_name(self.content_key, about)
        self._put(source, content, None, (None, None), why)

    def about(self, found: Found) -> str:
        """What was said of a scan when it was added; empty where that is damaged. Private."""
        asked = "SELECT about FROM scans WHERE row = ?"
        sealed = self._index.execute(asked, (found.row,)).fetchone()
        try:
            return self._open(sealed[0], found.name + b"about") if sealed else ""
        except InvalidTag:
            return ""

    def know(self, source: Source, content: bytes) -> None:
        """Remember that a file has a content whose scan is here already."""
        self._index.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self._path(source.path), *source.state, int(source.settled), content),
        )

    def commit(self) -> None:
        """Make durable what was added."""
        if self._index.in_transaction:
            self._records.sync()
            self._put_fact("next_row", self._next_row)
            self._index.commit()

    def forget(self, rows: Iterable[int]) -> int:
        """Drop scans, so that the next import reads their files again.

        Returns:
            How many there were.
        """
        given = [(row,) for row in rows]
        dropped = self._index.executemany("DELETE FROM scans WHERE row = ?", given).rowcount
        self.commit()
        return max(0, dropped)

    def begin_pass(self) -> None:
        """Begin to note which files there are; ``drop_unseen`` ends it."""
        self._index.executescript(
            "CREATE TEMP TABLE IF NOT EXISTS seen (path BLOB PRIMARY KEY) WITHOUT ROWID;"
            "DELETE FROM seen;"
        )

    def see(self, path: Path) -> None:
        """Note that a file is still there."""
        self._index.execute("INSERT OR IGNORE INTO seen VALUES (?)", (self._path(path),))

    def drop_unseen(self) -> int:
        """Erase the scans of files that were not seen since ``begin_pass``.

        Returns:
            How many tensors were written over with zeros.
        """
        self._index.execute("DELETE FROM files WHERE path NOT IN (SELECT path FROM seen)")
        orphans = "FROM scans WHERE content NOT IN (SELECT content FROM files)"
        rows = self._index.execute(f"SELECT row {orphans} AND row IS NOT NULL").fetchall()
        for (row,) in rows:
            self._records.blank(row)
        self._index.execute(f"DELETE {orphans}")
        self.commit()
        return len(rows)

    def forget_refused(self) -> None:
        """Drop all refusals, so that the next import tries those files again."""
        self._index.execute("DELETE FROM scans WHERE refused IS NOT NULL")
        self.commit()

    def tensors(self, found: Iterable[Found]) -> CachedTensors:
        """Open the tensors of a data set whose scans are these, in this order."""
        rows, names = array("q"), bytearray()  # there may be a million
        for scan in found:
            assert scan.row is not None, "a refused scan has no tensor"
            rows.append(scan.row)
            names += scan.name
        return CachedTensors(
            self.folder / TENSORS,
            self._keys["records"],
            self._form,
            np.frombuffer(rows, dtype=np.int64),
            np.frombuffer(names, dtype=f"V{NAME_BYTES}"),
        )

    def damaged(self) -> list[int]:
        """Read all records and give the numbers of those that do not decrypt."""
        found: list[int] = []
        asked = "SELECT content, frame, row FROM scans WHERE row IS NOT NULL ORDER BY row"
        listed = self._index.execute(asked)
        while some := listed.fetchmany(PIECE):
            scans = [Found(_name(content, frame), row, "", None) for content, frame, row in some]
            with self.tensors(scans) as tensors:
                found += tensors.damaged()
        return found

    def close(self) -> None:
        """Commit, and let another process have it."""
        try:
            self.commit()
        finally:
            self._index.close()
            self._records.close()
            os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put(
        self,
        source: Source,
        content: bytes,
        row: int | None,
        sealed: tuple[bytes | None, bytes | None],
        why: str | None,
    ) -> None:
        self._index.execute(
            "INSERT OR REPLACE INTO scans VALUES (?, ?, ?, ?, ?, ?)",
            (content, _frame(source.frame), row, *sealed, why),
        )
        self.know(source, content)

    def _path(self, path: Path) -> bytes:
        return hmac.digest(self._keys["paths"], os.fsencode(path), hashlib.sha256)[:16]

    def _seal(self, text: str, name: bytes) -> bytes:
        plain = text.encode("utf-8", "surrogatepass") + b"\x80"
        plain += b"\0" * (-len(plain) % _BLOCK)
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._texts.encrypt(nonce, plain, name)

    def _open(self, sealed: bytes | None, name: bytes) -> str:
        if sealed is None:
            return ""
        plain = self._texts.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], name)
        return plain.rstrip(b"\0")[:-1].decode("utf-8", "surrogatepass")

    def _fact(self, name: str) -> int | None:
        found = self._index.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if found is None else found[0]

    def _put_fact(self, name: str, value: int) -> None:
        self._index.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))


def content_name(key: bytes, content: bytes) -> bytes:
    """The keyed name of a file's content, 32 bytes, from the SHA-256 of its bytes."""
    return hmac.digest(key, content, hashlib.sha256)


class KnownContents:
    """Which contents a cache has, for processes that only ask.

    Args:
        folder: Of the cache.
        key: Its content key.
    """

    def __init__(self, folder: Path, key: bytes) -> None:
        self._key = key
        self._index = sqlite3.connect(f"{(folder / INDEX).as_uri()}?mode=ro", uri=True, timeout=60)

    def name(self, sha256: bytes) -> bytes:
        """The keyed name of a content."""
        return content_name(self._key, sha256)

    def __contains__(self, place: tuple[bytes, int | None]) -> bool:
        content, frame = place
        asked = "SELECT 1 FROM scans WHERE content = ? AND frame = ?"
        return self._index.execute(asked, (content, _frame(frame))).fetchone() is not None


def _frame(frame: int | None) -> int:
    return NO_FRAME if frame is None else frame


def _name(content: bytes, frame: int | None) -> bytes:
    return content + _frame(frame).to_bytes(8, "little", signed=True)
