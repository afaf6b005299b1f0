from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfed.client.scans.pacs.pace import Pace, Rates, Window
from medfed.common.errors import ConfigError
from tests.support.memory_archive import FakeClock

NIGHT = Window.parse("22:00-06:00")
MOMENT = datetime(2026, 3, 2)


@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 86_399))
def test_a_window_opens_when_it_says_and_not_earlier(opens: int, closes: int, at_s: int) -> None:
    if opens == closes:
        return
    window = Window.parse(f"{opens // 60:02}:{opens % 60:02}-{closes // 60:02}:{closes % 60:02}")
    now = MOMENT + timedelta(seconds=at_s)

    wait = window.opens_in_s(now)

    assert 0 <= wait < 86_400
    assert window.is_open(now + timedelta(seconds=wait))
    assert wait == 0 or not window.is_open(now + timedelta(seconds=wait - 1))


@given(
    st.floats(1, 10_000),
    st.lists(st.floats(0, 10), min_size=2, max_size=30),
)
def test_requests_never_come_faster_than_agreed(rate: float, work_s: list[float]) -> None:
    clock = FakeClock()
    pace = Pace(Rates(requests_per_minute=rate), clock=clock)
    begun = []
    for seconds in work_s:
        pace.before_request()
        begun.append(clock.elapsed_s)
        clock.elapsed_s += seconds

    for i, first in enumerate(begun):
        for j in range(i + 1, len(begun)):
            assert j - i <= 1e-6 + (begun[j] - first) * rate / 60


@given(st.floats(1e3, 1e9), st.lists(st.integers(1, 1_000_000), min_size=1, max_size=20))
def test_bytes_never_come_faster_than_agreed_over_the_whole_job(
    rate: float, pieces: list[int]
) -> None:
    clock = FakeClock()
    pace = Pace(Rates(bytes_per_second=rate), clock=clock)
    for count in pieces:
        pace.after_bytes(count)

    assert sum(pieces) <= clock.elapsed_s * rate * (1 + 1e-9) + 1e-3


def test_idle_time_is_not_saved_up_for_a_burst() -> None:
    clock = FakeClock()
    pace = Pace(Rates(requests_per_minute=60), clock=clock)
    pace.before_request()
    clock.elapsed_s += 3600

    for _ in range(5):
        pace.before_request()

    assert clock.slept == [1.0] * 4  # the first one at once, the others a second apart


def test_studies_have_a_rate_of_their_own() -> None:
    clock = FakeClock()
    pace = Pace(Rates(studies_per_hour=120), clock=clock)
    for _ in range(3):
        pace.before_study()
        pace.before_request()

    assert clock.elapsed_s == 60.0  # 3600 s / 120 = 30 s, twice


def test_without_limits_nobody_waits() -> None:
    clock = FakeClock()
    pace = Pace(Rates(), clock=clock)
    for _ in range(100):
        pace.before_study()
        pace.before_request()
        pace.after_bytes(1 << 30)

    assert clock.slept == []


def test_outside_the_window_the_job_waits_for_it_and_says_so() -> None:
    clock = FakeClock(datetime(2026, 3, 2, 12, 0))
    waits: list[tuple[float, bool]] = []
    pace = Pace(Rates(), NIGHT, clock=clock, on_wait=lambda s, w: waits.append((s, w)))

    pace.before_request()

    assert clock.now() == datetime(2026, 3, 2, 22, 0)
    assert waits == [(36_000.0, True)]  # ten hours


def test_a_clock_that_is_set_while_waiting_is_believed() -> None:
    clock = FakeClock(datetime(2026, 3, 2, 12, 0))

    def sleep(seconds: float) -> None:
        clock.elapsed_s += seconds
        clock.start = datetime(2026, 3, 2, 23, 0)  # somebody corrects the clock

    clock.sleep = sleep  # type: ignore[method-assign]  # a clock of its own
    Pace(Rates(), NIGHT, clock=clock).before_request()

    assert clock.elapsed_s == 30.0  # the longest single sleep


def test_the_wait_for_a_rate_that_ends_outside_the_window_goes_on_to_the_next_one() -> None:
    clock = FakeClock(datetime(2026, 3, 2, 5, 59))
    pace = Pace(Rates(requests_per_minute=0.5), NIGHT, clock=clock)
    pace.before_request()

    pace.before_request()  # two minutes later: 06:01, closed

    assert clock.now() == datetime(2026, 3, 2, 22, 0)


@pytest.mark.parametrize(
    ("at", "open_"),
    [("21:59", False), ("22:00", True), ("23:59", True), ("00:00", True), ("05:59", True)]
    + [("06:00", False), ("12:00", False)],
)
def test_a_window_may_pass_midnight(at: str, open_: bool) -> None:
    assert NIGHT.is_open(datetime.fromisoformat(f"2026-03-02T{at}")) is open_


@pytest.mark.parametrize(
    "text", ["", "22-06", "22:00", "24:00-06:00", "06:00-06:00", "a-b", "1:00-2:00"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no time window"):
        Window.parse(text)
