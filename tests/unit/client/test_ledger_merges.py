"""Record numbers that turned out to be one person: one privacy unit, one sum of what was lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.client.exposure import NO_CEILING, Ceiling, Exposure
from medfed.client.joined import Joined
from medfed.client.ledger import Ledger
from medfed.client.ledger_file import LedgerFile
from medfed.common.errors import LedgerError
from medfed.common.privacy.accounting import JointSpend, Spend, composed_epsilon
from medfed.common.privacy.renyi_filter import held_epsilon
from medfed.common.privacy.terms import Purpose, Term, Terms
from tests.support.ledgers import (
    COST,
    KEY,
    TERMS,
    FailingConnection,
    LedgerPlace,
    approve,
    crash,
    patients,
    pay,
)

DELTA = 1e-5
A, B, C = KEY.digest, "e" * 64, "f" * 64
HISTOGRAM = Spend(4.0, 1.0, 1)
TWO_PARTS: Terms = {"train": Term(COST, 10), "validation": Term(HISTOGRAM, 3)}
LETTERS = "uvwxyz"


@pytest.fixture
def place(tmp_path: Path) -> LedgerPlace:
    return LedgerPlace(tmp_path)


def one(letter: str) -> bytes:
    (name,) = patients(letter)
    return name


def merge(ledger: Ledger, *pairs: str) -> int:
    """Merge pairs of letters."""
    return ledger.merge([(one(a), one(b)) for a, b in pairs])


def rounds(ledger: Ledger, digest: str, *numbers: int, purpose: Purpose = "train") -> None:
    for number in numbers:
        pay(ledger, replace(KEY, digest=digest, round=number, purpose=purpose))


def letters(ledger: Ledger, digest: str = A, purpose: Purpose = "train") -> str:
    """Who takes part now, by the letters of all their ids."""
    found = ledger.eligible(digest, purpose)
    assert found is not None
    names = ledger.names()
    return "".join(s for s in LETTERS if names.get(one(s), one(s)) in found)


def steps(exposure: Exposure) -> Counter[tuple[float, float, int]]:
    """(noise multiplier, sampling rate, ids) -> steps that somebody lost to."""
    found: Counter[tuple[float, float, int]] = Counter()
    for charge in exposure.charges:
        for spend in charge.spends(charge.paid):
            assert spend is not None
            ids = spend.ids if isinstance(spend, JointSpend) else 1
            found[spend.noise_multiplier, spend.sampling_rate, ids] += spend.steps
    return found


# ---- a plain recomputation -----------------------------------------------------------------------
@dataclass
class Plain:
    """The same ledger, kept as a list of who was in which release with whom."""

    people: set[frozenset[str]] = field(default_factory=lambda: {frozenset(s) for s in LETTERS})
    members: dict[tuple[str, Purpose], str] = field(default_factory=dict)
    gone: list[tuple[str, Purpose, frozenset[str]]] = field(default_factory=list)
    releases: list[tuple[Spend, list[frozenset[str]]]] = field(default_factory=list)

    def units(self, digest: str, purpose: Purpose) -> list[frozenset[str]]:
        """The people who are in a release now, each one privacy unit."""
        left = [who for study, what, who in self.gone if (study, what) == (digest, purpose)]
        return [
            person
            for person in self.people
            if person & set(self.members.get((digest, purpose), ""))
            and not any(who <= person for who in left)
        ]

    def merge(self, a: str, b: str, studies: list[str]) -> None:
        both = {person for person in self.people if person & {a, b}}
        if len(both) == 1:
            return
        person = frozenset().union(*both)
        self.people = (self.people - both) | {person}
        for study in studies:  # trains or is judged, not both
            if person in self.units(study, "train") and person in self.units(study, "validation"):
                self.gone.append((study, "validation", person))

    def steps_of(self, person: frozenset[str]) -> Counter[tuple[float, float, int]]:
        found: Counter[tuple[float, float, int]] = Counter()
        for spend, units in self.releases:
            ids = sum(unit <= person for unit in units)
            if ids:
                found[spend.noise_multiplier, spend.sampling_rate, ids] += spend.steps
        return found


SETS = st.text(alphabet=LETTERS, max_size=6).map(lambda s: "".join(sorted(set(s))))
ACTIONS = st.one_of(
    st.tuples(st.just("approve"), st.sampled_from([A, B, C]), SETS, SETS),
    st.tuples(st.just("pay"), st.sampled_from([A, B, C]), st.sampled_from(["train", "validation"])),
    st.tuples(st.just("merge"), st.sampled_from(LETTERS), st.sampled_from(LETTERS)),
)


@given(st.lists(ACTIONS, max_size=25))
@settings(deadline=None, max_examples=60)
def test_whatever_is_approved_paid_and_merged_everyone_lost_what_a_plain_count_says(
    actions: list[tuple[str, ...]],
) -> None:
    ledger = Ledger(LedgerFile(None, None, site="A"), site="A")
    plain, paid = Plain(), Counter[tuple[str, str]]()
    for kind, *what in actions:
        if kind == "approve":
            digest, train, validation = what
            if (digest, "train") not in plain.members:
                # A person is in one part: a merged one in training, if any id is.
                names = plain.people
                rest = [p for p in names if p & set(validation) and not p & set(train)]
                validation = "".join(s for p in rest for s in p)
                who = {"train": patients(train), "validation": patients(validation)}
                ledger.approve(digest, "s", TWO_PARTS, who)  # type: ignore[arg-type]  # purposes
                plain.members[digest, "train"] = train
                plain.members[digest, "validation"] = validation
        elif kind == "pay":
            digest, purpose = what[0], what[1]
            if (digest, "train") in plain.members and paid[digest, purpose] < 3:
                paid[digest, purpose] += 1
                number = paid[digest, purpose]
                rounds(ledger, digest, number, purpose=purpose)  # type: ignore[arg-type]
                cost = TWO_PARTS[purpose].cost  # type: ignore[index]
                assert cost is not None
                plain.releases.append((cost, plain.units(digest, purpose)))  # type: ignore[arg-type]
        else:
            plain.merge(what[0], what[1], [d for d, p in plain.members if p == "train"])
            merge(ledger, "".join(what)) if what[0] != what[1] else None

    found = Counter(
        (tuple(sorted(steps(exposure).items())))
        for exposure in ledger.exposures()
        for _ in range(exposure.patients)
        if steps(exposure)
    )
    expected = Counter(
        tuple(sorted(lost.items())) for p in plain.people if (lost := plain.steps_of(p))
    )
    assert found == expected
    for digest, purpose in plain.members:
        units = plain.units(digest, purpose)
        assert set(letters(ledger, digest, purpose)) == set().union(*units)
        eligible = ledger.eligible(digest, purpose)
        assert eligible is not None and len(eligible) == len(units)  # each person once


@given(
    members=st.lists(SETS, min_size=1, max_size=3),
    paid=st.lists(st.integers(0, 10), min_size=3, max_size=3),
    pairs=st.lists(st.tuples(*[st.sampled_from(LETTERS)] * 2), min_size=1, max_size=3),
    limit=st.sampled_from([5.5, 7.0, 9.0, 20.0]),
)
@settings(deadline=None, max_examples=40)
def test_after_a_merge_nobody_comes_above_the_ceiling_who_was_not_there_by_the_merge(
    members: list[str], paid: list[int], pairs: list[tuple[str, str]], limit: float
) -> None:
    ceiling = Ceiling(limit, DELTA)
    ledger = Ledger(LedgerFile(None, None, site="A"), site="A", ceiling=lambda: ceiling)
    for digest, names, count in zip((A, B, C), members, paid, strict=False):
        approve(ledger, digest, names)
        rounds(ledger, digest, *range(1, count + 1))
    merge(ledger, *("".join(pair) for pair in pairs))
    at_the_merge = sorted(e.within(ceiling) for e in ledger.merged())
    spent = sorted(e.spent(DELTA) for e in ledger.merged() if not e.within(ceiling))

    for digest, _, count in zip((A, B, C), members, paid, strict=False):
        rounds(ledger, digest, *range(count + 1, 11))

    assert sorted(e.within(ceiling) for e in ledger.merged()) == at_the_merge
    # Who is beyond takes part in nothing any more: the sum stays what it was at the merge.
    assert sorted(e.spent(DELTA) for e in ledger.merged() if not e.within(ceiling)) == spent


@given(st.lists(st.lists(st.tuples(*[st.integers(0, 9)] * 2), max_size=4), max_size=5))
@settings(deadline=None, max_examples=100)
def test_who_is_one_person_is_what_hangs_together_at_each_time(
    merges: list[list[tuple[int, int]]],
) -> None:
    joined, pairs = Joined(), list[tuple[int, int]]()
    partitions = [{frozenset([n]) for n in range(10)}]
    for new in merges:
        joined.join([(bytes([a]), bytes([b])) for a, b in new])
        pairs += new
        groups = {frozenset([n]) for n in range(10)}
        for a, b in pairs:
            touched = {g for g in groups if g & {a, b}}
            groups = (groups - touched) | {frozenset().union(*touched)}
        partitions.append(groups)

    for time, groups in enumerate(partitions):
        for group in groups:
            assert {joined.name(bytes([n]), time) for n in group} == {bytes([min(group)])}
    assert {frozenset(p[0] for p in ids) for ids in joined.persons.values()} == {
        group for group in partitions[-1] if len(group) > 1
    }


# ---- what was lost before ------------------------------------------------------------------------
def test_studies_of_one_id_each_add_up_exactly(place: LedgerPlace) -> None:
    ledger = place.approved(names="x")
    approve(ledger, B, "y")
    rounds(ledger, A, 1, 2)
    rounds(ledger, B, 1, 2, 3)

    merge(ledger, "xy")

    (person,) = ledger.merged()
    assert person.spent(DELTA) == composed_epsilon([COST] * 5, DELTA)
    limits = {"epsilon_limit": 7.0, "delta_limit": DELTA}
    assert person.held(Ceiling(7.0, DELTA)) == held_epsilon([COST] * 5, **limits)
    assert ledger.exposures() == [person]
    assert ledger.epsilon(DELTA) == person.spent(DELTA)


def test_a_round_with_both_ids_costs_more_than_two_rounds_and_later_ones_cost_one(
    place: LedgerPlace,
) -> None:
    ledger = place.approved(names="xyz")
    rounds(ledger, A, 1, 2)
    before = ledger.epsilon(DELTA)

    merge(ledger, "xy")
    rounds(ledger, A, 3)

    (person,) = ledger.merged()
    both = JointSpend(*COST._replace(steps=2 * COST.steps), 2)
    assert person.spent(DELTA) == composed_epsilon([both, COST], DELTA)
    assert person.spent(DELTA) > composed_epsilon([COST] * 5, DELTA) > before
    others = [e for e in ledger.exposures() if e != person]
    assert [(e.patients, e.spent(DELTA)) for e in others] == [
        (1, composed_epsilon([COST] * 3, DELTA))  # z
    ]


def test_neighbours_a_ledger_without_one_of_the_ids_shows_a_merged_person_less(
    tmp_path: Path,
) -> None:
    # The same releases, from data with x alone, with y alone and with both.
    lost = []
    for names in ("x", "y", "xy"):
        ledger = LedgerPlace(tmp_path / names).approved(names=names)
        approve(ledger, B, names)
        rounds(ledger, A, 1)
        rounds(ledger, B, 1)
        merge(ledger, "xy")
        (person,) = ledger.merged()
        lost.append((person.spent(DELTA), person.held(Ceiling(7.0, DELTA))))

    assert lost[0] == lost[1]
    assert lost[2] > lost[0]
    assert lost[2][1] > lost[0][1]


def test_a_round_that_was_begun_before_the_merge_was_made_from_two(place: LedgerPlace) -> None:
    # Training takes minutes: who was drawn was asked when it began.
    ledger = place.approved(names="xy")
    ledger.reserve(KEY)
    place.open().merge([(one("x"), one("y"))])
    ledger.commit(KEY, b"noised")

    (person,) = place.open().merged()
    assert person.charges[0].several == ((2, 1),)


def test_a_round_that_came_to_nothing_before_the_merge_is_made_from_one(place: LedgerPlace) -> None:
    ledger = place.approved(names="xy")
    ledger.reserve(KEY)
    merge(ledger, "xy")
    pay(ledger)

    (person,) = ledger.merged()
    assert (person.charges[0].paid, person.charges[0].several) == (1, ())


def test_chains_join_all_and_merging_again_writes_nothing(place: LedgerPlace) -> None:
    ledger = place.approved(names="wxyz")
    rounds(ledger, A, 1)
    assert merge(ledger, "xy") == 1
    assert merge(ledger, "yz") == 1
    entries = place.kinds()

    for again in ("xy", "yx", "xz", "zx"):
        assert merge(ledger, again) == 0

    assert place.kinds() == entries
    assert entries.count("merge") == 2
    (person,) = ledger.merged()
    assert person.charges[0].several == ((3, 1),)  # three were in that round
    assert len(ledger.eligible(A, "train") or ()) == 2
    assert ledger.names() == dict.fromkeys(patients("xyz"), min(patients("xyz")))


def test_the_order_and_the_number_of_entries_change_nothing(tmp_path: Path) -> None:
    told = []
    for number, steps_ in enumerate([["xy", "yz"], ["yz", "xy"], ["xz", "zy"]]):
        for at_once in (True, False):
            ledger = LedgerPlace(tmp_path / f"{number}{at_once}").approved(names="xyz")
            rounds(ledger, A, 1)
            if at_once:
                merge(ledger, *steps_)
            else:
                for pair in steps_:
                    merge(ledger, pair)
            told.append((ledger.names(), ledger.exposures()))

    assert all(each == told[0] for each in told)


# ---- who takes part from then on -----------------------------------------------------------------
def test_a_merged_person_is_one_unit_whoever_still_reads_two(place: LedgerPlace) -> None:
    ledger = place.approved(names="xyz")

    merge(ledger, "xy")

    # A client that read its scans before knows x and y: at most one of them is named.
    assert ledger.eligible(A, "train") == {min(patients("xy")), one("z")}


def test_an_id_that_was_in_no_study_takes_part_with_the_one_that_was(place: LedgerPlace) -> None:
    ledger = place.approved(names="xz")

    merge(ledger, "xy")
    rounds(ledger, A, 1)

    assert letters(ledger) == "xyz"
    (person,) = ledger.merged()
    assert person.spent(DELTA) == composed_epsilon([COST], DELTA)


def test_a_person_in_two_parts_goes_on_in_the_first(place: LedgerPlace) -> None:
    ledger = place.open()
    who: dict[Purpose, frozenset[bytes]]
    who = {"train": patients("xz"), "validation": patients("yw")}
    approve(ledger, A, who, terms=TWO_PARTS)
    rounds(ledger, A, 1)
    rounds(ledger, A, 1, purpose="validation")

    merge(ledger, "xy")
    rounds(ledger, A, 2, purpose="validation")

    assert letters(ledger, A, "train") == "xyz"
    assert letters(ledger, A, "validation") == "w"
    (person,) = ledger.merged()
    assert person.spent(DELTA) == composed_epsilon([COST, HISTOGRAM], DELTA)


def test_what_does_not_fit_for_both_ids_is_left_the_later_study_first(place: LedgerPlace) -> None:
    # The filter reads 6.3 after one schedule of 10 and 8.3 after two; 15 releases fit into 7.6.
    ceiling = Ceiling(7.6, DELTA)
    limits = {"epsilon_limit": 7.6, "delta_limit": DELTA}
    assert held_epsilon([COST] * 15, **limits) < 7.6 < held_epsilon([COST] * 20, **limits)
    ledger = place.approved(ceiling, names="xz")
    approve(ledger, B, "yw")
    rounds(ledger, A, 1)
    rounds(ledger, B, 1, 2, 3, 4, 5)

    merge(ledger, "xy")

    assert letters(ledger, A) == "xyz"
    assert letters(ledger, B) == "w"
    rounds(ledger, A, *range(2, 11))
    rounds(ledger, B, *range(6, 11))
    (person,) = ledger.merged()
    assert person.spent(DELTA) == composed_epsilon([COST] * 15, DELTA)  # 10 of A, 5 of B
    assert person.within(ceiling)
    assert letters(place.open(ceiling), B) == "w"


def test_who_is_past_the_ceiling_by_the_merge_takes_no_further_part(place: LedgerPlace) -> None:
    ceiling = Ceiling(7.0, DELTA)
    ledger = place.approved(ceiling, names="xz")
    approve(ledger, B, "yw")
    for digest in (A, B):
        rounds(ledger, digest, *range(1, 10))

    merge(ledger, "xy")
    rounds(ledger, A, 10)
    approve(ledger, C, "xv")

    assert (letters(ledger, A), letters(ledger, B)) == ("z", "w")
    assert letters(ledger, C) == "v"
    given = ledger.approval(C)
    assert given is not None and given.members["train"] == patients("v")
    (person,) = ledger.merged()
    assert not person.within(ceiling)
    assert person.spent(DELTA) == composed_epsilon([COST] * 18, DELTA)


def test_the_head_does_not_tell_whether_somebody_left(tmp_path: Path) -> None:
    # What the server sees depends on nothing about patients.
    sequences = set()
    for limit in (6.5, 100.0):
        ledger = LedgerPlace(tmp_path / str(limit)).approved(Ceiling(limit, DELTA), names="xz")
        approve(ledger, B, "yw")
        rounds(ledger, B, 1, 2, 3)
        merge(ledger, "xy")
        sequences.add(ledger.head.sequence)

    assert len(sequences) == 1


def test_excluding_one_id_excludes_the_person_before_and_after(place: LedgerPlace) -> None:
    ledger = place.approved(names="uvwxyz")
    ledger.exclude(patients("x"))

    merge(ledger, "xy", "vw")
    assert letters(ledger) == "uvwz"
    assert ledger.exclude(patients("y")) == 0  # out already, with x
    assert place.kinds().count("exclude") == 1
    assert ledger.exclude(patients("vw")) == 1
    assert letters(ledger) == "uz"
    assert ledger.excluded() == 2
    approve(ledger, B, "uvwxyz")
    assert letters(ledger, B) == "uz"


def test_two_excluded_ids_are_one_excluded_person_after_the_merge(place: LedgerPlace) -> None:
    ledger = place.approved(names="xyz")
    ledger.exclude(patients("xy"))

    merge(ledger, "xy")

    assert ledger.excluded() == 1


def test_a_later_study_takes_a_person_by_any_id_once(place: LedgerPlace) -> None:
    ledger = place.approved(names="xyz")
    merge(ledger, "xy")

    found = ledger.who_can_afford(B, TERMS, {"train": patients("xyz")})
    approve(ledger, B, "xyz")
    rounds(ledger, B, 1)

    assert found["train"] == ledger.eligible(B, "train") == {min(patients("xy")), one("z")}
    (person,) = ledger.merged()
    assert person.spent(DELTA) == composed_epsilon([COST], DELTA)


def test_ids_that_were_merged_are_known(place: LedgerPlace) -> None:
    ledger = place.approved(names="x")
    merge(ledger, "xy")

    assert ledger.known(patients("xyz")) == patients("xy")


def test_a_study_without_privacy_goes_on_and_is_infinite(place: LedgerPlace) -> None:
    ledger = place.approved(Ceiling(7.0, DELTA), names="xy", terms={"train": Term(None, 3)})
    rounds(ledger, A, 1)

    merge(ledger, "xy")

    assert letters(ledger) == "xy"
    assert ledger.epsilon(DELTA) == float("inf")


# ---- losing entries ------------------------------------------------------------------------------
def test_what_may_be_lost_was_made_from_two_before_the_merge_and_from_one_after(
    tmp_path: Path,
) -> None:
    several = []
    for first in ("merge", "loss"):
        ledger = LedgerPlace(tmp_path / first).approved(names="xy")
        rounds(ledger, A, 1)
        merge(ledger, "xy") if first == "merge" else ledger.own_up()
        merge(ledger, "xy") if first == "loss" else ledger.own_up()
        (person,) = ledger.merged()
        assert person.charges[0].paid == 10
        several.append(person.charges[0].several)

    assert several == [((2, 1),), ((2, 10),)]


def test_it_is_on_the_disk_and_signed_like_every_entry(place: LedgerPlace) -> None:
    ledger = place.approved(names="xyz")
    rounds(ledger, A, 1)
    merge(ledger, "xy")
    found = (ledger.names(), ledger.exposures(), ledger.eligible(A, "train"), ledger.head)
    ledger.close()

    again = place.open()

    assert (again.names(), again.exposures(), again.eligible(A, "train"), again.head) == found
    again.audit()
    body = place.bodies()[-1]
    assert body["kind"] == "merge"
    place.tamper(f"DELETE FROM patient_set WHERE sha256 = '{body['pairs']}'")
    with pytest.raises(LedgerError, match="gone or was altered"):
        place.open()


@pytest.mark.parametrize(
    "when",
    [
        "append = ledger._file.append\n"
        "ledger._file.append = lambda *a, **k: (append(*a, **k), die())\n",
        "ledger._guard.keep = die\n",
        "",
    ],
)
def test_a_crash_leaves_the_merge_whole_or_not_at_all(place: LedgerPlace, when: str) -> None:
    ledger = place.approved(names="xyz")
    rounds(ledger, A, 1)
    pair = (one("x"), one("y"))

    crash(place, f"{when}ledger.merge([{pair!r}])")

    again = place.open()
    merged = "append" not in when  # in the first the transaction had not ended
    assert place.kinds()[4:] == (["merge"] if merged else [])
    assert bool(again.names()) == merged
    assert again.merge([pair]) == (0 if merged else 1)
    assert letters(again) == "xyz"


def test_a_disk_that_is_full_leaves_no_merge(place: LedgerPlace) -> None:
    ledger = place.approved(names="xyz")
    whole = ledger._file._db
    ledger._file._db = FailingConnection(whole, "COMMIT")  # type: ignore[assignment]  # a double

    with pytest.raises(LedgerError, match="disk is full"):
        merge(ledger, "xy")
    ledger._file._db = whole

    assert ledger.names() == {}
    assert ledger.eligible(A, "train") == patients("xyz")
    assert NO_CEILING.epsilon == float("inf")  # the ceiling of these: nobody leaves for it
