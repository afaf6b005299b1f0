"""Whole or not at all: a file is never seen half-written, and no rest is left behind."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import tempfile
from pathlib import Path

import pytest

from medfed.common.files import write_atomically


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", [b"", b"new", bytes(3_000_000)])
def test_the_content_is_replaced_whole(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")

    write_atomically(path, data)

    assert path.read_bytes() == data
    assert names_in(tmp_path) == ["model"]


def test_nobody_else_may_read_it_unless_said(tmp_path: Path) -> None:
    write_atomically(tmp_path / "secret", b"x")
    write_atomically(tmp_path / "public", b"x", mode=0o644)

    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o644


def test_a_wider_file_becomes_private_when_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0o666)

    write_atomically(path, b"x")

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod", "fdopen"])
@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_a_failure_at_any_step_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: BaseException
) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")

    def fail(handle: object, *rest: object) -> None:
        if step == "fdopen":  # what took the descriptor failed: give it back
            assert isinstance(handle, int)
            os.close(handle)
        raise failure

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(failure)):
        write_atomically(path, b"new")
    monkeypatch.undo()

    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["model"]


def test_a_disk_that_is_full_in_the_middle_of_the_data_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that write says EFBIG

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_atomically(path, bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)

    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["model"]


def test_the_data_reach_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "data")
        fsync(descriptor)

    def watched_replace(source: str, target: Path) -> None:
        steps.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_atomically(tmp_path / "model", b"new")

    assert steps == ["data", "name", "folder"]


def test_a_folder_that_is_missing_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "model", b"new")
    with pytest.raises(NotADirectoryError):
        write_atomically(tmp_path / "file" / "model", b"new")


def test_a_folder_without_permission_is_refused_and_unchanged() -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path: others may not pass through it
        path = Path(name) / "model"
        path.write_bytes(b"old")
        path.parent.chmod(0o555)
        user = os.geteuid()
        os.seteuid(user or 65534)  # root may write everywhere: be nobody
        try:
            with pytest.raises(PermissionError):
                write_atomically(path, b"new")
        finally:
            os.seteuid(user)
            path.parent.chmod(0o700)

        assert path.read_bytes() == b"old"
        assert names_in(path.parent) == ["model"]


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(5):
        write_atomically(tmp_path / "model", b"new")

    assert len(os.listdir("/proc/self/fd")) == before
