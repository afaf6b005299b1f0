"""What a ledger's entries add up to: approvals, rounds and exclusions, folded one by one.

Pure: no file, no clock. ``ledger.py`` decides what may be appended and asks here what is so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from medfed.client.exposure import Charge, Pseudonym
from medfed.client.ledger_file import Entry
from medfed.client.scans.patients import PSEUDONYM_BYTES
from medfed.common.errors import LedgerError
from medfed.common.privacy.accounting import Spend
from medfed.common.privacy.terms import Purpose, Term, Terms

EVERYONE: frozenset[Pseudonym] = frozenset([bytes(PSEUDONYM_BYTES)])
"""Stands for all patients of a simulated site, which have no names."""


@dataclass(frozen=True)
class RoundKey:
    """Names one release of one site: what a payment is for. Public.

    Attributes:
        digest: Digest of the study.
        run: The run's name at the server.
        round: Counted from 1.
        base: Fingerprint of the global model that it is made from.
        purpose: An update of the training patients, or a histogram of others.
    """

    digest: str
    run: str
    round: int
    base: str
    purpose: Purpose = "train"


@dataclass
class Approval:
    """An approval as the ledger holds it. Its terms are public; its sets are private.

    Attributes:
        sequence: Its entry.
        digest: Of the study.
        study: The study's name.
        terms: What was set aside.
        members: Purpose -> who was eligible when it was given; None: everyone (simulation).
        open: Whether more may be released under it.
        lost: Whether entries of it may be missing, so that all of it counts as spent.
        paid: Purpose -> releases made under it.
    """

    sequence: int
    digest: str
    study: str
    terms: Terms
    members: Mapping[Purpose, frozenset[Pseudonym] | None]
    open: bool = True
    lost: bool = False
    paid: dict[Purpose, int] = field(default_factory=dict)

    def charge(self, purpose: Purpose) -> Charge:
        """What being eligible for a purpose costs."""
        return Charge(self.sequence, purpose, self.terms[purpose], self.spent(purpose), self.open)

    def spent(self, purpose: Purpose) -> int:
        """Releases that count as made: all of them where entries may be missing."""
        if self.lost and purpose in self.terms:
            return self.terms[purpose].releases
        return self.paid.get(purpose, 0)

    def left(self, purpose: Purpose) -> int:
        """Releases that may still be made."""
        if not self.open or purpose not in self.terms:
            return 0
        return self.terms[purpose].releases - self.paid.get(purpose, 0)


@dataclass
class RoundState:
    """What happened to one round of one run, whatever its base model.

    Attributes:
        reserved: Key of the unfinished reservation under the approval that stands, if any.
        commit: The entry that paid for it, if there is one.
        voids: Reservations under this approval that came to nothing.
    """

    reserved: RoundKey | None = None
    commit: Entry | None = None
    voids: int = 0


_Place = tuple[str, str, int, Purpose]


class LedgerState:
    """The sum of all entries so far.

    Args:
        read_set: Gives the bytes of a patient set by its SHA-256.
    """

    def __init__(self, read_set: Callable[[str], bytes]) -> None:
        self._read_set = read_set
        self.seen = 0
        self.approvals: dict[int, Approval] = {}
        self.excluded: set[Pseudonym] = set()
        self._rounds: dict[_Place, RoundState] = {}

    def apply(self, entry: Entry) -> None:
        """Take the next entry."""
        body = entry.body
        match body["kind"]:
            case "open":
                pass
            case "approve":
                self.approvals[entry.sequence] = self._approval(entry)
            case "reserve":
                self.round(key_of(body)).reserved = key_of(body)
            case "void":
                state = self.round(key_of(body))
                state.reserved, state.voids = None, state.voids + 1
            case "commit":
                state = self.round(key_of(body))
                state.reserved, state.commit = None, entry
                paid = self.approvals[body["approval"]].paid
                paid[body["purpose"]] = paid.get(body["purpose"], 0) + 1
            case "withdraw":
                self.approvals[body["approval"]].open = False
                self._end_reservations(body["digest"])
            case "loss":
                for approval in self.approvals.values():
                    if approval.open:
                        approval.open, approval.lost = False, True
                        self._end_reservations(approval.digest)
            case "exclude":
                self.excluded |= unpacked(self._read_set(body["patients"]))
            case other:
                raise LedgerError(
                    f"entry {entry.sequence} of the ledger is of kind {str(other)[:20]!r}, which "
                    "this medfed does not know.",
                    advice="use the medfed that wrote it, or a newer one.",
                )
        self.seen = entry.sequence

    def _end_reservations(self, digest: str) -> None:
        """What was begun under an ended approval is not paid under a later one.

        Others may be eligible then; and each approval has its attempts anew.
        """
        for place, state in self._rounds.items():
            if place[0] == digest:
                state.reserved, state.voids = None, 0

    def round(self, key: RoundKey) -> RoundState:
        """What happened to a round."""
        place = (key.digest, key.run, key.round, key.purpose)
        return self._rounds.setdefault(place, RoundState())

    def standing(self, digest: str) -> Approval | None:
        """The approval of a study under which something may be released, if there is one."""
        found = [a for a in self.approvals.values() if a.digest == digest and a.open]
        return found[-1] if found else None

    def paid_in_all(self, digest: str, purpose: Purpose) -> int:
        """Releases of a study, over all its runs and approvals."""
        return sum(a.spent(purpose) for a in self.approvals.values() if a.digest == digest)

    def members(self, *, before: int | None = None) -> dict[tuple[int, Purpose], frozenset[bytes]]:
        """(approval, purpose) -> who is charged for it, of approvals older than ``before``."""
        return {
            (approval.sequence, purpose): EVERYONE if members is None else members
            for approval in self.approvals.values()
            for purpose, members in approval.members.items()
            if before is None or approval.sequence < before
        }

    def charges(self) -> dict[tuple[int, Purpose], Charge]:
        """(approval, purpose) -> what it costs."""
        return {
            (approval.sequence, purpose): approval.charge(purpose)
            for approval in self.approvals.values()
            for purpose in approval.terms
        }

    def _approval(self, entry: Entry) -> Approval:
        terms: dict[Purpose, Term] = {}
        members: dict[Purpose, frozenset[Pseudonym] | None] = {}
        for purpose, term in entry.body["terms"].items():
            cost, patients = term["cost"], term["patients"]
            terms[purpose] = Term(None if cost is None else Spend(*cost), term["releases"])
            members[purpose] = None if patients is None else unpacked(self._read_set(patients))
        digest, study = entry.body["digest"], entry.body["study"]
        return Approval(entry.sequence, digest, study, terms, members)


def key_of(body: Mapping[str, Any]) -> RoundKey:
    """The round that an entry is about."""
    return RoundKey(body["digest"], body["run"], body["round"], body["base"], body["purpose"])


def packed(patients: frozenset[Pseudonym]) -> bytes:
    """A set of patients as it is stored: in order, so that equal sets are equal bytes."""
    return b"".join(sorted(patients))


def unpacked(members: bytes) -> frozenset[Pseudonym]:
    """Read back what ``packed`` gave."""
    starts = range(0, len(members), PSEUDONYM_BYTES)
    return frozenset(members[start : start + PSEUDONYM_BYTES] for start in starts)
