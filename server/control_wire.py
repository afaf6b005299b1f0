"""How the control service's statuses and errors travel.

An error of ours arrives at the caller as the same class with the same words, so that
``medfed launch`` ends with the exit code that the server meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from medfed.common import errors
from medfed.common.errors import MedfedError
from medfed.server.control_pb2 import RunReply
from medfed.server.journal import RunStatus

SERVICE = "medfed.Control"

_BY_NAME = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, MedfedError)
}


class Pair(Protocol):
    """One pair of gRPC metadata."""

    @property
    def key(self) -> str:
        """Its name."""

    @property
    def value(self) -> str | bytes:
        """Its value; bytes where the name ends in ``-bin``."""


def error_to_metadata(error: MedfedError) -> tuple[tuple[str, str | bytes], ...]:
    """Pack an error into trailing metadata."""
    return (
        ("medfed-error", type(error).__name__),
        ("medfed-message-bin", str(error.args[0]).encode()[:4000]),
        ("medfed-advice-bin", error.advice.encode()[:2000]),
    )


def error_from_metadata(metadata: Iterable[Pair]) -> MedfedError | None:
    """Unpack an error; None when the metadata carries none of ours."""
    found = {pair.key: pair.value for pair in metadata}
    kind = _BY_NAME.get(_text(found.get("medfed-error", "")))
    if kind is None:
        return None
    message, advice = found.get("medfed-message-bin", b""), found.get("medfed-advice-bin", b"")
    return kind(_text(message), advice=_text(advice))


def status_to_wire(status: RunStatus) -> RunReply:
    """Pack a status."""
    return RunReply(
        run=status.run,
        study=status.study,
        digest=status.digest,
        state=status.state,
        round=status.round,
        rounds=status.rounds,
        sites=dict(status.sites),
        headline=status.headline,
        exit_code=status.exit_code,
        updated_at=status.updated_at,
        pid=status.pid,
    )


def status_from_wire(reply: RunReply) -> RunStatus:
    """Unpack a status."""
    return RunStatus(
        run=reply.run,
        study=reply.study,
        digest=reply.digest,
        state=reply.state,
        round=reply.round,
        rounds=reply.rounds,
        sites=dict(sorted(reply.sites.items())),
        headline=reply.headline,
        exit_code=reply.exit_code if reply.HasField("exit_code") else None,
        updated_at=reply.updated_at,
        pid=reply.pid if reply.HasField("pid") else None,
    )


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
