"""What the guard tells the audit log: each refusal, but no flood of them.

Who may make the guard write a line could fill the disk with lines. Of one kind and one caller
20 lines come at once and one each second after that; the next line says how many are missing.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Final, Protocol

from medfed.server.guard.admission import Buckets

log = logging.getLogger(__name__)

_AT_ONCE: Final = 20
_PER_S: Final = 1.0
_PATH_LENGTH: Final = 80


class Audit(Protocol):
    """Where lines go: the server's audit log."""

    def __call__(self, event: str, **fields: int | str) -> object:
        """Write a line about what happened; fields are names, codes and numbers."""
        ...


class Told:
    """The audit log as the guard writes to it; a log that fails does not stop the guard.

    Args:
        audit: Where lines go.
    """

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._pace = Buckets(_PER_S, _AT_ONCE, time.monotonic)
        self._missing: Counter[tuple[str, str]] = Counter()

    def tell(self, event: str, caller: str, **fields: int | str) -> None:
        """Write a line, or count it where there are too many.

        Args:
            event: What happened; a constant of the program.
            caller: Site or address.
            fields: What else is known. Never of a body.
        """
        if not self._pace.of(f"{event} {caller}").take():
            self._missing[event, caller] += 1
            return
        missing = self._missing.pop((event, caller), 0)
        try:
            self._audit(event, caller=caller, missing=missing, **fields)
        except Exception:
            log.exception("guard.audit-failed event=%s", event)


def shown(path: str) -> str:
    """A path that a caller asked for, as it may stand in a log: 80 printable characters.

    Example:
        >>> shown("/v1/control" + chr(27) + "[2J")
        '/v1/control?[2J'
    """
    return "".join(c if "!" <= c <= "~" else "?" for c in path[:_PATH_LENGTH])
