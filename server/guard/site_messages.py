"""What a site may say beside Flower's messages: progress, stop, withdraw, refusal.

Flower's node asks for nothing while it owes a reply, so a site that trains for an hour could
neither be told to stop nor say how far it is. These messages go to ``/v1/site`` with the site's
certificate. The schema is closed: each field is a code from a list, a name or number that stands
in the study, or a step of the agreed schedule. There is no field for text, and none that could
hold a count of patients, a time or a loss.
"""

from __future__ import annotations

import json
from typing import Annotated, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from medfed.common.privacy.terms import Purpose
from medfed.server.guard.refusal import RefusedRequest

LARGEST_BYTES: Final = 4096

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
RunName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
Number = Annotated[int, Field(ge=0, le=1_000_000_000)]
Refusal = Literal[
    "not-approved", "refused-by-policy", "ledger-mismatch", "wrong-message", "unavailable"
]
"""The codes of ``medfed.common.refusals``."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    study: Digest


class Progress(_Message):
    """How far a site is in a round.

    Attributes:
        study: The study's digest.
        run: Name of the run.
        round: Counted from 1.
        purpose: What the round is for.
        step: Steps that are done.
        steps: Steps in all, by the agreed schedule.
    """

    kind: Literal["progress"]
    run: RunName
    round: Number
    purpose: Purpose
    step: Number
    steps: Number


class Stop(_Message):
    """The site's admin ends its part in a run; the study stays approved."""

    kind: Literal["stop"]
    run: RunName


class Withdraw(_Message):
    """The site takes its approval of a study back."""

    kind: Literal["withdraw"]


class Refused(_Message):
    """The site does not take part in a round, and why."""

    kind: Literal["refusal"]
    run: RunName
    round: Number
    code: Refusal


SiteMessage = Progress | Stop | Withdraw | Refused
_MESSAGE: TypeAdapter[SiteMessage] = TypeAdapter(
    Annotated[SiteMessage, Field(discriminator="kind")]
)


class SiteReply(BaseModel):
    """What a site is told.

    Attributes:
        run: Whether the run that it spoke of goes on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    run: Literal["going", "stop", "unknown"]


class SiteDesk(Protocol):
    """Who hears what sites say. Called in a thread, several at once."""

    def hear(self, site: str, message: SiteMessage) -> SiteReply:
        """Take a message.

        Args:
            site: Who sent it, by the certificate.
            message: In the closed schema.
        """
        ...


class Listener:
    """A desk that keeps nothing: each message is in the audit log, and no run is known."""

    def hear(self, site: str, message: SiteMessage) -> SiteReply:
        """Take a message."""
        return SiteReply(run="unknown")


def read_message(body: bytes) -> SiteMessage:
    """Read a site's message.

    Args:
        body: JSON, at most ``LARGEST_BYTES`` long.

    Raises:
        RefusedRequest: it is not in the schema. What it was is not told.
    """
    try:
        return _MESSAGE.validate_python(json.loads(body, object_pairs_hook=_once))
    except (ValueError, ValidationError, RecursionError):
        raise RefusedRequest(400, "site-message") from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found
