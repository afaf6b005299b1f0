"""Who takes part in a study: those who are not excluded and can afford its whole schedule.

Pure: asked of what the ledger's entries add up to, and of the ceiling. All of it is private.

For most patients every approval left room for those before it, so a study has to fit beside the
older ones only. A merged person's record numbers were approved apart from each other; theirs has
to fit beside everything that was released from either, and where that is too much already they
take no further part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cache

from medfed.client.exposure import (
    Ceiling,
    Charge,
    Pseudonym,
    affordable,
    groups,
    that_go_on,
)
from medfed.client.joined import Pair
from medfed.client.ledger_state import Approval, LedgerState
from medfed.common.privacy.accounting import Spend
from medfed.common.privacy.terms import PURPOSES, Purpose, Term

Leaving = dict[int, dict[Purpose, frozenset[Pseudonym]]]
"""Approval -> purpose -> names of merged persons who take no part in it any more. Private."""


def who_affords(
    state: LedgerState,
    ceiling: Ceiling,
    whole: Term,
    digest: str,
    purpose: Purpose,
    patients: Iterable[Pseudonym],
) -> frozenset[Pseudonym]:
    """Those who could take part in a study that is approved now.

    Args:
        state: Of the ledger.
        ceiling: What a patient may lose in all.
        whole: The study's whole schedule. It was fixed before its first release; that the study
            was withdrawn and approved again, at the same cost, changes nothing of it.
        digest: Of the study.
        purpose: What the schedule is for.
        patients: Whom to choose from, by any of their ids.

    Returns:
        Their names.
    """
    names = {state.joined.name(patient) for patient in patients} - state.excluded()
    merged = names & state.joined.persons.keys()
    can = _beside_older(state, ceiling, whole, digest, purpose, before=None)
    return frozenset(
        [name for name in names - merged if can(name)]
        + [name for name in merged if _can_begin(state, ceiling, whole, name)]
    )


def who_takes_part(
    state: LedgerState, ceiling: Ceiling, approval: Approval, purpose: Purpose
) -> frozenset[Pseudonym]:
    """Those who take part now under an approval that stands and names its patients."""
    members = approval.members[purpose]
    assert members is not None  # a simulation's patients have no names
    can = _beside_older(
        state,
        ceiling,
        whole_term(state, approval, purpose),
        approval.digest,
        purpose,
        before=approval.sequence,
    )
    names = {member for member in members.difference(state.joined.ids) if can(member)}
    goes_on = cache(that_go_on)  # many persons have the same history
    for person, ids in state.joined.persons.items():
        if not members.isdisjoint(ids):
            going = goes_on(state.charges_of(person), ceiling)
            if any((c.approval, c.purpose) == (approval.sequence, purpose) for c in going):
                names.add(person)
    return frozenset(names) - state.excluded()


def who_leaves(state: LedgerState, ceiling: Ceiling, pairs: Collection[Pair]) -> Leaving:
    """Which studies the persons of a merge leave by it.

    A person goes on in one part of a study, the first of training, validation and test, and in
    those studies that can be afforded beside all that either id has spent, the older ones first.

    Args:
        state: Of the ledger, before the merge.
        ceiling: What a patient may lose in all.
        pairs: What is merged.
    """
    joined = state.joined.copy()
    found: dict[int, dict[Purpose, set[Pseudonym]]] = {}
    for person in joined.join(pairs):
        charges = _in_one_part(state.charges_of(person, joined))
        going = {(c.approval, c.purpose) for c in that_go_on(charges, ceiling)}
        for charge in state.charges_of(person, joined):
            if charge.open and (charge.approval, charge.purpose) not in going:
                purposes = found.setdefault(charge.approval, {})
                purposes.setdefault(charge.purpose, set()).add(person)
    return {
        sequence: {purpose: frozenset(names) for purpose, names in purposes.items()}
        for sequence, purposes in found.items()
    }


def whole_term(state: LedgerState, approval: Approval, purpose: Purpose) -> Term:
    """The whole schedule that an approval may give the rest of."""
    cost = approval.terms[purpose].cost
    return _same(state, approval.digest, purpose, cost)[0].terms[purpose]


def _same(state: LedgerState, digest: str, purpose: Purpose, cost: Spend | None) -> list[Approval]:
    """The approvals of one schedule, given perhaps more than once, in order."""
    return [
        approval
        for approval in state.approvals.values()
        if approval.digest == digest
        and purpose in approval.terms
        and approval.terms[purpose].cost == cost
    ]


def _beside_older(
    state: LedgerState,
    ceiling: Ceiling,
    whole: Term,
    digest: str,
    purpose: Purpose,
    *,
    before: int | None,
) -> Callable[[Pseudonym], bool]:
    """Whether a patient who was never merged can afford a schedule beside the older ones."""
    charges = state.charges()
    same = {(a.sequence, purpose) for a in _same(state, digest, purpose, whole.cost)}
    known = groups(state.members(before=before))
    answers: dict[tuple[tuple[int, Purpose], ...], bool] = {}

    def can(patient: Pseudonym) -> bool:
        keys = known.get(patient, ())
        if keys not in answers:
            earlier = [charges[key] for key in keys if key not in same]
            answers[keys] = affordable(earlier, whole, ceiling)
        return answers[keys]

    return can


def _can_begin(state: LedgerState, ceiling: Ceiling, whole: Term, person: Pseudonym) -> bool:
    """Whether a merged person can afford a schedule beside all that goes on for them."""
    charges = state.charges_of(person)
    going = that_go_on(charges, ceiling)
    beside = [c if c in going else c._replace(open=False) for c in charges]
    return affordable(beside, whole, ceiling)


def _in_one_part(charges: Iterable[Charge]) -> list[Charge]:
    """The charges, with one open purpose of each approval, the first of ``PURPOSES``."""
    first: dict[int, Purpose] = {}
    kept = []
    for charge in sorted(charges, key=lambda c: (c.approval, PURPOSES.index(c.purpose))):
        part = first.setdefault(charge.approval, charge.purpose) if charge.open else charge.purpose
        kept.append(charge if part == charge.purpose else charge._replace(open=False))
    return kept
