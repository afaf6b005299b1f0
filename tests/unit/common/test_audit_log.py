"""The audit log: what was written is found whole and in order, and what was changed is found."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.common.errors import ConfigError, LedgerError
from medfed.common.trust.audit_log import (
    FIRST,
    KEY_MADE,
    KEY_USED,
    MERGED,
    TORN,
    AuditLog,
    LogHead,
    head,
    verify,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def written(path: Path, lines: int = 5) -> bytes:
    log = AuditLog(path)
    for number in range(lines):
        log.write(MERGED, entry=number)
    return path.read_bytes() if lines else b""


def raw(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


# ---- whole and in order --------------------------------------------------------------------------
def test_what_was_written_is_found_in_order(path: Path) -> None:
    log = AuditLog(path)
    log.write(KEY_MADE)
    log.write(KEY_USED, purpose="open the ledger")
    last = log.write(MERGED, entry=7)

    found = verify(path)

    assert [line.event for line in found.lines] == [KEY_MADE, KEY_USED, MERGED]
    assert [line.head.sequence for line in found.lines] == [1, 2, 3]
    writer = {"process": os.getpid(), "user": os.getuid()}
    assert found.lines[1].fields == {"purpose": "open the ledger", **writer}
    assert found.lines[2].fields == {"entry": 7, **writer}
    assert found.lines[0].time.endswith("+00:00")
    assert (found.head, found.torn_bytes) == (last, 0)
    assert head(path) == last
    assert verify(path, known=found.lines[1].head) == found


def test_it_is_for_its_owner_only_and_each_line_is_json(path: Path) -> None:
    written(path)
    path.chmod(0o644)  # somebody's slip is put right by the next line
    AuditLog(path).write(KEY_MADE)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    told = [json.loads(line) for line in raw(path)]
    assert told[0]["before"] == FIRST
    assert len(told) == 6


def test_a_log_that_nobody_wrote_to_is_empty(path: Path) -> None:
    assert verify(path).head == LogHead(0, FIRST)
    assert verify(path).lines == ()
    assert not list(path.parent.iterdir())


def test_many_processes_write_in_turn(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from medfed.common.trust.audit_log import *\n"
        "print('ready', flush=True); sys.stdin.read()\n"  # so that they write at the same time
        f"for n in range(60): AuditLog(Path({str(path)!r})).write(MERGED, entry=n)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    running = [subprocess.Popen([sys.executable, "-c", program], **pipes) for _ in range(3)]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.close()
    for process in running:
        assert process.wait(timeout=120) == 0
        process.stdout.close()  # type: ignore[union-attr]  # a pipe

    found = verify(path)

    assert found.head.sequence == 180
    by_process: dict[object, list[object]] = {}
    for line in found.lines:
        by_process.setdefault(line.fields["process"], []).append(line.fields["entry"])
    assert list(by_process.values()) == [list(range(60))] * 3


# ---- what was changed is found -------------------------------------------------------------------
@given(st.data())
@settings(deadline=None, max_examples=60)
def test_any_line_removed_moved_doubled_or_altered_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    known = (written(path), head(path))[1]
    lines = raw(path)
    at = data.draw(st.integers(0, 3))  # the last line's change shows by the kept head alone
    match data.draw(st.sampled_from(["remove", "swap", "double", "alter", "byte"])):
        case "remove":
            del lines[at]
        case "swap":
            lines[at], lines[at + 1] = lines[at + 1], lines[at]
        case "double":
            lines.insert(at, lines[at])
        case "alter":
            lines[at] = lines[at].replace(f'"entry":{at}'.encode(), b'"entry":9')
        case "byte":
            place = data.draw(st.integers(0, len(lines[at]) - 1))
            old = lines[at][place]
            lines[at] = lines[at][:place] + bytes([old ^ 1]) + lines[at][place + 1 :]
    path.write_bytes(b"".join(lines))

    with pytest.raises(LedgerError, match="cannot be trusted") as caught:
        verify(path, known=known)
    assert "keep the file for your auditor" in caught.value.advice


def test_an_end_that_was_cut_off_or_written_anew_is_found_by_a_head_kept_elsewhere(
    path: Path,
) -> None:
    whole = written(path)
    kept = head(path)
    for cut in (b"".join(raw(path)[:3]), b"", whole[:-1]):
        path.write_bytes(cut)
        if cut != whole[:-1]:  # only the newline is gone: the line itself is there
            with pytest.raises(LedgerError, match="it had come to line 5"):
                verify(path, known=kept)
        verify(path)  # by itself it cannot tell

    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
    AuditLog(path).write(MERGED, entry=99)
    with pytest.raises(LedgerError, match="had come to line 5 and does not hold it"):
        verify(path, known=kept)


# ---- crashes -------------------------------------------------------------------------------------
@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_line_torn_at_any_byte_is_marked_and_no_whole_line_is_lost(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    whole = written(path, data.draw(st.integers(0, 3)))
    before = verify(path)
    tears = data.draw(st.integers(1, 3))
    for _ in range(tears):  # a crash while the mark was written, too
        AuditLog(path).write(KEY_MADE)
        complete = path.read_bytes()
        kept = data.draw(st.integers(len(whole) + 1, len(complete) - 2))
        whole = complete[:kept] + data.draw(st.sampled_from([b"", b"\0\0", b"\0\n"]))
        path.write_bytes(whole)
    assert verify(path).torn_bytes > 0

    last = AuditLog(path).write(MERGED, entry=1)

    found = verify(path, known=before.head)
    assert found.lines[: len(before.lines)] == before.lines
    assert found.lines[-1].event == MERGED
    assert TORN in {line.event for line in found.lines}
    assert (found.head, found.torn_bytes) == (last, 0)
    assert path.read_bytes().startswith(whole)


def test_a_line_that_lacks_its_end_only_is_whole(path: Path) -> None:
    content = written(path)
    path.write_bytes(content[:-1])

    AuditLog(path).write(KEY_MADE)

    assert path.read_bytes().startswith(content)
    assert [line.event for line in verify(path).lines] == [MERGED] * 5 + [KEY_MADE]


def test_a_mark_must_speak_of_what_lies_before_it(path: Path) -> None:
    content = written(path)
    path.write_bytes(content + b'{"sequence":6,"ti')
    AuditLog(path).write(KEY_MADE)
    marked = path.read_bytes()

    path.write_bytes(marked.replace(b'{"sequence":6,"ti\n', b'{"sequence":6,"xx\n'))
    with pytest.raises(LedgerError, match="changed before line 6"):
        verify(path)
    path.write_bytes(marked.replace(b'{"sequence":6,"ti\n', b""))
    with pytest.raises(LedgerError, match="changed before line 6"):
        verify(path)


def test_a_writer_killed_at_a_random_moment_leaves_a_log_that_goes_on(path: Path) -> None:
    program = (
        "from pathlib import Path; from medfed.common.trust.audit_log import *\n"
        f"log = AuditLog(Path({str(path)!r}))\n"
        "while True: print(log.write(MERGED, entry=1).sequence, flush=True)"
    )
    told = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for _, line in zip(range(10), process.stdout, strict=False):
                told = int(line)
            process.send_signal(signal.SIGKILL)

        assert AuditLog(path).write(KEY_MADE).sequence > told
        assert verify(path).torn_bytes == 0


# ---- refusals ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("patients.named", {}),
        (TORN, {"bytes": 1, "torn": "x"}),
        (KEY_USED, {}),
        (KEY_USED, {"purpose": "x", "patient": "4711"}),
        (KEY_USED, {"purpose": "MUSTERMANN^ERIKA"}),
        (KEY_USED, {"purpose": "a\nb"}),
        (KEY_USED, {"purpose": "x" * 201}),
        (MERGED, {"entry": 1.5}),
        (MERGED, {"entry": True}),
    ],
)
def test_only_what_is_on_the_list_can_be_written(
    path: Path, event: str, fields: dict[str, int | str]
) -> None:
    with pytest.raises(ValueError, match="event"):
        AuditLog(path).write(event, **fields)
    assert not path.exists()


def test_where_it_cannot_be_written_nothing_is_done(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"audit\.jsonl: the audit log cannot be written"):
        AuditLog(tmp_path / "none" / "audit.jsonl").write(KEY_MADE)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ConfigError, match="cannot be written"):
        AuditLog(tmp_path / "audit.jsonl").write(KEY_MADE)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_whose_end_is_no_log_is_not_written_to(path: Path) -> None:
    path.write_bytes(b"x" * (2 << 20))

    with pytest.raises(LedgerError, match="its end is no line of a log"):
        AuditLog(path).write(KEY_MADE)
    assert path.stat().st_size == 2 << 20
