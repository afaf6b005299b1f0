"""Commands of a hospital about its ledger: budget, withdraw, audit, witness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfed.deploy.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from medfed.client.budget import Budget, PlannedPurpose
    from medfed.client.site_root import SiteRoot
    from medfed.common.trust.audit_log import Checked, Line

_Root = Annotated[Path, typer.Option("--root", help="The site's data root.")]


def register(site_app: typer.Typer) -> None:
    """Add the commands to ``medfed site``."""
    for command in (budget, withdraw, audit, witness):
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
    from medfed.common.signed_study import read_study_file

    site = open_site(root)
    found = budget_of(site)
    study = read_study_file(plan).study if plan else None
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
        standing = any(p.open and p.digest == study.digest for p in found.purposes)
        _show_plan(study.name, planned, policy_refusal(site, study), standing)


def _show_budget(site: SiteRoot, found: Budget) -> None:
    from medfed.common.privacy.accounting import NEIGHBOURS
    from medfed.common.report.words import clean, epsilon_text

    epsilon, delta = found.ceiling
    typer.echo(f"Site {site.name}: the privacy of its patients ({NEIGHBOURS})")
    if site.settings.policy.epsilon_limit is None or site.settings.policy.delta_limit is None:
        typer.echo("  ceiling over all studies   not written into site.toml yet")
    else:
        typer.echo(f"  ceiling over all studies   epsilon {epsilon:g} at delta {delta:g}")
        typer.echo(f"  most exposed patient       {epsilon_text(found.spent)} spent")
        typer.echo(f"    when all approved ran    {epsilon_text(found.reserved)}")
        typer.echo(f"    as the ceiling counts it {epsilon_text(found.held)} (see docs/privacy.md)")
        left = max(0.0, epsilon - found.held)
        typer.echo(f"    left for further studies {epsilon_text(left)}")
        if found.spent > epsilon:
            typer.secho("Warning: more is spent than site.toml allows now.", fg=typer.colors.RED)
        if found.merged_beyond:
            typer.secho(
                f"Warning: {found.merged_beyond} merged patients have lost more than that: each "
                "had two record numbers, and\neach number spent its own. It cannot be undone; they "
                "take no further part.",
                fg=typer.colors.RED,
            )
    merged = f", merged {found.merged}" if found.merged else ""
    typer.echo(f"  patients ever eligible     {found.patients}, excluded {found.excluded}{merged}")
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


def _show_plan(
    study: str, planned: tuple[PlannedPurpose, ...], refusal: str, standing: bool
) -> None:
    from medfed.common.report.words import clean, epsilon_text

    if standing:
        typer.echo(f"{clean(study)} is approved already: see above.")
        return
    if refusal:
        typer.secho(f"As site.toml stands: {clean(refusal)}", fg=typer.colors.YELLOW)
    typer.echo(f"Approving {clean(study)} would set aside")
    for p in planned:
        typer.echo(
            f"  {p.purpose:12}{p.releases} releases, epsilon {epsilon_text(p.epsilon)} for each of "
            f"{p.eligible} patients; {p.patients - p.eligible} of {p.patients} cannot afford it or "
            "are excluded"
        )
    if not any(p.eligible for p in planned):
        typer.secho(
            "Warning: no patient here could take part; the site would send noise only.",
            fg=typer.colors.YELLOW,
        )


def withdraw(
    study: Annotated[
        str, typer.Argument(help="The study file, its digest, or the digest's first 8 digits.")
    ],
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
    from medfed.common.signed_study import read_study_file

    site = open_site(root)
    standing = approved_studies(site)
    if Path(study).is_file():
        study = read_study_file(Path(study)).study.digest
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
    """Check the ledger, entry by entry and against its witness, and the audit log, line by line.

    Example: medfed site audit --root /srv/medfed-A
    """
    from medfed.client.site_root import open_ledger, open_site
    from medfed.common.trust.audit_log import KEY_USED, verify

    site = open_site(root)
    log = verify(site.audit_file)  # first: opening the ledger adds a line
    with closing(open_ledger(site)) as ledger:
        head, entries = ledger.audit()
    uses = [line for line in log.lines if line.event == KEY_USED]
    if format is Format.JSON:
        found = {"head": log.head._asdict(), "torn_bytes": log.torn_bytes}
        last = [{"time": use.time, **use.fields} for use in uses[-_USES_SHOWN:]]
        audited = {**found, "key_uses": len(uses), "last_key_uses": last}
        ledger_found = {"head": head._asdict(), "entries": entries}
        typer.echo(json.dumps({"site": site.name, **ledger_found, "audit_log": audited}))
        return
    counted = {kind: sum(e["kind"] == kind for e in entries) for kind in _KINDS}
    typer.echo(f"Site {site.name}: {head.sequence} entries, all in line and signed by this site.")
    typer.echo("  " + ", ".join(f"{kind} {n}" for kind, n in counted.items() if n))
    typer.echo(f"  head {head.sequence}:{head.hash}\n  witness {site.witness} agrees")
    _show_log(log, uses)


_KINDS = ("open", "approve", "reserve", "commit", "void", "withdraw", "exclude", "merge", "loss")
_USES_SHOWN = 5


def _show_log(log: Checked, uses: Sequence[Line]) -> None:
    """The audit log was in order: how far it has come, and the last uses of the key."""
    from medfed.common.report.words import clean

    typer.echo(f"  audit log: {log.head.sequence} lines, each in line with the one before")
    typer.echo(f"  head of the log {log.head.sequence}:{log.head.hash}")
    if log.torn_bytes:
        typer.echo(f"  its last line was torn by a crash ({log.torn_bytes} bytes)")
    typer.echo(f"  the pseudonym key was used {len(uses)} times before; the last were to")
    for use in uses[-_USES_SHOWN:]:
        what = clean(str(use.fields.get("purpose", "")))
        by = f"process {use.fields.get('process')}, user {use.fields.get('user')}"
        typer.echo(f"    {clean(use.time[:19])} UTC  {what} ({clean(by)})")


def witness(
    root: _Root,
    lost: Annotated[
        bool,
        typer.Option("--lost", help="The newest ledger or the witness is lost for good."),
    ] = False,
) -> None:
    """Go on with the ledger as it lies here, though its witness or later entries are lost.

    Nobody knows what lost entries spent: every approval that stands counts as wholly spent and
    ends. Only when no other copy of this site runs. To move a site to another machine, take its
    witness along instead.

    Example: medfed site witness --root /srv/medfed-A --lost
    """
    from medfed.client.site_root import open_site, renew_witness
    from medfed.common.errors import ConfigError

    site = open_site(root)
    if not lost:
        raise ConfigError(
            f"site {site.name!r}: a new witness trusts the ledger as it lies here, and counts "
            "all that is approved in it as spent.",
            advice="if the newest ledger or the witness is lost for good, add --lost.",
        )
    done = renew_witness(site)
    if done.kept:
        typer.echo(f"The old witness is kept as {done.kept}.")
    typer.echo(
        f"Site {site.name}: {site.witness} now remembers entry {done.head.sequence}. "
        f"{done.ended} approvals ended and count as wholly spent; what was approved after this "
        "ledger was copied\nis not known, so your data board decides about those patients;\n"
        "exclude again whom you excluded since.\n"
        "Next step: if a coordinator's server refuses the ledger as older than it remembers, the "
        "coordinator runs\n`medfed enrol approve SITE.pub --replace`."
    )
