"""What each patient may have lost: for what they were eligible, over all studies."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.client.exposure import (
    NO_CEILING,
    Ceiling,
    Charge,
    Exposure,
    affordable,
    exposures,
    groups,
)
from medfed.common.privacy.accounting import Spend, composed_epsilon
from medfed.common.privacy.renyi_filter import held_epsilon
from medfed.common.privacy.terms import Purpose, Term

COST = Spend(1.0, 0.1, 5)
TEN = Term(COST, 10)
DELTA = 1e-5
NO_PRIVACY = Term(None, 10)

PURPOSES = st.sampled_from(["train", "validation", "test"])
MEMBERS = st.dictionaries(
    st.tuples(st.integers(1, 4), PURPOSES), st.frozensets(st.sampled_from([b"a", b"b", b"c", b"d"]))
)


def charge(
    paid: int, *, term: Term = TEN, open: bool = True, approval: int = 1, purpose: Purpose = "train"
) -> Charge:
    return Charge(approval, purpose, term, paid, open)


# ---- who was eligible for what -------------------------------------------------------------------
@given(MEMBERS)
@settings(deadline=None, max_examples=100)
def test_every_patient_is_in_one_group_with_exactly_what_they_were_eligible_for(
    members: dict[tuple[int, Purpose], frozenset[bytes]],
) -> None:
    charges = {key: charge(1, approval=key[0], purpose=key[1]) for key in members}

    found = groups(members)
    told = exposures(members, charges)

    everyone = frozenset().union(*members.values())
    assert set(found) == everyone
    for patient in everyone:
        assert set(found[patient]) == {key for key in members if patient in members[key]}
    assert sum(group.patients for group in told) == len(everyone)
    assert sorted(tuple((c.approval, c.purpose) for c in g.charges) for g in told) == sorted(
        set(found.values())
    )


def test_patients_with_the_same_memberships_are_told_together() -> None:
    members: dict[tuple[int, Purpose], frozenset[bytes]] = {
        (1, "train"): frozenset([b"a", b"b", b"c"]),
        (2, "train"): frozenset([b"b", b"c", b"d"]),
    }
    charges = {key: charge(1, approval=key[0]) for key in members}

    told = exposures(members, charges)

    assert [(g.patients, [c.approval for c in g.charges]) for g in told] == [
        (1, [1]),  # a
        (2, [1, 2]),  # b, c
        (1, [2]),  # d
    ]


# ---- what it cost --------------------------------------------------------------------------------
def test_epsilon_is_composed_of_all_that_was_paid_and_of_nothing_else() -> None:
    group = Exposure(3, (charge(2), charge(0), charge(1, open=False, term=Term(COST, 4))))

    assert group.spent(DELTA) == composed_epsilon([COST] * 3, DELTA)
    assert group.reserved(DELTA) == composed_epsilon([COST] * (10 + 10 + 1), DELTA)


def test_whoever_was_in_nothing_that_was_released_lost_nothing() -> None:
    group = Exposure(1, (charge(0), charge(0, term=NO_PRIVACY)))

    assert group.spent(DELTA) == group.held(Ceiling(5.0, DELTA)) == 0.0


def test_a_release_without_privacy_is_an_infinite_loss() -> None:
    group = Exposure(1, (charge(2), charge(1, term=NO_PRIVACY)))

    assert group.spent(DELTA) == group.held(Ceiling(5.0, DELTA)) == math.inf
    assert group.reserved(DELTA) == math.inf


def test_the_filter_reads_what_it_decides_by() -> None:
    # Found here: the reading of the best order was told, which is less than the filter's.
    ceiling = Ceiling(7.0, DELTA)
    group = Exposure(1, (charge(10), charge(3)))
    whole = COST._replace(steps=5 * 13)

    assert group.held(ceiling) == held_epsilon([whole], epsilon_limit=7.0, delta_limit=DELTA)
    assert group.held(ceiling) > group.spent(DELTA)


# ---- the ceiling ---------------------------------------------------------------------------------
@given(
    st.lists(st.integers(1, 12), max_size=4),
    st.integers(1, 12),
    st.floats(0.5, 12.0),
)
@settings(deadline=None, max_examples=40)
def test_whatever_is_let_in_stays_within_the_ceiling(
    earlier: list[int], asked: int, limit: float
) -> None:
    ceiling = Ceiling(limit, DELTA)
    let_in: list[Charge] = []
    for number, releases in enumerate([*earlier, asked], start=1):
        term = Term(COST, releases)
        if affordable(let_in, term, ceiling):
            let_in.append(charge(releases, term=term, approval=number))

    if let_in:
        assert Exposure(1, tuple(let_in)).spent(DELTA) <= limit
        assert len(let_in) == 1 or Exposure(1, tuple(let_in)).held(ceiling) <= limit


def test_what_is_set_aside_counts_before_it_is_spent() -> None:
    ceiling = Ceiling(7.0, DELTA)  # the filter reads 6.3 for ten releases, 8.3 for twenty

    assert affordable([], TEN, ceiling)
    assert not affordable([charge(0)], TEN, ceiling)
    assert affordable([charge(0, open=False)], TEN, ceiling)  # withdrawn before it began
    assert affordable([charge(1, open=False)], Term(COST, 9), ceiling)
    assert not affordable([charge(10, open=False)], TEN, ceiling)


def test_a_schedule_that_only_its_exact_composition_let_in_counts_as_a_whole_once_begun() -> None:
    ceiling = Ceiling(5.5, DELTA)  # PLD gives 5.15 for ten releases, the filter reads 6.4

    assert affordable([], TEN, ceiling)
    assert not affordable([charge(1, open=False)], Term(COST, 1), ceiling)
    assert affordable([charge(0, open=False)], TEN, ceiling)
    few = Term(COST, 4)  # the filter itself lets this in
    assert affordable([charge(1, term=few, open=False)], Term(COST, 1), ceiling)


def test_without_a_ceiling_everything_is_affordable() -> None:
    assert affordable([charge(10)] * 50, TEN, NO_CEILING)


def test_a_study_without_privacy_is_for_the_policy_to_allow() -> None:
    assert affordable([charge(10)], NO_PRIVACY, Ceiling(0.1, DELTA))


@pytest.mark.parametrize("paid", [1, 10])
def test_after_a_study_without_privacy_no_private_one_is_affordable(paid: int) -> None:
    ceiling = Ceiling(1e6, DELTA)

    assert not affordable([charge(paid, term=NO_PRIVACY, open=False)], TEN, ceiling)
    assert not affordable([charge(0, term=NO_PRIVACY)], TEN, ceiling)  # set aside
    assert affordable([charge(0, term=NO_PRIVACY, open=False)], TEN, ceiling)
