"""Ledgers that tests make: in memory, or with a key and a witness in a folder of their own."""

from __future__ import annotations

import hashlib
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from medfed.client.exposure import NO_CEILING, Ceiling
from medfed.client.ledger import Ledger, Receipt, RoundKey
from medfed.client.ledger_file import LedgerFile
from medfed.client.witness import Witness
from medfed.common.privacy.accounting import Spend
from medfed.common.privacy.terms import Purpose, Term, Terms, terms_of
from medfed.common.study import Study
from medfed.common.trust.keys import new_node_key
from medfed.common.trust.ledger_head import HeadSigner

KEY = RoundKey(digest="d" * 64, run="run-1", round=1, base="b" * 64)
COST = Spend(1.0, 0.1, 5)
TERMS: Terms = {"train": Term(COST, 10)}
PAYLOAD = b"noised weights"
PSEUDONYM_CHECK = "c" * 64


def patients(names: str) -> frozenset[bytes]:
    """Pseudonyms, one for each letter: the same letter is the same patient."""
    return frozenset(hashlib.sha256(name.encode()).digest()[:16] for name in names)


class LedgerPlace:
    """Where a ledger, its site's key and its witness lie.

    Args:
        folder: Of the test; a ledger with its first entry is made there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "site"
        self.path, self.key = self.folder / "ledger.db", self.folder / "keys" / "node_key"
        self.witness = folder / "elsewhere" / "witness.json"
        new_node_key(self.key.parent)
        Ledger.create(self.path, self.signer, site="A", pseudonym_check=PSEUDONYM_CHECK)
        file = LedgerFile(self.path, self.signer, site="A")
        Witness(self.witness, site="A").keep(file.head)
        file.close()

    @property
    def signer(self) -> HeadSigner:
        return HeadSigner(self.key)

    def open(
        self,
        ceiling: Ceiling | Callable[[], Ceiling] = NO_CEILING,
        *,
        path: Path | None = None,
        witness: Path | None = None,
        pseudonym_check: str = PSEUDONYM_CHECK,
    ) -> Ledger:
        """Open it as a site does; under other paths: a copy of it."""
        return Ledger.open(
            path or self.path,
            self.signer,
            Witness(witness or self.witness, site="A"),
            site="A",
            pseudonym_check=pseudonym_check,
            ceiling=ceiling if callable(ceiling) else lambda: ceiling,
        )

    def approved(
        self,
        ceiling: Ceiling | Callable[[], Ceiling] = NO_CEILING,
        *,
        terms: Terms = TERMS,
        names: str = "xyz",
    ) -> Ledger:
        """Open it, and approve the study of `KEY` for some training patients."""
        ledger = self.open(ceiling)
        approve(ledger, KEY.digest, names, terms=terms)
        return ledger

    def bodies(self) -> list[dict[str, Any]]:
        """What the entries say, read past the code under test."""
        with closing(sqlite3.connect(self.path)) as db:
            rows = db.execute("SELECT body FROM entry ORDER BY sequence").fetchall()
        return [json.loads(row[0]) for row in rows]

    def kinds(self) -> list[str]:
        """What kinds of entries there are, in order."""
        return [str(body["kind"]) for body in self.bodies()]

    def tamper(self, *statements: str) -> None:
        """Change the file as somebody with a SQLite shell would."""
        with closing(sqlite3.connect(self.path)) as db, db:
            triggers = db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
            for (name,) in triggers.fetchall():
                db.execute(f"DROP TRIGGER {name}")
            for statement in statements:
                db.execute(statement)


def approve(
    ledger: Ledger,
    digest: str,
    names: str | Mapping[Purpose, Collection[bytes]],
    *,
    terms: Terms = TERMS,
) -> None:
    """Approve a study for training patients, or for those of each purpose."""
    who: Mapping[Purpose, Collection[bytes]]
    who = {"train": patients(names)} if isinstance(names, str) else names
    ledger.approve(digest, f"study {digest[:2]}", terms, who)


def pay(ledger: Ledger, key: RoundKey = KEY, payload: bytes = PAYLOAD) -> Receipt:
    """Reserve a round and commit bytes for it."""
    ledger.reserve(key)
    return ledger.commit(key, payload)


def memory_ledger(study: Study, *, site: str = "A", ceiling: Ceiling = NO_CEILING) -> Ledger:
    """A simulated site's ledger in which a study is approved for everyone."""
    ledger = Ledger.in_memory(site, ceiling=ceiling)
    ledger.approve(study.digest, study.name, terms_of(study, study.site_named(site)), None)
    return ledger


def crash(place: LedgerPlace, code: str) -> None:
    """Run code with the ledger in a process of its own that kills itself."""
    program = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from medfed.client.exposure import NO_CEILING\n"
        "from medfed.client.ledger import Ledger, RoundKey\n"
        "from medfed.client.witness import Witness\n"
        "from medfed.common.trust.ledger_head import HeadSigner\n"
        f"KEY = {KEY!r}\n"
        f"ledger = Ledger.open(Path({str(place.path)!r}), HeadSigner(Path({str(place.key)!r})),\n"
        f"    Witness(Path({str(place.witness)!r}), site='A'), site='A',\n"
        "    pseudonym_check='c' * 64, ceiling=lambda: NO_CEILING)\n"
        "def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{code}\ndie()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


class FailingConnection:
    """A connection that fails at one statement as on a full disk."""

    def __init__(self, db: sqlite3.Connection, statement: str) -> None:
        self.db, self.statement = db, statement

    def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
        if sql.startswith(self.statement):
            raise sqlite3.OperationalError("database or disk is full")
        return self.db.execute(sql, *values)  # type: ignore[arg-type]  # passed on as they came

    def __getattr__(self, name: str) -> object:
        return getattr(self.db, name)
