"""Write what only its owner may read: folders of mode 0700, files of mode 0600.

A file appears whole or not at all: it is written beside its place, flushed to the disk
and then renamed, so that a kill at any moment leaves the old file or the new one.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from medfed.common.errors import ConfigError


def private_folder(folder: Path) -> Path:
    """Make a folder, with its parents, that only its owner may enter.

    Returns:
        The folder, made absolute. A folder that exists is narrowed to mode 0700.

    Raises:
        ConfigError: it cannot be made, or belongs to someone else.
    """
    folder = folder.absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be made a private folder ({error.strerror}).",
            advice="give a folder that you own, on a disk that can be written.",
        ) from error
    return folder


def write_private(path: Path, data: bytes, *, replace: bool = False) -> Path:
    """Write a file of mode 0600, whole or not at all.

    Args:
        path: Where; its folder exists.
        data: What.
        replace: Whether a file that is there already may be replaced.

    Returns:
        ``path``.

    Raises:
        ConfigError: the file exists and ``replace`` is false, or cannot be written.

    Guarantee:
        The bytes and the name are on the disk when this returns.
    """
    try:
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _put_in_place(Path(beside), path, replace=replace)
        finally:
            Path(beside).unlink(missing_ok=True)
    except FileExistsError:
        raise ConfigError(
            f"{path}: exists already and is not overwritten.",
            advice="keep it, or move it away first.",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}).",
            advice="check that the folder is yours and that the disk has room.",
        ) from error
    return path


def _put_in_place(beside: Path, path: Path, *, replace: bool) -> None:
    if replace:
        beside.replace(path)
    else:
        os.link(beside, path)  # unlike a rename it refuses a name that is taken
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
