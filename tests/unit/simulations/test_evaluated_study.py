"""A study that has its model judged at the sites: paid for, told, missed where it is missing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from flwr.app import Error, Message, MessageType

from medfed.client.flower_app import build_app
from medfed.client.release import PublicFact
from medfed.client.scans.scanset import TEST, TRAIN, VALIDATION, ScanSet
from medfed.client.session import RoundRequest, SiteSession
from medfed.common.exact_metrics import figure
from medfed.common.networks.parameters import network_for, parameters_of
from medfed.common.privacy.histogram import decode_histogram
from medfed.common.privacy.mechanism import evaluation_epsilon, histogram_mechanism
from medfed.common.study import Study
from medfed.common.updates import encode
from medfed.server.flower_app import GridLink
from medfed.server.result import evaluations_in, evaluations_of, result_json
from medfed.server.rounds import EXIT_CODES, headline
from medfed.server.run_study import RunResult, StudyRun
from medfed.simulations.evaluate import Judge
from medfed.simulations.grid import InProcessGrid
from medfed.simulations.simulate import Execution, simulate, simulated_session
from tests.support.sites import make_study
from tests.support.virtual_sites import bright_and_dark

EVALUATION = "[evaluation]\nbins = 10\nevery = 2\ntest = true\nnoise_multiplier = 0.5\n"
STUDY = make_study(
    ('network]\nname = "medfed-small"', 'network]\nname = "scatter-small"'),
    ("validation_fraction = 0.0", "validation_fraction = 0.2"),
    ("rounds = 2", "rounds = 4"),
    ("[cohort]", f"{EVALUATION}[cohort]"),
)


def scans_of(patients: int = 300, seed: int = 0) -> ScanSet:
    """Patients in all three parts: 40 % train, 30 % validate, 30 % test."""
    scans = bright_and_dark(patients, seed=seed)
    parts = np.array([*[TRAIN] * 4, *[VALIDATION, TEST] * 3])
    part = parts[scans.patient // 2 % 10].astype(np.uint8)  # two by two: the labels alternate
    return ScanSet(scans.images, scans.labels, scans.patient, part, "patient")


SCANS = {"A": scans_of(seed=1), "B": scans_of(seed=2)}


@pytest.fixture(scope="module")
def result() -> RunResult:
    return simulate(STUDY, SCANS, Execution())


def test_every_point_of_the_curve_and_the_test_come_from_both_sites(result: RunResult) -> None:
    assert result.state.outcome == "finished"
    assert list(result.validation.points) == [2, 4]  # every = 2
    assert list(result.test.points) == [4]
    for evaluation in (*result.validation.points.values(), *result.test.points.values()):
        assert evaluation.sites == ("A", "B")


def test_the_noised_figure_is_near_the_exact_one_of_the_same_model(result: RunResult) -> None:
    tests = [scans.part_of(TEST) for scans in SCANS.values()]
    pooled = ScanSet(
        np.concatenate([t.images for t in tests]),
        np.concatenate([t.labels for t in tests]),
        np.arange(sum(t.patients for t in tests)),  # one scan each
        np.concatenate([t.part for t in tests]),
        "patient",
    )
    exact = figure(Judge(STUDY, pooled, torch.device("cpu")).score(result.model), positive=1)
    noised = result.test.points[4].figures["auroc_noised"].interval

    assert noised is not None
    # 180 patients, noise 0.7 a cell: the interval holds it (a fixed seed), and it is not exact.
    assert noised.low <= exact <= noised.high
    assert noised.value != exact


def test_what_was_said_is_written_down_and_read_back(result: RunResult) -> None:
    written = result_json(STUDY, "run-1", result)

    assert evaluations_in(written) == evaluations_of(STUDY, result)
    first = evaluations_of(STUDY, result)[0]
    assert (first.part, first.round, first.sites) == ("validation", 2, ("A", "B"))
    assert first.epsilon == evaluation_epsilon(STUDY, "validation")
    assert json.loads(written)["unjudged"] == []


def session(site: str, study: Study = STUDY) -> SiteSession:
    return simulated_session(study, site, SCANS[site], Execution())


class LosingHistograms(InProcessGrid):
    """B trains, and is gone whenever it is asked to judge."""

    def _reply(self, message: Message) -> Message:
        to_b = message.metadata.dst_node_id == self.node_of["B"]
        if to_b and message.metadata.message_type == MessageType.EVALUATE:
            return Message(Error(8, "gone"), reply_to=message)
        return super()._reply(message)


def test_a_site_that_does_not_judge_is_named_and_the_run_is_not_as_planned() -> None:
    grid = LosingHistograms({name: build_app(session(name)) for name in SCANS})
    lossy = StudyRun(STUDY, GridLink(grid, STUDY, "simulation", lambda: grid.node_of)).run()

    assert lossy.state.outcome == "incomplete"
    assert EXIT_CODES[lossy.state.outcome] == 18
    assert lossy.test.points[4].sites == ("A",)
    assert "B did not judge the model on its validation patients after rounds 2, 4" in headline(
        lossy.state
    )
    assert "on its test patients after round 4 (lost: Flower error 8)" in headline(lossy.state)
    assert all(not record.missing for record in lossy.state.history)  # it trained


# ---- what a server may ask of a site -------------------------------------------------------------
def ask(site: SiteSession, round_: int, purpose: str, run: str = "run-1") -> str | None:
    model = encode(parameters_of(network_for(STUDY, seed=round_)))
    request = RoundRequest(STUDY.digest, run, round_, model, purpose)  # type: ignore[arg-type]
    return site.answer(request).code


@pytest.mark.parametrize(
    ("round_", "purpose"),
    [(1, "validation"), (3, "validation"), (0, "test"), (3, "test"), (5, "test")],
)
def test_a_histogram_outside_the_approved_schedule_is_refused(round_: int, purpose: str) -> None:
    site = session("A")

    assert ask(site, round_, purpose) == PublicFact.REFUSED_BY_POLICY.value
    assert site.ledger.epsilon(1e-3) == 0.0


def test_each_histogram_of_the_schedule_is_paid_once_and_no_more_are_given() -> None:
    site = session("A")

    for round_, purpose in ((2, "validation"), (4, "validation"), (4, "test")):
        assert ask(site, round_, purpose) is None
        assert ask(site, round_, purpose) is None  # the same bytes again
    for other in ("run-2", "run-3"):  # another run buys nothing more
        assert ask(site, 2, "validation", run=other) == PublicFact.REFUSED_BY_POLICY.value
        assert ask(site, 4, "test", run=other) == PublicFact.REFUSED_BY_POLICY.value

    assert site.ledger.rounds_paid(STUDY.digest, "validation") == 2
    assert site.ledger.rounds_paid(STUDY.digest, "test") == 1


def test_a_study_without_evaluation_gives_no_histogram() -> None:
    plain = make_study()
    site = simulated_session(plain, "A", SCANS["A"], Execution())
    model = encode(parameters_of(network_for(plain)))

    for purpose in ("validation", "test"):
        request = RoundRequest(plain.digest, "run-1", 2, model, purpose)  # type: ignore[arg-type]
        assert site.answer(request).code == PublicFact.REFUSED_BY_POLICY.value


def test_noise_is_on_every_cell_and_two_sites_of_the_same_patients_differ() -> None:
    payloads = []
    for name in ("A", "B"):
        site = simulated_session(STUDY, name, SCANS["A"], Execution())
        model = encode(parameters_of(network_for(STUDY)))
        released = site.answer(RoundRequest(STUDY.digest, "run-1", 4, model, "test"))
        payloads.append(released.payload)
    first, second = (
        decode_histogram(p or b"", histogram_mechanism(STUDY, "test"), who="A") for p in payloads
    )

    assert (first != np.rint(first)).all()  # counts would be whole
    assert (first != second).all()
