"""A site's policy, held against a study: at its approval, and again at every round.

Everything here depends on ``site.toml``, the study and the clock, and on no patient: so the server
may learn that a site refuses. The one rule about real patients, ``check_enough_patients``, is
asked only at the approval, where nobody but the admin hears the answer.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from medfed.client.site_settings import Policy
from medfed.common.errors import ApprovalError, ConfigError, NotNowError
from medfed.common.study import Site, Study

_ASK = (
    "ask the coordinator for a study within the limits, or have the data board change them in "
    "site.toml."
)


def check_limits_are_written(policy: Policy, study: Study, *, source: str) -> None:
    """Refuse to decide for the data board.

    Raises:
        ConfigError: the study is private, and a ceiling is missing.
    """
    missing = [key for key in ("epsilon_limit", "delta_limit") if getattr(policy, key) is None]
    if study.private and missing:
        raise ConfigError(
            f"{source}: [policy] has no {' and no '.join(missing)}; limits have no default.",
            advice="write what your data board decided into site.toml, then approve again.",
        )


def check_policy(policy: Policy, study: Study, site: Site, epsilon: float, *, source: str) -> None:
    """Hold a study against a site's limits.

    Args:
        policy: The site's limits.
        study: The study.
        site: The site as the study lists it.
        epsilon: The study's cost for one patient of the site, at the study's delta.
        source: Where the limits stand, for messages.

    Raises:
        ApprovalError: one of the limits is passed, or a ceiling is not written.
    """
    for found, allowed in _passed(policy, study, site, epsilon):
        raise ApprovalError(
            f"site {site.name!r}: study {study.name!r} ({study.digest[:8]}) is not approved: "
            f"{found}. Allowed here: {allowed} ({source}).",
            advice=_ASK,
        )


def check_enough_patients(policy: Policy, study: Study, site: Site, training: int) -> None:
    """Hold the patients who are there against the site's own minimum. For the admin only.

    Args:
        policy: The site's limits.
        study: The study.
        site: The site as the study lists it.
        training: Patients whom the study could train on. Private.

    Raises:
        ApprovalError: they are too few. The message holds their number: it stays at the site.
    """
    if policy.minimum_patients is not None and training < policy.minimum_patients:
        raise ApprovalError(
            f"site {site.name!r}: study {study.name!r} ({study.digest[:8]}) is not approved: it "
            f"would find {training} patients to train on. Allowed here: minimum_patients "
            f"{policy.minimum_patients} (site.toml).",
            advice="import more scans, or have the data board lower minimum_patients in site.toml.",
        )


def check_not_expired(study: Study, site: str, at: datetime.datetime) -> None:
    """Refuse a study whose last day is over.

    Args:
        study: The study.
        site: The site's name, for messages.
        at: Now, with a time zone.

    Raises:
        ApprovalError: it expired.
    """
    if study.study.has_expired(at):
        raise ApprovalError(
            f"site {site!r}: study {study.name!r} ({study.digest[:8]}) expired: its last day was "
            f"{study.study.expires}, and it is {at.astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC.",
            advice="if this machine's clock is right, ask the coordinator for the next serial of "
            "the study.",
        )


def check_now(policy: Policy, site: str, at: datetime.datetime, *, source: str) -> None:
    """Refuse to begin a round while the site pauses or is outside its hours.

    Args:
        policy: The site's limits.
        site: The site's name, for messages.
        at: Now, in the machine's local time.
        source: Where the limits stand, for messages.

    Raises:
        NotNowError: not now.
    """
    if policy.pause:
        raise NotNowError(
            f"site {site!r}: trains nothing, because pause is true ({source}).",
            advice="set pause = false in site.toml, [policy]; it holds from the next round on.",
        )
    if not policy.within_hours(at.time()):
        raise NotNowError(
            f"site {site!r}: begins no round at {at:%H:%M}. Allowed here: hours {policy.hours}, "
            f"local time ({source}).",
            advice="none; rounds within the hours are answered. To change them, edit site.toml.",
        )


def _passed(policy: Policy, study: Study, site: Site, epsilon: float) -> Iterator[tuple[str, str]]:
    """What was found and what is allowed, of every limit that a study passes."""
    if not study.private:
        if not policy.allow_no_privacy:
            yield 'it trains without privacy (privacy.mode = "none")', "dp-sgd only"
    else:
        yield from _too_dear(policy, study, epsilon)
    rounds = study.training.rounds
    if policy.rounds_limit is not None and rounds > policy.rounds_limit:
        yield f"it has {rounds} rounds", f"rounds_limit {policy.rounds_limit}"
    if policy.studies is not None and study.name not in policy.studies:
        yield "its name is not on this site's list", f"studies {_listed(policy.studies)}"
    if policy.networks is not None and study.network.name not in policy.networks:
        yield f"it trains {study.network.name}", f"networks {_listed(policy.networks)}"
    fewest = policy.minimum_patients
    if fewest is not None and site.declared_patients < fewest:
        yield f"it declares {site.declared_patients} patients here", f"minimum_patients {fewest}"


def _too_dear(policy: Policy, study: Study, epsilon: float) -> Iterator[tuple[str, str]]:
    delta = study.privacy.delta
    for key in ("epsilon_limit", "study_epsilon_limit"):
        limit = getattr(policy, key)
        if (limit is None and key == "epsilon_limit") or (limit and not epsilon <= limit):
            yield f"it costs epsilon = {epsilon:.3f}", f"{key} {limit}"
    limit = policy.delta_limit
    if limit is None or delta is None or not delta <= limit:
        yield f"its delta is {delta}", f"delta_limit {limit}"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"
