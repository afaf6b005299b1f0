"""The study's ``[study]`` table: what it is, which one it follows, and until when it may run.

A site never goes back: once it approved a serial, an older one of the same name is refused.
"""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from medfed.common.strict_toml import StrictTable

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _date_of(value: Any) -> Any:
    """A date: TOML's own, which ``read_strict`` hands on in a table, or canonical JSON's text."""
    text = value.get("date") if isinstance(value, dict) else value
    if not isinstance(text, str) or re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) is None:
        return value
    return datetime.date.fromisoformat(text)


class About(StrictTable):
    """What the study is, for the people who approve it."""

    name: Name
    purpose: Annotated[str, Field(min_length=10, max_length=1000)]
    serial: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Counts up with every change that sites are to approve; a site never goes back."""
    supersedes: Digest | None = None
    """Digest of the study that this serial follows: what a site must have approved last. For
    every serial but the first."""
    expires: Annotated[datetime.date, BeforeValidator(_date_of)] | None = None
    """Last day, UTC, on which sites approve it and train. Unset: no last day."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.serial > 1 and self.supersedes is None:
            raise ValueError(
                f"found serial {self.serial} without supersedes; give the digest of the study "
                "that it follows, as `medfed study show` says it"
            )
        if self.serial == 1 and self.supersedes is not None:
            raise ValueError("found supersedes with serial 1, which follows no study; count up")
        return self

    @model_serializer(mode="wrap")
    def _without_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A key that is not written is not in the canonical form: a study that does without the
        # two has the digest under which sites approved it.
        return {key: value for key, value in dump(self).items() if value is not None}

    def has_expired(self, at: datetime.datetime) -> bool:
        """Whether the last day is over at a moment (with a time zone)."""
        return self.expires is not None and at.astimezone(datetime.UTC).date() > self.expires
