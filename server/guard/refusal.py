"""Why a request is not served, as one exception from every check of the guard."""

from __future__ import annotations


class RefusedRequest(Exception):
    """A request that is not served; its connection is closed.

    Not a ``MedfedError``: the caller gets a status without a word, the server's audit log the
    reason.

    Attributes:
        status: HTTP status for the caller.
        reason: A constant of the program.
        path: The path that was asked for, if it could be read.
    """

    def __init__(self, status: int, reason: str, path: str = "") -> None:
        self.status, self.reason, self.path = status, reason, path
        super().__init__(f"{status} {reason}")
