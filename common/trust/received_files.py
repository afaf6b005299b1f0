"""Read files of trust: those that came from elsewhere, and keys that nobody else may read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from medfed.common.errors import ConfigError, TrustError
from medfed.common.report.words import clean

_LARGEST_KEY_BYTES = 16 * 1024
_LONGEST_SHOWN = 60


def read_received(path: Path, largest_bytes: int, *, what: str) -> bytes:
    """Read a small file that came from elsewhere.

    Args:
        path: A regular file, or a link to one.
        largest_bytes: How long it may be.
        what: What it is read as, for messages: ``a site's approval``.

    Raises:
        ConfigError: it cannot be read, or is no regular file.
        TrustError: it is longer. No more than ``largest_bytes`` + 1 are ever in memory.
    """
    try:
        # A pipe that nobody writes to would be waited for without end.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _unreadable(path, what, "no regular file")
            data = file.read(largest_bytes + 1)
    except OSError as error:
        raise _unreadable(path, what, error.strerror or "not readable") from error
    if len(data) > largest_bytes:
        raise TrustError(
            f"{path}: found more than {largest_bytes} bytes; allowed is {what}, which is shorter.",
            advice="ask the sender for the file again.",
        )
    return data


def read_secret(path: Path, *, what: str) -> bytes:
    """Read a private key's file.

    Args:
        path: The file.
        what: Whose key it is, for messages: ``the site's private key``.

    Raises:
        ConfigError: it cannot be read, or other users of the machine may read it.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise _unreadable(path, what, "no regular file")
            data = file.read(_LARGEST_KEY_BYTES)
    except OSError as error:
        raise _unreadable(path, what, error.strerror or "not readable") from error
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise ConfigError(
            f"{path}: other users of this machine may read {what} (mode {mode:04o}, allowed: "
            "0600).",
            advice=f"chmod 600 {path}; if others had access to this machine, have a new key made.",
        )
    return data


def shown(text: str) -> str:
    """Quote a text from elsewhere for a message: on one line, printable, not long.

    Example:
        >>> shown("A" + chr(27) + "[2J") == "'A" + chr(0xFFFD) + "[2J'"
        True
    """
    safe = clean(text)
    return repr(safe if len(safe) <= _LONGEST_SHOWN else safe[: _LONGEST_SHOWN - 3] + "...")


def _unreadable(path: Path, what: str, why: str) -> ConfigError:
    return ConfigError(
        f"{path}: {what} cannot be read ({why}).",
        advice="check the path, and that the file is there and yours.",
    )
