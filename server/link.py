"""How the rounds reach the sites, whatever carries the messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from medfed.common.privacy.terms import Purpose

_REASON_LENGTH = 80


@dataclass(frozen=True)
class Answer:
    """What came back from a site, to the last time that it was asked.

    Attributes:
        site: Who, by the key it was registered with; never by its own claim.
        payload: What it released in wire form, if anything: an update, or a histogram.
        failure: Otherwise whether the site was ``lost``, ``refused``, or its answer could not be
            read and was ``rejected``.
        reason: Why, as a code. What a site wrote is shown shortened and without control
            characters.
    """

    site: str
    payload: bytes | None = None
    failure: Literal["lost", "refused", "rejected"] = "lost"
    reason: str = ""


class Link(Protocol):
    """How the rounds reach the sites."""

    def present(self) -> frozenset[str]:
        """The sites of the study that are connected now."""
        ...

    def ask(
        self,
        round_: int,
        sites: tuple[str, ...],
        model: bytes,
        deadline_s: float,
        *,
        purpose: Purpose = "train",
    ) -> None:
        """Send a model to sites, to train from or to judge; do not wait.

        Asking a site again in the same round for the same purpose replaces what it was asked
        before: an answer to that is not given any more; so does another round or purpose for
        all sites. Sites may be none.
        """
        ...

    def next_answer(self) -> Answer | None:
        """One answer that was not given before; None: none now. A late one is ignored."""
        ...


def plain(reason: str) -> str:
    """A remote party's words as they may enter a log, a headline and a report."""
    short = reason[:_REASON_LENGTH]
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in short) or "no reason"
