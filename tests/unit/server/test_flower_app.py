"""The ServerApp's link: a site's reply is read, refused by known words, or rejected; never more."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from medfed.common.networks.parameters import network_for, parameters_of
from medfed.common.study import Study
from medfed.common.updates import Parameters, encode
from medfed.server.flower_app import GridLink
from medfed.server.result import history_of, outcome_of, result_json
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
    return RecordDict({"release": ArrayRecord({"bytes": Array(np.frombuffer(data, np.uint8))})})


def study() -> Study:
    return make_study()


def run_with(answer: Content) -> RunResult:
    grid = InProcessGrid({"A": app(unchanged), "B": app(answer)})
    return StudyRun(study(), GridLink(grid, study(), "run-1", lambda: grid.node_of)).run()


def broken_array(**fields: object) -> RecordDict:
    record = update(b"x")
    for name, value in fields.items():
        setattr(record.array_records["release"]["bytes"], name, value)
    return record


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: RecordDict(),
        lambda _: RecordDict({"release": ArrayRecord({"other": Array(np.zeros(3))})}),
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


class LossyGrid(InProcessGrid):
    """B's first answer of every round is lost, with an error of Flower's in its place."""

    def __init__(self, apps: dict[str, ClientApp], *, code: int) -> None:
        super().__init__(apps)
        self.code, self.lost = code, set[str]()
        self.contents: list[RecordDict] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        assert messages, "Flower is not asked to send nothing"
        self.contents += [
            m.content for m in messages if m.metadata.dst_node_id == self.node_of["B"]
        ]
        return super().push_messages(messages)

    def _reply(self, message: Message) -> Message:
        round_ = message.metadata.group_id
        if message.metadata.dst_node_id == self.node_of["B"] and round_ not in self.lost:
            self.lost.add(round_)
            return Message(Error(self.code, "text of Flower's"), reply_to=message)
        return super()._reply(message)


@pytest.mark.parametrize("code", [3, 4, 5, 8])
def test_a_site_whose_node_or_worker_was_killed_is_asked_again_with_the_same_message(
    code: int,
) -> None:
    # 3, 4: message or reply gone; 5: node unavailable; 8: client app crashed (flwr's ErrorCode).
    grid = LossyGrid({"A": app(unchanged), "B": app(unchanged)}, code=code)

    result = StudyRun(study(), GridLink(grid, study(), "run-1", lambda: grid.node_of)).run()

    assert result.state.outcome == "finished"
    assert [dict(record.asked_again) for record in result.state.history] == [{"B": 1}] * 2
    first, again = grid.contents[:2]
    assert first.config_records["round"] == again.config_records["round"]
    assert first.array_records["model"] == again.array_records["model"]


@pytest.mark.parametrize("code", [0, 1, 2, 6, 7])
def test_an_error_that_a_program_made_is_an_answer_and_not_asked_again(code: int) -> None:
    grid = LossyGrid({"A": app(unchanged), "B": app(unchanged)}, code=code)

    result = StudyRun(study(), GridLink(grid, study(), "run-1", lambda: grid.node_of)).run()

    assert result.state.outcome == "incomplete"
    assert result.state.history[0].missing == {"B": f"rejected: Flower error {code}"}


def test_an_answer_to_what_was_asked_before_the_last_time_is_not_given() -> None:
    grid = InProcessGrid({"A": app(unchanged), "B": app(unchanged)})
    ids = iter("1234")
    pushed: list[str] = []
    grid.push_messages = lambda messages: [next(ids) for _ in messages]  # type: ignore[assignment]
    grid.pull_messages = lambda wanted: pushed.extend(wanted) or []  # type: ignore[assignment]
    link = GridLink(grid, study(), "run-1", lambda: grid.node_of)

    link.ask(1, ("A", "B"), b"model", 1.0)
    link.ask(1, ("B",), b"model", 1.0)
    assert link.next_answer() is None
    link.ask(2, (), b"model", 1.0)
    assert link.next_answer() is None

    assert pushed == ["1", "3"]  # A's only message and B's second; of the new round none


def test_what_became_of_a_run_is_read_back_as_written() -> None:
    grid = LossyGrid({"A": app(unchanged), "B": app(lambda _: RecordDict())}, code=5)
    result = StudyRun(study(), GridLink(grid, study(), "run-1", lambda: grid.node_of)).run()
    assert result.state.history[0].asked_again == {"B": 1}
    written = result_json(study(), "run-1", result)

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
