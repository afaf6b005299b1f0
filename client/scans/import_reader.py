"""What a child of the import does with one entry: look, hash, and read if it is new."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from medfed.client.scans.cache import FileState, KnownContents, Source
from medfed.client.scans.cache_records import TensorForm, packed
from medfed.client.scans.entries import EntryReader, ScanRead
from medfed.client.scans.facts import about_scan, look_of
from medfed.client.scans.guards import MAX_FILE_BYTES
from medfed.client.scans.layouts.files import ARRAYS, has_ending
from medfed.client.scans.layouts.layout import Entry, Index, LayoutName
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.common.study_scans import Scans

SETTLED_NS: Final = 2_000_000_000
"""A file changed more recently than this may change again without a later time on it: it is
hashed at the next import too."""
SKEW_NS: Final = 3_600_000_000_000
"""How far the clock of a file server may be ahead."""


Read = Callable[[Entry], ScanRead]
MakeRead = Callable[[LayoutName, Path, Scans], Read]
"""From layout, folder and what the study asks for to what reads an entry."""


class Unsteady(StrEnum):
    """Why a file was not used this time; the value is what the admin reads."""

    CHANGED = "file changed while it was read"


class Job(NamedTuple):
    """One entry, and its file, or its files as one, as the import saw them. Private."""

    entry: Entry
    source: Source

    def __repr__(self) -> str:
        return "Job()"


class Reading(NamedTuple):
    """What became of an entry. Private.

    Attributes:
        source: Its file as it was read.
        content: Keyed name of its content; None: it was not hashed.
        plain: Its tensor, packed; None: it is in the cache already, or refused.
        patient: The patient key that the file gives.
        about: How the scan was taken and what it looks like, as ``about_scan`` writes it.
        refused: Why there is no tensor; None: there is one.
    """

    source: Source
    content: bytes | None = None
    plain: bytes | None = None
    patient: str = ""
    about: str = ""
    refused: str | None = None

    def __repr__(self) -> str:
        return "Reading()"


def files_of(folder: Path, entry: Entry) -> list[Path]:
    """The files of an entry: one, or all slices of a series."""
    return [folder / file for file in (entry.file, *entry.others)]


def state_of_entry(folder: Path, entry: Entry) -> FileState | None:
    """The state of an entry's file, or of all its files as one; None where one is missing."""
    return _one_state([state_of(path) for path in files_of(folder, entry)])


def _one_state(states: Sequence[FileState | None]) -> FileState | None:
    """One state that changes when any of these does, or their number."""
    known = [state for state in states if state is not None]
    if len(known) < len(states):
        return None
    if len(known) == 1:
        return known[0]
    every = hashlib.sha256(repr([tuple(state) for state in known]).encode()).digest()
    return FileState(
        sum(state.size for state in known),
        max(state.mtime_ns for state in known),
        max(state.ctime_ns for state in known),
        int.from_bytes(every[:8], "little") >> 1,  # SQLite keeps 63 bits and a sign
    )


def state_of(path: Path) -> FileState | None:
    """The state of a file as it is now; None where there is no regular file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return FileState(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@dataclass(frozen=True)
class MakeReader:
    """Makes the reader of a child; travels there.

    Attributes:
        layout: Of the index.
        folder: What its entries' paths are relative to.
        scans: What the study asks for.
        form: Of the tensors.
        cache: Folder of the cache.
        content_key: Its content key.
        make_read: Gives what reads an entry; importable.
    """

    layout: LayoutName
    folder: Path
    scans: Scans
    form: TensorForm
    cache: Path
    content_key: bytes
    make_read: MakeRead

    def __call__(self) -> ImportReader:
        """Make it."""
        return ImportReader(
            self.folder,
            self.make_read(self.layout, self.folder, self.scans),
            self.form,
            KnownContents(self.cache, self.content_key),
        )


def entry_reader(layout: LayoutName, folder: Path, scans: Scans) -> Read:
    """The one place that knows how an entry is read."""
    return EntryReader(Index(layout, folder, (), {}), scans).read


class ImportReader:
    """Reads entries of one index, in a child.

    Args:
        folder: What the entries' paths are relative to.
        read: Reads the scan of an entry.
        form: Of the tensors.
        known: What need not be read.
    """

    def __init__(
        self,
        folder: Path,
        read: Read,
        form: TensorForm,
        known: KnownContents,
    ) -> None:
        self._folder, self._read, self._form, self._known = folder, read, form, known
        self._last: tuple[Path, FileState, bytes] | None = None

    def __call__(self, job: Job) -> Reading:
        """Read one entry.

        Raises:
            ScanError: the data set as a whole cannot be read.
        """
        entry, paths = job.entry, files_of(self._folder, job.entry)
        states = [state_of(path) for path in paths]
        state = _one_state(states)
        if state is None:
            return Reading(job.source, refused=Reason.MISSING.value)
        known, now = [one for one in states if one is not None], time.time_ns()
        settled = all(is_settled(one, now) for one in known)
        source = job.source._replace(state=state, settled=settled)
        if max(one.size for one in known) > MAX_FILE_BYTES and not has_ending(entry.file, ARRAYS):
            return Reading(source, refused=Reason.TOO_LARGE.value)
        content = self._content(paths, state)
        if content is None:
            return Reading(source, refused=Reason.MISSING.value)
        if (content, entry.frame) in self._known:
            return Reading(source, content)
        reading = self._decoded(entry, Reading(source, content))
        if state_of_entry(self._folder, entry) != state:
            return Reading(source, refused=Unsteady.CHANGED.value)
        return reading

    def _decoded(self, entry: Entry, reading: Reading) -> Reading:
        try:  # without what the table says of the patient: that may change, the file does not
            scan = self._read(entry._replace(patient=None))
        except RefusedScanError as error:
            return reading._replace(refused=error.reason.value)
        if not np.isfinite(scan.tensor).all():
            return reading._replace(refused=Reason.DECODE.value)
        return reading._replace(
            plain=packed(scan.tensor, self._form),
            patient=scan.patient,
            about=about_scan(scan.facts, look_of(scan.tensor)),
        )

    def _content(self, paths: Sequence[Path], state: FileState) -> bytes | None:
        """The keyed name of the files' content; of the pictures of one file it is found once."""
        if self._last is not None and self._last[:2] == (paths[0], state):
            return self._last[2]
        try:
            digests = [_digest(path) for path in paths]
        except OSError:
            return None
        joined = b"series" + b"".join(sorted(digests))  # its names and their order say nothing
        content = digests[0] if len(digests) == 1 else hashlib.sha256(joined).digest()
        self._last = (paths[0], state, self._known.name(content))
        return self._last[2]


def _digest(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def is_settled(state: FileState, now_ns: int) -> bool:
    """Whether a later change of the file will show in its time."""
    return not -SKEW_NS < now_ns - state.mtime_ns < SETTLED_NS
