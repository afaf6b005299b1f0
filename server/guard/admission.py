"""How many connections and requests one caller may have, so that none keeps another out.

Before TLS only an address is known. A handshake that is not finished costs the caller nothing, so
thousands may be held open: a new one takes the place of the oldest, first of its own address.
After TLS the certificate is known, and each has its own share.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable
from typing import Final

from medfed.server.guard.settings import Limits

_BURST_S: Final = 5.0
_FORGET_ABOVE: Final = 10_000


class TokenBucket:
    """So many per second, and at most ``burst`` at once.

    Args:
        per_s: Tokens per second.
        burst: Tokens at the start, and at most.
        clock: Seconds that only go up.
    """

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float]) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._tokens, self._at = burst, clock()

    def wait_s(self) -> float:
        """Take a token, on credit if there is none; seconds until it is earned, 0 or more."""
        self._earn()
        self._tokens -= 1
        return max(0.0, -self._tokens / self._per_s)

    def take(self) -> bool:
        """Take a token if there is one."""
        self._earn()
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def full(self) -> bool:
        """Whether it is as at the start, so that a new one would be the same."""
        self._earn()
        return self._tokens >= self._burst

    def _earn(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now


class Buckets:
    """One token bucket per caller, forgotten once it is full again."""

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float]) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._of: dict[str, TokenBucket] = {}

    def of(self, caller: str) -> TokenBucket:
        """The bucket of a caller."""
        if caller not in self._of:
            if len(self._of) >= _FORGET_ABOVE:
                self._of = {who: bucket for who, bucket in self._of.items() if not bucket.full()}
            self._of[caller] = TokenBucket(self._per_s, self._burst, self._clock)
        return self._of[caller]


class Handshakes:
    """The connections that have not shown a certificate yet.

    Args:
        limits: How many there may be, and how fast they may come.
        clock: Seconds that only go up.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._going: dict[asyncio.Task[None], str] = {}  # in the order in which they came
        self._count: Counter[str] = Counter()
        per_s = limits.handshakes_per_s
        self._pace = Buckets(per_s, max(1.0, per_s * _BURST_S), clock)

    def may_come(self, address: str) -> bool:
        """Whether another connection of an address is taken now."""
        return self._pace.of(address).take()

    def begin(self, task: asyncio.Task[None], address: str) -> None:
        """Count a handshake until its task ends or ``end`` is called; may end the oldest."""
        self._going[task] = address
        self._count[address] += 1
        task.add_done_callback(self.end)
        if self._count[address] > self._limits.half_open_per_address:
            self._drop(next(old for old, of in self._going.items() if of == address))
        elif len(self._going) > self._limits.half_open:
            self._drop(next(iter(self._going)))

    def end(self, task: asyncio.Task[None]) -> None:
        """Count a handshake no more."""
        address = self._going.pop(task, None)
        if address is None:
            return
        self._count[address] -= 1
        if not self._count[address]:
            del self._count[address]

    def __len__(self) -> int:
        return len(self._going)

    def _drop(self, task: asyncio.Task[None]) -> None:
        self.end(task)
        task.cancel()


def address_key(host: str) -> str:
    """Whom an address counts for: an IPv4 address, or the 64-bit network of an IPv6 one.

    Example:
        >>> address_key("192.0.2.7"), address_key("2001:db8::1"), address_key("::ffff:192.0.2.7")
        ('192.0.2.7', '2001:db8::/64', '192.0.2.7')
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
