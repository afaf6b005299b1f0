"""A site's ledger in a process of its own, for tests of a full disk and of two writers.

    python tests/support/ledger_process.py ROOT

Each line on its input is done and answered by one line: ``ok …`` or ``refused CLASS …``. The
commands are ``open``, ``reserve DIGEST RUN ROUND``, ``commit DIGEST RUN ROUND SIZE`` (the bytes
are random), ``fill`` (leaves no room on the file system), ``limit BYTES`` (no file may grow
beyond that), ``room`` (undoes either) and ``head``.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from medfed.client.ledger import Ledger, RoundKey
from medfed.client.site_root import open_ledger, open_site
from medfed.common.errors import MedfedError


class Process:
    """What one process does with one ledger."""

    def __init__(self, root: Path) -> None:
        self._root, self._filler = root, root / "filler"
        self._opened: Ledger | None = None

    def do(self, command: str, *words: str) -> str:
        match command:
            case "open":
                self._opened = open_ledger(open_site(self._root))
                return str(self._ledger.head.sequence)
            case "reserve":
                self._ledger.reserve(_key(*words))
            case "commit":
                payload = os.urandom(int(words[3]))
                receipt = self._ledger.commit(_key(*words[:3]), payload)
                head = self._ledger.cleared(receipt)
                assert head is not None
                return str(head.sequence)
            case "fill":
                _fill(self._filler)
            case "limit":
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(words[0]), -1))
            case "room":
                resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
                self._filler.unlink(missing_ok=True)
            case "head":
                return str(self._ledger.head.sequence)
        return ""

    @property
    def _ledger(self) -> Ledger:
        assert self._opened is not None, "open it first"
        return self._opened


def _key(digest: str, run: str, round_: str) -> RoundKey:
    return RoundKey(digest, run, int(round_), "0" * 64)


def _fill(path: Path) -> None:
    """Leave no byte free."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def main() -> None:
    process = Process(Path(sys.argv[1]))
    for line in sys.stdin:
        try:
            said = f"ok {process.do(*line.split())}"
        except MedfedError as error:
            said = f"refused {type(error).__name__} {' '.join(str(error).split())}"
        sys.stdout.write(f"{said}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
