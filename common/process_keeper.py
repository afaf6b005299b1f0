"""Keep one program and all that it starts, and leave nothing behind.

A process of its own, started by ``processes.start_child`` between a parent and its program::

    parent ── keeper (own session) ── program ── whatever the program starts

The keeper becomes the parent of every orphan below it (``PR_SET_CHILD_SUBREAPER``), so a
grandchild that opens a session of its own, as Flower's do, is still found. It ends with
the program's exit code, after everything below it has ended. It ends everything when

* the program ends: what it left behind is asked, then killed;
* the parent is gone, however it died;
* it is told to: SIGINT and SIGTERM are passed on to the program, SIGQUIT kills all.

If the keeper itself is killed, the program gets SIGTERM (``PR_SET_PDEATHSIG``).

This file is run with ``python -I -S``: it imports the standard library only.

Source:
    Linux man-pages, prctl(2): PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from types import FrameType

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_GRACE_S = 1.0
_LOOK_S = 0.25


def main(parent: int, orphan_grace_s: float, command: list[str]) -> int:
    """Run the command until it and all that it started have ended.

    Args:
        parent: Process id of the parent; everything ends when it is gone.
        orphan_grace_s: Seconds the program has to end itself after that.
        command: The program, as an absolute path, and its arguments.

    Returns:
        The program's exit code; minus the signal's number if a signal ended it.
    """
    os.umask(0o077)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake, told = _listen()
    program = _start(command)
    forced_at: float | None = None
    result: int | None = None
    while result is None:
        select.select([wake], [], [], _LOOK_S)
        _drain(wake)
        while told:
            number = told.pop(0)
            if number == signal.SIGQUIT:
                forced_at = 0.0
            elif number != signal.SIGCHLD:
                os.kill(program, number)
        if forced_at is None and os.getppid() != parent:
            forced_at = time.monotonic() + orphan_grace_s
            os.kill(program, signal.SIGTERM)
        if forced_at is not None and time.monotonic() >= forced_at:
            _signal_all(signal.SIGKILL)
        result = _reap(program)
    _end_the_rest(0.0 if forced_at == 0.0 else _GRACE_S)
    return result


def _listen() -> tuple[int, list[int]]:
    """Collect the signals instead of dying from them; the descriptor wakes ``select``."""
    told: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        told.append(number)

    wake, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, note)
    return wake, told


def _start(command: list[str]) -> int:
    keeper = os.getpid()
    program = os.fork()
    if program:
        return program
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == keeper:  # else the keeper died before the line above
            os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _reap(program: int) -> int | None:
    """Collect what has ended; the program's exit code once it is among them."""
    result = None
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return result
        if ended == 0:
            return result
        if ended == program:
            result = os.waitstatus_to_exitcode(status)


def _end_the_rest(grace_s: float) -> None:
    """End every process below this one: SIGTERM first if there is time, then SIGKILL."""
    deadline = time.monotonic() + grace_s
    if grace_s:
        _signal_all(signal.SIGTERM)
    while _below():
        if time.monotonic() >= deadline:
            _signal_all(signal.SIGKILL)
        time.sleep(0.02)
        _reap(-1)


def _signal_all(number: int) -> None:
    for process in _below():
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


def _below() -> list[int]:
    """Every process whose line of parents leads here, read from ``/proc``."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it ended while we looked
            children.setdefault(int(fields[1]), []).append(int(entry))
    found, line = [], [os.getpid()]
    while line:
        next_ones = children.get(line.pop(), [])
        found += next_ones
        line += next_ones
    return found


def _drain(wake: int) -> None:
    try:
        os.read(wake, 4096)
    except BlockingIOError:
        return


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


if __name__ == "__main__":
    code = main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
    if code < 0:  # end as the program ended, so that the parent sees the same
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
