"""Tables of text: bounded, of any of the usual separators, and never quoted in a message."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TextIO

from medfed.common.errors import ScanError

if TYPE_CHECKING:
    from _csv import Reader

MAX_TABLE_BYTES: Final = 256 << 20
"""Largest table: some millions of lines."""
SEPARATORS: Final = (",", ";", "\t")


class Line(NamedTuple):
    """One line of a table. Private."""

    number: int
    """Line of the file on which it ends, from 1."""
    cells: Mapping[str, str]
    """Column -> text without surrounding blanks; empty where the line is too short."""

    def __repr__(self) -> str:
        return f"Line(number={self.number})"

    def get(self, *columns: str) -> str:
        """The first text that is not empty among some columns; empty without one."""
        return next((self.cells[c] for c in columns if self.cells.get(c)), "")


class Table:
    """A table whose first line names its columns.

    Args:
        path: A text file, UTF-8 with or without byte order mark, separated by commas,
            semicolons or tabs, whichever its first line has most of.

    Attributes:
        columns: As the first line writes them, without surrounding blanks.

    Raises:
        ScanError: it cannot be read, is too long, is no UTF-8, or its first line is no CSV. The
            message never says what stands in it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with opened(path) as file:
            first = file.readline()
            self._separator = max(SEPARATORS, key=first.count)
            file.seek(0)
            self.columns = self._columns(self._reader(file))

    def need(self, *columns: str) -> None:
        """Check that columns are there.

        Raises:
            ScanError: one is missing, or a needed one is there twice.
        """
        missing = [column for column in columns if column not in self.columns]
        if missing:
            raise self.error(f"columns missing in its first line: {', '.join(missing)}")
        twice = [column for column in columns if self.columns.count(column) > 1]
        if twice:
            raise self.error(f"columns repeated in its first line: {', '.join(twice)}")

    def column(self, names: Sequence[str]) -> str | None:
        """The first of these names that is a column; capitals, blanks and ``_`` do not matter."""
        plain = {_plain(column): column for column in reversed(self.columns)}
        return next((plain[_plain(name)] for name in names if _plain(name) in plain), None)

    def lines(self) -> Iterator[Line]:
        """Give the lines after the first; empty ones are skipped. The table is not kept in memory.

        Raises:
            ScanError: a line is no CSV, or no UTF-8; the table is another than it was.
        """
        with opened(self._path) as file:
            reader = self._reader(file)
            if self._columns(reader) != self.columns:
                raise self.error("it changed while it was read")
            try:
                for cells in reader:
                    if cells:
                        texts = [cell.strip() for cell in cells]
                        texts += [""] * (len(self.columns) - len(texts))
                        yield Line(reader.line_num, dict(zip(self.columns, texts, strict=False)))
            except csv.Error:
                raise self.error(f"line {reader.line_num}: not valid CSV") from None

    def _reader(self, file: TextIO) -> Reader:
        return csv.reader(file, delimiter=self._separator, strict=True)

    def _columns(self, reader: Reader) -> list[str]:
        try:
            return [cell.strip() for cell in next(reader, [])]
        except csv.Error:
            raise self.error("line 1: not valid CSV") from None

    def error(self, found: str, advice: str = "") -> ScanError:
        """An error about this table."""
        return ScanError(f"{self._path}: {found}.", advice=advice or f"correct {self._path.name}.")


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """Open a text file of up to ``MAX_TABLE_BYTES``; line ends are given as they are.

    Raises:
        ScanError: it cannot be read, is longer, or is not UTF-8; what is raised while it is open
            says the same.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise OSError("no regular file")
            if found.st_size > MAX_TABLE_BYTES:
                raise ScanError(
                    f"{path}: longer than {MAX_TABLE_BYTES} bytes.",
                    advice="split the data set in two.",
                )
            yield file
    except (OSError, UnicodeDecodeError) as error:
        raise ScanError(
            f"{path}: the table cannot be read ({type(error).__name__}).",
            advice="check the path, that this user may read it, and that it is UTF-8 text.",
        ) from None


def _plain(column: str) -> str:
    return column.casefold().replace(" ", "").replace("_", "")
