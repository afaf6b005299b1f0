"""Which study follows which at a site: it never goes back to an older serial.

What was approved before stands in the site's ledger, which remembers it across a withdrawal and
notices when it is put back to an earlier state. A study that was approved under the site's eyes
and replaced cannot be played to it again: neither for another approval, nor for a round.
"""

from __future__ import annotations

from collections.abc import Iterable

from medfed.client.ledger_state import Approval
from medfed.common.errors import ApprovalError
from medfed.common.study import Study


def check_follows(
    study: Study, approvals: Iterable[Approval], site: str, *, one_per_serial: bool
) -> None:
    """Hold a study that is to be approved against those of its name that were before.

    Args:
        study: The study.
        approvals: All that the site ever approved, in order.
        site: The site's name, for messages.
        one_per_serial: Whether another study of the same serial is refused. Signed studies: yes;
            a site without a coordinator's key has nobody who gives out the serials.

    Raises:
        ApprovalError: a newer serial was approved before, or the study follows another one than
            the last that was approved. Of a name that is new here anything may be the first.
    """
    last = _last(study, approvals)
    if last is None or last.digest == study.digest:
        return
    about = study.study
    if about.serial < last.serial:
        raise _replaced(study, last, site)
    if about.serial == last.serial and one_per_serial:
        raise ApprovalError(
            f"site {site!r}: study {study.name!r}, serial {about.serial}: found digest "
            f"{study.digest}; approved here as this serial was {last.digest}.",
            advice="ask the coordinator which is right; a changed study gets the next serial.",
        )
    if about.serial > 1 and about.supersedes != last.digest:
        raise ApprovalError(
            f"site {site!r}: study {study.name!r}, serial {about.serial}, follows "
            f"{about.supersedes}; approved here last was serial {last.serial}, {last.digest}.",
            advice="approve the studies in between first, or ask the coordinator for a study that "
            "follows the one approved here.",
        )


def check_not_replaced(study: Study, approvals: Iterable[Approval], site: str) -> None:
    """Refuse a round of a study of which the site approved a newer serial.

    Args:
        study: The study.
        approvals: All that the site ever approved, in order.
        site: The site's name, for messages.

    Raises:
        ApprovalError: it was replaced.
    """
    last = _last(study, approvals)
    if last is not None and study.study.serial < last.serial:
        raise _replaced(study, last, site)


def _last(study: Study, approvals: Iterable[Approval]) -> Approval | None:
    """The newest serial of a study's name; of one serial the approval that was given last."""
    same = [approval for approval in approvals if approval.study == study.name]
    return max(same, key=lambda one: (one.serial, one.sequence), default=None)


def _replaced(study: Study, last: Approval, site: str) -> ApprovalError:
    return ApprovalError(
        f"site {site!r}: study {study.name!r}, serial {study.study.serial} ({study.digest}), was "
        f"replaced: serial {last.serial} ({last.digest}) was approved here since.",
        advice="use the newest serial of the study; a site does not go back.",
    )
