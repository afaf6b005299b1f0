from __future__ import annotations

import sys
from pathlib import Path

import pytest

from medfed.client.kept_program import KeptProgram, Tail
from tests.support.flower_hub import wait_until


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def program(tmp_path: Path, code: str, clock: Clock) -> KeptProgram:
    return KeptProgram(
        "program",
        lambda: [sys.executable, "-c", code],
        environment={},
        log=tmp_path / "program.log",
        clock=clock,
    )


def run_to_its_end(kept: KeptProgram) -> int:
    kept.start()
    found: list[int] = []

    def noticed() -> bool:
        code = kept.ended()
        found.extend([] if code is None else [code])
        return bool(found)

    wait_until(noticed, "the program ends")
    return found[0]


def test_only_whole_new_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    tail = Tail(path)

    with path.open("a", buffering=1) as file:
        file.write("one\ntw")
        file.flush()
        first = tail.lines()
        file.write("o\n")
    assert (first, tail.lines(), tail.lines()) == (["one"], ["two"], [])


def test_a_log_that_is_not_there_yet_has_no_lines(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "log")
    assert tail.lines() == []
    (tmp_path / "log").write_bytes(b"\xff one\n")
    assert tail.lines() == ["� one"]


def test_the_end_is_noticed_once_with_its_code_and_output(tmp_path: Path) -> None:
    kept = program(tmp_path, "print('hello'); raise SystemExit(7)", Clock())

    assert run_to_its_end(kept) == 7
    assert kept.ended() is None
    assert kept.lines() == ["hello"]


def test_pauses_double_up_to_half_a_minute(tmp_path: Path) -> None:
    clock = Clock()
    kept = program(tmp_path, "", clock)
    pauses = []
    for _ in range(7):
        run_to_its_end(kept)
        pauses.append(kept.pause_s)

    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]  # doubled, at most 30 s


def test_it_is_started_again_only_after_its_pause(tmp_path: Path) -> None:
    clock = Clock()
    kept = program(tmp_path, "", clock)
    run_to_its_end(kept)

    clock.now = 0.9
    assert not kept.start_if_due()
    clock.now = 1.1
    assert kept.start_if_due()
    assert kept.child is not None
    kept.child.end()


def test_a_minute_of_steady_work_starts_the_pauses_anew(tmp_path: Path) -> None:
    clock = Clock()
    kept = program(tmp_path, "", clock)
    run_to_its_end(kept)
    run_to_its_end(kept)
    kept.start()
    clock.now = 61.0
    wait_until(lambda: kept.ended() is not None, "the program ends")

    assert kept.pause_s == 1.0


def test_a_large_log_is_put_aside_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medfed.client.kept_program._LARGEST_LOG_BYTES", 3)
    (tmp_path / "program.log").write_text("long\n")
    program(tmp_path, "", Clock())

    assert (tmp_path / "program.old.log").read_text() == "long\n"
    assert not (tmp_path / "program.log").exists()
