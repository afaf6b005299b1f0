"""What became of a run, written down for whoever comes later: ``result.json`` in its folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from medfed.common.privacy.mechanism import EvaluatedPart, evaluation_epsilon
from medfed.common.report.content import Interval, NoisedEvaluation, NoisedFigure
from medfed.common.study import Study
from medfed.server.evaluation import EvaluationCurve
from medfed.server.rounds import EXIT_CODES, Outcome, RoundRecord, headline
from medfed.server.run_study import RunResult


def result_json(study: Study, run: str, result: RunResult) -> bytes:
    """What became of a run, round by round and site by site. Public.

    ``rounds`` holds, per round, the sites whose update was used, why others are missing, and
    how often a site was asked again after it was lost. ``evaluations`` holds what the sites'
    noised histograms said, and ``unjudged`` which of them are missing.
    """
    state = result.state
    content = {
        "run": run,
        "study": study.name,
        "digest": study.digest,
        "outcome": state.outcome,
        "headline": headline(state),
        "rounds": [
            {
                "round": record.round,
                "accepted": list(record.accepted),
                "missing": dict(record.missing),
                "skipped": record.skipped,
                "asked_again": dict(record.asked_again),
            }
            for record in state.history
        ],
        "evaluations": [dataclasses.asdict(e) for e in evaluations_of(study, result)],
        "unjudged": [dataclasses.asdict(lack) for lack in state.unjudged],
    }
    return json.dumps(content, indent=2).encode()


def evaluations_of(study: Study, result: RunResult) -> tuple[NoisedEvaluation, ...]:
    """What the sites' noised histograms said of the models of a run, for a report."""
    return (
        *_evaluations(study, "validation", result.validation),
        *_evaluations(study, "test", result.test),
    )


def _evaluations(
    study: Study, part: EvaluatedPart, curve: EvaluationCurve
) -> tuple[NoisedEvaluation, ...]:
    epsilon, delta = evaluation_epsilon(study, part), study.privacy.delta or 0.0
    return tuple(
        NoisedEvaluation(
            part=part,
            round=round_,
            sites=evaluation.sites,
            epsilon=epsilon,
            delta=delta,
            figures=tuple(
                NoisedFigure(name, figure.interval, figure.reason)
                for name, figure in evaluation.figures.items()
            ),
        )
        for round_, evaluation in curve.points.items()
    )


def history_of(result: bytes) -> tuple[RoundRecord, ...]:
    """Read back the rounds of ``result_json``."""
    return tuple(
        RoundRecord(r["round"], tuple(r["accepted"]), r["missing"], r["skipped"], r["asked_again"])
        for r in json.loads(result)["rounds"]
    )


def outcome_of(result: bytes) -> Outcome:
    """Read back how the run of ``result_json`` ended."""
    outcomes: dict[str, Outcome] = {o: o for o in EXIT_CODES}
    return outcomes[json.loads(result)["outcome"]]


def evaluations_in(result: bytes) -> tuple[NoisedEvaluation, ...]:
    """Read back the evaluations of ``result_json``."""
    return tuple(_read_evaluation(e) for e in json.loads(result)["evaluations"])


def _read_evaluation(found: Mapping[str, Any]) -> NoisedEvaluation:
    figures = tuple(
        NoisedFigure(f["name"], f["interval"] and Interval(**f["interval"]), f["reason"])
        for f in found["figures"]
    )
    return NoisedEvaluation(**{**found, "sites": tuple(found["sites"]), "figures": figures})
