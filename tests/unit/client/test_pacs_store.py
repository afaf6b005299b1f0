from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from medfed.client.scans.pacs.store import PullStore
from medfed.common.errors import ConfigError


def accept(_path: Path) -> None:
    """Take any file."""


def put(store: PullStore, uid: str, content: bytes = b"scan") -> None:
    with store.receive(uid, accept) as file:
        file.write(content)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_is_named_by_the_hash_of_its_uid_and_readable_by_its_owner_only(
    tmp_path: Path,
) -> None:
    with PullStore.open(tmp_path / "scans") as store:
        put(store, "1.2.3")
        path = store.path_of("1.2.3")

    name = hashlib.sha256(b"1.2.3").hexdigest()
    assert path == tmp_path / "scans" / name[:2] / f"{name}.dcm"
    assert path.read_bytes() == b"scan"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "scans" / ".pull" / "state.db").stat().st_mode) == 0o600


def test_what_was_pulled_is_remembered_in_the_next_run(tmp_path: Path) -> None:
    with PullStore.open(tmp_path) as store:
        put(store, "1.2.3")
        assert (store.has("1.2.3"), store.has("1.2.4")) == (True, False)
    with PullStore.open(tmp_path) as store:
        assert (store.has("1.2.3"), store.total_bytes) == (True, 4)


def test_a_file_that_was_not_written_down_is_found_by_its_name(tmp_path: Path) -> None:
    with PullStore.open(tmp_path) as store:
        put(store, "1.2.3")
    for left in (tmp_path / ".pull").glob("state.db*"):
        left.unlink()

    with PullStore.open(tmp_path) as store:
        assert store.total_bytes == 0
        assert store.has("1.2.3")
        assert store.total_bytes == 4


@pytest.mark.parametrize("cut", [b"", b"sca", None])
def test_a_file_that_is_gone_or_was_cut_counts_as_missing(
    tmp_path: Path, cut: bytes | None
) -> None:
    with PullStore.open(tmp_path) as store:
        put(store, "1.2.3")
        path = store.path_of("1.2.3")
        path.unlink() if cut is None else path.write_bytes(cut)

        assert not store.has("1.2.3")
        assert store.total_bytes == 0
        put(store, "1.2.3", b"whole again")
        assert (store.has("1.2.3"), store.total_bytes) == (True, 11)


def test_a_file_that_breaks_off_or_is_refused_leaves_nothing(tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        assert path.read_bytes() == b"whole"
        raise ValueError("refused")

    with PullStore.open(tmp_path) as store:
        before = files(tmp_path)
        with pytest.raises(KeyboardInterrupt), store.receive("1.2.3", accept) as file:
            file.write(b"half")
            raise KeyboardInterrupt
        with pytest.raises(ValueError, match="refused"), store.receive("1.2.4", refuse) as file:
            file.write(b"whole")

        assert files(tmp_path) == before
        assert not store.has("1.2.3") and not store.has("1.2.4")


KILLED = """
import os, signal, sys
from pathlib import Path
from medfed.client.scans.pacs.store import PullStore
with PullStore.open(Path(sys.argv[1])) as store:
    with store.receive("1.2.3", lambda path: None) as file:
        file.write(b"whole")
    with store.receive("1.2.4", lambda path: None) as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_whole_files_only_and_the_next_run_clears_up(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)

    assert child.returncode == -signal.SIGKILL
    assert len(list((tmp_path / ".pull" / "part").iterdir())) == 1
    with PullStore.open(tmp_path) as store:
        assert (store.has("1.2.3"), store.has("1.2.4")) == (True, False)
        assert list((tmp_path / ".pull" / "part").iterdir()) == []


def test_two_pulls_into_one_folder_are_refused(tmp_path: Path) -> None:
    with PullStore.open(tmp_path), pytest.raises(ConfigError, match="another pull is running"):
        with PullStore.open(tmp_path):
            pass
    with PullStore.open(tmp_path):  # and the lock is gone afterwards
        pass


def test_a_second_pull_does_not_sweep_away_what_the_first_is_writing(tmp_path: Path) -> None:
    with PullStore.open(tmp_path) as store, store.receive("1.2.3", accept) as file:
        file.write(b"half")
        with pytest.raises(ConfigError):
            with PullStore.open(tmp_path):
                pass
        file.write(b" and whole")

    assert (tmp_path / store.path_of("1.2.3")).read_bytes() == b"half and whole"


def test_a_broken_state_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with PullStore.open(tmp_path):
        pass
    (tmp_path / ".pull" / "state.db").write_bytes(b"no database" * 1000)

    with pytest.raises(ConfigError, match="cannot be used") as refusal:
        with PullStore.open(tmp_path):
            pass
    assert "move it away" in refusal.value.advice


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(ConfigError, match="private folder"):
        with PullStore.open(tmp_path / "file" / "scans"):
            pass
    assert os.listdir(tmp_path) == ["file"]
