"""What a ledger's entries add up to: approvals, rounds, exclusions and merges, folded one by one.

Pure: no file, no clock. ``ledger.py`` decides what may be appended and asks here what is so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from medfed.client.exposure import Charge, Pseudonym
from medfed.client.joined import Joined, Pair
from medfed.client.ledger_file import Entry
from medfed.client.scans.patients import PSEUDONYM_BYTES
from medfed.common.errors import LedgerError
from medfed.common.privacy.accounting import Spend
from medfed.common.privacy.terms import PURPOSES, Purpose, Term, Terms

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
        serial: The study's serial; 1 where the entry does not say it.
        open: Whether more may be released under it.
        lost: Whether entries of it may be missing, so that all of it counts as spent.
        paid: Purpose -> releases made under it.
        spent_at: (purpose, time of ``Joined``) -> releases that count as made, begun at that time.
        gone: Purpose -> name of a merged person who takes no part any more -> since which time.
    """

    sequence: int
    digest: str
    study: str
    terms: Terms
    members: Mapping[Purpose, frozenset[Pseudonym] | None]
    serial: int = 1
    open: bool = True
    lost: bool = False
    paid: dict[Purpose, int] = field(default_factory=dict)
    spent_at: Counter[tuple[Purpose, int]] = field(default_factory=Counter)
    gone: dict[Purpose, dict[Pseudonym, int]] = field(default_factory=dict)

    def charge(self, purpose: Purpose) -> Charge:
        """What being eligible for a purpose costs."""
        return Charge(self.sequence, purpose, self.terms[purpose], self.spent(purpose), self.open)

    def charge_of(self, purpose: Purpose, person: Pseudonym, joined: Joined) -> Charge | None:
        """What a purpose costs a merged person; None if no id of theirs was ever eligible."""
        ids, everyone = joined.persons[person], self.members[purpose]
        members = ids & everyone if everyone is not None else frozenset()
        if not members:
            return None

        def units(time: int) -> int:
            """As how many privacy units the person took part at a time."""
            gone = {
                joined.name(name, time)
                for name, since in self.gone.get(purpose, {}).items()
                if name in ids and since <= time
            }
            return len({joined.name(member, time) for member in members} - gone)

        counts: Counter[int] = Counter()
        for (what, time), releases in self.spent_at.items():
            if what == purpose:
                counts[units(time)] += releases
        del counts[0]
        several = tuple(sorted((count, n) for count, n in counts.items() if count > 1))
        going = self.open and units(joined.times) > 0
        return Charge(self.sequence, purpose, self.terms[purpose], counts.total(), going, several)

    def pay(self, purpose: Purpose, time: int) -> None:
        """Count a release that was begun at a time of ``Joined``."""
        self.paid[purpose] = self.paid.get(purpose, 0) + 1
        self.spent_at[purpose, time] += 1

    def lose(self, time: int) -> None:
        """End it, and count all of it as spent: entries of it may be missing."""
        for purpose, term in self.terms.items():
            self.spent_at[purpose, time] += term.releases - self.spent(purpose)
        self.open, self.lost = False, True

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
        time: Of ``Joined`` when it was reserved: who was one person then is one in the release.
        commit: The entry that paid for it, if there is one.
        voids: Reservations under this approval that came to nothing.
    """

    reserved: RoundKey | None = None
    time: int = 0
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
        self.joined = Joined()
        self._excluded: set[Pseudonym] = set()
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
                state = self.round(key_of(body))
                state.reserved, state.time = key_of(body), self.joined.times
            case "void":
                state = self.round(key_of(body))
                state.reserved, state.voids = None, state.voids + 1
            case "commit":
                state = self.round(key_of(body))
                state.reserved, state.commit = None, entry
                self.approvals[body["approval"]].pay(body["purpose"], state.time)
            case "withdraw":
                self.approvals[body["approval"]].open = False
                self._end_reservations(body["digest"])
            case "loss":
                for approval in self.approvals.values():
                    if approval.open:
                        approval.lose(self.joined.times)
                        self._end_reservations(approval.digest)
            case "exclude":
                self._excluded |= unpacked(self._read_set(body["patients"]))
            case "merge":
                self._merge(body)
            case other:
                raise LedgerError(
                    f"entry {entry.sequence} of the ledger is of kind {str(other)[:20]!r}, which "
                    "this medfed does not know.",
                    advice="use the medfed that wrote it, or a newer one.",
                )
        self.seen = entry.sequence

    def _merge(self, body: Mapping[str, Any]) -> None:
        self.joined.join(unpacked_pairs(self._read_set(body["pairs"])))
        for sequence, purposes in body["left"].items():
            for purpose, persons in purposes.items():
                gone = self.approvals[int(sequence)].gone.setdefault(purpose, {})
                gone |= dict.fromkeys(unpacked(self._read_set(persons)), self.joined.times)

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

    def excluded(self) -> frozenset[Pseudonym]:
        """Who takes part in nothing any more: by excluding any id, the whole person."""
        return frozenset(self.joined.name(patient) for patient in self._excluded)

    def met(self) -> frozenset[Pseudonym]:
        """Everyone whom an approval made eligible or a merge named, by every id."""
        sets = (s for a in self.approvals.values() for s in a.members.values() if s is not None)
        return frozenset(self.joined.ids).union(*sets)

    def members(self, *, before: int | None = None) -> dict[tuple[int, Purpose], frozenset[bytes]]:
        """(approval, purpose) -> who is charged for it, of approvals older than ``before``.

        But for merged persons: see ``charges_of``.
        """
        merged = frozenset(self.joined.ids)
        return {
            (approval.sequence, purpose): EVERYONE if members is None else members - merged
            for approval in self.approvals.values()
            for purpose, members in approval.members.items()
            if before is None or approval.sequence < before
        }

    def charges_of(self, person: Pseudonym, joined: Joined | None = None) -> tuple[Charge, ...]:
        """All that a merged person is charged for, in order.

        Args:
            person: Their name.
            joined: Who is one person; None: as the ledger says now.
        """
        found = (
            approval.charge_of(purpose, person, self.joined if joined is None else joined)
            for approval in self.approvals.values()
            for purpose in PURPOSES
            if purpose in approval.terms
        )
        return tuple(charge for charge in found if charge is not None)

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
        serial = entry.body.get("serial", 1)
        return Approval(entry.sequence, digest, study, terms, members, serial)


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


def packed_pairs(pairs: Iterable[Pair]) -> bytes:
    """Pairs of pseudonyms as they are stored: in order, so that equal sets are equal bytes."""
    return b"".join(sorted(min(pair) + max(pair) for pair in pairs))


def unpacked_pairs(stored: bytes) -> list[Pair]:
    """Read back what ``packed_pairs`` gave."""
    size = PSEUDONYM_BYTES
    starts = range(0, len(stored), 2 * size)
    return [(stored[at : at + size], stored[at + size : at + 2 * size]) for at in starts]
