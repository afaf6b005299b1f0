"""Write what only its owner may read: folders of mode 0700, files of mode 0600."""

from __future__ import annotations

from pathlib import Path

from medfed.common.errors import ConfigError
from medfed.common.files import write_atomically


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
        As ``medfed.common.files.write_atomically``.
    """
    if not replace and path.exists():
        raise ConfigError(
            f"{path}: exists already and is not overwritten.",
            advice="keep it, or move it away first.",
        )
    try:
        write_atomically(path, data)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}).",
            advice="check that the folder is yours and that the disk has room.",
        ) from error
    return path
