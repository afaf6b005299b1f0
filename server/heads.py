"""Remember how far every site's ledger had come when it last released something.

A hospital's whole machine may be put back from a backup, ledger, witness and all; then only
those outside can tell. So each release carries the signed head of the site's ledger; the server
keeps the highest and shows it to the site at the next round, which holds its own ledger against
it. A release from a ledger that is behind, or went another way, is not used.
"""

from __future__ import annotations

import json
from pathlib import Path

from medfed.common.errors import TrustError
from medfed.common.files import alone, write_atomically
from medfed.common.trust.keys import fingerprint, read_public_key
from medfed.common.trust.ledger_head import Head, check_head, head_from


class KnownHeads:
    """The highest ledger head of every enrolled site. For processes to share.

    Args:
        sites: The server's folder of enrolled public keys; the heads lie beside them.
    """

    def __init__(self, sites: Path) -> None:
        self._sites, self._lock = sites, sites / ".heads.lock"

    def of(self, site: str) -> Head | None:
        """The highest head of a site under the key that it is enrolled with now."""
        try:
            kept = json.loads((self._sites / f"{site}.head.json").read_text(encoding="utf-8"))
            if kept["key"] != fingerprint(read_public_key(self._sites / f"{site}.pub")):
                return None
        except FileNotFoundError:
            return None
        return head_from(kept)

    def forget(self, site: str) -> None:
        """Let a site begin anew: its hospital lost the ledger, and says so."""
        with alone(self._lock):
            (self._sites / f"{site}.head.json").unlink(missing_ok=True)

    def take(self, site: str, head: Head | None) -> None:
        """Check the head that came with a release, and remember it.

        Args:
            site: Who sent it, by its key.
            head: As it came; None: the release had none.

        Raises:
            TrustError: there is none, the site did not sign it, or it is behind the highest
                known or beside it. Nothing is remembered then.
        """
        public_key = read_public_key(self._sites / f"{site}.pub")
        if head is None:
            raise _refused(site, "its release says nothing of its ledger")
        check_head(head, public_key, who=f"site {site!r}")
        with alone(self._lock):
            known = self.of(site)
            if known is not None and head.sequence < known.sequence:
                raise _refused(site, "its ledger is behind what it released before")
            if known is not None and head.sequence == known.sequence and head.hash != known.hash:
                raise _refused(site, "its ledger is another one than it released from before")
            content = {"key": fingerprint(public_key), **head._asdict()}
            write_atomically(self._sites / f"{site}.head.json", json.dumps(content).encode())


def _refused(site: str, found: str) -> TrustError:
    return TrustError(
        f"site {site!r}: {found}. Its release is not used.",
        advice="ask the hospital whether its machine was put back from a backup or runs twice; "
        "it restores its newest ledger. If that is lost and it goes on with an older one, "
        "`medfed enrol approve KEY.pub --replace` forgets what this server remembers.",
    )
