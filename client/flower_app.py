"""The ClientApp: a Flower message in, a Flower message out.

``build_app`` is what medfed's own worker runs. ``app`` is what Flower would find if it started
the site's side itself; it refuses, because a site runs only code that it started on its own.
"""

from __future__ import annotations

import datetime
from contextlib import suppress
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from medfed.client.approvals import approved_studies, approved_study, scans_of_patients
from medfed.client.computing import device_of, limit_share
from medfed.client.ledger import Ledger
from medfed.client.noise import SecretRandomness
from medfed.client.policy import check_not_expired, check_now, check_policy
from medfed.client.release import Released
from medfed.client.serials import check_not_replaced
from medfed.client.session import RoundRequest, SiteSession
from medfed.client.site_root import open_ledger, open_site
from medfed.client.site_settings import read_settings
from medfed.common.errors import NotNowError, TrustError, UpdateRejectedError
from medfed.common.privacy.mechanism import dearest_epsilon
from medfed.common.privacy.terms import PURPOSES, Purpose
from medfed.common.study import Study
from medfed.common.trust.ledger_head import Head, head_from

app = ClientApp()


@app.train()
def refuse(message: Message, context: Context) -> Message:
    """Refuse to be run by Flower's own executor.

    Raises:
        TrustError: always.
    """
    raise TrustError(
        "a medfed site trains only in the worker it started itself.",
        advice="start the site with `medfed client --site NAME`.",
    )


def build_app(session: SiteSession) -> ClientApp:
    """The ClientApp of one site.

    Args:
        session: The site. Held for the life of the app, so that scans and network stay warm.
    """
    site_app = ClientApp()

    @site_app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(reply_content(session, message.content), reply_to=message)

    @site_app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(reply_content(session, message.content), reply_to=message)

    return site_app


def reply_content(session: SiteSession, content: RecordDict) -> RecordDict:
    """Answer the content of a train or an evaluate message.

    Args:
        session: The site.
        content: ``round`` (digest, run, round) and ``model`` (wire form as bytes).
    """
    config, model = content.config_records["round"], content.array_records["model"]
    request = RoundRequest(
        digest=str(config["digest"]),
        run=str(config["run"]),
        round=int(str(config["round"])),
        model=model["bytes"].numpy().tobytes(),
        purpose=_purpose_in(config),
        known=_known_head(content),
    )
    return _record(session.answer(request))


def _record(released: Released) -> RecordDict:
    if released.payload is None:
        return RecordDict({"fact": ConfigRecord({"code": str(released.code)})})
    data = np.frombuffer(released.payload, dtype=np.uint8)
    records = RecordDict({"release": ArrayRecord({"bytes": Array(data)})})
    if released.head is not None:
        records["head"] = ConfigRecord(released.head._asdict())
    return records


def _purpose_in(config: ConfigRecord) -> Purpose:
    asked = str(config["purpose"])
    for purpose in PURPOSES:
        if purpose == asked:
            return purpose
    raise UpdateRejectedError(
        f"the server asks for {asked[:20]!r}; allowed: {', '.join(PURPOSES)}.",
        advice="use the same medfed version on both sides.",
    )


def _known_head(content: RecordDict) -> Head | None:
    """The head of this site's ledger that the server remembers, if it remembers one."""
    if "head" not in content.config_records:
        return None
    return head_from(content.config_records["head"])


def permitted_study(
    root: Path, digest: str, ledger: Ledger, *, at: datetime.datetime | None = None
) -> Study:
    """The approved study of a digest, held against the site's policy as it stands now.

    Args:
        root: The site's data root.
        digest: Of the study.
        ledger: The site's, which knows what was approved since.
        at: The time, with a time zone; None: now.

    Raises:
        ApprovalError: it is not approved, expired, or was replaced by a newer serial; or
            ``site.toml`` does not allow it any more.
        NotNowError: ``site.toml`` does not allow it now.
    """
    site, at = open_site(root), (at or datetime.datetime.now(datetime.UTC)).astimezone()
    study, policy, source = approved_study(site, digest), site.settings.policy, f"{root}/site.toml"
    check_not_expired(study, site.name, at)
    check_not_replaced(study, ledger.approvals(), site.name)
    member = study.site_named(site.name)
    check_policy(policy, study, member, dearest_epsilon(study, member), source=source)
    check_now(policy, site.name, at, source=source)
    return study


def open_session(root: Path) -> SiteSession:
    """Open a deployed site: approved studies, own scans, secret randomness, durable ledger.

    The scans of the study approved last are read at once, before any round asks for them; also
    while the site pauses, so that it is ready when it no longer does.

    Args:
        root: The site's data root.

    A site without written limits can train only what its policy lets through without privacy.

    Raises:
        ConfigError: the root is not a site's.
        ApprovalError: no study is approved, or the one approved last may not be trained any more.
        LedgerError: its ledger cannot be trusted.
    """
    site = open_site(root)
    ledger = open_ledger(site)

    def study_for(digest: str) -> Study:
        policy = read_settings(root).policy
        limit_share(policy)
        session.use_device(device_of(policy))
        return permitted_study(root, digest, ledger)

    session = SiteSession(
        site=site.name,
        study_for=study_for,
        scans_for=lambda study: scans_of_patients(site, study),
        randomness_for=lambda key: SecretRandomness(),
        ledger=ledger,
    )
    latest = approved_studies(site)[0]
    with suppress(NotNowError):
        study_for(latest.digest)
    session.warm(latest)
    return session
