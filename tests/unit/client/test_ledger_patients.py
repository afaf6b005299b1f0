"""Who pays: each patient for what they were eligible for, and nobody beyond the ceiling."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant

from medfed.client.exposure import NO_CEILING, Ceiling
from medfed.client.ledger import Ledger
from medfed.common.errors import ApprovalError, LedgerError, PrivacyError
from medfed.common.privacy.accounting import Spend, composed_epsilon
from medfed.common.privacy.renyi_filter import held_epsilon
from medfed.common.privacy.terms import Term, Terms
from tests.support.ledgers import (
    COST,
    KEY,
    PAYLOAD,
    TERMS,
    LedgerPlace,
    approve,
    patients,
    pay,
)

DELTA = 1e-5
B, C = "e" * 64, "f" * 64  # digests of other studies; A is that of KEY
A = KEY.digest
ONE_STUDY = Ceiling(7.0, DELTA)  # the filter reads 6.3 after one schedule of TERMS, 8.3 after two
ONE_BY_PLD = Ceiling(5.5, DELTA)  # the filter reads 6.4 after one schedule; PLD gives 5.15


@pytest.fixture
def place(tmp_path: Path) -> LedgerPlace:
    return LedgerPlace(tmp_path)


def eligible(ledger: Ledger, digest: str = A) -> frozenset[bytes] | None:
    return ledger.eligible(digest, "train")


def epsilon_of_each(ledger: Ledger) -> list[tuple[int, float]]:
    return sorted((group.patients, group.spent(DELTA)) for group in ledger.exposures())


# ---- epsilon -------------------------------------------------------------------------------------
def test_epsilon_of_a_mixed_history_is_what_dp_accounting_composes(place: LedgerPlace) -> None:
    ledger = place.open()
    stronger: Terms = {"train": Term(Spend(1.5, 0.2, 7), 1)}
    for digest, terms, rounds in ((A, TERMS, 2), (B, stronger, 1)):
        approve(ledger, digest, "x", terms=terms)
        for number in range(1, rounds + 1):
            pay(ledger, replace(KEY, digest=digest, round=number))

    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-3)
    for sigma, rate, steps in ((1.0, 0.1, 10), (1.5, 0.2, 7)):
        gauss = dp_event.GaussianDpEvent(sigma)
        accountant.compose(dp_event.PoissonSampledDpEvent(rate, gauss), steps)

    assert ledger.epsilon(DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=2e-3)
    assert ledger.epsilon(1e-3) < ledger.epsilon(DELTA)


def test_epsilon_is_exactly_that_of_the_composition_of_all_that_was_paid(
    place: LedgerPlace,
) -> None:
    ledger = place.approved()
    for number in range(1, 4):
        pay(ledger, replace(KEY, round=number))

    assert ledger.epsilon(DELTA) == composed_epsilon([COST] * 3, DELTA)
    assert place.open().epsilon(DELTA) == ledger.epsilon(DELTA)


def test_reservations_and_voids_are_not_spent(place: LedgerPlace) -> None:
    ledger = place.approved()
    for _ in range(3):
        ledger.reserve(KEY)

    assert ledger.epsilon(DELTA) == 0.0
    assert ledger.rounds_paid(A) == 0
    assert [group.reserved(DELTA) for group in ledger.exposures()] == [
        composed_epsilon([COST] * 10, DELTA)  # set aside by the approval
    ]


def test_nobody_has_spent_anything_in_a_new_ledger(place: LedgerPlace) -> None:
    assert place.open().epsilon(DELTA) == 0.0
    assert place.open().exposures() == []


def test_a_patient_in_two_studies_pays_both_and_one_who_joined_later_pays_one(
    place: LedgerPlace,
) -> None:
    ledger = place.approved(names="xy")
    approve(ledger, B, "yz")  # x has left, z is new
    for digest in (A, B):
        for number in (1, 2):
            pay(ledger, replace(KEY, digest=digest, round=number))

    two, four = (composed_epsilon([COST] * rounds, DELTA) for rounds in (2, 4))
    assert epsilon_of_each(ledger) == [(1, two), (1, two), (1, four)]
    assert ledger.epsilon(DELTA) == four


def test_the_most_exposed_patient_counts_not_the_sum_over_studies(place: LedgerPlace) -> None:
    ledger = place.approved(names="ab")
    approve(ledger, B, "cd")
    pay(ledger)
    for number in (1, 2):
        pay(ledger, replace(KEY, digest=B, round=number))

    assert ledger.epsilon(DELTA) == composed_epsilon([COST] * 2, DELTA)


def test_every_eligible_patient_pays_whoever_was_sampled(place: LedgerPlace) -> None:
    ledger = place.approved(names="abcdefgh")
    pay(ledger)

    assert epsilon_of_each(ledger) == [(8, composed_epsilon([COST], DELTA))]


def test_patients_who_validate_pay_for_histograms_and_not_for_training(place: LedgerPlace) -> None:
    histogram = Spend(4.0, 1.0, 1)
    ledger = place.open()
    terms: Terms = {"train": Term(COST, 10), "validation": Term(histogram, 2)}
    approve(ledger, A, {"train": patients("ab"), "validation": patients("c")}, terms=terms)
    pay(ledger)
    for number in (1, 2):
        pay(ledger, replace(KEY, round=number, purpose="validation"))

    assert epsilon_of_each(ledger) == sorted(
        [(2, composed_epsilon([COST], DELTA)), (1, composed_epsilon([histogram] * 2, DELTA))]
    )
    assert (ledger.rounds_paid(A), ledger.rounds_paid(A, "validation")) == (1, 2)
    assert ledger.eligible(A, "validation") == patients("c")
    assert ledger.eligible(A, "test") == frozenset()
    with pytest.raises(PrivacyError, match="this would be one more"):
        ledger.reserve(replace(KEY, round=3, purpose="validation"))


# ---- the ceiling ---------------------------------------------------------------------------------
def test_whoever_cannot_afford_the_whole_schedule_takes_no_part_and_nothing_tells(
    place: LedgerPlace,
) -> None:
    ledger = place.approved(ONE_STUDY, names="xy")
    approve(ledger, B, "yz")

    assert eligible(ledger, A) == patients("xy")
    assert eligible(ledger, B) == patients("z")  # y has set a whole study aside already
    assert ledger.reserve(replace(KEY, digest=B)) == COST
    ledger.commit(replace(KEY, digest=B), PAYLOAD)
    assert epsilon_of_each(ledger) == [(1, composed_epsilon([COST], DELTA)), (2, 0.0)]


def test_a_study_that_nobody_can_afford_looks_like_any_other_from_outside(
    place: LedgerPlace,
) -> None:
    ledger = place.approved(ONE_STUDY)
    approve(ledger, B, "xyz")

    assert eligible(ledger, B) == frozenset()
    costs = [ledger.reserve(replace(KEY, digest=digest)) for digest in (A, B)]
    heads = [ledger.cleared(ledger.commit(replace(KEY, digest=d), PAYLOAD)) for d in (A, B)]
    assert costs == [COST, COST]
    assert None not in heads


def test_the_ceiling_holds_for_everyone_though_many_studies_are_approved(
    place: LedgerPlace,
) -> None:
    limit = Ceiling(3.0, DELTA)
    ledger = place.open(limit)
    for number in range(4):
        digest = f"{number}" * 64
        approve(ledger, digest, "uvwxyz"[number:], terms={"train": Term(COST, 2 + number)})
        for round_ in range(1, 3 + number):
            pay(ledger, replace(KEY, digest=digest, round=round_))

    for group in ledger.exposures():
        assert group.spent(DELTA) <= 3.0
        assert len(group.charges) == 1 or group.held(limit) <= 3.0  # one alone: its PLD counts
    assert ledger.epsilon(DELTA) > 1.0  # something was spent


def test_the_ceilings_of_these_tests_leave_room_for_one_study() -> None:
    one = TERMS["train"].spent(10)
    assert one is not None

    def held(ceiling: Ceiling, count: int) -> float:
        limits = {"epsilon_limit": ceiling.epsilon, "delta_limit": ceiling.delta}
        return held_epsilon([one] * count, **limits)

    assert held(ONE_STUDY, 1) < ONE_STUDY.epsilon < held(ONE_STUDY, 2)
    assert composed_epsilon([one], DELTA) < ONE_BY_PLD.epsilon < held(ONE_BY_PLD, 1)


def test_who_could_afford_a_study_is_who_is_eligible_once_it_is_approved(
    place: LedgerPlace,
) -> None:
    ledger = place.approved(ONE_STUDY, names="xy")
    before = ledger.who_can_afford(B, TERMS, {"train": patients("yz")})
    approve(ledger, B, "yz")

    assert before == {"train": patients("z")} == {"train": eligible(ledger, B)}


def test_a_ceiling_that_is_lowered_holds_at_the_next_round(place: LedgerPlace) -> None:
    now = [ONE_STUDY]
    ledger = place.approved(lambda: now[0])
    pay(ledger)
    now[0] = Ceiling(ONE_STUDY.epsilon / 2, DELTA)

    assert eligible(ledger) == frozenset()
    assert ledger.reserve(replace(KEY, round=2)) == COST  # the server sees no difference
    now[0] = ONE_STUDY
    assert eligible(ledger) == patients("xyz")


def test_a_lowered_ceiling_keeps_the_study_that_was_approved_first(place: LedgerPlace) -> None:
    now = [NO_CEILING]
    ledger = place.approved(lambda: now[0])
    approve(ledger, B, "xyz")
    now[0] = ONE_STUDY

    assert eligible(ledger, A) == patients("xyz")
    assert eligible(ledger, B) == frozenset()


def test_a_ceiling_that_is_raised_lets_nobody_into_an_approval_that_stands(
    place: LedgerPlace,
) -> None:
    now = [ONE_STUDY]
    ledger = place.approved(lambda: now[0], names="xy")
    approve(ledger, B, "yz")
    now[0] = NO_CEILING

    assert eligible(ledger, B) == patients("z")
    approve(ledger, C, "yz")
    assert eligible(ledger, C) == patients("yz")


def test_patients_who_come_after_the_approval_take_part_in_the_next_study(
    place: LedgerPlace,
) -> None:
    ledger = place.approved(names="xy")
    approve(ledger, A, "xyz")  # the same study again

    assert eligible(ledger) == patients("xy")


def test_a_study_without_privacy_costs_everything(place: LedgerPlace) -> None:
    ledger = place.approved(Ceiling(1e6, DELTA), terms={"train": Term(None, 2)}, names="xy")
    assert eligible(ledger) == patients("xy")  # the policy allowed it
    assert ledger.epsilon(DELTA) == 0.0
    pay(ledger)

    approve(ledger, B, "yz")

    assert ledger.epsilon(DELTA) == math.inf
    held = [group.held(Ceiling(1e6, DELTA)) for group in ledger.exposures()]
    assert held == [math.inf, 0.0]  # x and y; z
    assert eligible(ledger, B) == patients("z")


# ---- exclusion -----------------------------------------------------------------------------------
def test_an_excluded_patient_takes_part_in_nothing_more_and_has_spent_what_they_spent(
    place: LedgerPlace,
) -> None:
    ledger = place.approved(names="xyz")
    pay(ledger)

    assert ledger.exclude(patients("xq")) == 2  # q is not known yet

    for again in (ledger, place.open()):
        assert eligible(again) == patients("yz")
        assert again.excluded() == 2
    approve(ledger, B, "xyq")
    assert eligible(ledger, B) == patients("y")
    pay(ledger, replace(KEY, round=2))
    assert ledger.epsilon(DELTA) == composed_epsilon([COST] * 2, DELTA)
    assert sum(group.patients for group in ledger.exposures()) == 3


def test_excluding_twice_writes_once(place: LedgerPlace) -> None:
    ledger = place.approved()

    assert [ledger.exclude(patients(names)) for names in ("x", "x", "xy", "")] == [1, 0, 1, 0]
    assert place.kinds()[2:] == ["exclude", "exclude"]
    assert ledger.excluded() == 2


def test_how_many_of_some_patients_were_ever_eligible(place: LedgerPlace) -> None:
    ledger = place.approved(names="xy")

    assert [len(ledger.known(patients(names))) for names in ("xy", "yz", "z", "")] == [2, 1, 0, 0]


# ---- withdrawal ----------------------------------------------------------------------------------
def test_after_a_withdrawal_nothing_more_is_released_and_spending_is_kept(
    place: LedgerPlace,
) -> None:
    ledger = place.approved()
    pay(ledger)
    ledger.reserve(replace(KEY, round=2))
    ledger.withdraw(A, "consent")

    for ask in (
        lambda: ledger.reserve(replace(KEY, round=3)),
        lambda: eligible(ledger),
        lambda: ledger.withdraw(A, "again"),
    ):
        with pytest.raises(ApprovalError, match="was withdrawn here"):
            ask()
    with pytest.raises(LedgerError, match="was not reserved"):
        ledger.commit(replace(KEY, round=2), PAYLOAD)
    assert place.open().approval(A) is None
    assert ledger.epsilon(DELTA) == composed_epsilon([COST], DELTA)


def test_approving_again_gives_only_what_is_left_of_the_schedule(place: LedgerPlace) -> None:
    ledger = place.approved(terms={"train": Term(COST, 3)})
    pay(ledger)
    ledger.withdraw(A, "a pause")
    approve(ledger, A, "xyz", terms={"train": Term(COST, 3)})

    approval = ledger.approval(A)
    assert approval is not None
    assert approval.terms == {"train": Term(COST, 2)}
    assert [group.reserved(DELTA) for group in ledger.exposures()] == [
        composed_epsilon([COST] * 3, DELTA)
    ]
    for number in (2, 3):
        pay(ledger, replace(KEY, round=number))
    with pytest.raises(PrivacyError, match="this would be one more"):
        ledger.reserve(replace(KEY, round=1, run="run-2"))
    assert ledger.rounds_paid(A) == 3


def test_a_schedule_that_is_paid_in_full_cannot_be_approved_again(place: LedgerPlace) -> None:
    ledger = place.approved(terms={"train": Term(COST, 1)})
    pay(ledger)
    ledger.withdraw(A, "over")

    with pytest.raises(PrivacyError, match="everything that was approved") as caught:
        approve(ledger, A, "xyz", terms={"train": Term(COST, 1)})

    assert "serial" in caught.value.advice
    assert place.kinds()[-1] == "withdraw"


def test_what_was_trained_under_an_ended_approval_is_not_paid_under_a_later_one(
    place: LedgerPlace,
) -> None:
    # Found here: x would have been trained on, and z and y charged.
    ledger = place.approved(names="xy")
    ledger.reserve(KEY)
    ledger.withdraw(A, "a pause")
    approve(ledger, A, "yz")

    with pytest.raises(LedgerError, match="was not reserved"):
        ledger.commit(KEY, PAYLOAD)


def test_a_withdrawn_study_sets_aside_no_more_than_it_spent(place: LedgerPlace) -> None:
    ledger = place.approved(ONE_STUDY)
    ledger.withdraw(A, "never begun")
    approve(ledger, B, "xyz")

    assert eligible(ledger, B) == patients("xyz")


def test_a_schedule_that_only_its_exact_composition_let_in_is_not_stopped_to_buy_another(
    place: LedgerPlace,
) -> None:
    # Found here: 1 of 10 rounds was counted, so that what to run was chosen from outputs.
    ledger = place.approved(ONE_BY_PLD)
    assert eligible(ledger) == patients("xyz")
    pay(ledger)
    ledger.withdraw(A, "something better came")
    approve(ledger, B, "wxyz", terms={"train": Term(COST, 1)})

    assert eligible(ledger, B) == patients("w")


# ---- what is written -----------------------------------------------------------------------------
def test_entries_name_no_patient_and_equal_sets_are_kept_once(place: LedgerPlace) -> None:
    ledger = place.approved(names="xyz")
    approve(ledger, B, "zyx")
    pay(ledger)

    sets = [body["terms"]["train"]["patients"] for body in place.bodies()[1:3]]
    assert sets[0] == sets[1]
    text = str(place.bodies())
    for pseudonym in patients("xyz"):
        assert pseudonym.hex() not in text


def test_approvals_are_told_in_order_with_what_is_left(place: LedgerPlace) -> None:
    ledger = place.approved()
    approve(ledger, B, "xyz")
    pay(ledger)
    ledger.withdraw(B, "no")

    told = [(a.study, a.open, a.left("train"), a.left("test")) for a in ledger.approvals()]

    assert told == [("study dd", True, 9, 0), ("study ee", False, 0, 0)]
