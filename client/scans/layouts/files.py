"""Files below a scans folder: found without leaving it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path, PureWindowsPath
from typing import Final

from medfed.client.scans.layouts.layout import LineReason

PICTURES: Final = (".png", ".jpg", ".jpeg")
VOLUMES: Final = (".nii", ".nii.gz")
ARRAYS: Final = (".npz",)
RESOURCE_FORKS: Final = "__MACOSX"
"""Folder that a Mac adds to archives; its files have the names of pictures and are none."""


def has_ending(name: str, endings: tuple[str, ...]) -> bool:
    """Whether a name ends in one of these, in capitals or not."""
    return name.lower().endswith(endings)


def inside(root: Path, name: str) -> str | LineReason:
    r"""Find the path, below a folder, of a file that a table names.

    Args:
        root: The folder, resolved.
        name: What the table says; ``\`` of a Windows path counts as ``/``. Not trusted.

    Returns:
        The path below ``root`` with all links followed, with ``/``; the file need not be there.
        ``LINE`` where it names no file, ``NOT_THERE`` where links lead in a circle, ``OUTSIDE``.
    """
    if not name or "\0" in name:
        return LineReason.LINE
    if PureWindowsPath(name).drive:
        return LineReason.OUTSIDE
    if "\\" in name and not os.path.lexists(root / name):
        name = name.replace("\\", "/")
    try:
        file = (root / name).resolve()
    except (OSError, RuntimeError):  # RuntimeError: links that lead in a circle
        return LineReason.NOT_THERE
    if not file.is_relative_to(root) or file == root:
        return LineReason.OUTSIDE
    return file.relative_to(root).as_posix()


def walk(root: Path) -> Iterator[str]:
    """Give all files below a folder in a fixed order, as paths with ``/``.

    Left out are links, what is hidden (``.name``), and folders that this user may not list.
    """
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(root / below) as listing:
                found = sorted(listing, key=lambda item: item.name)
        except OSError:
            continue
        folders = []
        for item in found:
            if item.name.startswith(".") or item.name == RESOURCE_FORKS:
                continue
            path = f"{below}/{item.name}" if below else item.name
            if item.is_dir(follow_symlinks=False):
                folders.append(path)
            elif item.is_file(follow_symlinks=False):
                yield path
        waiting += reversed(folders)


class Named:
    """The files below a folder by their names.

    Args:
        root: The folder.
        endings: Which files, by the end of the name.
    """

    def __init__(self, root: Path, endings: Collection[str]) -> None:
        self._paths: dict[str, str | None] = {}
        for path in walk(root):
            name = path.rpartition("/")[2]
            if has_ending(name, tuple(endings)):
                self._paths[name] = None if name in self._paths else path

    def find(self, *names: str) -> str | LineReason:
        """The path of the one file that has one of the names; else why there is none."""
        there = [self._paths[name] for name in names if name in self._paths]
        if not there:
            return LineReason.NOT_THERE
        return there[0] if len(there) == 1 and there[0] is not None else LineReason.SAME_NAME
