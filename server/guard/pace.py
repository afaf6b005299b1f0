"""Reading and writing that cannot be made to wait for ever."""

from __future__ import annotations

import asyncio
import time

from medfed.server.guard.settings import Limits

PIECE_BYTES = 64 * 2**10
"""Largest piece of a body that is held at once."""


class Pace:
    """The least pace of one transfer: a grace, then so many bytes per second since its start.

    Args:
        limits: Grace and pace.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._until = time.monotonic() + limits.grace_s

    def moved(self, size: int) -> None:
        """Count bytes that have moved."""
        self._until += size / self._limits.bytes_per_s

    def left_s(self) -> float:
        """Seconds until it is too slow."""
        return max(0.0, min(self._until - time.monotonic(), self._limits.grace_s))


async def read_within(reader: asyncio.StreamReader, limit_s: float) -> bytes:
    """Read what is there, at most ``PIECE_BYTES``; empty at the end.

    Raises:
        TimeoutError: nothing came.
    """
    async with asyncio.timeout(limit_s):
        return await reader.read(PIECE_BYTES)


async def write_within(writer: asyncio.StreamWriter, data: bytes, limit_s: float) -> None:
    """Write; returns when no more than the transport's small buffer is waiting.

    Raises:
        TimeoutError: the other side takes nothing.
    """
    writer.write(data)
    async with asyncio.timeout(limit_s):
        await writer.drain()
