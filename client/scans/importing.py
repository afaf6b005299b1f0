"""Import a site's scans: each file is decoded once, and training reads the cache.

The job walks an index entry by entry and keeps none of them: a file whose size, time and inode are
as before is not opened; another is hashed, in a child; only what has a content that is not in the
cache is decoded, in a child (``decoding.py``). So it takes as much memory for a million files as
for a hundred. It may be ended at any moment; the next one goes on.
"""

from __future__ import annotations

import csv
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TextIO

from medfed.client.scans.cache import REFUSED, ScanCache, Source
from medfed.client.scans.decoding import Decoding, DecodingFailure, DecodingLimits
from medfed.client.scans.import_reader import (
    Job,
    MakeRead,
    MakeReader,
    Reading,
    Unsteady,
    entry_reader,
    state_of_entry,
)
from medfed.client.scans.layouts.files import ARRAYS, has_ending
from medfed.client.scans.layouts.layout import Entry, Index
from medfed.client.scans.recipe import recipe_of
from medfed.client.scans.refusals import Reason
from medfed.common.errors import ScanError
from medfed.common.interruption import interrupts_held
from medfed.common.study_scans import Scans

COMMIT_SCANS: Final = 512
COMMIT_S: Final = 2.0
"""What is imported becomes durable after so many scans, or seconds."""
SLICE_S: Final = 0.5
"""Seconds more that a series may take for each slice but the first; JPEG 2000 takes 0.03."""
ARRAY_LIMITS: Final = DecodingLimits(children=1, time_s=600.0, memory_bytes=20 << 30)
"""An ``.npz`` is one file of many scans: one child holds all of its pictures."""

FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula: such a file is reported as ``./=…``."""

_PASSING: Final = (Reason.MISSING.value, Unsteady.CHANGED.value)  # not to be remembered
_PREPARE: Final = "medfed.client.scans.import_reader"

Progress = Callable[[int, int], None]
"""Is told entries done, and entries in all."""


@dataclass
class Tally:
    """What an import did. Private; told to the site's admin only.

    Attributes:
        listed: Entries of the index.
        unchanged: Whose file was not opened, its state being as before.
        same: Whose file was hashed only, its content being known.
        imported: Decoded and put into the cache.
        refused: Reason -> entries without a tensor, those refused earlier included.
        left_out: Reason -> scans or lines that are not in the index.
        damaged: Records of the cache that were found damaged, and dropped.
        erased: Tensors that were erased because the folder has their file no more.
    """

    listed: int = 0
    unchanged: int = 0
    same: int = 0
    imported: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    damaged: int = 0
    erased: int = 0


def import_scans(
    index: Index,
    scans: Scans,
    cache: ScanCache,
    *,
    limits: DecodingLimits | None = None,
    on_progress: Progress | None = None,
    again: bool = False,
    verify: bool = False,
    prune: bool = False,
    make_read: MakeRead = entry_reader,
) -> Tally:
    """Bring every scan of an index into the cache that is not there yet.

    Args:
        index: The site's scans.
        scans: What the study asks for; the cache is that table's.
        cache: Open.
        limits: What the decoding children may use; None: two children, or one for an ``.npz``.
        on_progress: Told after every entry.
        again: Try files again that were refused before.
        verify: Read every record first, and drop those that are damaged.
        prune: At the end erase what belongs to files that are not there any more, or that the
            index does not name. Not where none is there at all: a disk may be missing.
        make_read: Gives, in a child, what reads an entry.

    Raises:
        ScanError: the data set as a whole cannot be read, or the cache cannot be written.

    Guarantee:
        Ended at any moment, also by ``kill -9``, it loses at most the last ``COMMIT_SCANS`` scans
        or ``COMMIT_S`` seconds; what was committed is whole. ``refused.csv`` in the cache's
        folder, of mode 0600, names every file that was refused.
    """
    tally = Tally(left_out=Counter(index.refused))
    with _writing(cache.folder):
        if verify:
            tally.damaged = cache.forget(cache.damaged())
        if again:
            cache.forget_refused()
        if prune:
            cache.begin_pass()
        with interrupts_held() as check, _report(cache.folder / REFUSED) as report:
            job = _Import(index, cache, tally, report, on_progress, prune=prune)
            make = MakeReader(
                index.layout,
                index.folder,
                scans,
                recipe_of(scans).form,
                cache.folder,
                cache.content_key,
                make_read,
            )
            job.run(Decoding(make, limits or limits_for(index), _PREPARE), check)
        if prune and tally.refused[Reason.MISSING.value] < tally.listed:
            tally.erased = cache.drop_unseen()
    return tally


class _Import:
    """One pass over an index."""

    def __init__(
        self,
        index: Index,
        cache: ScanCache,
        tally: Tally,
        report: Callable[[str, Entry], None],
        on_progress: Progress | None,
        *,
        prune: bool,
    ) -> None:
        self._prune = prune
        self._index, self._cache, self._tally, self._report = index, cache, tally, report
        self._on_progress, self._done = on_progress, 0
        self._pending, self._committed_at = 0, time.monotonic()

    def run(self, decoding: Decoding[Job, Reading], check: Callable[[], None]) -> None:
        results = decoding.results(self._changed(check), check)
        try:
            for job, result in results:
                if isinstance(result, DecodingFailure):
                    result = Reading(job.source, refused=result.value)
                self._take(job.entry, result)
        finally:
            results.close()  # type: ignore[attr-defined]  # a generator; its children end here
            self._cache.commit()

    def _changed(self, check: Callable[[], None]) -> Iterator[Job]:
        """The entries that must be looked at; the others are counted."""
        for entry in self._index.entries:
            check()
            self._tally.listed += 1
            path = self._index.folder / entry.file
            state = state_of_entry(self._index.folder, entry)
            if self._prune and state is not None:
                self._cache.see(path)
            if state is None:
                self._refused(Reason.MISSING.value, entry)
                continue
            source = Source(path, state, entry.frame)
            found = self._cache.find(source)
            if found is None:
                yield Job(entry, source)
            elif found.refused is not None:
                self._refused(found.refused, entry)
            else:
                self._tally.unchanged += 1
                self._step()

    def _take(self, entry: Entry, reading: Reading) -> None:
        content, refused = reading.content, reading.refused
        if refused is not None:
            if refused not in _PASSING:
                self._cache.refuse(reading.source, content, refused)
            self._refused(refused, entry)
        elif content is not None and reading.plain is not None:
            self._cache.add(reading.source, content, reading.patient, reading.about, reading.plain)
            self._tally.imported += 1
            self._step()
        elif content is not None:
            self._cache.know(reading.source, content)
            self._known(entry, reading.source)
        self._pending += 1
        if self._pending >= COMMIT_SCANS or time.monotonic() - self._committed_at > COMMIT_S:
            self._cache.commit()
            self._pending, self._committed_at = 0, time.monotonic()

    def _known(self, entry: Entry, source: Source) -> None:
        """Count an entry whose content is in the cache: as a tensor, or as refused."""
        found = self._cache.find(source._replace(settled=False))
        if found is not None and found.refused is not None:
            self._refused(found.refused, entry)
        else:
            self._tally.same += 1
            self._step()

    def _refused(self, reason: str, entry: Entry) -> None:
        self._tally.refused[reason] += 1
        self._report(reason, entry)
        self._step()

    def _step(self) -> None:
        self._done += 1
        if self._on_progress is not None:
            self._on_progress(self._done, len(self._index.entries))


def limits_for(index: Index) -> DecodingLimits:
    """What the children may use that read this index; the longest series says how long."""
    if index.entries and has_ending(index.entries[0].file, ARRAYS):
        return ARRAY_LIMITS
    others = max((len(entry.others) for entry in index.entries), default=0)
    usual = DecodingLimits()
    return replace(usual, time_s=usual.time_s + SLICE_S * others)


@contextmanager
def _report(path: Path) -> Iterator[Callable[[str, Entry], None]]:
    """Write the names of refused files beside the last report; it takes its place at the end."""
    part = path.with_name(f".{path.name}.part")
    try:
        with open(
            os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            "w",
            newline="",
            encoding="utf-8",
            errors="surrogateescape",
        ) as file:
            yield _reporter(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _reporter(stream: TextIO) -> Callable[[str, Entry], None]:
    lines = csv.writer(stream)
    lines.writerow(["reason", "file", "picture"])

    def write(reason: str, entry: Entry) -> None:
        file = f"./{entry.file}" if entry.file.startswith(FORMULAS) else entry.file
        lines.writerow([reason, file, "" if entry.frame is None else entry.frame])

    return write


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise ScanError(
            f"{folder}: the cache cannot be written ({type(error).__name__}).",
            advice="check that the disk has room; if it has, remove the folder: the next import "
            "makes it anew.",
        ) from error
