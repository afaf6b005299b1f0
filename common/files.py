"""Write files so that a crash, an interruption or a full disk leaves the old one or the new one.

Nothing medfed writes is ever seen half-written: the bytes go to a temporary file in the same
folder, reach the disk, and take the name in one step.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file's content in one step.

    Args:
        path: The file; its folder exists.
        data: The whole content.
        mode: Permission bits of the file.

    Raises:
        OSError: the disk is full or the folder cannot be written; ``path`` is unchanged. Only
            where the disk fails in the very last step ``path`` may already hold ``data``.

    Guarantee:
        At any moment, also after a power cut, ``path`` holds the old content or all of ``data``.
    """
    folder = os.open(path.parent, os.O_RDONLY)  # first: what cannot be synced is not begun
    try:
        _replace(path, data, mode)
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is in here with the same lock file; made if missing, 0600.

    Raises:
        OSError: the file cannot be opened, or is a link.
    """
    handle = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(path: Path, data: bytes, mode: int) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
