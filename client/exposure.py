"""How much each patient of a site may have lost, over all studies that the site approved.

A patient is charged for a release if they were *eligible*: whether a coin then drew them is
never written. So patients with the same memberships have lost the same, and a site's patients
fall into a few groups. All of this is private to the site; nothing of it is ever released.

Record numbers that turned out to be one person were charged as two until they were merged. The
person lost what both lost, and more where both took part in one release (``JointSpend``).

Within one study, whose schedule was fixed before its first release, epsilon is composed by PLD.
Studies are chosen one after the other, with what the earlier ones showed in mind, so the
ceiling over all of them is held by a Rényi filter (``common/privacy/renyi_filter.py``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from medfed.common.privacy.accounting import JointSpend, Spend, composed_epsilon
from medfed.common.privacy.renyi_filter import fits, held_epsilon
from medfed.common.privacy.terms import Purpose, Term

Pseudonym = bytes
"""A patient's keyed hash at this site: 16 bytes. Private."""


AnySpend = Spend | JointSpend


class Ceiling(NamedTuple):
    """What one patient may lose over all studies together, as ``site.toml`` says.

    Attributes:
        epsilon: > 0, at ``delta``; infinity: no ceiling (simulation).
        delta: In (0, 1).
    """

    epsilon: float
    delta: float


NO_CEILING = Ceiling(math.inf, 1e-5)


class Charge(NamedTuple):
    """What being eligible for one purpose of one approval costs a patient.

    Attributes:
        approval: Sequence of the approval.
        purpose: Train, validation or test.
        term: Its cost and its schedule.
        paid: Releases made so far.
        open: Whether more may follow.
        several: (ids, releases): how many of those that were paid were made from several ids of
            the person at once, each a privacy unit of its own; ids >= 2, ascending.
    """

    approval: int
    purpose: Purpose
    term: Term
    paid: int
    open: bool
    several: tuple[tuple[int, int], ...] = ()

    @property
    def reserved(self) -> int:
        """Releases made, or set aside while the approval stands."""
        return self.term.releases if self.open else self.paid

    def spends(self, releases: int) -> list[AnySpend | None]:
        """What the first so many releases cost, at least those that were paid; none for none."""
        single = releases - sum(count for _, count in self.several)
        runs = ((1, single), *self.several)
        return [_of_ids(self.term.spent(count), ids) for ids, count in runs if count]


class Exposure(NamedTuple):
    """The loss of a group of patients who were eligible for the same things. Private.

    Attributes:
        patients: How many they are.
        charges: What they were eligible for.
    """

    patients: int
    charges: tuple[Charge, ...]

    def spent(self, delta: float) -> float:
        """Epsilon of everything released so far, composed by PLD."""
        return _composed([s for c in self.charges for s in c.spends(c.paid)], delta)

    def held(self, ceiling: Ceiling) -> float:
        """Epsilon of everything released so far, as the filter of a ceiling reads it."""
        known = _known([s for c in self.charges for s in c.spends(c.paid)])
        return math.inf if known is None else _held(known, ceiling)

    def reserved(self, delta: float) -> float:
        """Epsilon if every approved schedule runs to its end, composed by PLD."""
        return _composed([s for c in self.charges for s in c.spends(c.reserved)], delta)

    def within(self, ceiling: Ceiling) -> bool:
        """Whether what was released is within a ceiling, by the rules that let studies in."""
        if self.held(ceiling) <= ceiling.epsilon:
            return True
        studies = sum(bool(charge.paid) for charge in self.charges)
        return studies == 1 and self.spent(ceiling.delta) <= ceiling.epsilon


def affordable(earlier: Iterable[Charge], new: Term, ceiling: Ceiling) -> bool:
    """Whether a patient can afford a whole schedule on top of what is spent or set aside.

    Args:
        earlier: The patient's charges from approvals given before this one.
        new: The whole schedule that is asked for.
        ceiling: What the patient may lose in all.
    """
    if math.isinf(ceiling.epsilon) or new.cost is None:  # the latter is for the policy to allow
        return True
    before = _known([s for c in earlier if c.reserved for s in _set_aside(c, ceiling)])
    asked = new.spent(new.releases)
    if asked is None or before is None:
        return False
    return fits(before, [asked], epsilon_limit=ceiling.epsilon, delta_limit=ceiling.delta)


def that_go_on(charges: Sequence[Charge], ceiling: Ceiling) -> list[Charge]:
    """Choose which of a merged person's studies go on, the older ones first.

    For others every approval left room for those before it. For a merged person nothing did, so
    all that was ever released counts, that of later approvals too.

    Args:
        charges: All of the person's, in order.
        ceiling: What the person may lose in all.

    Returns:
        Those charges that are open and whose rest can be afforded.
    """
    going: list[Charge] = []
    for charge in (c for c in charges if c.open):
        others = [
            c if c in going else c._replace(open=False)
            for c in charges
            if (c.approval, c.purpose) != (charge.approval, charge.purpose)
        ]
        if _can_end(charge, others, ceiling):
            going.append(charge)
    return going


def _can_end(charge: Charge, others: Sequence[Charge], ceiling: Ceiling) -> bool:
    """Whether a charge's whole schedule fits beside the others."""
    if not charge.several:
        return affordable(others, charge.term, ceiling)
    if math.isinf(ceiling.epsilon) or charge.term.cost is None:
        return True
    whole = [s for c in others if c.reserved for s in _set_aside(c, ceiling)]
    known = _known([*whole, *charge.spends(charge.term.releases)])
    return known is not None and _held(known, ceiling) <= ceiling.epsilon


def groups(
    members: Mapping[tuple[int, Purpose], frozenset[Pseudonym]],
) -> dict[Pseudonym, tuple[tuple[int, Purpose], ...]]:
    """Find what each patient is or was eligible for.

    Args:
        members: (approval, purpose) -> who is eligible.

    Returns:
        Patient -> their (approval, purpose) pairs, in order.
    """
    found: dict[Pseudonym, list[tuple[int, Purpose]]] = {}
    for key in sorted(members):
        for patient in members[key]:
            found.setdefault(patient, []).append(key)
    return {patient: tuple(keys) for patient, keys in found.items()}


def exposures(
    members: Mapping[tuple[int, Purpose], frozenset[Pseudonym]],
    charges: Mapping[tuple[int, Purpose], Charge],
    merged: Iterable[tuple[Charge, ...]] = (),
) -> list[Exposure]:
    """Give the loss of every group of patients. Private.

    Args:
        members: (approval, purpose) -> who is eligible, but for merged persons.
        charges: (approval, purpose) -> what it costs them.
        merged: What each merged person is charged for.
    """
    counted = Counter(groups(members).values())
    return [
        Exposure(patients, tuple(charges[key] for key in keys))
        for keys, patients in sorted(counted.items())
    ] + [Exposure(persons, history) for history, persons in Counter(merged).items()]


def _set_aside(charge: Charge, ceiling: Ceiling) -> list[AnySpend | None]:
    """What a charge takes from the ceiling: what was paid, or all while more may follow.

    A schedule that only its exact composition let in counts as a whole once it has begun: to
    stop it early and take another would be a choice made from its outputs (``fits``).
    """
    whole = charge.term.spent(charge.term.releases)
    if whole is not None and _held([whole], ceiling) > ceiling.epsilon:
        return charge.spends(charge.term.releases)
    return charge.spends(charge.reserved)


def _of_ids(spend: Spend | None, ids: int) -> AnySpend | None:
    return JointSpend(*spend, ids) if spend is not None and ids > 1 else spend


def _known(spends: Sequence[AnySpend | None]) -> list[AnySpend] | None:
    """The spends, all private; None where one is not."""
    known = [spend for spend in spends if spend is not None]
    return known if len(known) == len(spends) else None


def _held(spends: Sequence[AnySpend], ceiling: Ceiling) -> float:
    return held_epsilon(spends, epsilon_limit=ceiling.epsilon, delta_limit=ceiling.delta)


def _composed(spends: Sequence[AnySpend | None], delta: float) -> float:
    known = _known(spends)
    return math.inf if known is None else composed_epsilon(known, delta)
