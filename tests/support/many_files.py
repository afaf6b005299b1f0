"""Scans folders of very many files, of which only the names count."""

from __future__ import annotations

import os
from pathlib import Path

LABELS = ("normal", "opacity")
LINKS = 60_000
"""Names of one file; ext4 allows 65,000."""


def linked_files(folder: Path, files: int) -> None:
    """Two class folders of empty pictures, two of each person, all names of a few files."""
    for label in LABELS:
        (folder / label).mkdir(parents=True)
    one = folder / ".one"
    for number in range(files):
        if number % LINKS == 0:
            one = folder / f".one{number}"
            one.touch()
        place = folder / LABELS[number % 2]
        os.link(one, place / f"person{number // 2:07}_scan_{number:07}.png")


def write_long_list(folder: Path, files: int) -> None:
    """A worklist of that many files; none of them needs to be there."""
    with (folder / "worklist.csv").open("w", encoding="utf-8") as table:
        table.write("file,label\n")
        for number in range(files):
            name = f"export{number // 1000:04}/IM{number:07}.dcm"
            table.write(f"{name},{LABELS[number % 2]}\n")
