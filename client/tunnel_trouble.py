"""When to try the server again, and what the admin hears of it: each trouble once.

Every connection of the node asks here first, so that a server that is away, or refuses, is
called at one slow pace however often the node tries.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

from medfed.common.errors import MedfedError, TransportError

Tell = Callable[[str], None]

_LINK_PAUSES_S: Final = (0.5, 30.0)
_TRUST_PAUSES_S: Final = (30.0, 300.0)
"""Trying again mends no certificate; a person does, and new files end the pause at once."""
_STEPS: Final = 1024


class Trouble:
    """What keeps the server out of reach.

    Args:
        tell: Hears each trouble once, until the server has answered.
        clock: Seconds, monotonic.
    """

    def __init__(self, tell: Tell, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock = tell, clock
        self._told: set[str] = set()
        self._noted: set[str] = set()
        self._failures = 0
        self._until = 0.0

    @property
    def pause_s(self) -> float:
        """How long the next try has to wait, seconds."""
        return max(self._until - self._clock(), 0.0)

    def begin(self, error: MedfedError) -> None:
        """A try failed: tell why, and wait longer than the last time.

        Guarantee:
            The pause is between half of and all of the doubled one before, at most 30 s for a
            ``TransportError`` and 300 s for others.
        """
        self._failures += 1
        first, longest = _LINK_PAUSES_S if isinstance(error, TransportError) else _TRUST_PAUSES_S
        pause = min(first * 2.0 ** min(self._failures - 1, 30), longest)
        jitter = 0.5 + secrets.randbelow(_STEPS) / (2 * _STEPS)  # sites do not all call at once
        self._until = self._clock() + pause * jitter
        if str(error) not in self._told:
            self._told.add(str(error))
            self._tell(str(error))

    def note(self, text: str) -> None:
        """Tell something once, without a pause."""
        if text not in self._noted:
            self._noted.add(text)
            self._tell(text)

    def try_at_once(self) -> None:
        """The site has other files: what failed may work."""
        self._failures, self._until = 0, 0.0
        self._told.clear()
        self._noted.clear()

    def end(self) -> bool:
        """The server answered; whether there was trouble before."""
        was_there = self._failures > 0
        self._failures, self._until = 0, 0.0
        self._told.clear()
        return was_there
