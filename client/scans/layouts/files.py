"""Files below a scans folder: found without leaving it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Final

from medfed.client.scans.layouts.layout import LineReason
from medfed.client.scans.layouts.lookup import Lookup
from medfed.client.scans.layouts.packed import Packed, SortedNames

PICTURES: Final = (".png", ".jpg", ".jpeg")
VOLUMES: Final = (".nii", ".nii.gz")
ARRAYS: Final = (".npz",)
RESOURCE_FORKS: Final = "__MACOSX"
"""Folder that a Mac adds to archives; its files have the names of pictures and are none."""

KNOWN_FOLDERS: Final = 1024
"""Folders whose links were followed and are not followed again while one index is made."""


def has_ending(name: str, endings: tuple[str, ...]) -> bool:
    """Whether a name ends in one of these, in capitals or not."""
    return name.lower().endswith(endings)


class Inside:
    """Finds files that a table names, below a folder and nowhere else.

    Args:
        root: The folder, resolved.

    Attributes:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root, self._root = root, os.fspath(root)
        self._resolved = lru_cache(KNOWN_FOLDERS)(self._followed)

    def find(self, name: str) -> str | LineReason:
        r"""Find the path of a file.

        Args:
            name: What the table says; ``\`` of a Windows path counts as ``/``. Not trusted.

        Returns:
            The path below the folder with all links followed, with ``/``; the file need not be
            there. ``LINE`` where it names no file, ``NOT_THERE`` where links lead in a circle,
            ``OUTSIDE``.
        """
        if not name or "\0" in name:
            return LineReason.LINE
        if (name[0] in "/\\" or name[1:2] == ":") and PureWindowsPath(name).drive:
            return LineReason.OUTSIDE
        if "\\" in name and not os.path.lexists(os.path.join(self._root, name)):
            name = name.replace("\\", "/")
        above, _, last = name.rpartition("/")
        path = os.path.join(self._root, name)
        try:
            if name[0] == "/" or last in ("", ".", "..") or os.path.islink(path):
                file = self._followed(name)
            else:
                file = os.path.join(self._resolved(above), last)
        except (OSError, RuntimeError):  # RuntimeError: links that lead in a circle
            return LineReason.NOT_THERE
        start = os.path.join(self._root, "")
        below = file.removeprefix(start)
        return below if below != file else LineReason.OUTSIDE

    def _followed(self, name: str) -> str:
        return os.fspath((self.root / name).resolve())


def walk(root: Path) -> Iterator[str]:
    """Give all files below a folder in a fixed order, as paths with ``/``.

    Left out are links, what is hidden (``.name``), and folders that this user may not list.

    Guarantee:
        In memory are the names in the folders above the current file, packed.
    """
    levels = [iter([""])]  # what is still to be listed, for each folder above
    while levels:
        below = next(levels[-1], None)
        if below is None:
            levels.pop()
            continue
        files, folders = _listed(root / below)
        yield from _joined(below, files)
        levels.append(_joined(below, folders))


def _listed(folder: Path) -> tuple[Iterable[str], Iterable[str]]:
    """The names of a folder's files, and of its folders, in order."""
    files, folders = SortedNames(), SortedNames()
    try:
        with os.scandir(folder) as listing:
            for item in listing:
                if item.name.startswith(".") or item.name == RESOURCE_FORKS:
                    continue
                if item.is_dir(follow_symlinks=False):
                    folders.add(item.name)
                elif item.is_file(follow_symlinks=False):
                    files.add(item.name)
    except OSError:
        return (), ()
    return files, folders


def _joined(below: str, names: Iterable[str]) -> Iterator[str]:
    return (f"{below}/{name}" if below else name for name in names)


class Named:
    """The files below a folder by their names.

    Args:
        root: The folder.
        endings: Which files, by the end of the name.

    Guarantee:
        Some tens of bytes for each file, and as much for each folder.
    """

    def __init__(self, root: Path, endings: Collection[str]) -> None:
        self._folders: Packed[str] = Packed()
        self._by_name = Lookup(self._walked(root, tuple(endings)))

    def find(self, *names: str) -> str | LineReason:
        """The path of the one file that has one of the names; else why there is none."""
        there = [(name, said) for name in names if (said := self._by_name.find(name))]
        if not there:
            return LineReason.NOT_THERE
        name, said = there[0]
        if len(there) > 1 or not said.agreed:
            return LineReason.SAME_NAME
        return self._folders[said.value] + name

    def _walked(self, root: Path, endings: tuple[str, ...]) -> Iterator[tuple[str, int]]:
        """Each file's name, and the number of its folder."""
        last = None
        for path in walk(root):
            below, slash, name = path.rpartition("/")
            if has_ending(name, endings):
                if below != last:
                    self._folders.append(below + slash)
                    last = below
                yield name, len(self._folders) - 1
