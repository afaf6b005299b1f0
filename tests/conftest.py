"""What holds for all tests: few threads, and under CI no test is skipped unseen."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: small tensors

# A script's background job starts with SIGINT ignored, and so would the programs that tests
# interrupt: a handler here makes them start with the default again.
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

_skipped: list[str] = []


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home folder of the tests' own: sites keep a file of theirs in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note every skip that is not for want of an accelerator."""
    if report.skipped and "gpu" not in report.keywords:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under CI an unexpected skip is a failure."""
    if os.environ.get("CI") and _skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which skips were not expected."""
    if os.environ.get("CI") and _skipped:
        terminalreporter.section("skipped, which CI does not accept", red=True)
        for test in _skipped:
            terminalreporter.line(test)
