"""Commands of a hospital about its ledger: budget, exclude, withdraw, audit, witness."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfed.deploy.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from medfed.client.budget import Budget, PlannedPurpose
    from medfed.client.site_root import SiteRoot

_Root = Annotated[Path, typer.Option("--root", help="The site's data root.")]


def register(site_app: typer.Typer) -> None:
    """Add the commands to ``medfed site``."""
    for command in (budget, exclude, withdraw, audit, witness):
        site_app.command()(command)


def budget(
    root: _Root,
    plan: Annotated[
        Path | None, typer.Option(help="A study file: what would approving it cost here?")
    ] = None,
    format: FormatOption = Format.TEXT,
) -> None:
    """Show what patients' privacy was spent on and what is left. Nothing leaves the site.

    Example: medfed site budget --root /srv/medfed-A --plan study.toml
    """
    from medfed.client.budget import (
        budget_json,
        budget_of,
        plan_for,
        plan_json,
        policy_refusal,
    )
    from medfed.client.site_root import open_site
    from medfed.common.study import load_study

    site = open_site(root)
    found = budget_of(site)
    study = load_study(plan) if plan else None
    planned = plan_for(site, study) if study else ()
    if format is Format.JSON:
        content = {"site": site.name, **budget_json(found)}
        if study:
            content["plan"] = {
                **plan_json(study, planned),
                "refused": policy_refusal(site, study) or None,
            }
        typer.echo(json.dumps(content))
        return
    _show_budget(site, found)
    if study:
        _show_plan(study.name, planned, policy_refusal(site, study))


def _show_budget(site: SiteRoot, found: Budget) -> None:
    from medfed.common.privacy.accounting import NEIGHBOURS
    from medfed.common.report.words import clean, epsilon_text

    epsilon, delta = found.ceiling
    typer.echo(f"Site {site.name}: the privacy of its patients ({NEIGHBOURS}, delta = {delta:g})")
    typer.echo(f"  ceiling over all studies   epsilon {epsilon:g}")
    typer.echo(f"  most exposed patient       {epsilon_text(found.spent)} spent")
    typer.echo(f"    when all approved ran    {epsilon_text(found.reserved)}")
    typer.echo(f"    as the ceiling counts it {epsilon_text(found.held)}")
    typer.echo(f"  patients ever eligible     {found.patients}, excluded {found.excluded}")
    for p in found.purposes:
        state = f"{p.left} of {p.paid + p.left} left" if p.open else "withdrawn"
        cost = "" if p.next_epsilon is None else f"; the next costs {epsilon_text(p.next_epsilon)}"
        typer.echo(
            f"  {clean(p.study)} ({p.digest[:8]}), {p.purpose}: {p.paid} paid, {state}; "
            f"spent {epsilon_text(p.epsilon)} of {epsilon_text(p.whole_epsilon)}{cost}"
        )
    if not found.purposes:
        typer.echo("  no study was approved yet")
    typer.echo("These numbers are for you; none of them leaves the site.")


def _show_plan(study: str, planned: tuple[PlannedPurpose, ...], refusal: str) -> None:
    from medfed.common.report.words import clean, epsilon_text

    if refusal:
        typer.secho(f"As site.toml stands: {clean(refusal)}", fg=typer.colors.YELLOW)
    typer.echo(f"Approving {clean(study)} would set aside")
    for p in planned:
        typer.echo(
            f"  {p.purpose:12}{p.releases} releases, epsilon {epsilon_text(p.epsilon)} for each of "
            f"{p.eligible} patients; {p.patients - p.eligible} of {p.patients} cannot afford it"
        )
    if not any(p.eligible for p in planned):
        typer.secho(
            "Warning: no patient here could take part; the site would send noise only.",
            fg=typer.colors.YELLOW,
        )


def exclude(
    root: _Root,
    patients: Annotated[
        Path, typer.Option(help="File of patient ids, one a line; '-' reads them from the input.")
    ],
    format: FormatOption = Format.TEXT,
) -> None:
    """Take patients out of everything from the next round on; what they spent is kept.

    Ids come from a file or the input, never from the command line, which other users may see.

    Example: medfed site exclude --root /srv/medfed-A --patients withdrawn-consent.txt
    """
    from medfed.client.scans.patients import PseudonymKey
    from medfed.client.site_root import open_ledger, open_site

    site = open_site(root)
    key = PseudonymKey(site.pseudonym_key)
    pseudonyms = {key(patient) for patient in _ids(patients)}
    ledger = open_ledger(site)
    try:
        known, new = ledger.knows(pseudonyms), ledger.exclude(pseudonyms)
    finally:
        ledger.close()
    if format is Format.JSON:
        typer.echo(json.dumps({"given": len(pseudonyms), "known": known, "new": new}))
        return
    typer.echo(
        f"Site {site.name}: {len(pseudonyms)} patients given, {new} of them newly excluded. They "
        f"take part in nothing from the next round on.\n{known} of them were eligible for a study "
        "before; what they spent there stays on record."
    )


def _ids(path: Path) -> list[str]:
    from medfed.common.errors import ConfigError

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: the patient ids cannot be read ({type(error).__name__}).",
            advice="give a text file (UTF-8) with one patient id a line.",
        ) from error
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise ConfigError(
            f"{path}: no patient id in it.", advice="give a text file with one patient id a line."
        )
    return found


def withdraw(
    study: Annotated[str, typer.Argument(help="Digest of the study, or its first 8 digits.")],
    root: _Root,
    format: FormatOption = Format.TEXT,
) -> None:
    """End a study at this site: nothing more of it is released. What was spent stays spent.

    Example: medfed site withdraw 1a2b3c4d --root /srv/medfed-A
    """
    from medfed.client.approvals import approved_studies
    from medfed.client.approvals import withdraw as withdraw_study
    from medfed.client.site_root import open_site
    from medfed.common.errors import ConfigError

    site = open_site(root)
    standing = approved_studies(site)
    found = [s for s in standing if s.digest.startswith(study) and len(study) >= 8]
    if len(found) != 1:
        listed = ", ".join(f"{s.name} ({s.digest[:8]})" for s in standing)
        raise ConfigError(
            f"site {site.name!r}: {study[:80]!r} names no approved study; approved are {listed}.",
            advice="give the first 8 digits of a digest, or all of it.",
        )
    withdraw_study(site, found[0].digest)
    if format is Format.JSON:
        typer.echo(json.dumps({"site": site.name, "withdrawn": found[0].digest}))
        return
    typer.echo(f"Site {site.name} withdrew from study {found[0].name} ({found[0].digest[:8]}).")


def audit(root: _Root, format: FormatOption = Format.TEXT) -> None:
    """Check every entry and signature of the ledger, and hold it against its witness.

    Example: medfed site audit --root /srv/medfed-A
    """
    from medfed.client.site_root import open_ledger, open_site

    site = open_site(root)
    ledger = open_ledger(site)
    try:
        head, entries = ledger.audit()
    finally:
        ledger.close()
    if format is Format.JSON:
        typer.echo(json.dumps({"site": site.name, "head": head._asdict(), "entries": entries}))
        return
    counted = {kind: sum(e["kind"] == kind for e in entries) for kind in _KINDS}
    typer.echo(f"Site {site.name}: {head.sequence} entries, all in line and signed by this site.")
    typer.echo("  " + ", ".join(f"{kind} {n}" for kind, n in counted.items() if n))
    typer.echo(f"  head {head.sequence}:{head.hash}\n  witness {site.witness} agrees")


_KINDS = ("open", "approve", "reserve", "commit", "void", "withdraw", "exclude")


def witness(
    root: _Root,
    lost: Annotated[
        bool,
        typer.Option("--lost", help="The old witness is lost and no other copy of this site runs."),
    ] = False,
) -> None:
    """Make the ledger's witness anew on a machine where it is missing, after a move.

    Only when no other copy of this site runs and this is its newest ledger: nothing can check
    that here. The servers still know the highest entry that they saw.

    Example: medfed site witness --root /srv/medfed-A --lost
    """
    from medfed.client.site_root import open_site, renew_witness
    from medfed.common.errors import ConfigError

    site = open_site(root)
    if not lost:
        raise ConfigError(
            f"site {site.name!r}: a new witness trusts the ledger as it lies here.",
            advice="if the old witness is lost and this is the newest ledger, add --lost.",
        )
    head = renew_witness(site)
    typer.echo(f"Site {site.name}: {site.witness} now remembers entry {head.sequence}.")
