"""The rounds of a study as a pure state machine: ``(state, event) -> (state, commands)``.

No clock, no socket, no tensor: a shell (``flower_app.py``) tells what happened and carries out
what is decided here. So every decision about who is asked, what counts as lost, when a round
fails and how a run is called can be tested in microseconds.

A round asks the sites that are present. It ends when every asked site answered or at the
deadline. A site that is lost (its connection or its program died), in the round or since it
delivered to the one before, is asked again as soon as it is connected, until the deadline: that
costs no privacy, because a site that had paid sends the same bytes and one that had not trains
anew. With at least ``quorum`` accepted updates a round is aggregated; with fewer it is skipped,
and after ``SKIPS_BEFORE_FAILURE`` skipped rounds in a row the run fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, TypeAlias

SKIPS_BEFORE_FAILURE = 3
ASKED_AGAIN_AT_MOST = 4
"""Times that a site is asked again in one round; it is missing once it is lost again after."""
NOT_CONNECTED = "not connected"
_BELOW_QUORUM = "delivered, but the round was below quorum"

Outcome = Literal["finished", "incomplete", "failed", "stopped"]


# ---- events: what happened -----------------------------------------------------------------------
@dataclass(frozen=True)
class SitesPresent:
    """The sites that are connected now.

    Sent when waiting is over and a round may begin, and in a round when a lost site is back.
    """

    sites: frozenset[str]


@dataclass(frozen=True)
class UpdateAccepted:
    """A site's update was checked and added."""

    site: str


@dataclass(frozen=True)
class SiteFailed:
    """A site did not deliver: ``kind`` says how, ``reason`` why. Only a lost one is asked again."""

    site: str
    kind: Literal["lost", "refused", "rejected"]
    reason: str


@dataclass(frozen=True)
class DeadlinePassed:
    """The round's time is over."""


@dataclass(frozen=True)
class StopRequested:
    """The coordinator ended the run."""


Event: TypeAlias = SitesPresent | UpdateAccepted | SiteFailed | DeadlinePassed | StopRequested


# ---- commands: what to do ------------------------------------------------------------------------
@dataclass(frozen=True)
class Ask:
    """Begin a round: send its global model to these sites; to none, if all were lost before it."""

    round: int
    sites: tuple[str, ...]


@dataclass(frozen=True)
class AskAgain:
    """Send the same model once more, to sites of this round that were lost and are back."""

    round: int
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Aggregate:
    """Make the next global model from the updates of this round."""

    round: int
    sites: tuple[str, ...]


@dataclass(frozen=True)
class WaitForSites:
    """Look which sites are present, then send ``SitesPresent``."""


@dataclass(frozen=True)
class Finish:
    """The run is over."""

    outcome: Outcome


Command: TypeAlias = Ask | AskAgain | Aggregate | WaitForSites | Finish


# ---- state ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RoundRecord:
    """What became of one round.

    Attributes:
        round: Counted from 1.
        accepted: Sites whose update was used; empty for a skipped round.
        missing: Site -> why it is not among them, for every other site of the study.
        skipped: Whether the round was below quorum.
        asked_again: Site -> how often it was asked after it was lost, 1 or more; sites that
            never were are left out. It says nothing about how it ended.
    """

    round: int
    accepted: tuple[str, ...]
    missing: Mapping[str, str]
    skipped: bool
    asked_again: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Unjudged:
    """A site that was to judge a model on its own patients, and did not.

    Attributes:
        site: Which.
        part: On its ``validation`` or ``test`` patients.
        round: The round that the model came out of.
        reason: Why not.
    """

    site: str
    part: str
    round: int
    reason: str


@dataclass(frozen=True)
class RunState:
    """Everything the decisions depend on.

    Attributes:
        sites: All sites of the study, in its order.
        rounds: Rounds to run.
        quorum: Accepted updates a round needs.
        phase: ``waiting`` for sites, ``collecting`` updates, or ``over``.
        round: The round being waited for or collected, from 1.
        asked: Sites asked in this round; empty while waiting and when it is over.
        accepted: Sites whose update was accepted in this round; empty likewise.
        missing: Site -> why it is missing in this round. Only a stop leaves it behind.
        lost: Site -> how it was lost; it is asked again if it is back before the deadline.
        asked_again: As in ``RoundRecord``, in this round so far.
        history: The rounds that ended.
        unjudged: Where a site was to judge a model and did not.
    """

    sites: tuple[str, ...]
    rounds: int
    quorum: int
    phase: Literal["waiting", "collecting", "over"] = "waiting"
    round: int = 1
    asked: frozenset[str] = frozenset()
    accepted: frozenset[str] = frozenset()
    missing: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    lost: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    asked_again: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    history: tuple[RoundRecord, ...] = ()
    outcome: Outcome | None = None
    unjudged: tuple[Unjudged, ...] = ()

    @property
    def pending(self) -> frozenset[str]:
        """Asked sites that have neither delivered nor failed nor are lost now."""
        return self.asked - self.accepted - self.missing.keys() - self.lost.keys()


Step: TypeAlias = tuple[RunState, tuple[Command, ...]]


def begin(sites: tuple[str, ...], *, rounds: int, quorum: int) -> Step:
    """Start a run: wait for its sites.

    Raises:
        ValueError: no rounds, a site twice, or a quorum that no round could meet or miss.
    """
    if rounds < 1 or len(set(sites)) != len(sites) or not 1 <= quorum <= len(sites):
        raise ValueError(f"cannot run {rounds} rounds with sites {sites} and quorum {quorum}")
    return RunState(sites=sites, rounds=rounds, quorum=quorum), (WaitForSites(),)


def advance(state: RunState, event: Event) -> Step:
    """Take one event.

    Returns:
        The next state and the commands to carry out, in order. An event that the state has no
        use for (a late update, a second failure of a site) changes nothing.
    """
    if state.phase == "over":
        return state, ()
    if isinstance(event, StopRequested):
        return _over(_without(state, state.lost), "stopped")
    if state.phase == "waiting":
        return _ask(state, event.sites) if isinstance(event, SitesPresent) else (state, ())
    return _collect(state, event)


def _ask(state: RunState, present: frozenset[str]) -> Step:
    asked = tuple(site for site in state.sites if site in present)
    away = [site for site in state.sites if site not in present]
    gone = _delivered_before(state).intersection(away)
    collecting = replace(
        state,
        phase="collecting",
        asked=frozenset(asked),
        accepted=frozenset(),
        missing=MappingProxyType({site: NOT_CONNECTED for site in away if site not in gone}),
        lost=MappingProxyType({site: f"lost: {NOT_CONNECTED}" for site in away if site in gone}),
    )
    if len(asked) + len(gone) < state.quorum:
        reason = "connected, but not asked: too few sites were"
        return _close_round(
            _without(collecting, {**dict.fromkeys(asked, reason), **collecting.lost})
        )
    return collecting, (Ask(state.round, asked),)


def _delivered_before(state: RunState) -> frozenset[str]:
    """The sites that delivered to the round before."""
    if not state.history:
        return frozenset()
    last = state.history[-1]
    unused = {site for site, reason in last.missing.items() if reason == _BELOW_QUORUM}
    return frozenset(unused).union(last.accepted)


def _collect(state: RunState, event: Event) -> Step:
    if isinstance(event, SitesPresent):
        return _ask_again(state, event.sites)
    if isinstance(event, UpdateAccepted) and event.site in state.pending:
        state = replace(state, accepted=state.accepted | {event.site})
    elif isinstance(event, SiteFailed) and event.site in state.pending:
        state = _failed(state, event)
    elif isinstance(event, DeadlinePassed):
        late = dict.fromkeys(state.pending, "late: no update by the deadline")
        gone = {site: f"{how}; not back by the deadline" for site, how in state.lost.items()}
        state = _without(state, {**late, **gone})
    else:
        return state, ()
    return (state, ()) if state.pending or state.lost else _close_round(state)


def _failed(state: RunState, event: SiteFailed) -> RunState:
    again = state.asked_again.get(event.site, 0)
    if event.kind != "lost":
        return _without(state, {event.site: f"{event.kind}: {event.reason}"})
    if again < ASKED_AGAIN_AT_MOST:
        lost = {**state.lost, event.site: f"lost: {event.reason}"}
        return replace(state, lost=MappingProxyType(lost))
    return _without(state, {event.site: f"lost {again + 1} times: {event.reason}"})


def _ask_again(state: RunState, present: frozenset[str]) -> Step:
    back = tuple(site for site in state.sites if site in state.lost and site in present)
    if not back:
        return state, ()
    again = {**state.asked_again, **{s: state.asked_again.get(s, 0) + 1 for s in back}}
    state = replace(
        state,
        asked=state.asked.union(back),
        lost=MappingProxyType({s: how for s, how in state.lost.items() if s not in back}),
        asked_again=MappingProxyType(again),
    )
    return state, (AskAgain(state.round, back),)


def _without(state: RunState, missing: Mapping[str, str]) -> RunState:
    """Give up on sites in this round."""
    return replace(
        state,
        missing=MappingProxyType({**state.missing, **missing}),
        lost=MappingProxyType({s: how for s, how in state.lost.items() if s not in missing}),
    )


def _close_round(state: RunState) -> Step:
    skipped = len(state.accepted) < state.quorum
    accepted = () if skipped else tuple(s for s in state.sites if s in state.accepted)
    missing = dict(state.missing)
    if skipped:
        missing |= dict.fromkeys(state.accepted, _BELOW_QUORUM)
    record = RoundRecord(
        state.round, accepted, MappingProxyType(missing), skipped, state.asked_again
    )
    state = replace(
        state,
        history=(*state.history, record),
        phase="waiting",
        asked=frozenset(),
        accepted=frozenset(),
        missing=MappingProxyType({}),
        asked_again=MappingProxyType({}),
    )
    commands: tuple[Command, ...] = () if skipped else (Aggregate(state.round, accepted),)
    if skipped and _skipped_in_a_row(state.history) >= SKIPS_BEFORE_FAILURE:
        return _over(state, "failed", commands)
    if state.round == state.rounds:
        return _over(state, _outcome_of(state), commands)
    return replace(state, round=state.round + 1), (*commands, WaitForSites())


def _over(state: RunState, outcome: Outcome, before: tuple[Command, ...] = ()) -> Step:
    return replace(state, phase="over", outcome=outcome), (*before, Finish(outcome))


def _skipped_in_a_row(history: tuple[RoundRecord, ...]) -> int:
    count = 0
    for record in reversed(history):
        if not record.skipped:
            break
        count += 1
    return count


def _outcome_of(state: RunState) -> Outcome:
    if all(record.skipped for record in state.history):
        return "failed"
    whole = not state.unjudged and all(
        not record.skipped and not record.missing for record in state.history
    )
    return "finished" if whole else "incomplete"


def not_judged_by(state: RunState, part: str, round_: int, missing: Mapping[str, str]) -> RunState:
    """Note which sites did not judge a model; a run that wanted them to is not as planned.

    Args:
        state: Of the run.
        part: On whose scans.
        round_: The round that the model came out of.
        missing: Site -> why.
    """
    new = tuple(Unjudged(site, part, round_, why) for site, why in sorted(missing.items()))
    outcome: Outcome | None = state.outcome
    if outcome == "finished" and (new or state.unjudged):
        outcome = "incomplete"
    return replace(state, unjudged=(*state.unjudged, *new), outcome=outcome)


EXIT_CODES: Mapping[Outcome, int] = MappingProxyType(
    {"finished": 0, "incomplete": 18, "failed": 13, "stopped": 18}
)


def headline(state: RunState) -> str:
    """Say in one line what happened, naming every lost site and skipped round.

    A round in flight, or cut short by a stop, counts with the sites that it lost so far. A site
    that was lost and delivered in the end is not missing; that it was asked again is told.

    Example:
        >>> state, _ = begin(("A", "B"), rounds=1, quorum=1)
        >>> for event in (SitesPresent(frozenset("AB")), UpdateAccepted("A"), DeadlinePassed()):
        ...     state, _ = advance(state, event)
        >>> headline(state)
        '1 of 1 rounds done; NOT AS PLANNED: B missing in round 1 (late: no update by the deadline)'
    """
    done = sum(not record.skipped for record in state.history)
    text = f"{done} of {state.rounds} rounds done"
    if state.outcome == "stopped":
        text += " when the coordinator stopped the run"
    problems = [
        f"{site} missing in {_rounds_text(numbers)} ({reason})"
        for (site, reason), numbers in _absences(state).items()
    ]
    problems += [
        f"{site} did not judge the model on its {part} patients after {_rounds_text(numbers)} "
        f"({reason})"
        for (site, part, reason), numbers in _unjudged(state).items()
    ]
    skipped = [record.round for record in state.history if record.skipped]
    if skipped:
        problems.append(f"{_rounds_text(skipped)} skipped, below the quorum of {state.quorum}")
    asked = [
        f"{site} asked again {_times(sum(times.values()))} in {_rounds_text(list(times))}"
        for site, times in _asked_again(state).items()
    ]
    text = "; ".join([text, *asked])
    return f"{text}; NOT AS PLANNED: {'; '.join(problems)}" if problems else text


def _absences(state: RunState) -> dict[tuple[str, str], list[int]]:
    absences: dict[tuple[str, str], list[int]] = {}
    ended = [(record.round, record.missing) for record in state.history]
    for number, missing in (*ended, (state.round, {**state.missing, **state.lost})):
        for site, reason in missing.items():
            absences.setdefault((site, reason), []).append(number)
    return dict(sorted(absences.items()))


def _unjudged(state: RunState) -> dict[tuple[str, str, str], list[int]]:
    found: dict[tuple[str, str, str], list[int]] = {}
    for lack in state.unjudged:
        found.setdefault((lack.site, lack.part, lack.reason), []).append(lack.round)
    return dict(sorted(found.items()))


def _asked_again(state: RunState) -> dict[str, dict[int, int]]:
    """Site -> round -> how often, for every site that was asked again in any round."""
    rounds = [(record.round, record.asked_again) for record in state.history]
    found: dict[str, dict[int, int]] = {}
    for number, asked_again in (*rounds, (state.round, state.asked_again)):
        for site, times in asked_again.items():
            found.setdefault(site, {})[number] = times
    return dict(sorted(found.items()))


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _rounds_text(numbers: list[int]) -> str:
    """Ascending round numbers in words: ``round 2``, ``rounds 1, 3 to 5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    words = ", ".join(" to ".join(str(end) for end in run) for run in runs)
    return f"round {words}" if len(numbers) == 1 else f"rounds {words}"
