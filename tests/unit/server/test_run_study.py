"""The rounds carried out over a link in memory: deliveries, losses, lies, stops, deadlines."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medfed.common.errors import UpdateRejectedError
from medfed.common.networks.parameters import network_for, parameters_of
from medfed.common.study import Study, parse_study
from medfed.common.updates import Parameters, decode, encode, shapes_of
from medfed.server import run_study
from medfed.server.rounds import EXIT_CODES, RunState, headline
from medfed.server.run_study import Answer, StudyRun, words_for

TEXT = """
[study]
name = "lungs"
purpose = "find pneumonia on chest films"
[task]
labels = ["normal", "pneumonia"]
[scans]
size = [28, 28]
channels = 1
[split]
rule = "given"
[network]
name = "medfed-small"
[training]
rounds = 2
local_steps = 1
batch_size = 8
learning_rate = 0.5
[privacy]
mode = "none"
[strategy]
server_learning_rate = 1.0
[cohort]
quorum = 2
round_deadline_s = 30.0
[[site]]
name = "A"
declared_patients = 100
[[site]]
name = "B"
declared_patients = 300
[[site]]
name = "C"
declared_patients = 100
"""

SHAPES = shapes_of(parameters_of(network_for(parse_study(TEXT))))
VALUE = {"A": 0.25, "B": -0.5, "C": 1.0}  # each site's update is this number everywhere
MEAN = (0.25 * 100 - 0.5 * 300 + 1.0 * 100) / 500  # -0.05, by the declared patients

Reply = Callable[[str, int, bytes], Answer | None]


def make_study(*changes: tuple[str, str]) -> Study:
    text = TEXT
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return parse_study(text)


def update_of(value: float) -> bytes:
    return encode({name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()})


def deliver(site: str, round_: int, model: bytes) -> Answer | None:
    return Answer(site, payload=update_of(VALUE[site]))


class Link:
    """Sites in memory: each answers by a function, in the order in which it was asked."""

    def __init__(self, reply: Reply = deliver, *, present: str = "ABC") -> None:
        self.reply, self.sites = reply, frozenset(present)
        self.models: list[bytes] = []
        self.asked: list[tuple[int, tuple[str, ...]]] = []
        self.queue: list[Answer] = []

    def present(self) -> frozenset[str]:
        return self.sites

    def ask(self, round_: int, sites: tuple[str, ...], model: bytes, deadline_s: float) -> None:
        self.asked.append((round_, sites))
        self.models.append(model)
        self.queue = [answer for answer in self.queue if answer.site not in sites]
        answers = [self.reply(site, round_, model) for site in sites]
        self.queue += [answer for answer in answers if answer is not None]

    def next_answer(self) -> Answer | None:
        return self.queue.pop(0) if self.queue else None


def except_for(site: str, answer: Answer | None) -> Reply:
    return lambda s, round_, model: answer if s == site else deliver(s, round_, model)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_study, "_LOOK_AGAIN_S", 0.001)
    monkeypatch.setattr(run_study, "_REJOIN_WAIT_S", 0.02)


def start_of(study: Study) -> Parameters:
    """The first global model; another study has another one."""
    return parameters_of(network_for(study))


def values(parameters: Parameters, study: Study) -> list[float]:
    """How far the parameters moved from the start, least and most: equal if all moved alike."""
    minus = start_of(study)
    moved = np.concatenate([(parameters[name] - minus[name]).ravel() for name in minus])
    return [float(moved.min()), float(moved.max())]


# ---- everybody delivers --------------------------------------------------------------------------
def test_two_rounds_add_the_weighted_mean_twice(tmp_path: Path) -> None:
    study = make_study()
    link, seen = Link(), list[RunState]()

    result = StudyRun(study, link, folder=tmp_path, on_change=seen.append).run()

    assert result.state.outcome == "finished"
    assert headline(result.state) == "2 of 2 rounds done"
    assert values(result.model, study) == pytest.approx([2 * MEAN] * 2, abs=1e-6)
    assert link.asked == [(1, ("A", "B", "C")), (2, ("A", "B", "C"))]
    assert [state.phase for state in seen][-1] == "over"
    assert {state.phase for state in seen} == {"waiting", "collecting", "over"}


def test_the_first_model_is_the_studys_and_the_second_is_the_first_rounds(tmp_path: Path) -> None:
    study = make_study()
    link = Link()

    result = StudyRun(study, link, folder=tmp_path).run()

    assert link.models[0] == encode(start_of(study))
    second = decode(link.models[1], SHAPES, who="the server")
    assert values(second, study) == pytest.approx([MEAN] * 2, abs=1e-6)
    saved = decode((tmp_path / "model.safetensors").read_bytes(), SHAPES, who="the file")
    assert encode(saved) == encode(result.model)


def test_the_order_of_the_answers_does_not_change_one_bit() -> None:
    class Backwards(Link):
        def next_answer(self) -> Answer | None:
            return self.queue.pop() if self.queue else None

    forwards = StudyRun(make_study(), Link()).run()
    backwards = StudyRun(make_study(), Backwards()).run()

    assert encode(forwards.model) == encode(backwards.model)


def test_the_bound_holds_each_update_and_the_average_is_released() -> None:
    count = sum(array.size for array in start_of(make_study()).values())
    bound = 0.1 * count**0.5  # the norm of an update of 0.1 everywhere
    study = make_study(
        ("server_learning_rate = 1.0", f"update_norm_bound = {bound}\naverage_decay = 0.9")
    )

    result = StudyRun(study, Link()).run()

    # Every site's update is longer than the bound: 0.1 everywhere, with its own sign.
    mean = (0.1 * 100 - 0.1 * 300 + 0.1 * 100) / 500
    # Round 2 weighs the past by min(0.9, 2 / (2 + 4)) = 1/3: (1/3) * 1 + (2/3) * 2 = 5/3 rounds.
    assert values(result.model, study) == pytest.approx([5 / 3 * mean] * 2, abs=1e-6)


# ---- somebody does not ---------------------------------------------------------------------------
WITHOUT_B = (0.25 * 100 + 1.0 * 100) / 200


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer("B", failure="refused", reason="not-approved"), "refused: not-approved"),
        (Answer("B", failure="refused"), "refused: no reason"),
        (Answer("B", payload=b"garbage"), "rejected: its update failed the checks"),
        (Answer("B", payload=b""), "rejected: its update failed the checks"),
        (Answer("B", payload=update_of(0.5)[:-4]), "rejected: its update failed the checks"),
        (Answer("B", payload=update_of(float("nan"))), "rejected: its update failed the checks"),
        (Answer("B", payload=update_of(float("inf"))), "rejected: its update failed the checks"),
        (Answer("B", payload=update_of(2.0**21)), "rejected: its update failed the checks"),
        (Answer("B", payload=encode({"w": np.ones(3)})), "rejected: its update failed the checks"),
    ],
)
def test_one_site_that_fails_is_named_and_the_others_are_averaged(
    answer: Answer, reason: str
) -> None:
    study = make_study()
    result = StudyRun(study, Link(except_for("B", answer))).run()

    assert result.state.outcome == "incomplete"
    assert EXIT_CODES[result.state.outcome] == 18
    assert headline(result.state) == (
        f"2 of 2 rounds done; NOT AS PLANNED: B missing in rounds 1 to 2 ({reason})"
    )
    assert values(result.model, study) == pytest.approx([2 * WITHOUT_B] * 2, abs=1e-5)


def test_a_site_that_never_answers_is_late_at_the_deadline() -> None:
    study = make_study(("round_deadline_s = 30.0", "round_deadline_s = 0.05"))

    result = StudyRun(study, Link(except_for("B", None))).run()

    assert "B missing in rounds 1 to 2 (late: no update by the deadline)" in headline(result.state)
    assert values(result.model, study) == pytest.approx([2 * WITHOUT_B] * 2, abs=1e-5)


def test_a_site_that_is_away_is_waited_for_until_the_deadline_and_then_left_out() -> None:
    study = make_study(("round_deadline_s = 30.0", "round_deadline_s = 0.05"))
    link = Link(present="AC")

    result = StudyRun(study, link).run()

    assert link.asked == [(1, ("A", "C")), (2, ("A", "C"))]
    assert "B missing in rounds 1 to 2 (not connected)" in headline(result.state)


def test_below_quorum_the_model_stays_and_the_run_fails(tmp_path: Path) -> None:
    study = make_study(("round_deadline_s = 30.0", "round_deadline_s = 0.02"))

    result = StudyRun(study, Link(present="A"), folder=tmp_path).run()

    assert result.state.outcome == "failed"
    assert EXIT_CODES["failed"] == 13
    assert encode(result.model) == encode(start_of(study))
    assert list(tmp_path.iterdir()) == []
    assert words_for(result.state)["A"].startswith("connected, but not asked")


def test_an_update_of_a_round_below_quorum_is_forgotten() -> None:
    def only_a_at_first(site: str, round_: int, model: bytes) -> Answer | None:
        return None if round_ == 1 and site != "A" else deliver(site, round_, model)

    study = make_study(("round_deadline_s = 30.0", "round_deadline_s = 0.05"))

    result = StudyRun(study, Link(only_a_at_first)).run()

    assert "round 1 skipped, below the quorum of 2" in headline(result.state)
    assert values(result.model, study) == pytest.approx([MEAN] * 2, abs=1e-6)


# ---- answers nobody asked for --------------------------------------------------------------------
@pytest.mark.parametrize("stranger", ["B", "X"])
def test_an_answer_of_a_site_that_was_not_asked_is_ignored(stranger: str) -> None:
    def with_a_stranger(site: str, round_: int, model: bytes) -> Answer | None:
        link.queue.append(Answer(stranger, payload=update_of(0.5)))
        return deliver(site, round_, model)

    study = make_study(("round_deadline_s = 30.0", "round_deadline_s = 0.05"))
    link = Link(with_a_stranger, present="AC")

    result = StudyRun(study, link).run()

    assert values(result.model, study) == pytest.approx([2 * WITHOUT_B] * 2, abs=1e-5)
    assert all(set(record.accepted) == {"A", "C"} for record in result.state.history)


def test_a_second_answer_of_the_same_site_counts_for_nothing() -> None:
    study = make_study()

    def twice(site: str, round_: int, model: bytes) -> Answer | None:
        link.queue.append(Answer(site, payload=update_of(VALUE[site])))
        return Answer(site, payload=update_of(VALUE[site]))

    link = Link(twice)

    result = StudyRun(study, link).run()

    assert result.state.outcome == "finished"
    assert values(result.model, study) == pytest.approx([2 * MEAN] * 2, abs=1e-6)


def test_an_update_after_the_same_sites_failure_counts_for_nothing() -> None:
    study = make_study()

    def failed_then_found(site: str, round_: int, model: bytes) -> Answer | None:
        if site != "B":
            return deliver(site, round_, model)
        link.queue += [Answer("B", failure="refused", reason="no"), Answer("B", update_of(9.0))]
        return None

    link = Link(failed_then_found)

    result = StudyRun(study, link).run()

    assert values(result.model, study) == pytest.approx([2 * WITHOUT_B] * 2, abs=1e-5)
    assert "B missing in rounds 1 to 2 (refused: no)" in headline(result.state)


# ---- somebody is lost and comes back -------------------------------------------------------------
LOST = Answer("B", failure="lost", reason="Flower error 5")


def lost_at_first(times: int) -> Reply:
    """B is lost so often in every round, and then delivers."""
    losses: dict[int, int] = {}

    def reply(site: str, round_: int, model: bytes) -> Answer | None:
        if site != "B" or losses.get(round_, 0) == times:
            return deliver(site, round_, model)
        losses[round_] = losses.get(round_, 0) + 1
        return LOST

    return reply


def test_a_lost_site_gets_the_same_model_again_and_the_result_is_as_if_it_never_was_lost() -> None:
    study, link = make_study(), Link(lost_at_first(1))

    result = StudyRun(study, link).run()

    assert result.state.outcome == "finished"
    assert headline(result.state) == "2 of 2 rounds done; B asked again twice in rounds 1 to 2"
    assert link.asked == [(1, ("A", "B", "C")), (1, ("B",)), (2, ("A", "B", "C")), (2, ("B",))]
    assert link.models[0] == link.models[1] != link.models[2] == link.models[3]
    assert encode(result.model) == encode(StudyRun(study, Link()).run().model)


def test_a_lost_site_is_not_asked_before_it_is_there_again() -> None:
    study = make_study(("rounds = 2", "rounds = 1"))
    link = Link(lost_at_first(1))
    seen: list[str] = []  # who was there, at each look after the first ask

    def away_for_two_looks() -> frozenset[str]:
        there = "ABC" if not link.asked or len(seen) == 2 else "AC"
        if link.asked:
            seen.append(there)
        return frozenset(there)

    link.present = away_for_two_looks  # type: ignore[method-assign]  # a site that goes away

    result = StudyRun(study, link).run()

    assert seen == ["AC", "AC", "ABC"]
    assert link.asked == [(1, ("A", "B", "C")), (1, ("B",))]
    assert result.state.outcome == "finished"


def test_a_site_that_is_always_lost_is_given_up_and_named() -> None:
    link = Link(except_for("B", LOST))

    result = StudyRun(make_study(), link).run()

    # Five asks a round, the first among them.
    assert [round_ for round_, sites in link.asked if "B" in sites] == [1] * 5 + [2] * 5
    assert headline(result.state) == (
        "2 of 2 rounds done; B asked again 8 times in rounds 1 to 2; NOT AS PLANNED: B missing in "
        "rounds 1 to 2 (lost 5 times: Flower error 5)"
    )


def test_a_site_that_is_asked_again_is_given_the_time_that_is_left() -> None:
    given: list[float] = []

    class Timed(Link):
        def ask(self, round_: int, sites: tuple[str, ...], model: bytes, deadline_s: float) -> None:
            super().ask(round_, sites, model, deadline_s)
            given.append(deadline_s)

    StudyRun(make_study(("rounds = 2", "rounds = 1")), Timed(lost_at_first(2))).run()

    assert 30.0 >= given[0] > given[1] > given[2] > 0.0  # round_deadline_s = 30.0


def test_a_lost_site_is_told_apart_while_the_round_waits_for_it() -> None:
    seen: list[RunState] = []

    StudyRun(make_study(), Link(lost_at_first(1)), on_change=seen.append).run()

    words = [words_for(state)["B"] for state in seen if state.lost]
    assert words[0] == "lost: Flower error 5; will be asked again when it is back"
    assert words_for(seen[-1])["B"] == "reported"


def test_words_of_a_site_enter_no_headline_or_log_unchecked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    evil = "ok\nround.accepted site=A \x1b[31m<b>" + "x" * 10_000

    with caplog.at_level(logging.DEBUG):
        result = StudyRun(
            make_study(), Link(except_for("B", Answer("B", failure="refused", reason=evil)))
        ).run()

    for text in (headline(result.state), caplog.text):
        assert "\x1b" not in text
        assert len(text) < 1000
    assert "\n" not in headline(result.state)


def test_no_value_of_an_update_enters_a_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        StudyRun(make_study(), Link(except_for("B", Answer("B", payload=update_of(3e7))))).run()

    assert "update.rejected site=B" in caplog.text
    assert "3e+07" not in caplog.text
    assert "30000000" not in caplog.text


# ---- the coordinator stops -----------------------------------------------------------------------
def test_a_stop_while_waiting_asks_nobody() -> None:
    study = make_study()
    link = Link()

    result = StudyRun(study, link, stop_requested=lambda: True).run()

    assert result.state.outcome == "stopped"
    assert link.asked == []
    assert encode(result.model) == encode(start_of(study))


def test_a_stop_in_the_second_round_keeps_the_first_rounds_model(tmp_path: Path) -> None:
    study = make_study()
    link = Link(lambda s, round_, model: deliver(s, round_, model) if round_ == 1 else None)

    result = StudyRun(
        study, link, folder=tmp_path, stop_requested=lambda: len(link.asked) == 2
    ).run()

    assert result.state.outcome == "stopped"
    assert headline(result.state) == "1 of 2 rounds done when the coordinator stopped the run"
    assert values(result.model, study) == pytest.approx([MEAN] * 2, abs=1e-6)
    assert (tmp_path / "model.safetensors").read_bytes() == encode(result.model)


# ---- words ---------------------------------------------------------------------------------------
def test_every_state_of_a_run_has_words_for_every_site() -> None:
    seen: list[RunState] = []
    study = make_study(("round_deadline_s = 30.0", "round_deadline_s = 0.05"))

    StudyRun(study, Link(except_for("B", None)), on_change=seen.append).run()

    spoken = [dict(words_for(state)) for state in seen]
    assert all(set(words) == set("ABC") for words in spoken)
    assert spoken[0] == dict.fromkeys("ABC", "waiting")
    assert spoken[1] == dict.fromkeys("ABC", "training")
    assert spoken[2] == {"A": "reported", "B": "training", "C": "training"}
    between = next(
        w for s, w in zip(seen, spoken, strict=True) if (s.phase, s.round) == ("waiting", 2)
    )
    assert between["A"] == "reported"
    assert between["B"].startswith("late")
    assert spoken[-1] == {
        "A": "reported",
        "B": "late: no update by the deadline",
        "C": "reported",
    }


def test_a_failure_of_ours_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Parameters:
        raise ZeroDivisionError

    monkeypatch.setattr(run_study, "decode", broken)
    with pytest.raises(ZeroDivisionError):
        StudyRun(make_study(), Link()).run()
    assert issubclass(UpdateRejectedError, Exception)
