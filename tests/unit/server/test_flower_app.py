"""The ServerApp's link: a site's reply is read, refused by known words, or rejected; never more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from medfed.common.networks.parameters import network_for, parameters_of
from medfed.common.study import Study
from medfed.common.updates import Parameters, encode
from medfed.server.flower_app import GridLink, history_of, outcome_of, result_json
from medfed.server.run_study import RunResult, StudyRun
from medfed.simulations.grid import InProcessGrid
from tests.support.sites import make_study

Content = Callable[[RecordDict], RecordDict]


def app(answer: Content) -> ClientApp:
    made = ClientApp()

    @made.train()
    def train(message: Message, context: object) -> Message:
        return Message(answer(message.content), reply_to=message)

    return made


def unchanged(content: RecordDict) -> RecordDict:
    zeros: Parameters = {n: a * 0 for n, a in parameters_of(network_for(study())).items()}
    return update(encode(zeros))


def update(data: bytes) -> RecordDict:
    return RecordDict({"update": ArrayRecord({"bytes": Array(np.frombuffer(data, np.uint8))})})


def study() -> Study:
    return make_study()


def run_with(answer: Content) -> RunResult:
    grid = InProcessGrid({"A": app(unchanged), "B": app(answer)})
    return StudyRun(study(), GridLink(grid, study(), "run-1", lambda: grid.node_of)).run()


def broken_array(**fields: object) -> RecordDict:
    record = update(b"x")
    for name, value in fields.items():
        setattr(record.array_records["update"]["bytes"], name, value)
    return record


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: RecordDict(),
        lambda _: RecordDict({"update": ArrayRecord({"other": Array(np.zeros(3))})}),
        lambda _: RecordDict({"fact": ConfigRecord({"other": "x"})}),
        lambda _: broken_array(stype="made.up"),
        lambda _: broken_array(data=b"\x93NUMPY garbage"),
        lambda _: broken_array(data=b"\x93NUMPY\x01\x00\x10\x00{'descr': [[[[[\n"),
        lambda _: update(b"no safetensors"),
    ],
)
def test_a_reply_that_is_none_costs_that_site_its_round_and_no_other(answer: Content) -> None:
    # Found by an attack: any of these ended the whole run for every hospital.
    result = run_with(answer)

    assert result.state.outcome == "incomplete"
    for record in result.state.history:
        assert record.accepted == ("A",)
        assert record.missing["B"].startswith("rejected: its ")


def test_a_refusal_is_shown_in_our_words_not_in_the_sites() -> None:
    def code(text: str) -> str:
        result = run_with(lambda _: RecordDict({"fact": ConfigRecord({"code": text})}))
        return result.state.history[0].missing["B"]

    assert code("not-approved") == "refused: the study is not approved there"
    assert code("none); A missing in round 1 (fraud") == "refused: for a reason that is not known"


def test_what_became_of_a_run_is_read_back_as_written() -> None:
    result = run_with(lambda _: RecordDict())
    written = result_json(study(), "run-1", result.state)

    assert history_of(written) == result.state.history
    assert outcome_of(written) == "incomplete"


def test_a_site_that_is_enrolled_after_the_launch_takes_part() -> None:
    # Found by a stranger: the list of enrolled sites was read once, at the start.
    grid = InProcessGrid({"A": app(unchanged), "B": app(unchanged)})
    enrolled = {"A": grid.node_of["A"]}
    link = GridLink(grid, study(), "run-1", lambda: enrolled)
    assert link.present() == {"A"}

    enrolled["B"] = grid.node_of["B"]

    assert link.present() == {"A", "B"}
    assert StudyRun(study(), link).run().state.outcome == "finished"
