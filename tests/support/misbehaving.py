"""What a decoder can do to its process, for tests of the import's children.

The children import this file, so it imports little itself.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from medfed.common.errors import ScanError

if TYPE_CHECKING:
    import pytest


def let_children_import_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the repository on the path that children get: there, `tests` is found by name."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[2])])


def misbehave(what: str) -> str:
    """Do it; give it back where there is nothing to do."""
    if what == "hang":
        while True:
            pass
    if what == "sleep":
        time.sleep(3600)
    if what.startswith("slow"):
        time.sleep(0.2)
    if what == "abort":
        os.abort()
    if what == "segfault":
        ctypes.string_at(0)
    if what == "exit":
        os._exit(3)
    if what == "greedy":
        return str(len(bytes(8 << 30)))
    if what == "defect":
        raise ZeroDivisionError
    if what == "no data set":
        raise ScanError("the data set cannot be read.", advice="give another.")
    if what == "where it prints":
        return " ".join(os.readlink(f"/proc/self/fd/{stream}") for stream in (1, 2))
    return what


def make_misbehaving() -> Callable[[str], str]:
    """For `Decoding`: jobs are what to do."""
    return misbehave


def make_fearful() -> Callable[[str], str]:
    """For `Decoding`: it cannot be made."""
    os._exit(7)
