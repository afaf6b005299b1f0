"""How fast and when an archive is asked: it serves a hospital, and we come last.

Requests, studies and bytes are spread evenly: after each, the next may come when its share of
time is over. Nothing is saved up while the job is idle, so that there are no bursts. Outside
the time window no request begins; one that has begun is finished.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from datetime import time as time_of_day
from typing import Final, NamedTuple, Protocol

from medfed.common.errors import ConfigError

_LONGEST_SLEEP_S: Final = 30.0  # then the clock is read anew: it may have been set
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


class Clock(Protocol):
    """Time as this job needs it; tests bring their own."""

    def now(self) -> datetime:
        """The local time of day, as the wall clock shows it."""

    def monotonic(self) -> float:
        """Seconds since some moment; never set back."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The computer's clock."""

    def now(self) -> datetime:
        """The local time, without a zone: a window is agreed on by the clock on the wall."""
        return datetime.now()

    def monotonic(self) -> float:
        """As ``time.monotonic``."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """As ``time.sleep``."""
        time.sleep(seconds)


class Window(NamedTuple):
    """The daily time in which the archive may be asked; it may pass midnight.

    Attributes:
        opens: First minute of it.
        closes: First minute after it.
    """

    opens: time_of_day
    closes: time_of_day

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read a window.

        Raises:
            ConfigError: it is not written like ``22:00-06:00``, or has no length.

        Example:
            >>> Window.parse("22:00-06:00").is_open(datetime(2026, 1, 1, 5, 59))
            True
        """
        ends = [_TIME.fullmatch(part.strip()) for part in text.split("-")]
        times = [time_of_day(int(end[1]), int(end[2])) for end in ends if end]
        if len(ends) != 2 or len(times) != 2 or times[0] == times[1]:
            raise ConfigError(
                f"{text!r} is no time window.",
                advice='write it like "22:00-06:00", or leave it out for any time.',
            )
        return cls(times[0], times[1])

    def is_open(self, now: datetime) -> bool:
        """Whether a request may begin."""
        at = now.time()
        if self.opens < self.closes:
            return self.opens <= at < self.closes
        return at >= self.opens or at < self.closes

    def opens_in_s(self, now: datetime) -> float:
        """Seconds until it opens, by the wall clock; 0 while it is open."""
        if self.is_open(now):
            return 0.0
        opening = datetime.combine(now.date(), self.opens)
        if opening < now:
            opening += timedelta(days=1)
        return (opening - now).total_seconds()


class Rates(NamedTuple):
    """What a job may ask of the archive; None: no limit.

    Attributes:
        requests_per_minute: Searches and files together.
        studies_per_hour: Studies begun.
        bytes_per_second: Of what is pulled.
    """

    requests_per_minute: float | None = None
    studies_per_hour: float | None = None
    bytes_per_second: float | None = None


class Pace:
    """Waits as long as window and rates ask for.

    Args:
        rates: See ``Rates``.
        window: None: any time of day.
        clock: Time.
        on_wait: Told (seconds, whether for the window) before every longer wait: to say so, and
            to hang up meanwhile.

    Guarantee:
        In any ``t`` seconds at most ``1 + t * rate`` requests begin, and so for studies; bytes
        exceed ``t * rate`` by no more than the piece that was reported last.
    """

    LONG_WAIT_S: Final = 5.0

    def __init__(
        self,
        rates: Rates,
        window: Window | None = None,
        *,
        clock: Clock | None = None,
        on_wait: Callable[[float, bool], None] = lambda _seconds, _window: None,
    ) -> None:
        self._clock: Clock = clock or SystemClock()
        self._window, self._on_wait = window, on_wait
        self._request_s = 60.0 / rates.requests_per_minute if rates.requests_per_minute else 0.0
        self._study_s = 3600.0 / rates.studies_per_hour if rates.studies_per_hour else 0.0
        self._byte_s = 1.0 / rates.bytes_per_second if rates.bytes_per_second else 0.0
        self._next_request = self._next_study = self._next_byte = self._clock.monotonic()

    def before_request(self) -> None:
        """Wait until a request may begin, and count it."""
        self._wait_until(max(self._next_request, self._next_byte))
        self._wait_for_window()
        self._next_request = self._clock.monotonic() + self._request_s

    def before_study(self) -> None:
        """Wait until another study may be begun, and count it."""
        self._wait_until(self._next_study)
        self._wait_for_window()
        self._next_study = self._clock.monotonic() + self._study_s

    def after_bytes(self, count: int) -> None:
        """Count bytes that came, and wait until the next may come."""
        if self._byte_s:
            self._next_byte = self._clock.monotonic() + count * self._byte_s
            self._sleep_until(self._next_byte)

    def pause(self, seconds: float) -> None:
        """Wait before something is tried again."""
        self._wait_until(self._clock.monotonic() + seconds)

    def _wait_until(self, moment: float) -> None:
        left = moment - self._clock.monotonic()
        if left > self.LONG_WAIT_S:
            self._on_wait(left, False)
        self._sleep_until(moment)

    def _sleep_until(self, moment: float) -> None:
        while (left := moment - self._clock.monotonic()) > 0:
            self._clock.sleep(min(left, _LONGEST_SLEEP_S))

    def _wait_for_window(self) -> None:
        if self._window is None or self._window.is_open(self._clock.now()):
            return
        self._on_wait(self._window.opens_in_s(self._clock.now()), True)
        while left := self._window.opens_in_s(self._clock.now()):
            self._clock.sleep(min(left, _LONGEST_SLEEP_S))
