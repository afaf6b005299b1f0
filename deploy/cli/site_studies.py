"""Commands of a hospital about studies: receive one, approve it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfed.deploy.cli.output import Format, FormatOption
from medfed.deploy.cli.study import say_study, study_json

if TYPE_CHECKING:
    from medfed.client.approvals import Approval
    from medfed.client.site_root import SiteRoot
    from medfed.client.study_files import Offer
    from medfed.common.study import Study

_Root = Annotated[Path, typer.Option("--root", help="The site's data root.")]


def register(site_app: typer.Typer) -> None:
    """Add the commands to ``medfed site``."""
    for command in (receive, approve):
        site_app.command()(command)


def receive(
    study: Annotated[Path, typer.Argument(help="The study file, as the coordinator sent it.")],
    root: _Root,
    format: FormatOption = Format.TEXT,
) -> None:
    """Check a study file, keep it, and show it. Nothing is approved by this.

    Example: medfed site receive chest-1.study.json --root /srv/medfed-A
    """
    from medfed.client.budget import policy_refusal
    from medfed.client.site_root import open_site
    from medfed.client.study_files import receive as receive_study
    from medfed.common.report.words import clean
    from medfed.common.signed_study import StudyFile

    site = open_site(root)
    offer = receive_study(site, study)
    refusal = policy_refusal(site, offer.study)
    if format is Format.JSON:
        told = study_json(StudyFile(offer.study, offer.fingerprint))
        told |= {"site": site.name, "verified": offer.verified, "refused": refusal or None}
        typer.echo(json.dumps(told))
        return
    say_study(offer.study)
    typer.echo(f"  {_signature(offer)}")
    if refusal:
        typer.secho(f"As site.toml stands: {clean(refusal)}", fg=typer.colors.YELLOW)
    typer.echo(
        "It is kept, not approved. When your data board agrees:\n"
        f"  medfed site approve {offer.study.digest[:8]} --root {site.folder}"
    )


def approve(
    study: Annotated[
        str,
        typer.Argument(help="The study file, or the digest (8 digits or more) of one received."),
    ],
    root: _Root,
    format: FormatOption = Format.TEXT,
) -> None:
    """Approve a study: hold it against this site's limits, and remember exactly what was read.

    Example: medfed site approve 1a2b3c4d --root /srv/medfed-A
    """
    from medfed.client.approvals import approve as approve_study
    from medfed.client.site_root import open_site
    from medfed.client.study_files import read_offer, received

    site = open_site(root)
    file = Path(study)
    offer = read_offer(site, file) if _is_path(study) else received(site, study)
    given = approve_study(site, offer.study, signed=offer.verified)
    if format is Format.JSON:
        told = {
            "site": site.name,
            "study": given.study,
            "digest": given.digest,
            "signed_by": offer.fingerprint,
            "verified": offer.verified,
            "epsilon": None if given.delta is None else given.epsilon,
            "delta": given.delta,
            "eligible_patients": given.eligible[0],
            "training_patients": given.eligible[1],
        }
        typer.echo(json.dumps(told))
        return
    _say_approval(site, offer, given)


def _is_path(study: str) -> bool:
    """Whether it names a file rather than a digest; so that a missing file is told as one."""
    return Path(study).exists() or "." in study or "/" in study


def _say_approval(site: SiteRoot, offer: Offer, given: Approval) -> None:
    cost = (
        "no differential privacy at all"
        if given.delta is None
        else f"epsilon = {given.epsilon:.3f} at delta = {given.delta:g} (add or remove one patient)"
    )
    typer.echo(
        f"Site {site.name} approved study {given.study}, digest {given.digest},\n"
        f"{_signature(offer)}.\n"
        f"Its whole schedule costs a training patient here {cost}.{_judged(offer.study)}\n"
        f"Set aside for {given.eligible[0]} of {given.eligible[1]} training patients (that is for "
        "you only); the others\ncannot afford it beside earlier studies and take no part. Patients "
        "who come later take part\nin the next study.\n"
        f"Next step: medfed client --site {site.name} --root {site.folder}"
    )
    if offer.study.study.supersedes:
        typer.echo(
            f"No round of the study before it ({offer.study.study.supersedes[:8]}) is trained any "
            "more; `medfed site withdraw`\nfrees what it had set aside."
        )
    if not given.eligible[0]:
        typer.secho(
            "Warning: no patient here can take part; the site would send noise only.",
            fg=typer.colors.YELLOW,
        )


def _judged(study: Study) -> str:
    from medfed.common.privacy.mechanism import evaluation_epsilon
    from medfed.common.privacy.terms import EVALUATED_PARTS

    return "".join(
        f"\nIts score histograms cost a {part} patient epsilon = {spent:.3f} at the same delta."
        for part in EVALUATED_PARTS
        if (spent := evaluation_epsilon(study, part))
    )


def _signature(offer: Offer) -> str:
    if offer.verified:
        return f"signed by the coordinator whom this site trusts ({offer.fingerprint})"
    if offer.fingerprint:
        return (
            f"signed by {offer.fingerprint}; this site knows no coordinator yet, so compare it by "
            "phone"
        )
    return "signed by nobody; this site knows no coordinator's key, so it takes unsigned studies"
