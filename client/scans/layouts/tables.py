"""Tables of text: bounded, of any of the usual separators, and never quoted in a message."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from medfed.common.errors import ScanError

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
        text = read_text(path)
        first = text.partition("\n")[0]
        separator = max(SEPARATORS, key=first.count)
        self._reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        try:
            self.columns = [cell.strip() for cell in next(self._reader, [])]
        except csv.Error:
            raise self.error("line 1: not valid CSV") from None

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
        """Give the lines after the first, once; empty ones are skipped.

        Raises:
            ScanError: a line is no CSV.
        """
        try:
            for cells in self._reader:
                if cells:
                    texts = [cell.strip() for cell in cells]
                    texts += [""] * (len(self.columns) - len(texts))
                    yield Line(self._reader.line_num, dict(zip(self.columns, texts, strict=False)))
        except csv.Error:
            raise self.error(f"line {self._reader.line_num}: not valid CSV") from None

    def error(self, found: str) -> ScanError:
        """An error about this table."""
        return ScanError(f"{self._path}: {found}.", advice=f"correct {self._path.name}.")


def read_text(path: Path) -> str:
    """Read a text file up to ``MAX_TABLE_BYTES``.

    Raises:
        ScanError: it cannot be read, is longer, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TABLE_BYTES + 1)
        if len(content) <= MAX_TABLE_BYTES:
            return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ScanError(
            f"{path}: the table cannot be read ({type(error).__name__}).",
            advice="check the path, that this user may read it, and that it is UTF-8 text.",
        ) from None
    raise ScanError(
        f"{path}: longer than {MAX_TABLE_BYTES} bytes.", advice="split the data set in two."
    )


def _plain(column: str) -> str:
    return column.casefold().replace(" ", "").replace("_", "")
