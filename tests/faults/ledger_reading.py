"""What the fault tests need to know of a site's ledger: the one file that knows its form.

Entries are read from the SQLite file itself, past the code under test, also while a site writes.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import NamedTuple

from medfed.client.site_root import SiteRoot, open_ledger


class Entry(NamedTuple):
    """One entry about a round.

    Attributes:
        kind: ``reserve``, ``commit`` or ``void``.
        digest: Of the study.
        round: From 1.
        payload: SHA-256 of the released bytes; None but for a commit.
    """

    kind: str
    digest: str
    round: int
    payload: str | None


def entries_of(site: SiteRoot) -> list[Entry]:
    """All entries about rounds, in order."""
    with closing(sqlite3.connect(f"file:{site.ledger}?mode=ro", uri=True, timeout=30.0)) as db:
        bodies = [
            json.loads(row[0]) for row in db.execute("SELECT body FROM entry ORDER BY sequence")
        ]
    return [
        Entry(b["kind"], b["digest"], b["round"], b.get("payload")) for b in bodies if "round" in b
    ]


def committed(site: SiteRoot, digest: str) -> dict[int, str]:
    """Round -> SHA-256 of what was paid for, in one study.

    Raises:
        AssertionError: a round was paid for twice.
    """
    commits = [e for e in entries_of(site) if (e.kind, e.digest) == ("commit", digest)]
    assert len({e.round for e in commits}) == len(commits), commits
    return {e.round: str(e.payload) for e in commits}


def epsilon_of(site: SiteRoot, delta: float) -> float:
    """What the site's own code reads off its ledger."""
    ledger = open_ledger(site)
    try:
        return ledger.epsilon(delta)
    finally:
        ledger.close()
