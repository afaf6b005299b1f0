"""An append-only record of what a site's programs did, each line chained to the one before.

A text file of JSON lines, for the site's admin and auditor. Every line has

    sequence   from 1, without gaps
    time       UTC
    event      one of ``EVENTS``, with the fields that it is allowed to have
    before     SHA-256 of the line before, as it stands in the file

so that a line removed, altered, inserted or moved is found. Whoever may write the file can write
all of it anew or cut off its end: that is found only by a head (``head``) that was kept elsewhere.

A crash while a line is written leaves a part of it. The next writer leaves that where it is, says
so in a line of its own (``log.torn``), and goes on; whole lines are never dropped.

Nothing about a patient may be in it: no identifier, no name of a file, no count of patients.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from medfed.common.errors import ConfigError, LedgerError
from medfed.common.files import alone

Value = int | str

TORN: Final = "log.torn"
KEY_MADE: Final = "pseudonym-key.made"
KEY_USED: Final = "pseudonym-key.used"
MERGED: Final = "patients.merged"

EVENTS: Final[Mapping[str, frozenset[str]]] = {
    TORN: frozenset({"bytes", "torn", "process", "user"}),
    KEY_MADE: frozenset({"process", "user"}),
    KEY_USED: frozenset({"purpose", "process", "user"}),
    MERGED: frozenset({"entry", "process", "user"}),
}
"""Event -> the fields that its line has, all of them and no other.

``process`` and ``user`` are the numbers that the operating system has for the writer; ``purpose``
is a constant of the program; ``entry`` is a number of the ledger's."""

FIRST: Final = "0" * 64
"""What stands for the line before the first."""

_WORDS: Final = re.compile(r"[A-Za-z0-9 ._:/+-]{0,200}")
_TAIL_BYTES: Final = 1 << 20


class LogHead(NamedTuple):
    """How far a log has come. To be kept where whoever may write the log may not.

    Attributes:
        sequence: Of its last line; 0: it has none.
        hash: SHA-256 of that line, 64 hexadecimal digits.
    """

    sequence: int
    hash: str


class Line(NamedTuple):
    """One line of a log.

    Attributes:
        head: The log's head when this line was its last.
        time: UTC, as ``2026-11-20T10:00:00.000+00:00``.
        event: One of ``EVENTS``, or of a newer medfed's.
        fields: What the event's line tells.
    """

    head: LogHead
    time: str
    event: str
    fields: Mapping[str, Value]


@dataclass(frozen=True)
class Checked:
    """What a check of a whole log found to be in order.

    Attributes:
        head: Its head.
        lines: All its lines, in order.
        torn_bytes: What a crash left at its end and no line speaks of yet; 0: nothing.
    """

    head: LogHead
    lines: tuple[Line, ...]
    torn_bytes: int


class AuditLog:
    """A log to write to. Threads and processes take turns.

    Args:
        path: The file; its folder exists. Made with the first line, mode 0600.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, event: str, **fields: Value) -> LogHead:
        """Add a line; on the disk when this returns.

        Args:
            event: One of ``EVENTS``.
            fields: All that the event needs, but ``process`` and ``user``. Text is of letters,
                digits, blanks and ``._:/+-``, at most 200 of them.

        Raises:
            ValueError: another event, field or value (a defect: nothing is written).
            ConfigError: the file cannot be written; what the line is about must not happen.
            LedgerError: the end of the file is no log.

        Guarantee:
            The line is on the disk in full, or this raises. Lines before it stay as they are.
        """
        writer: dict[str, Value] = {"process": os.getpid(), "user": os.getuid()}
        _check_allowed(event, {**fields, **writer})
        with self._mine() as file:
            before, torn, text = self._end(file)
            if torn is not None:
                what: dict[str, Value] = {"bytes": len(torn), "torn": _hash(torn)}
                line, before = _line(before, TORN, {**what, **writer})
                text += line
            line, head = _line(before, event, {**fields, **writer})
            self._append(file, text + line)
            return head

    @contextmanager
    def _mine(self) -> Iterator[int]:
        """The file, open, while nobody else writes."""
        try:
            with alone(self._path.with_name(f"{self._path.name}.lock")):
                flags = os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW
                file = os.open(self._path, flags, 0o600)
                try:
                    os.fchmod(file, 0o600)
                    yield file
                finally:
                    os.close(file)
        except OSError as error:
            raise ConfigError(
                f"{self._path}: the audit log cannot be written ({error.strerror}); what it would "
                "tell of was not done.",
                advice="check the disk, and that the site's folder is yours.",
            ) from error

    def _end(self, file: int) -> tuple[LogHead, bytes | None, bytes]:
        """The head, what lies behind the last whole line, and what ends that line."""
        size = os.fstat(file).st_size
        start = max(0, size - _TAIL_BYTES)
        tail = os.pread(file, size - start, start)
        newline = b"\n" if tail and not tail.endswith(b"\n") else b""
        end = len(tail)
        while end:
            begin = tail.rfind(b"\n", 0, end - 1) + 1
            found = _parsed(tail[begin:end].removesuffix(b"\n"))
            if found is not None:
                torn = tail[end:].removesuffix(b"\n") if end < len(tail) else None
                return found[0].head, torn, newline
            end = begin
        if start:
            raise _broken(self._path, "its end is no line of a log")
        return LogHead(0, FIRST), tail.removesuffix(b"\n") if tail else None, newline

    def _append(self, file: int, text: bytes) -> None:
        size = os.fstat(file).st_size
        while text:
            text = text[os.write(file, text) :]
        os.fsync(file)
        if not size:
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def head(path: Path) -> LogHead:
    """How far a log has come, after a check of all of it; errors as ``verify``."""
    return verify(path).head


def verify(path: Path, *, known: LogHead | None = None) -> Checked:
    """Check every line of a log against the one before.

    Args:
        path: The file. One that is missing is an empty log.
        known: A head that was kept elsewhere: the log must have come there.

    Raises:
        LedgerError: a line was removed, altered, inserted or moved; or the log does not hold
            ``known``, so that its end was cut off or written anew.
        ConfigError: the file cannot be read.
    """
    lines: list[Line] = []
    torn: list[bytes] = []
    for raw in _raw_lines(path):
        found = _parsed(raw)
        if found is None:
            torn.append(raw)
            continue
        line, before = found
        last = lines[-1].head if lines else LogHead(0, FIRST)
        if (line.head.sequence, before) != (last.sequence + 1, last.hash):
            raise _broken(path, f"line {last.sequence + 1} was changed, removed or moved")
        if not _speaks_of(line, torn):
            raise _broken(path, f"something was changed before line {line.head.sequence}")
        lines.append(line)
        torn = []
    if known is not None and known.sequence:
        there = lines[known.sequence - 1].head if known.sequence <= len(lines) else None
        if there != known:
            raise _broken(path, f"it had come to line {known.sequence} and does not hold it")
    last = lines[-1].head if lines else LogHead(0, FIRST)
    return Checked(last, tuple(lines), len(b"\n".join(torn)))


def _raw_lines(path: Path) -> list[bytes]:
    """The file's lines without their ends, while nobody writes."""
    if not path.exists():
        return []
    try:
        with alone(path.with_name(f"{path.name}.lock")), path.open("rb") as file:
            return [line.removesuffix(b"\n") for line in file]
    except OSError as error:
        raise ConfigError(
            f"{path}: the audit log cannot be read ({error.strerror}).",
            advice="check that the site's folder is yours.",
        ) from error


def _speaks_of(line: Line, torn: list[bytes]) -> bool:
    """Whether a line tells of exactly what a crash left before it, which may be nothing."""
    if not torn:
        return line.event != TORN
    left = b"\n".join(torn)
    told = (line.event, line.fields.get("bytes"), line.fields.get("torn"))
    return told == (TORN, len(left), _hash(left))


def _line(before: LogHead, event: str, fields: Mapping[str, Value]) -> tuple[bytes, LogHead]:
    """A line with its end, and the head that it makes."""
    sequence = before.sequence + 1
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    told = {"sequence": sequence, "time": time, "event": event, **fields, "before": before.hash}
    text = json.dumps(told, separators=(",", ":")).encode("ascii")
    return text + b"\n", LogHead(sequence, _hash(text))


def _parsed(raw: bytes) -> tuple[Line, str] | None:
    """A line and the hash that it names as the one before; None: it is no line of a log."""
    try:
        told: Any = json.loads(raw)
        sequence, time, event, before = (
            told.pop(k) for k in ("sequence", "time", "event", "before")
        )
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return None
    if type(sequence) is not int or not all(isinstance(v, str) for v in (time, event, before)):
        return None
    return Line(LogHead(sequence, _hash(raw)), time, event, told), before


def _check_allowed(event: str, fields: Mapping[str, Value]) -> None:
    if event not in EVENTS or event == TORN or fields.keys() != EVENTS[event]:
        raise ValueError(f"no event of the audit log: {event!r} with {sorted(fields)}")
    for name, value in fields.items():
        if type(value) is not int and not (isinstance(value, str) and _WORDS.fullmatch(value)):
            raise ValueError(f"event {event!r}: the value of {name} is not allowed")


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _broken(path: Path, found: str) -> LedgerError:
    return LedgerError(
        f"{path}: the audit log cannot be trusted: {found}.",
        advice="keep the file for your auditor, find out who may write to it, and restore its "
        "newest copy.",
    )
