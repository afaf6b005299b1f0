"""Carry out the decisions of ``rounds.py``: send, collect, average, average over rounds, save.

Independent of how messages travel: a ``Link`` sends the global model to sites and gives their
answers one by one. ``flower_app.py`` makes a link of a Flower Grid.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medfed.common.errors import UpdateRejectedError
from medfed.common.files import write_atomically
from medfed.common.networks.parameters import network_for, parameters_of
from medfed.common.privacy.clipping import clip_update
from medfed.common.privacy.mechanism import EvaluatedPart
from medfed.common.study import Study
from medfed.common.updates import Parameters, decode, encode, shapes_of
from medfed.server.aggregation import RunningMean
from medfed.server.collect_histograms import collect_histograms
from medfed.server.evaluation import EvaluationCurve
from medfed.server.link import Answer, Link, plain
from medfed.server.rounds import (
    NOT_CONNECTED,
    Aggregate,
    Ask,
    AskAgain,
    Command,
    DeadlinePassed,
    Event,
    Finish,
    RunState,
    SiteFailed,
    SitesPresent,
    StopRequested,
    UpdateAccepted,
    advance,
    begin,
    not_judged_by,
)
from medfed.server.strategies.fed_avg import FedAvg, FedAvgState
from medfed.server.strategies.iterate_average import averaged

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.2
_REJOIN_WAIT_S = 30.0


@dataclass(frozen=True)
class RunResult:
    """What a run ended with.

    Attributes:
        state: Final state: outcome and history.
        model: The released model; float32. The initial model if no round was done.
        validation: How the model did on the validation patients, round by round, as the
            study asks.
        test: How it did on the test patients in the end.
    """

    state: RunState
    model: Parameters
    validation: EvaluationCurve = field(default_factory=EvaluationCurve)
    test: EvaluationCurve = field(default_factory=EvaluationCurve)


class StudyRun:
    """One run of a study at the server.

    Args:
        study: The study.
        link: How to reach its sites.
        folder: Where ``model.safetensors`` is written after each round; None: nowhere.
        on_change: Told every new state.
        on_model: Told the round and the model that would be released after it.
        stop_requested: Asked while waiting.
        seed: Public; chooses the initial weights.
    """

    def __init__(
        self,
        study: Study,
        link: Link,
        *,
        folder: Path | None = None,
        on_change: Callable[[RunState], None] = lambda state: None,
        on_model: Callable[[int, Parameters], None] = lambda round_, model: None,
        stop_requested: Callable[[], bool] = lambda: False,
        seed: int = 0,
    ) -> None:
        self._study, self._link, self._folder = study, link, folder
        self._on_change, self._on_model = on_change, on_model
        self._stop_requested = stop_requested
        self._weights = {site.name: site.declared_patients for site in study.site}
        rule = study.strategy
        self._strategy = FedAvg(rule.server_learning_rate, rule.server_momentum)
        self._global: FedAvgState = self._strategy.init(
            parameters_of(network_for(study, seed=seed))
        )
        self._shapes = shapes_of(self._global.parameters)
        self._released: Parameters | None = None
        self._updates = RunningMean(self._weights)
        self._deadline = 0.0
        self._curves = {"validation": EvaluationCurve(), "test": EvaluationCurve()}

    def run(self) -> RunResult:
        """Run all rounds.

        Returns:
            The result, also of a run that failed: its state says so.
        """
        names = tuple(site.name for site in self._study.site)
        state, commands = begin(
            names, rounds=self._study.training.rounds, quorum=self._study.cohort.quorum
        )
        while state.phase != "over":
            self._on_change(state)
            for command in commands:
                self._carry_out(command)
            before = len(state.history)
            state, commands = advance(state, self._next_event(state))
            if len(state.history) > before:
                state, commands = self._judge_model(state, commands)
        for command in commands:
            self._carry_out(command)
        self._on_change(state)
        return RunResult(
            state, self._model_to_release(), self._curves["validation"], self._curves["test"]
        )

    def _judge_model(
        self, state: RunState, commands: tuple[Command, ...]
    ) -> tuple[RunState, tuple[Command, ...]]:
        """Average the round that just ended, and let the sites judge what came of it."""
        aggregates = [command for command in commands if isinstance(command, Aggregate)]
        for command in aggregates:
            self._carry_out(command)
        rest = tuple(command for command in commands if command not in aggregates)
        round_ = state.history[-1].round
        if aggregates and round_ in self._study.validation_rounds:
            state = self._evaluated(state, "validation", round_)
        if self._wants_test(state):
            state = self._evaluated(state, "test", state.rounds)
        return state, rest

    def _wants_test(self, state: RunState) -> bool:
        wanted = self._study.evaluation is not None and self._study.evaluation.test
        return wanted and state.outcome in ("finished", "incomplete")

    def _evaluated(self, state: RunState, part: EvaluatedPart, round_: int) -> RunState:
        evaluation, missing = collect_histograms(
            self._study,
            self._link,
            part,
            round_,
            encode(self._model_to_release()),
            stop_requested=self._stop_requested,
        )
        self._curves[part].record(round_, evaluation)
        return not_judged_by(state, part, round_, missing)

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, Ask):
            deadline = self._study.cohort.round_deadline_s
            self._updates = RunningMean(self._weights)
            self._deadline = time.monotonic() + deadline
            self._ask(command)
        elif isinstance(command, AskAgain):
            log.info("sites.asked_again round=%d sites=%s", command.round, ",".join(command.sites))
            self._ask(command)
        elif isinstance(command, Aggregate):
            self._aggregate(command)
        elif isinstance(command, Finish):
            log.info("run.over study=%s outcome=%s", self._study.name, command.outcome)

    def _ask(self, command: Ask | AskAgain) -> None:
        left = max(self._deadline - time.monotonic(), 0.0)
        self._link.ask(command.round, command.sites, encode(self._global.parameters), left)

    def _aggregate(self, command: Aggregate) -> None:
        assert self._updates.sites == tuple(sorted(command.sites))
        self._global = self._strategy.apply(self._global, self._updates.mean())
        self._released = averaged(
            self._released,
            self._global.parameters,
            decay=self._study.strategy.average_decay,
            round_=command.round,
        )
        if self._folder is not None:
            write_atomically(self._folder / "model.safetensors", encode(self._released))
        self._on_model(command.round, self._released)

    def _model_to_release(self) -> Parameters:
        return self._global.parameters if self._released is None else self._released

    def _next_event(self, state: RunState) -> Event:
        if state.phase == "waiting":
            return self._wait_for_sites(state)
        while True:
            if self._stop_requested():
                return StopRequested()
            answer = self._link.next_answer()
            if answer is not None and answer.site in state.pending:
                return self._judge(answer)
            if time.monotonic() > self._deadline:
                return DeadlinePassed()
            if state.lost and not (present := self._link.present()).isdisjoint(state.lost):
                return SitesPresent(present)
            if answer is None:
                time.sleep(_LOOK_AGAIN_S)
            else:
                log.warning("answer.ignored site=%r round=%d", answer.site, state.round)

    def _wait_for_sites(self, state: RunState) -> Event:
        """Wait for sites, at first for all of them and as long as a round may take.

        Later briefly, and for those that were there in the round before: one that stayed away
        may come back any time, but nobody waits for it. One that delivered last time and is not
        there now is lost, and may come back during the round (``rounds.py``).
        """
        patience, awaited = self._study.cohort.round_deadline_s, set(state.sites)
        if state.history:
            patience = min(patience, _REJOIN_WAIT_S)
            away = {s for s, why in state.history[-1].missing.items() if why == NOT_CONNECTED}
            awaited -= away
        until = time.monotonic() + patience
        while True:
            if self._stop_requested():
                return StopRequested()
            present = self._link.present()
            waited_enough = time.monotonic() > until
            if waited_enough or (present >= awaited and len(present) >= state.quorum):
                return SitesPresent(present)
            time.sleep(_LOOK_AGAIN_S)

    def _judge(self, answer: Answer) -> Event:
        if answer.payload is None:
            return SiteFailed(answer.site, answer.failure, plain(answer.reason))
        try:
            update = decode(answer.payload, self._shapes, who=f"site {answer.site!r}")
            bound = self._study.strategy.update_norm_bound
            self._updates.add(
                answer.site, update if bound is None else clip_update(update, bound).update
            )
        except UpdateRejectedError as error:
            log.warning("update.rejected site=%s %s", answer.site, error)
            return SiteFailed(answer.site, "rejected", "its update failed the checks")
        return UpdateAccepted(answer.site)


def words_for(state: RunState) -> Mapping[str, str]:
    """What each site is doing, in the words that status, logs and reports share.

    Returns:
        Site -> ``waiting``, ``training``, ``reported``, or why it is missing or lost. Between
        rounds and at the end: what became of it in the last round that ended.
    """
    if state.phase != "collecting" and state.history:
        last = state.history[-1]
        return {s: "reported" if s in last.accepted else last.missing[s] for s in state.sites}
    words = {}
    for site in state.sites:
        if site in state.pending:
            words[site] = "training"
        elif site in state.accepted:
            words[site] = "reported"
        elif site in state.lost:
            words[site] = f"{state.lost[site]}; will be asked again when it is back"
        else:
            words[site] = state.missing.get(site, "waiting")
    return words
