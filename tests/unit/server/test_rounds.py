"""The rounds as a state machine: defined everywhere, honest about who was missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.server.rounds import (
    ASKED_AGAIN_AT_MOST,
    EXIT_CODES,
    SKIPS_BEFORE_FAILURE,
    Aggregate,
    Ask,
    AskAgain,
    Command,
    DeadlinePassed,
    Event,
    Finish,
    Outcome,
    RunState,
    SiteFailed,
    SitesPresent,
    StopRequested,
    UpdateAccepted,
    WaitForSites,
    advance,
    begin,
    headline,
)

ALL = SitesPresent(frozenset("ABC"))
LOST = SiteFailed("B", "lost", "no answer")


def played(
    events: Iterable[Event], *, sites: str = "ABC", rounds: int = 1, quorum: int = 2
) -> tuple[RunState, list[Command]]:
    state, commands = begin(tuple(sites), rounds=rounds, quorum=quorum)
    given_commands = list(commands)
    for event in events:
        state, commands = advance(state, event)
        given_commands += commands
    return state, given_commands


def whole_round() -> list[Event]:
    return [ALL, *(UpdateAccepted(site) for site in "ABC")]


EVENTS = st.one_of(
    st.frozensets(st.sampled_from("ABCX")).map(SitesPresent),
    st.sampled_from("ABCX").map(UpdateAccepted),
    st.builds(
        SiteFailed,
        st.sampled_from("ABCX"),
        st.sampled_from(["lost", "refused", "rejected"]),
        st.sampled_from(["no answer", "not-ready", ""]),
    ),
    st.just(DeadlinePassed()),
)


# ---- properties over any history -----------------------------------------------------------------
@given(
    st.lists(EVENTS | st.just(StopRequested()), max_size=60),
    st.integers(1, 4),
    st.integers(1, 3),
)
@settings(deadline=None, max_examples=600)
def test_no_sequence_of_events_breaks_a_promise(
    events: list[Event], rounds: int, quorum: int
) -> None:
    state, commands = begin(tuple("ABC"), rounds=rounds, quorum=quorum)
    everything = list(commands)
    for event in events:
        before = state
        state, commands = advance(state, event)
        everything += commands
        assert state.pending <= state.asked <= set("ABC")
        assert not state.accepted & state.missing.keys()
        assert not state.lost.keys() & (state.accepted | state.missing.keys())
        assert state.accepted <= state.asked
        assert len(state.history) - len(before.history) in (0, 1)
        awaited = state.pending | state.lost.keys()
        assert (state.phase == "collecting") <= bool(awaited)  # never waits for nobody
        assert (state.outcome is None) == (state.phase != "over")
        if before.phase == "over":
            assert (state, commands) == (before, ())
        headline(state)

    asked_rounds = [command.round for command in everything if isinstance(command, Ask)]
    assert asked_rounds == sorted(set(asked_rounds))  # a round begins once
    again = Counter(
        (command.round, site)
        for command in everything
        if isinstance(command, AskAgain)
        for site in command.sites
    )
    assert max(again.values(), default=0) <= ASKED_AGAIN_AT_MOST
    records = {record.round: record.asked_again for record in state.history}
    records.setdefault(state.round, state.asked_again)
    assert again == {(r, site): n for r, sites in records.items() for site, n in sites.items()}
    for record, number in zip(state.history, range(1, rounds + 1), strict=False):
        assert record.round == number
        assert set(record.accepted) | set(record.missing) == set("ABC")
        assert not set(record.accepted) & set(record.missing)
        assert len(record.accepted) == len(set(record.accepted))
        assert record.skipped == (not record.accepted)
        assert record.skipped or len(record.accepted) >= quorum
    for command in everything:
        if isinstance(command, Aggregate):
            assert len(set(command.sites)) == len(command.sites) >= quorum
            assert command.sites == state.history[command.round - 1].accepted
    ends = [command for command in everything if isinstance(command, Finish)]
    assert len(ends) == (state.phase == "over")
    if state.outcome == "finished":
        assert len(state.history) == rounds
        assert all(set(record.accepted) == set("ABC") for record in state.history)
        assert "NOT AS PLANNED" not in headline(state)
    if any(record.missing for record in state.history):
        assert "NOT AS PLANNED" in headline(state)
    assert not isinstance(everything[-1], Finish) or state.phase == "over"


@given(st.lists(EVENTS, max_size=40), st.integers(1, 3))
@settings(deadline=None, max_examples=200)
def test_every_run_ends_when_its_deadlines_pass(events: list[Event], quorum: int) -> None:
    state, _ = played(events, rounds=3, quorum=quorum)

    for _ in range(6):  # at most three rounds are left, each waits and then collects
        state, _ = advance(state, SitesPresent(frozenset()))
        state, _ = advance(state, DeadlinePassed())

    assert state.phase == "over"


@given(st.lists(EVENTS, max_size=60), st.integers(1, 3))
@settings(deadline=None, max_examples=200)
def test_only_lost_sites_that_are_there_are_asked_again_and_an_answer_ends_it(
    events: list[Event], quorum: int
) -> None:
    state, _ = begin(tuple("ABC"), rounds=4, quorum=quorum)
    for event in events:
        before = state
        state, commands = advance(state, event)
        for command in commands:
            if isinstance(command, AskAgain):
                assert isinstance(event, SitesPresent)
                assert set(command.sites) == before.lost.keys() & event.sites
                assert before.phase == state.phase == "collecting"
                assert set(command.sites) <= state.pending  # asked, and not lost any more
                assert command.round == state.round == before.round
        if state.lost.keys() - before.lost.keys():
            assert (isinstance(event, SiteFailed) and event.kind == "lost") or (
                before.phase == "waiting"
            )


@given(st.lists(EVENTS, max_size=40), st.integers(1, 3))
@settings(deadline=None, max_examples=200)
def test_the_headline_names_every_missing_site_and_every_skipped_round(
    events: list[Event], quorum: int
) -> None:
    state, _ = played(events, rounds=4, quorum=quorum)
    text = headline(state)

    for record in state.history:
        for site, reason in record.missing.items():
            assert f"{site} missing in round" in text
            assert f"({reason})" in text
        if record.skipped:
            assert f"below the quorum of {quorum}" in text
        for site in record.asked_again:
            assert f"{site} asked again " in text
    done = sum(not record.skipped for record in state.history)
    assert text.startswith(f"{done} of 4 rounds done")


@pytest.mark.parametrize("event", [ALL, UpdateAccepted("A"), LOST, DeadlinePassed()])
@pytest.mark.parametrize("phase", ["waiting", "collecting", "over"])
def test_every_phase_takes_every_event(phase: str, event: Event) -> None:
    events: dict[str, list[Event]] = {
        "waiting": [],
        "collecting": [ALL],
        "over": [StopRequested()],
    }
    state, _ = played(events[phase])

    after, commands = advance(state, event)

    answers = {
        ("waiting", SitesPresent): "collecting",
        ("collecting", DeadlinePassed): "over",
    }
    assert after.phase == answers.get((phase, type(event)), phase)
    if phase == "over" or (phase == "waiting" and not isinstance(event, SitesPresent)):
        assert (after, commands) == (state, ())


# ---- examples ------------------------------------------------------------------------------------
def test_a_run_where_everybody_delivers_asks_and_aggregates_round_by_round() -> None:
    state, commands = played([*whole_round(), *whole_round()], rounds=2)

    assert commands == [
        WaitForSites(),
        Ask(1, ("A", "B", "C")),
        Aggregate(1, ("A", "B", "C")),
        WaitForSites(),
        Ask(2, ("A", "B", "C")),
        Aggregate(2, ("A", "B", "C")),
        Finish("finished"),
    ]
    assert headline(state) == "2 of 2 rounds done"


def test_a_lost_site_is_asked_again_when_it_is_back_and_the_run_finishes() -> None:
    events = [ALL, UpdateAccepted("C"), LOST, UpdateAccepted("A"), SitesPresent(frozenset("AC"))]
    waiting, _ = played(events)
    state, commands = played([*events, ALL, UpdateAccepted("B")])

    assert (waiting.phase, dict(waiting.lost)) == ("collecting", {"B": "lost: no answer"})
    assert commands[2:] == [AskAgain(1, ("B",)), Aggregate(1, ("A", "B", "C")), Finish("finished")]
    assert dict(state.history[0].asked_again) == {"B": 1}
    assert headline(state) == "1 of 1 rounds done; B asked again once in round 1"


def test_a_lost_site_that_stays_away_is_missing_at_the_deadline() -> None:
    state, commands = played(
        [ALL, UpdateAccepted("C"), LOST, UpdateAccepted("A"), DeadlinePassed()]
    )

    assert commands[-2:] == [Aggregate(1, ("A", "C")), Finish("incomplete")]
    assert headline(state) == (
        "1 of 1 rounds done; NOT AS PLANNED: B missing in round 1 "
        "(lost: no answer; not back by the deadline)"
    )


def test_a_site_that_is_lost_every_time_is_given_up_before_the_deadline() -> None:
    lost_and_back = [LOST, ALL] * ASKED_AGAIN_AT_MOST
    others = [UpdateAccepted("A"), UpdateAccepted("C")]

    state, commands = played([ALL, *others, *lost_and_back, LOST])

    assert commands.count(AskAgain(1, ("B",))) == ASKED_AGAIN_AT_MOST
    assert state.outcome == "incomplete"
    assert headline(state) == (
        "1 of 1 rounds done; B asked again 4 times in round 1; NOT AS PLANNED: B missing in "
        "round 1 (lost 5 times: no answer)"
    )


@pytest.mark.parametrize("kind", ["refused", "rejected"])
def test_a_site_that_said_no_is_not_asked_again(kind: str) -> None:
    no = SiteFailed("B", kind, "why")  # type: ignore[arg-type]  # one of the literals
    state, commands = played([ALL, no, ALL, UpdateAccepted("A"), UpdateAccepted("C")])

    assert not any(isinstance(command, AskAgain) for command in commands)
    assert state.history[0].missing == {"B": f"{kind}: why"}
    assert state.outcome == "incomplete"


def test_a_site_that_is_lost_between_two_rounds_is_awaited_in_the_second() -> None:
    without_b = SitesPresent(frozenset("AC"))
    events = [*whole_round(), without_b, UpdateAccepted("A"), UpdateAccepted("C")]
    waiting, _ = played(events, rounds=2)
    back, commands = played([*events, ALL, UpdateAccepted("B")], rounds=2)
    away, _ = played([*events, DeadlinePassed()], rounds=2)

    assert dict(waiting.lost) == {"B": "lost: not connected"}
    assert commands[-4:-2] == [Ask(2, ("A", "C")), AskAgain(2, ("B",))]
    assert headline(back) == "2 of 2 rounds done; B asked again once in round 2"
    assert away.history[1].missing == {"B": "lost: not connected; not back by the deadline"}


def test_a_site_whose_update_a_skipped_round_did_not_use_is_awaited_too() -> None:
    skipped = [ALL, UpdateAccepted("A"), DeadlinePassed()]  # below the quorum of 2

    state, _ = played([*skipped, SitesPresent(frozenset("BC"))], rounds=2)

    assert dict(state.lost) == {"A": "lost: not connected"}


def test_sites_that_are_all_lost_between_two_rounds_can_come_back() -> None:
    state, commands = played([*whole_round(), SitesPresent(frozenset()), *whole_round()], rounds=2)

    assert commands[-4:-2] == [Ask(2, ()), AskAgain(2, ("A", "B", "C"))]
    assert state.outcome == "finished"


def test_a_site_that_is_away_from_the_start_is_named_too() -> None:
    state, commands = played(
        [SitesPresent(frozenset("AC")), UpdateAccepted("A"), UpdateAccepted("C")]
    )

    assert commands[1] == Ask(1, ("A", "C"))
    assert state.outcome == "incomplete"
    assert "B missing in round 1 (not connected)" in headline(state)


def test_an_update_after_the_sites_failure_or_twice_counts_once_or_not_at_all() -> None:
    twice, _ = played([ALL, UpdateAccepted("A"), UpdateAccepted("A"), UpdateAccepted("A")])
    no = SiteFailed("B", "refused", "no")
    failed, _ = played([ALL, no, UpdateAccepted("B")])
    lost, _ = played([ALL, LOST, LOST, UpdateAccepted("B")])
    unasked, _ = played([SitesPresent(frozenset("AC")), UpdateAccepted("B")])

    assert (twice.phase, twice.accepted) == ("collecting", frozenset("A"))
    assert (failed.accepted, failed.missing["B"]) == (frozenset(), "refused: no")
    assert (lost.accepted, lost.lost) == (frozenset(), {"B": "lost: no answer"})
    assert unasked.accepted == frozenset()


def test_a_round_below_quorum_is_skipped_and_all_three_sites_are_accounted_for() -> None:
    state, commands = played([ALL, UpdateAccepted("A"), DeadlinePassed()], rounds=2)

    assert not any(isinstance(command, Aggregate) for command in commands)
    assert dict(state.history[0].missing) == {
        "A": "delivered, but the round was below quorum",
        "B": "late: no update by the deadline",
        "C": "late: no update by the deadline",
    }
    assert "round 1 skipped, below the quorum of 2" in headline(state)


def test_too_few_connected_sites_are_not_asked_and_all_are_accounted_for() -> None:
    state, commands = played([SitesPresent(frozenset("A"))], rounds=2)

    assert not any(isinstance(command, Ask) for command in commands)
    assert state.phase == "waiting"
    assert dict(state.history[0].missing) == {
        "A": "connected, but not asked: too few sites were",
        "B": "not connected",
        "C": "not connected",
    }


def test_three_skipped_rounds_in_a_row_fail_the_run_and_a_good_one_between_saves_it() -> None:
    nobody = SitesPresent(frozenset())
    failed, _ = played([nobody] * SKIPS_BEFORE_FAILURE, rounds=9)
    late = DeadlinePassed()  # after a whole round its sites are awaited once
    saved, _ = played([nobody, nobody, *whole_round(), nobody, late, nobody], rounds=9)
    short, _ = played([nobody], rounds=1)

    assert (failed.outcome, short.outcome, saved.outcome) == ("failed", "failed", None)
    assert "rounds 1 to 3 skipped" in headline(failed)
    assert "rounds 1 to 2, 4 to 5 skipped" in headline(saved)


def test_a_stop_ends_at_once_and_names_who_was_missing_in_the_round_in_flight() -> None:
    waiting, first = played([StopRequested()])
    collecting, commands = played([*whole_round(), ALL, LOST, StopRequested()], rounds=3)

    assert (waiting.outcome, first[-1]) == ("stopped", Finish("stopped"))
    assert (collecting.missing, collecting.lost) == ({"B": "lost: no answer"}, {})
    assert commands[-1] == Finish("stopped")
    assert headline(collecting) == (
        "1 of 3 rounds done when the coordinator stopped the run; NOT AS PLANNED: B missing in "
        "round 2 (lost: no answer)"
    )


def test_a_run_in_flight_tells_what_went_wrong_so_far() -> None:
    state, _ = played([ALL, LOST], rounds=3)

    assert headline(state) == (
        "0 of 3 rounds done; NOT AS PLANNED: B missing in round 1 (lost: no answer)"
    )


def test_exit_codes_are_those_of_the_house() -> None:
    # 0 done, 13 quorum or cohort, 18 finished but not as planned.
    assert dict(EXIT_CODES) == {"finished": 0, "incomplete": 18, "failed": 13, "stopped": 18}
    assert set(EXIT_CODES) == set(get_args(Outcome))


def test_a_state_is_never_changed_in_place() -> None:
    state, _ = begin(("A", "B"), rounds=1, quorum=1)
    copy = replace(state)

    later, _ = advance(state, SitesPresent(frozenset("A")))

    assert state == copy
    with pytest.raises(TypeError):
        later.missing["B"] = "changed"  # type: ignore[index]  # the point of the test


@pytest.mark.parametrize(
    ("sites", "rounds", "quorum"),
    [("AB", 0, 1), ("AB", 1, 0), ("AB", 1, 3), ("AA", 1, 1), ("", 1, 1)],
)
def test_a_run_that_could_not_work_is_refused(sites: str, rounds: int, quorum: int) -> None:
    with pytest.raises(ValueError, match="cannot run"):
        begin(tuple(sites), rounds=rounds, quorum=quorum)
