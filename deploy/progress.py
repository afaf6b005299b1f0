"""Show how far long work is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable


def show_progress(*, quiet: bool = False) -> Callable[[str, int, int], None]:
    """Make the function that is told (what, steps done, steps in all).

    Args:
        quiet: Show nothing.

    Returns:
        On a terminal it redraws one line; elsewhere it writes a line at the start of each piece
        of work and at every quarter, to standard error.
    """
    if quiet:
        return lambda what, done, total: None
    return _redraw if sys.stderr.isatty() else _quarters


def _redraw(what: str, done: int, total: int) -> None:
    filled = 30 * done // max(1, total)
    end = "\n" if done >= total else ""
    bar = "#" * filled + "." * (30 - filled)
    sys.stderr.write(f"\r\033[K  {what:32.32} [{bar}] {done}/{total}{end}")
    sys.stderr.flush()


def _quarters(what: str, done: int, total: int) -> None:
    quarter = max(1, total // 4)
    if done in (1, total) or done % quarter == 0:
        sys.stderr.write(f"  {what}: {done}/{total}\n")
        sys.stderr.flush()
