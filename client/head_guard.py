"""Notice a ledger that was put back from a backup, copied, or continued in two places.

The witness on this machine and the servers each remember the highest head they saw. The ledger
must hold every one of them; one that does not is refused, and stays refused.
"""

from __future__ import annotations

from medfed.client.ledger_file import LedgerFile
from medfed.client.witness import Witness
from medfed.common.errors import LedgerMismatchError, TrustError
from medfed.common.trust.ledger_head import Head


class HeadGuard:
    """Holds a ledger against what others remember of it.

    Args:
        file: The ledger's entries.
        witness: The memory on this machine; None: none (simulation).
        site: The site's name, for messages.
    """

    def __init__(self, file: LedgerFile, witness: Witness | None, *, site: str) -> None:
        self._file, self._witness, self._site = file, witness, site

    def check(self, known: Head) -> None:
        """Hold the ledger against the highest head that somebody else remembers of it.

        Args:
            known: What the server, or the witness, kept.

        Raises:
            TrustError: it was never signed by this site.
            LedgerMismatchError: it was, and this ledger never came there, or went another way.
                That is remembered, and the ledger refused from now on.
        """
        self._file.check_signed_here(known)
        with self._file.reading():
            head = self._file.head
            if known.sequence > head.sequence:
                found = f"ends at entry {head.sequence}; the site released at entry "
                found += f"{known.sequence} before"
            elif self._file.entries[known.sequence - 1].hash != known.hash:
                found = f"has another entry {known.sequence} than the one the site released at"
            else:
                return
        if self._witness is not None:
            self._witness.dispute(known)
        raise LedgerMismatchError(
            f"site {self._site!r}: its ledger {found}. It was put back from a backup, or the "
            "site runs in two places. Nothing was released.",
            advice="stop every other copy of this site and restore the newest ledger.db. If it is "
            "lost, or two copies released, part of what patients spent is not known: your data "
            "board decides. To go on with this ledger, `medfed site witness --lost` counts all "
            "that was approved in it as spent.",
        )

    def agree(self) -> None:
        """Hold the ledger against its witness.

        Raises:
            LedgerMismatchError: the witness is missing, another site's, or knows a head that
                this ledger does not hold.
            LedgerError: the witness cannot be read.
        """
        if self._witness is None:
            return
        known = self._witness.read()
        if not known:
            raise LedgerMismatchError(
                f"site {self._site!r}: its ledger has {self._file.head.sequence} entries, and the "
                f"witness {self._witness.path} is missing: this may be a copy of the site.",
                advice="bring the witness file from the machine where the site ran; if it is lost "
                "and no other copy runs, `medfed site witness --lost` counts all that is approved "
                "as spent and makes a new one.",
            )
        try:
            for head in known:
                self.check(head)
        except TrustError as error:
            raise LedgerMismatchError(
                f"site {self._site!r}: the witness {self._witness.path} remembers another site's "
                "ledger, or was altered.",
                advice="let site.toml, [ledger] witness, name the file that belongs to this site; "
                "sites of other patients have one each.",
            ) from error

    def keep(self, head: Head) -> None:
        """Remember a head of this ledger. Of two copies of a site only one passes.

        Raises:
            LedgerMismatchError: as ``agree``, which is asked before and after.
            LedgerError: the witness cannot be written.
        """
        if self._witness is not None:
            self.agree()
            self._witness.keep(head)
            self.agree()
