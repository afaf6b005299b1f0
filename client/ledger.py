"""What this hospital's patients have spent, what was promised of it, and the bytes paid for.

One file per site, for all studies and all federations. Entries are appended, chained by hash
and signed by the site (``ledger_file.py``), so that none can be changed later. They are

    open      the site, and a check value of its pseudonym key
    approve   a study: its whole schedule is set aside for every *eligible* patient
    reserve   a round begins; nothing has left the site
    commit    spend and released bytes, in one transaction, *before* the bytes may leave
    void      a reservation that came to nothing; three of one round withdraw the site
    withdraw  no more of a study
    exclude   patients who take part in nothing any more; what they spent stays
    merge     record numbers that are one person, for good; what both spent adds up
    loss      later entries may be missing: all that stood approved counts as spent, and ends

A round is keyed by (study digest, run, round, base model, purpose). So after any crash: what was
committed may be sent again, for free, and is never trained again; what was only reserved has
not left, is voided, and starts anew. Eligible is who can afford the whole schedule beside all
that is set aside already; whoever cannot takes no part, silently, from the approval on, and so
the server sees the same whoever the patients are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medfed.client.eligibility import Leaving, who_affords, who_leaves, who_takes_part
from medfed.client.exposure import (
    NO_CEILING,
    Ceiling,
    Charge,
    Exposure,
    Pseudonym,
    exposures,
)
from medfed.client.head_guard import HeadGuard
from medfed.client.joined import Pair
from medfed.client.ledger_file import Entry, LedgerFile
from medfed.client.ledger_state import Approval, LedgerState, RoundKey, packed, packed_pairs
from medfed.client.witness import Witness
from medfed.common.errors import (
    ApprovalError,
    LedgerError,
    MedfedError,
    PrivacyError,
)
from medfed.common.privacy.accounting import Spend
from medfed.common.privacy.terms import Purpose, Term, Terms
from medfed.common.trust.ledger_head import Head, HeadSigner

__all__ = ["Approval", "Ledger", "Receipt", "RoundKey"]

VOIDS_BEFORE_WITHDRAWAL = 3
_KEPT_PAYLOADS = 3


@dataclass(frozen=True)
class Receipt:
    """Proof that bytes were paid for.

    Attributes:
        entry: Head of the ledger at the commit that covers them.
        payload_sha256: Digest of the bytes.
    """

    entry: Head
    payload_sha256: str


class Ledger:
    """The durable record of one site's promises, spends and releases.

    Args:
        file: The entries.
        site: The site's name, for messages.
        ceiling: Gives what a patient may lose over all studies together, as it is now.
        witness: The second place that knows the head; None: none (simulation).
        patients_by: How the site tells patients apart; every approval notes it.

    Raises:
        LedgerError: the ledger is not the one that the witness saw last. Every method raises
            it too, as ``LedgerFile`` does.
    """

    def __init__(
        self,
        file: LedgerFile,
        *,
        site: str,
        ceiling: Callable[[], Ceiling] = lambda: NO_CEILING,
        witness: Witness | None = None,
        patients_by: str = "",
    ) -> None:
        self._file, self._site, self._ceiling = file, site, ceiling
        self._patients_by = patients_by
        self._state = LedgerState(file.read_set)
        self._guard = HeadGuard(file, witness, site=site)
        self._guard.agree()
        with self._reading():
            pass  # a patient set that is gone is found now

    @classmethod
    def in_memory(cls, site: str, *, ceiling: Ceiling = NO_CEILING) -> Ledger:
        """A ledger for a simulation: unsigned, and gone with the process."""
        return cls(LedgerFile(None, None, site=site), site=site, ceiling=lambda: ceiling)

    @classmethod
    def open(
        cls,
        path: Path,
        signer: HeadSigner,
        witness: Witness,
        *,
        site: str,
        pseudonym_check: str,
        ceiling: Callable[[], Ceiling],
        patients_by: str = "",
    ) -> Ledger:
        """Open a site's ledger.

        Args:
            path: The file; must exist.
            signer: With the site's node key.
            witness: See the class.
            site: The site's name.
            pseudonym_check: Check value of the pseudonym key that is there now.
            ceiling: See the class.
            patients_by: How the site tells patients apart, in words that stay the same.

        Raises:
            LedgerError: missing, altered, behind, or begun with another pseudonym key; or
                patients were told apart in another way when a study was approved.
        """
        file = LedgerFile(path, signer, site=site)
        if not file.entries or file.entries[0].body.get("pseudonym_check") != pseudonym_check:
            file.close()
            raise LedgerError(
                f"site {site!r}: the pseudonym key is not the key that this ledger began with; "
                "its patients would be taken for others, who have spent nothing.",
                advice="restore the pseudonym key; site.toml, [ledger], says where it lies.",
            )
        before = {e.body["patients_by"] for e in file.entries if e.body["kind"] == "approve"}
        if before - {patients_by}:
            file.close()
            raise LedgerError(
                f"site {site!r}: site.toml, [scans], tells patients apart by {patients_by}, and "
                f"studies were approved by {', '.join(sorted(before))}; the same patients would be "
                "taken for others, who have spent nothing.",
                advice="put back what site.toml said of patients.",
            )
        try:
            return cls(file, site=site, ceiling=ceiling, witness=witness, patients_by=patients_by)
        except MedfedError:
            file.close()
            raise

    @staticmethod
    def create(path: Path, signer: HeadSigner, *, site: str, pseudonym_check: str) -> None:
        """Make the ledger of a new site."""
        first = {"kind": "open", "site": site, "format": 1, "pseudonym_check": pseudonym_check}
        LedgerFile.create(path, signer, {**first, "time": time.time()}, site=site).close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # ---- approvals and patients ------------------------------------------------------------------
    def approve(
        self,
        digest: str,
        study: str,
        terms: Terms,
        patients: Mapping[Purpose, Collection[Pseudonym]] | None,
        *,
        serial: int = 1,
    ) -> Approval:
        """Set a study's whole schedule aside for every patient who can afford it.

        Args:
            digest: Of the study.
            study: Its name.
            terms: What it may cost.
            patients: Purpose -> the patients it would be made from; None: everyone, unnamed
                (simulation).
            serial: The study's serial.

        Returns:
            The approval; one that stands already is given again, unchanged.

        Raises:
            PrivacyError: the whole schedule was paid for before the study was withdrawn.
        """
        with self._writing():
            standing = self._state.standing(digest)
            if standing is not None and not any(map(standing.left, standing.terms)):
                raise self._nothing_left(digest)
            if standing is not None:
                return standing
            rest = {
                purpose: term._replace(releases=left)
                for purpose, term in terms.items()
                if (left := term.releases - self._state.paid_in_all(digest, purpose)) > 0
            }
            if not rest:
                raise self._nothing_left(digest)
            written = {
                purpose: {
                    "cost": term.cost and list(term.cost),
                    "releases": term.releases,
                    "patients": None
                    if patients is None
                    else self._stored(terms[purpose], digest, purpose, patients.get(purpose, ())),
                }
                for purpose, term in rest.items()
            }
            body = {
                "kind": "approve",
                "digest": digest,
                "study": study,
                "serial": serial,
                "terms": written,
                "ceiling": _written(self._ceiling()),
                "patients_by": self._patients_by,
            }
            approval = self._state.approvals[self._append(body).sequence]
        return approval

    def who_can_afford(
        self, digest: str, terms: Terms, patients: Mapping[Purpose, Collection[Pseudonym]]
    ) -> dict[Purpose, frozenset[Pseudonym]]:
        """Who of some patients could take part in a study. Private."""
        with self._reading():
            return {
                purpose: who_affords(*self._now(), term, digest, purpose, patients.get(purpose, ()))
                for purpose, term in terms.items()
            }

    def approval(self, digest: str) -> Approval | None:
        """The approval of a study that stands now."""
        with self._reading():
            return self._state.standing(digest)

    def approvals(self) -> list[Approval]:
        """All approvals ever given, in order."""
        with self._reading():
            return list(self._state.approvals.values())

    def eligible(self, digest: str, purpose: Purpose) -> frozenset[Pseudonym] | None:
        """Who takes part now: eligible at approval, not excluded, within today's ceiling.

        Returns:
            The patients, private, a merged person by the one name: of several ids that somebody
            read before the merge one at most takes part. None: everyone, without names
            (simulation). Empty if the approval has no such purpose.

        Raises:
            ApprovalError: no approval of the study stands.
        """
        with self._reading():
            approval = self._standing_or_refuse(digest)
            if purpose not in approval.terms:
                return frozenset()
            if approval.members[purpose] is None:
                return None
            return who_takes_part(*self._now(), approval, purpose)

    def withdraw(self, digest: str, reason: str) -> None:
        """End a study here: nothing more is released; what was spent stays spent.

        Raises:
            ApprovalError: no approval of the study stands.
        """
        with self._writing():
            approval = self._standing_or_refuse(digest)
            self._append(_withdrawal(approval, reason))

    def own_up(self) -> int:
        """Note that later entries may be lost: all that stands approved counts as spent.

        Returns:
            How many approvals that ended.
        """
        with self._writing():
            standing = sum(approval.open for approval in self._state.approvals.values())
            self._append({"kind": "loss"})
        return standing

    def exclude(self, patients: Collection[Pseudonym]) -> int:
        """Stop all future use of patients; what they spent is kept. Returns how many are new."""
        with self._writing():
            before = self._state.excluded()
            name = self._state.joined.name
            new = frozenset(p for p in patients if name(p) not in before)
            if new:
                sha256 = self._file.store_set(packed(new))
                self._append({"kind": "exclude", "patients": sha256})
            return len(self._state.excluded()) - len(before)

    def excluded(self) -> int:
        """How many patients take part in nothing any more. Private."""
        with self._reading():
            return len(self._state.excluded())

    def merge(self, pairs: Collection[Pair]) -> int:
        """Make record numbers one person, for good: one privacy unit, one sum of what was spent.

        Args:
            pairs: Pseudonyms that are one person; chains join all that hang together. Private.

        Returns:
            How many pairs were not one person before. Where none is new nothing is written.

        Guarantee:
            From the next round on the person takes part as one, or, where the studies under way
            cost more than is left of the ceiling for both ids together, not in all of them. It
            is one entry whoever they are, so the head tells that something was merged, not what
            became of it.
        """
        with self._writing():
            new = self._state.joined.new_among(pairs)
            if new:
                leaving = who_leaves(*self._now(), new)
                body = {
                    "kind": "merge",
                    "pairs": self._file.store_set(packed_pairs(new)),
                    "left": self._leaving_stored(leaving),
                    "ceiling": _written(self._ceiling()),
                }
                self._append(body)
        return len(new)

    def merged(self) -> list[Exposure]:
        """The loss of every person whose record numbers were merged. Private."""
        with self._reading():
            return exposures({}, {}, self._merged_charges())

    def names(self) -> dict[Pseudonym, Pseudonym]:
        """Pseudonym -> name, for those that were merged. Private."""
        with self._reading():
            joined = self._state.joined
            return {patient: joined.name(patient) for patient in joined.ids}

    def known(self, patients: Collection[Pseudonym]) -> frozenset[Pseudonym]:
        """Those of some patients whom an approval made eligible, or who were merged. Private."""
        with self._reading():
            return self._state.met() & frozenset(patients)

    # ---- paying ----------------------------------------------------------------------------------
    def paid(self, key: RoundKey) -> tuple[bytes, Receipt] | None:
        """The bytes already paid for under this key, to be sent again for free.

        Raises:
            LedgerError: the round was paid for from another base model, or the bytes are gone
                or do not match their digest any more.
        """
        with self._reading():
            commit = self._state.round(key).commit
            if commit is None:
                return None
            if commit.body["base"] != key.base:
                raise LedgerError(
                    f"site {self._site!r}: {_named(key)} was already paid for, from another global "
                    "model. A second training is refused.",
                    advice="the coordinator starts a new run; sites approve it anew.",
                )
            payload = self._file.read_payload(commit.body["payload"])
            if payload is None:
                raise LedgerError(
                    f"site {self._site!r}: the stored release of round {key.round} is gone or "
                    "was altered.",
                    advice="if the round is long past, this is in order; else stop, keep the "
                    "file, and restore the newest copy of the ledger.",
                )
            return payload, Receipt(commit.head, commit.body["payload"])

    def reserve(self, key: RoundKey) -> Spend | None:
        """Set the cost of a release aside, before its first look at data.

        An earlier, unfinished reservation of the same round is voided: nothing of it left.

        Returns:
            What the approved terms say that it costs; None without privacy.

        Raises:
            ApprovalError: no approval of the study stands, or this was the third attempt at a
                round that came to nothing: the site then withdraws.
            PrivacyError: the approved schedule is paid for. Nothing is written.
            LedgerError: the round was already paid for, or the witness has seen another ledger.
        """
        self._guard.agree()
        with self._writing():
            if self.paid(key) is not None:
                raise LedgerError(
                    f"site {self._site!r}: {_named(key)} is paid for; another training of it is "
                    "refused.",
                    advice="send the stored release again.",
                )
            approval = self._standing_or_refuse(key.digest)
            term = approval.terms.get(key.purpose)
            if term is None or not approval.left(key.purpose):
                raise self._nothing_left(key.digest)
            unfinished = self._state.round(key).reserved
            if unfinished is not None:
                self._append({"kind": "void", **asdict(unfinished)})
            withdrawn = self._state.round(key).voids >= VOIDS_BEFORE_WITHDRAWAL
            if withdrawn:
                self._append(_withdrawal(approval, "training came to nothing, again and again"))
            else:
                self._append({"kind": "reserve", **asdict(key), "approval": approval.sequence})
        if withdrawn:
            raise ApprovalError(
                f"site {self._site!r}: {_named(key)} came to nothing "
                f"{VOIDS_BEFORE_WITHDRAWAL} times; the site has withdrawn from the study.",
                advice="find out from the log why training ends half-way, then approve anew.",
            )
        return term.cost

    def commit(self, key: RoundKey, payload: bytes) -> Receipt:
        """Record spend and bytes in one transaction; only then may the bytes leave.

        Args:
            key: The round, as it was reserved.
            payload: What was made.

        Raises:
            LedgerError: the round was not reserved, or is paid for by now; or the witness
                cannot be written.
            ApprovalError: the study was withdrawn meanwhile.
            PrivacyError: others have paid for the rest of the schedule meanwhile.
        """
        with self._writing():
            if self._state.round(key).reserved != key:
                raise LedgerError(
                    f"site {self._site!r}: {_named(key)} was not reserved like this, or is paid "
                    "for by now. Nothing was released.",
                    advice="let one client at a time train for a site; if only one did, this is "
                    "a defect of medfed: please report it.",
                )
            approval = self._standing_or_refuse(key.digest)
            if not approval.left(key.purpose):  # rounds reserved at once may be more than are left
                raise self._nothing_left(key.digest)
            sha256 = self._file.store_payload(payload)
            body = {"kind": "commit", **asdict(key), "approval": approval.sequence}
            entry = self._append({**body, "payload": sha256})
            self._drop_old_payloads(key)
        return Receipt(entry.head, sha256)

    def cleared(self, receipt: Receipt) -> Head | None:
        """Clear paid bytes for leaving.

        Returns:
            The ledger's head now, to be sent with them; None if the receipt is not of this
            ledger, so that nothing may leave.

        Raises:
            LedgerError: the witness cannot be written, or has seen another ledger meanwhile.
        """
        with self._reading():
            entries, sequence = self._file.entries, receipt.entry.sequence
            entry = entries[sequence - 1] if 1 <= sequence <= len(entries) else None
            if entry is None or entry.head != receipt.entry:
                return None
            if (entry.body["kind"], entry.body.get("payload")) != (
                "commit",
                receipt.payload_sha256,
            ):
                return None
            head = self._file.head
        self._guard.keep(head)
        return head

    # ---- what was spent --------------------------------------------------------------------------
    def rounds_paid(self, digest: str, purpose: Purpose = "train") -> int:
        """Releases of a study that were paid for, over all its runs and approvals."""
        with self._reading():
            return self._state.paid_in_all(digest, purpose)

    def exposures(self) -> list[Exposure]:
        """The loss of every group of patients with the same memberships. Private."""
        with self._reading():
            state = self._state
            return exposures(state.members(), state.charges(), self._merged_charges())

    def epsilon(self, delta: float) -> float:
        """Epsilon spent by the most exposed patient, over all studies, composed by PLD. Private.

        Returns:
            Under add-or-remove one patient. Infinity once a study without privacy ran.
        """
        return max((group.spent(delta) for group in self.exposures()), default=0.0)

    # ---- no quiet rollback -----------------------------------------------------------------------
    @property
    def head(self) -> Head:
        """Where the ledger stands, signed."""
        with self._reading():
            return self._file.head

    def audit(self) -> tuple[Head, list[dict[str, Any]]]:
        """Check every entry's signature, beside what opening checks.

        Returns:
            The head and all entries' contents. Private.

        Raises:
            LedgerError: an entry is not signed by the site.
        """
        with self._reading():
            self._file.check_all_signatures()
            return self._file.head, [dict(entry.body) for entry in self._file.entries]

    def check_known(self, known: Head) -> None:
        """Hold the ledger against a head that the server remembers; see ``HeadGuard.check``.

        Raises:
            TrustError: it was never signed by this site.
            LedgerMismatchError: it was, and this ledger does not hold it.
        """
        self._guard.check(known)

    # ---- within a transaction --------------------------------------------------------------------
    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._file.reading():
            self._catch_up()
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction; what other places must know of it, they know before it returns."""
        with self._file.lock:
            try:
                with self._file.transaction():
                    self._catch_up()
                    yield
            except BaseException:
                self._state = LedgerState(self._file.read_set)  # what was undone may be in it
                raise
            entries = self._file.entries
        if entries and entries[-1].body["kind"] not in ("reserve", "void"):
            self._guard.keep(entries[-1].head)

    def _catch_up(self) -> None:
        for entry in self._file.entries[self._state.seen :]:
            self._state.apply(entry)

    def _append(self, body: Mapping[str, Any]) -> Entry:
        entry = self._file.append({**body, "time": time.time()})
        self._catch_up()
        return entry

    def _standing_or_refuse(self, digest: str) -> Approval:
        approval = self._state.standing(digest)
        if approval is not None:
            return approval
        ended = any(a.digest == digest for a in self._state.approvals.values())
        found = "was withdrawn here" if ended else "is not approved here"
        raise ApprovalError(
            f"site {self._site!r}: the study with digest {digest[:8]} {found}.",
            advice="if the site shall take part, read the study, then `medfed site approve "
            "STUDY.toml`.",
        )

    def _now(self) -> tuple[LedgerState, Ceiling]:
        return self._state, self._ceiling()

    def _stored(
        self, whole: Term, digest: str, purpose: Purpose, patients: Collection[Pseudonym]
    ) -> str:
        return self._file.store_set(
            packed(who_affords(*self._now(), whole, digest, purpose, patients))
        )

    def _leaving_stored(self, leaving: Leaving) -> dict[str, dict[Purpose, str]]:
        return {
            str(sequence): {
                purpose: self._file.store_set(packed(names)) for purpose, names in purposes.items()
            }
            for sequence, purposes in leaving.items()
        }

    def _merged_charges(self) -> Iterator[tuple[Charge, ...]]:
        found = (self._state.charges_of(person) for person in self._state.joined.persons)
        return (charges for charges in found if charges)

    def _drop_old_payloads(self, key: RoundKey) -> None:
        """Keep the last few of a study: the server has gone on from the older ones."""
        commits = [
            entry.body
            for entry in self._file.entries
            if entry.body["kind"] == "commit"
            and (entry.body["digest"], entry.body["purpose"]) == (key.digest, key.purpose)
        ]
        kept = {body["payload"] for body in commits[-_KEPT_PAYLOADS:]}
        for body in commits[-_KEPT_PAYLOADS - 1 : -_KEPT_PAYLOADS]:
            if body["payload"] not in kept:
                self._file.drop_payload(body["payload"])

    def _nothing_left(self, digest: str) -> PrivacyError:
        return PrivacyError(
            f"site {self._site!r}: everything that was approved of study {digest[:8]} is paid "
            "for; this would be one more.",
            advice="to train on, the coordinator raises the study's serial and the site approves "
            "what that costs.",
        )


def _withdrawal(approval: Approval, reason: str) -> dict[str, Any]:
    return {
        "kind": "withdraw",
        "digest": approval.digest,
        "approval": approval.sequence,
        "reason": reason,
    }


def _written(ceiling: Ceiling) -> list[float] | None:
    """The ceiling that an approval was given under, for the auditor; None: none."""
    return None if ceiling == NO_CEILING else list(ceiling)


def _named(key: RoundKey) -> str:
    """A round as messages name it; the server chose the run's name, so it is cut short."""
    return f"round {key.round} of run {key.run[:80]!r}"
