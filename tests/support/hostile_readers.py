"""Readers of entries that misbehave, or tell what they read; the import's children import them."""

from __future__ import annotations

from pathlib import Path

from medfed.client.scans.entries import ScanRead
from medfed.client.scans.import_reader import Read, entry_reader
from medfed.client.scans.layouts.layout import Entry, LayoutName
from medfed.common.study_scans import Scans
from tests.support.misbehaving import misbehave


def hostile_read(layout: LayoutName, folder: Path, scans: Scans) -> Read:
    """Reads entries like the real one; but a file named ``NN-abort.dcm`` aborts, and so on."""
    read = entry_reader(layout, folder, scans)

    def hostile(entry: Entry) -> ScanRead:
        misbehave(entry.file.partition("-")[2].partition(".")[0])
        return read(entry)

    return hostile


def logging_read(layout: LayoutName, folder: Path, scans: Scans) -> Read:
    """Reads entries like the real one, and writes into ``folder/.read`` which."""
    read = entry_reader(layout, folder, scans)

    def logged(entry: Entry) -> ScanRead:
        with (folder / ".read").open("a") as log:
            log.write(f"{entry.file}\n")
        return read(entry)

    return logged


def changing_read(layout: LayoutName, folder: Path, scans: Scans) -> Read:
    """Reads entries like the real one; meanwhile somebody writes into ``0.dcm``."""
    read = entry_reader(layout, folder, scans)

    def changing(entry: Entry) -> ScanRead:
        scan = read(entry)
        if entry.file == "0.dcm":
            with (folder / entry.file).open("ab") as file:
                file.write(b"\0")
        return scan

    return changing
