"""What the hub decides, with a Flower that answers from memory."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medfed.common.errors import ConfigError, TransportError, TrustError
from medfed.common.study import Study, parse_study
from medfed.common.trust.keys import fingerprint, new_node_key, read_public_key
from medfed.server import hub as hub_module
from medfed.server.data_root import DataRoot
from medfed.server.hub import Hub
from medfed.server.journal import Journal, RunStatus
from medfed.server.superlink import FLOWER_VERSION, SuperLink, require_flower_version

TEXT = (Path(__file__).parents[2] / "support" / "tiny_study.toml").read_text()


def study(name: str = "demo") -> Study:
    return parse_study(TEXT.replace("{name}", name).replace("{rounds}", "3"))


class Flower(SuperLink):
    """Remembers what it was told; its server apps write a first status at once."""

    def __init__(self, root: DataRoot, journal: Journal) -> None:
        super().__init__(root, "127.0.0.1", 1, threading.Event())
        self.journal = journal
        self.registered: dict[int, bytes] = {}
        self.thrown_out: list[int] = []
        self.stopped: list[int] = []
        self.refuses: str | None = None
        self.app_starts = True

    def register(self, site: str, key_file: Path) -> int:
        if self.refuses is not None:
            raise TransportError(self.refuses)
        node = 100 + len(self.registered) + len(self.thrown_out)
        self.registered[node] = key_file.read_bytes()
        return node

    def unregister(self, node: int) -> None:
        del self.registered[node]
        self.thrown_out.append(node)

    def nodes(self) -> dict[int, str]:
        return dict.fromkeys(self.registered, "registered")

    def start_run(self, bundle: Path, run: str) -> int:
        if self.refuses is not None:
            raise TransportError(self.refuses)
        if self.app_starts:
            first = self.journal.read(run)
            self.journal.write(dataclasses.replace(first, state="running", pid=os.getpid()))
        return 5

    def run_state(self, flower_run: int) -> str:
        return "finished:failed"

    def run_log(self, flower_run: int) -> str:
        return "why it failed"

    def stop_run(self, flower_run: int) -> None:
        self.stopped.append(flower_run)


@dataclasses.dataclass
class Set:
    root: DataRoot
    journal: Journal
    flower: Flower
    hub: Hub


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Set]:
    root = DataRoot(tmp_path / "root")
    root.prepare([], 8444)
    with Journal(root.journal) as journal:
        flower = Flower(root, journal)
        yield Set(root, journal, flower, Hub(root, flower, journal))


@pytest.fixture
def keys(tmp_path: Path) -> list[bytes]:
    return [read_public_key(new_node_key(tmp_path / name)) for name in ("k0", "k1")]


def test_an_enrolled_site_is_known_to_flower_and_on_disk(at: Set, keys: list[bytes]) -> None:
    assert at.hub.enrol("A", keys[0], replace=False) == (fingerprint(keys[0]), False)

    assert at.flower.registered == {100: keys[0]}
    assert at.root.nodes() == {"A": 100}
    assert at.root.enrolled() == {"A": keys[0]}


def test_enrolling_twice_changes_nothing(at: Set, keys: list[bytes]) -> None:
    at.hub.enrol("A", keys[0], replace=False)
    assert at.hub.enrol("A", keys[0], replace=False) == (fingerprint(keys[0]), True)
    assert at.root.nodes() == {"A": 100}


def test_another_key_is_refused_with_both_fingerprints(at: Set, keys: list[bytes]) -> None:
    at.hub.enrol("A", keys[0], replace=False)

    with pytest.raises(TrustError) as error:
        at.hub.enrol("A", keys[1], replace=False)

    assert fingerprint(keys[0]) in str(error.value) and fingerprint(keys[1]) in str(error.value)
    assert at.root.enrolled() == {"A": keys[0]}


def test_replacing_throws_the_old_key_out(at: Set, keys: list[bytes]) -> None:
    at.hub.enrol("A", keys[0], replace=False)
    at.hub.enrol("A", keys[1], replace=True)

    assert list(at.flower.registered.values()) == [keys[1]]
    assert at.root.enrolled() == {"A": keys[1]}
    assert at.root.nodes() == {"A": next(iter(at.flower.registered))}


def test_a_replacement_that_flower_refuses_leaves_the_old_key_in(
    at: Set, keys: list[bytes]
) -> None:
    at.hub.enrol("A", keys[0], replace=False)
    at.flower.refuses = "no"

    with pytest.raises(TransportError):
        at.hub.enrol("A", keys[1], replace=True)

    assert at.root.enrolled() == {"A": keys[0]}
    assert at.flower.registered == {100: keys[0]}


def test_a_key_belongs_to_one_site(at: Set, keys: list[bytes]) -> None:
    at.hub.enrol("A", keys[0], replace=False)
    with pytest.raises(TrustError, match="already enrolled, for site 'A'"):
        at.hub.enrol("B", keys[0], replace=False)


def test_a_site_name_that_leaves_the_folder_is_refused(at: Set, keys: list[bytes]) -> None:
    with pytest.raises(ConfigError, match="is not allowed"):
        at.hub.enrol("../A", keys[0], replace=False)


def test_a_flower_that_lost_its_memory_learns_the_sites_again(at: Set, keys: list[bytes]) -> None:
    at.hub.enrol("A", keys[0], replace=False)
    at.hub.enrol("B", keys[1], replace=False)
    at.flower.registered.clear()

    at.hub.take_up()

    assert sorted(at.flower.registered.values()) == sorted(keys)
    assert set(at.root.nodes().values()) == set(at.flower.registered)


def test_a_node_that_nobody_enrolled_is_thrown_out(at: Set, keys: list[bytes]) -> None:
    at.hub.enrol("A", keys[0], replace=False)
    at.flower.registered[666] = keys[1]

    at.hub.take_up()

    assert at.flower.registered == {100: keys[0]}


def test_an_enrolment_cut_off_by_a_kill_is_finished(at: Set, keys: list[bytes]) -> None:
    at.root.pending_key_file("A").write_bytes(keys[0])  # killed after Flower was told
    at.flower.registered[100] = keys[0]

    at.hub.take_up()

    assert at.root.nodes() == {"A": 100}
    assert at.root.enrolled() == {"A": keys[0]}
    assert at.root.pending() == []
    assert at.flower.thrown_out == []


def test_a_launch_writes_the_study_and_names_the_run(at: Set) -> None:
    run, was_running = at.hub.launch(study().canonical())

    assert (run, was_running) == (f"demo-{study().digest[:8]}-1", False)
    assert (at.root.run_folder(run) / "study.json").read_bytes() == study().canonical()
    assert at.hub.status("") == at.journal.read(run)
    assert at.hub.status(run).sites == {"A": "waiting", "B": "waiting"}


def test_a_second_launch_follows_the_run_that_goes_on(at: Set) -> None:
    run, _ = at.hub.launch(study().canonical())
    assert at.hub.launch(study().canonical()) == (run, True)


def test_a_launch_after_the_end_is_a_new_run(at: Set) -> None:
    run, _ = at.hub.launch(study().canonical())
    at.journal.write(dataclasses.replace(at.journal.read(run), state="finished", exit_code=0))

    again, was_running = at.hub.launch(study().canonical())

    assert (again, was_running) == (f"demo-{study().digest[:8]}-2", False)


def test_another_study_is_another_run(at: Set) -> None:
    at.hub.launch(study().canonical())
    assert at.hub.launch(study("other").canonical())[1] is False


def test_a_launch_that_flower_refuses_is_a_failed_run(at: Set) -> None:
    at.flower.refuses = "Flower refused"

    with pytest.raises(TransportError, match="Flower refused"):
        at.hub.launch(study().canonical())

    assert (at.hub.status("").state, at.hub.status("").exit_code) == ("failed", 14)
    assert at.hub.status("").headline == "Flower refused"


def test_a_server_app_that_does_not_start_is_a_failed_run_with_its_log(
    at: Set, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "_APP_LOOK_S", 0.0)
    at.flower.app_starts = False

    with pytest.raises(TransportError, match="did not start"):
        at.hub.launch(study().canonical())

    status = at.hub.status("")
    assert status.state == "failed"
    log = at.root.run_folder(status.run) / "server_app.log"
    assert log.read_text() == "why it failed"


def test_what_is_no_study_is_refused(at: Set) -> None:
    with pytest.raises(ConfigError, match="canonical"):
        at.hub.launch(b"nonsense")
    assert list((at.root.path / "runs").iterdir()) == []


def _end_when_asked(at: Set, run: str) -> None:
    while not at.journal.stop_requested(run):
        time.sleep(0.01)
    at.journal.write(dataclasses.replace(at.journal.read(run), state="stopped", exit_code=18))


def test_a_run_is_stopped_by_its_own_rounds(at: Set) -> None:
    run, _ = at.hub.launch(study().canonical())
    rounds = threading.Thread(target=_end_when_asked, args=(at, run))
    rounds.start()

    assert at.hub.stop("").state == "stopped"

    rounds.join()
    assert at.flower.stopped == []


def test_rounds_that_do_not_listen_are_ended(at: Set, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_STOP_LIMIT_S", 0.1)
    run, _ = at.hub.launch(study().canonical())

    status = at.hub.stop(run)

    assert (status.state, status.exit_code) == ("stopped", 18)
    assert at.flower.stopped == [5]


def test_stopping_what_has_ended_changes_nothing(at: Set) -> None:
    run, _ = at.hub.launch(study().canonical())
    ended = dataclasses.replace(at.journal.read(run), state="finished", exit_code=0)
    at.journal.write(ended)

    assert at.hub.stop(run) == ended
    assert not at.journal.stop_requested(run)


def test_a_run_that_was_starting_when_the_server_was_killed_has_failed(at: Set) -> None:
    first = RunStatus(
        run="demo-1-1", study="demo", digest="1" * 64, state="waiting", round=0, rounds=3,
        sites={}, headline="", exit_code=None, updated_at=0.0, pid=None,
    )  # fmt: skip
    at.journal.write(first)

    at.hub.take_up()

    assert (at.hub.status("").state, at.hub.status("").exit_code) == ("failed", 14)


def test_a_server_that_is_stopping_does_not_wait(at: Set) -> None:
    at.hub.launch(study().canonical())
    at.flower.stop.set()
    with pytest.raises(TransportError, match="the server is stopping"):
        at.hub.stop("")


def test_status_before_the_first_run_says_so(at: Set) -> None:
    with pytest.raises(ConfigError, match="no run was launched"):
        at.hub.status("")


def test_an_unknown_run_is_answered_with_the_known_ones(at: Set) -> None:
    run, _ = at.hub.launch(study().canonical())
    with pytest.raises(ConfigError, match=f"run 'x' is not known; the newest runs are: {run}"):
        at.hub.status("x")


def test_flower_is_the_version_whose_commands_we_know(monkeypatch: pytest.MonkeyPatch) -> None:
    require_flower_version()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.42.0")
    with pytest.raises(ConfigError, match=rf"found flwr 1\.42\.0.*flwr {FLOWER_VERSION} only"):
        require_flower_version()
