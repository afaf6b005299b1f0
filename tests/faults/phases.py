"""The moments of a round at which a site is killed, told by the site itself as they begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from medfed.client.session import SiteSession

Phase = Literal["reserve", "training", "commit", "sending", "acknowledgement"]
PHASES: tuple[Phase, ...] = get_args(Phase)


def tell_phases(session: SiteSession, tell: Callable[[Phase], None]) -> None:
    """Make a session tell each phase of a round just before it begins.

    Whoever sends what the session gives tells when it is sent and ``acknowledgement`` begins. A
    release that is sent again has no phase: nothing is reserved, trained or committed.
    """
    ledger: Any = session.ledger
    reserve, commit = ledger.reserve, ledger.commit

    def told_reserve(*arguments: Any, **options: Any) -> Any:
        tell("reserve")
        done = reserve(*arguments, **options)
        tell("training")
        return done

    def told_commit(*arguments: Any, **options: Any) -> Any:
        tell("commit")
        done = commit(*arguments, **options)
        tell("sending")
        return done

    ledger.reserve, ledger.commit = told_reserve, told_commit
