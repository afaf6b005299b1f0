"""The journal keeps what it was told, and recognises a run whose process is gone."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from medfed.server.journal import Journal, RunStatus

STATUS = RunStatus(
    run="demo-12345678-1",
    study="demo",
    digest="12345678" * 8,
    state="running",
    round=2,
    rounds=5,
    sites={"A": "training", "B": "lost"},
    headline="round 2 of 5",
    exit_code=None,
    updated_at=1234.5,
    pid=None,
)


def test_status_is_read_as_it_was_written(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.db") as journal:
        journal.write(STATUS)
        assert journal.read(STATUS.run) == STATUS
    with Journal(tmp_path / "journal.db") as journal:
        assert journal.read(STATUS.run) == STATUS


def test_journal_in_memory_works_alike() -> None:
    with Journal(":memory:") as journal:
        journal.write(STATUS)
        journal.request_stop(STATUS.run)
        assert journal.read(STATUS.run) == STATUS
        assert journal.stop_requested(STATUS.run)


def test_newest_status_counts_and_the_older_ones_stay() -> None:
    with Journal(":memory:") as journal:
        journal.write(STATUS)
        journal.write(dataclasses.replace(STATUS, round=3))
        assert journal.read(STATUS.run).round == 3
        assert [event.content["round"] for event in journal.events(STATUS.run)] == [2, 3]


@pytest.mark.parametrize("sql", ["DELETE FROM events", "UPDATE events SET content = '{}'"])
def test_nothing_in_the_journal_can_be_changed(tmp_path: Path, sql: str) -> None:
    with Journal(tmp_path / "journal.db") as journal:
        journal.write(STATUS)
        with (
            sqlite3.connect(tmp_path / "journal.db") as other,
            pytest.raises(sqlite3.IntegrityError, match="append-only"),
        ):
            other.execute(sql)
        other.close()
        assert journal.read(STATUS.run) == STATUS


def test_newest_run_is_the_one_that_began_last() -> None:
    with Journal(":memory:") as journal:
        assert journal.newest() is None
        journal.write(STATUS)
        journal.write(dataclasses.replace(STATUS, run="other-12345678-1"))
        journal.write(dataclasses.replace(STATUS, state="finished"))  # the first run again
        assert journal.newest() == "other-12345678-1"
        assert journal.runs() == [STATUS.run, "other-12345678-1"]


def test_a_stop_is_for_one_run_only() -> None:
    with Journal(":memory:") as journal:
        journal.request_stop("one")
        assert journal.stop_requested("one")
        assert not journal.stop_requested("two")


def test_a_run_whose_process_lives_is_as_written() -> None:
    with Journal(":memory:") as journal:
        journal.write(dataclasses.replace(STATUS, pid=os.getpid()))
        assert journal.read(STATUS.run).state == "running"


def test_a_run_whose_process_is_gone_has_failed() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with Journal(":memory:") as journal:
        journal.write(dataclasses.replace(STATUS, pid=process.pid))
        process.kill()
        process.wait()
        found = journal.read(STATUS.run)

    assert (found.state, found.exit_code) == ("failed", 14)
    assert found.headline.startswith("the server app ended in round 2 of 5")
    assert found.sites == STATUS.sites


def test_a_process_that_was_given_the_same_id_is_not_taken_for_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Journal(":memory:") as journal:
        monkeypatch.setattr("medfed.server.journal._birth_of", lambda pid: 100)
        journal.write(dataclasses.replace(STATUS, pid=7))
        monkeypatch.setattr("medfed.server.journal._birth_of", lambda pid: 200)
        assert journal.read(STATUS.run).state == "failed"


def test_a_run_that_has_ended_stays_ended_when_its_process_goes() -> None:
    with Journal(":memory:") as journal:
        ended = dataclasses.replace(STATUS, state="finished", exit_code=0, pid=2**22 + 1)
        journal.write(ended)
        assert journal.read(STATUS.run) == ended


def test_threads_can_share_a_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.db") as journal:

        def write(number: int) -> None:
            for _ in range(10):
                journal.write(dataclasses.replace(STATUS, run=f"run-{number}"))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(len(journal.events(run)) for run in journal.runs()) == 40  # 4 threads times 10


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.db") as journal:
        journal.write(STATUS)
        for path in tmp_path.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_an_unknown_run_is_a_key_error() -> None:
    with Journal(":memory:") as journal, pytest.raises(KeyError, match="nothing"):
        journal.read("nothing")


def test_an_unknown_state_is_refused() -> None:
    with pytest.raises(ValueError, match="state must be one of"):
        dataclasses.replace(STATUS, state="done")


def test_sites_of_a_status_cannot_be_changed() -> None:
    sites = {"A": "ready"}
    status = dataclasses.replace(STATUS, sites=sites)
    sites["A"] = "lost"
    assert status.sites == {"A": "ready"}
