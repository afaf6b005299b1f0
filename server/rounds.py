"""The rounds of a study as a pure state machine: ``(state, event) -> (state, commands)``.

No clock, no socket, no tensor: a shell (``flower_app.py``) tells what happened and carries out
what is decided here. So every decision about who is asked, what counts as lost, when a round
fails and how a run is called can be tested in microseconds.

A round asks the sites that are present. It ends when every asked site answered or at the
deadline. With at least ``quorum`` accepted updates it is aggregated; with fewer it is skipped,
and after ``SKIPS_BEFORE_FAILURE`` skipped rounds in a row the run fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, TypeAlias

SKIPS_BEFORE_FAILURE = 3
NOT_CONNECTED = "not connected"

Outcome = Literal["finished", "incomplete", "failed", "stopped"]


# ---- events: what happened -----------------------------------------------------------------------
@dataclass(frozen=True)
class SitesPresent:
    """The sites that are connected now; sent when waiting is over or a round may begin."""

    sites: frozenset[str]


@dataclass(frozen=True)
class UpdateAccepted:
    """A site's update was checked and added."""

    site: str


@dataclass(frozen=True)
class SiteFailed:
    """A site did not deliver: ``kind`` says how, ``reason`` why."""

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
    """Send the global model of this round to these sites."""

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


Command: TypeAlias = Ask | Aggregate | WaitForSites | Finish


# ---- state ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RoundRecord:
    """What became of one round.

    Attributes:
        round: Counted from 1.
        accepted: Sites whose update was used; empty for a skipped round.
        missing: Site -> why it is not among them, for every other site of the study.
        skipped: Whether the round was below quorum.
    """

    round: int
    accepted: tuple[str, ...]
    missing: Mapping[str, str]
    skipped: bool


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
        history: The rounds that ended.
    """

    sites: tuple[str, ...]
    rounds: int
    quorum: int
    phase: Literal["waiting", "collecting", "over"] = "waiting"
    round: int = 1
    asked: frozenset[str] = frozenset()
    accepted: frozenset[str] = frozenset()
    missing: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    history: tuple[RoundRecord, ...] = ()
    outcome: Outcome | None = None

    @property
    def pending(self) -> frozenset[str]:
        """Asked sites that have neither delivered nor failed."""
        return self.asked - self.accepted - self.missing.keys()


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
        return _over(state, "stopped")
    if state.phase == "waiting":
        return _ask(state, event.sites) if isinstance(event, SitesPresent) else (state, ())
    return _collect(state, event)


def _ask(state: RunState, present: frozenset[str]) -> Step:
    asked = tuple(site for site in state.sites if site in present)
    missing = {site: NOT_CONNECTED for site in state.sites if site not in present}
    collecting = replace(
        state,
        phase="collecting",
        asked=frozenset(asked),
        accepted=frozenset(),
        missing=MappingProxyType(missing),
    )
    if len(asked) < state.quorum:
        reason = "connected, but not asked: too few sites were"
        return _close_round(_without(collecting, dict.fromkeys(asked, reason)))
    return collecting, (Ask(state.round, asked),)


def _collect(state: RunState, event: Event) -> Step:
    if isinstance(event, UpdateAccepted) and event.site in state.pending:
        state = replace(state, accepted=state.accepted | {event.site})
    elif isinstance(event, SiteFailed) and event.site in state.pending:
        state = _without(state, {event.site: f"{event.kind}: {event.reason}"})
    elif isinstance(event, DeadlinePassed):
        state = _without(state, dict.fromkeys(state.pending, "late: no update by the deadline"))
    else:
        return state, ()
    return (state, ()) if state.pending else _close_round(state)


def _without(state: RunState, missing: Mapping[str, str]) -> RunState:
    return replace(state, missing=MappingProxyType({**state.missing, **missing}))


def _close_round(state: RunState) -> Step:
    skipped = len(state.accepted) < state.quorum
    accepted = () if skipped else tuple(s for s in state.sites if s in state.accepted)
    missing = dict(state.missing)
    if skipped:
        missing |= dict.fromkeys(state.accepted, "delivered, but the round was below quorum")
    record = RoundRecord(state.round, accepted, MappingProxyType(missing), skipped)
    state = replace(
        state,
        history=(*state.history, record),
        phase="waiting",
        asked=frozenset(),
        accepted=frozenset(),
        missing=MappingProxyType({}),
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
    whole = all(not record.skipped and not record.missing for record in state.history)
    return "finished" if whole else "incomplete"


EXIT_CODES: Mapping[Outcome, int] = MappingProxyType(
    {"finished": 0, "incomplete": 18, "failed": 13, "stopped": 18}
)


def headline(state: RunState) -> str:
    """Say in one line what happened, naming every lost site and skipped round.

    A round in flight, or cut short by a stop, counts with the sites that it lost so far.

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
    skipped = [record.round for record in state.history if record.skipped]
    if skipped:
        problems.append(f"{_rounds_text(skipped)} skipped, below the quorum of {state.quorum}")
    return f"{text}; NOT AS PLANNED: {'; '.join(problems)}" if problems else text


def _absences(state: RunState) -> dict[tuple[str, str], list[int]]:
    absences: dict[tuple[str, str], list[int]] = {}
    ended = [(record.round, record.missing) for record in state.history]
    for number, missing in (*ended, (state.round, state.missing)):
        for site, reason in missing.items():
            absences.setdefault((site, reason), []).append(number)
    return dict(sorted(absences.items()))


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
