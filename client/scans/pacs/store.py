"""The folder that pulled files go to, and its memory of what it has.

::

    ab/ab12...ef.dcm    one object, named by the SHA-256 of its SOP Instance UID
    .pull/state.db      name and size of every file that was pulled
    .pull/lock          held while a pull runs
    .pull/part/         files that are still coming; emptied at every start

No name, number or UID of the archive becomes a file name. A file appears complete or not at
all, and is written down afterwards; what a crash left unwritten is found again by its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from medfed.common.errors import ConfigError
from medfed.common.trust.private_files import private_folder

_SCHEMA = "CREATE TABLE IF NOT EXISTS pulled (name TEXT PRIMARY KEY, bytes INTEGER NOT NULL)"


class PullStore:
    """An opened folder; one process at a time. Use ``PullStore.open``.

    Attributes:
        folder: Where it is.
        total_bytes: Size of everything it holds.
    """

    def __init__(self, folder: Path, database: sqlite3.Connection) -> None:
        self.folder = folder
        self._database = database
        row = database.execute("SELECT COALESCE(SUM(bytes), 0) FROM pulled").fetchone()
        self.total_bytes = int(row[0])

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path) -> Iterator[PullStore]:
        """Open a folder, making it if need be, until the block ends.

        Raises:
            ConfigError: it cannot be written, another pull is using it, or its state is broken.
        """
        inner = private_folder(folder.absolute() / ".pull")
        with _locked(inner / "lock"):
            for left in private_folder(inner / "part").iterdir():
                left.unlink()
            try:
                with contextlib.closing(_database(inner / "state.db")) as database:
                    yield cls(folder.absolute(), database)
            except sqlite3.Error as error:
                raise ConfigError(
                    f"{inner / 'state.db'}: the state of the pull cannot be used ({error}).",
                    advice="move it away: the files are found again by their names.",
                ) from error

    def path_of(self, uid: str) -> Path:
        """Where the object of a SOP Instance UID lies or would lie."""
        name = hashlib.sha256(uid.encode("ascii")).hexdigest()
        return self.folder / name[:2] / f"{name}.dcm"

    def has(self, uid: str) -> bool:
        """Whether an object is there, whole.

        A file that was pulled but not written down (a crash came between) is written down now;
        one that was written down and is gone, or has another size, counts as missing.
        """
        path = self.path_of(uid)
        row = self._database.execute(
            "SELECT bytes FROM pulled WHERE name = ?", (path.stem,)
        ).fetchone()
        try:
            size = path.stat().st_size
        except OSError:
            size = None
        if row is None and size is not None:
            self._write_down(path.stem, size)
            return True
        if row is not None and size != row[0]:
            self._forget(path.stem, int(row[0]))
            return False
        return row is not None

    @contextlib.contextmanager
    def receive(self, uid: str, check: Callable[[Path], None]) -> Iterator[IO[bytes]]:
        """Take in one object: write it to what this yields.

        Args:
            uid: SOP Instance UID.
            check: Looks at the whole file before it takes its name; raises to refuse it.

        Raises:
            OSError: the disk is full or cannot be written.

        Guarantee:
            If the block or the check raises, or the process dies, there is no file of that
            name; else there is one, on the disk, of mode 0600.
        """
        path = self.path_of(uid)
        handle, part = tempfile.mkstemp(dir=self.folder / ".pull" / "part")  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            check(Path(part))
            path.parent.mkdir(mode=0o700, exist_ok=True)
            os.replace(part, path)
            _sync(path.parent)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        self._write_down(path.stem, size)

    def free_bytes(self) -> int:
        """What the disk has room for."""
        return shutil.disk_usage(self.folder).free

    def _write_down(self, name: str, size: int) -> None:
        self._database.execute("INSERT INTO pulled VALUES (?, ?)", (name, size))
        self.total_bytes += size

    def _forget(self, name: str, size: int) -> None:
        self._database.execute("DELETE FROM pulled WHERE name = ?", (name,))
        self.total_bytes -= size


def _database(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)
    database = sqlite3.connect(path, isolation_level=None)  # every statement commits
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")  # files are the truth; this can lag a crash
    database.execute(_SCHEMA)
    return database


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{path.parent.parent}: another pull is running into this folder.",
                advice="wait for it, or end it first.",
            ) from None
        yield


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
