"""A second place that remembers how far the ledger has come.

A ledger that is put back from a backup, or whose site is set up anew, would forget what its
patients have spent. So the highest signed head is kept in a file of its own, which stays out of
the site's backups: a ledger that does not reach it, or went another way, is refused. The server
keeps the same for the case that this whole machine is put back; what it knows and the ledger
does not hold is noted here too, in dispute.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from medfed.common.errors import ConfigError, LedgerError
from medfed.common.files import alone, write_atomically
from medfed.common.trust.ledger_head import Head, head_from
from medfed.common.trust.private_files import private_folder


def default_witness(scans: Path) -> Path:
    """Where the witness of the scans at a path lies, unless ``site.toml`` says otherwise.

    One for all sites that anybody sets up over the same scans, so that a second site of the
    same patients is noticed.
    """
    name = hashlib.sha256(os.fsencode(scans.resolve())).hexdigest()[:16]
    return Path.home() / ".local" / "state" / "medfed" / f"witness-{name}.json"


class Witness:
    """The highest ledger head seen on this machine.

    Args:
        path: The file.
        site: The site's name, for messages.
    """

    def __init__(self, path: Path, *, site: str) -> None:
        self.path, self._site = path, site

    def read(self) -> tuple[Head, ...]:
        """What the ledger must hold: the highest head, then those in dispute; empty: no file.

        Raises:
            LedgerError: the file cannot be read or is no witness.
        """
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return tuple(head_from(entry) for entry in (found, *found["disputed"]))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, OverflowError, RecursionError, KeyError, TypeError) as error:
            raise self._unusable(error) from error

    def keep(self, head: Head) -> None:
        """Remember a head of the site's ledger, unless a higher one is known.

        Raises:
            LedgerError: it cannot be written, so that nothing may be released.
        """
        self._change(
            lambda known: (max(known[0], head, key=_sequence), *known[1:]) if known else (head,)
        )

    def dispute(self, head: Head) -> None:
        """Remember a head that this ledger never came to, or passed by on another way.

        From then on no ledger is accepted that does not hold it.

        Raises:
            LedgerError: it cannot be written.
        """
        self._change(lambda known: known if head in known else (*known, head) if known else (head,))

    def _change(self, change: Callable[[tuple[Head, ...]], tuple[Head, ...]]) -> None:
        try:
            if not self.path.parent.is_dir():  # one that is there may be others' too: left as it is
                private_folder(self.path.parent)
            with alone(self.path.with_name(f"{self.path.name}.lock")):
                known = self.read()
                wanted = change(known)
                if wanted != known:
                    highest, *disputed = (head._asdict() for head in wanted)
                    content = {"site": self._site, **highest, "disputed": disputed}
                    write_atomically(self.path, json.dumps(content).encode())
        except (OSError, ConfigError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> LedgerError:
        return LedgerError(
            f"site {self._site!r}: the ledger's witness {self.path} cannot be read or written "
            f"({type(error).__name__}). Nothing was released.",
            advice="check the disk and who owns the file; site.toml, [ledger] witness, says "
            "where it lies.",
        )


def _sequence(head: Head) -> int:
    return head.sequence
