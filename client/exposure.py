"""How much each patient of a site may have lost, over all studies that the site approved.

A patient is charged for a release if they were *eligible*: whether a coin then drew them is
never written. So patients with the same memberships have lost the same, and a site's patients
fall into a few groups. All of this is private to the site; nothing of it is ever released.

Within one study, whose schedule was fixed before its first release, epsilon is composed by PLD.
Studies are chosen one after the other, with what the earlier ones showed in mind, so the
ceiling over all of them is held by a Rényi filter (``common/privacy/renyi_filter.py``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from medfed.common.privacy.accounting import Spend, composed_epsilon
from medfed.common.privacy.renyi_filter import fits, held_epsilon
from medfed.common.privacy.terms import Purpose, Term

Pseudonym = bytes
"""A patient's keyed hash at this site: 16 bytes. Private."""


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
    """

    approval: int
    purpose: Purpose
    term: Term
    paid: int
    open: bool

    @property
    def reserved(self) -> int:
        """Releases made, or set aside while the approval stands."""
        return self.term.releases if self.open else self.paid


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
        return _composed([c.term.spent(c.paid) for c in self.charges if c.paid], delta)

    def held(self, ceiling: Ceiling) -> float:
        """Epsilon of everything released so far, as the filter of a ceiling reads it."""
        spends = [c.term.spent(c.paid) for c in self.charges if c.paid]
        known = [spend for spend in spends if spend is not None]
        return math.inf if len(known) < len(spends) else _held(known, ceiling)

    def reserved(self, delta: float) -> float:
        """Epsilon if every approved schedule runs to its end, composed by PLD."""
        return _composed([c.term.spent(c.reserved) for c in self.charges if c.reserved], delta)


def affordable(earlier: Iterable[Charge], new: Term, ceiling: Ceiling) -> bool:
    """Whether a patient can afford a whole schedule on top of what is spent or set aside.

    Args:
        earlier: The patient's charges from approvals given before this one.
        new: The whole schedule that is asked for.
        ceiling: What the patient may lose in all.
    """
    if math.isinf(ceiling.epsilon) or new.cost is None:  # the latter is for the policy to allow
        return True
    before = [_set_aside(c, ceiling) for c in earlier if c.reserved]
    asked = new.spent(new.releases)
    known = [spend for spend in before if spend is not None]
    if asked is None or len(known) < len(before):
        return False
    return fits(known, [asked], epsilon_limit=ceiling.epsilon, delta_limit=ceiling.delta)


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
) -> list[Exposure]:
    """Give the loss of every group of patients. Private."""
    counted = Counter(groups(members).values())
    return [
        Exposure(patients, tuple(charges[key] for key in keys))
        for keys, patients in sorted(counted.items())
    ]


def _set_aside(charge: Charge, ceiling: Ceiling) -> Spend | None:
    """What a charge takes from the ceiling: what was paid, or all while more may follow.

    A schedule that only its exact composition let in counts as a whole once it has begun: to
    stop it early and take another would be a choice made from its outputs (``fits``).
    """
    whole = charge.term.spent(charge.term.releases)
    if whole is not None and _held([whole], ceiling) > ceiling.epsilon:
        return whole
    return charge.term.spent(charge.reserved)


def _held(spends: Sequence[Spend], ceiling: Ceiling) -> float:
    return held_epsilon(spends, epsilon_limit=ceiling.epsilon, delta_limit=ceiling.delta)


def _composed(spends: Sequence[Spend | None], delta: float) -> float:
    known = [spend for spend in spends if spend is not None]
    if any(s is None for s in spends):
        return math.inf
    return composed_epsilon(known, delta)
