"""Commands of a hospital about its ledger: budget, exclude, withdraw, audit, witness."""

from __future__ import annotations

import json
import sys
from contextlib import closing
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


def exclude(
    root: _Root,
    patients: Annotated[
        Path, typer.Option(help="File of patient ids, one a line; '-' reads them from the input.")
    ],
    unknown: Annotated[
        bool, typer.Option("--unknown", help="Accept ids that no study here has met yet.")
    ] = False,
    format: FormatOption = Format.TEXT,
) -> None:
    """Take patients out of everything from the next round on; what they spent is kept.

    It cannot be undone. An id that no study has met is refused as a likely slip of the pen,
    unless --unknown is given: for patients whose scans are to come.

    Ids come from a file or the input, never from the command line, which other users may see.

    Example: medfed site exclude --root /srv/medfed-A --patients withdrawn-consent.txt
    """
    from medfed.client.scans.patients import PseudonymKey
    from medfed.client.site_root import open_ledger, open_site
    from medfed.common.errors import ConfigError

    site = open_site(root)
    key = PseudonymKey(site.pseudonym_key)
    named = {key(patient): line for line, patient in _ids(patients)}
    with closing(open_ledger(site)) as ledger:
        strangers = sorted(named[name] for name in named.keys() - ledger.known(named))
        if strangers and not unknown:
            raise ConfigError(
                f"site {site.name!r}: no study here has met the patients in lines "
                f"{', '.join(map(str, strangers))} of {patients}. Nobody was excluded.",
                advice="write each id exactly as in the scans; add --unknown if these patients "
                "are to come.",
            )
        pseudonyms, known = set(named), len(named) - len(strangers)
        new = ledger.exclude(pseudonyms)
    if format is Format.JSON:
        typer.echo(json.dumps({"given": len(pseudonyms), "known": known, "new": new}))
        return
    typer.echo(
        f"Site {site.name}: {len(pseudonyms)} patients given, {new} of them newly excluded. They "
        f"take part in nothing from the next round on.\n{known} of them were eligible for a study "
        "before; what they spent there stays on record."
    )


def _ids(path: Path) -> list[tuple[int, str]]:
    """Line numbers and patient ids. Private."""
    from medfed.common.errors import ConfigError

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: the patient ids cannot be read ({type(error).__name__}).",
            advice="give a text file (UTF-8) with one patient id a line.",
        ) from error
    lines = enumerate(text.splitlines(), start=1)
    found = [(number, line.strip()) for number, line in lines if line.strip()]
    if not found:
        raise ConfigError(
            f"{path}: no patient id in it.", advice="give a text file with one patient id a line."
        )
    return found


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
    from medfed.common.study import load_study

    site = open_site(root)
    standing = approved_studies(site)
    if Path(study).is_file():
        study = load_study(Path(study)).digest
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
    with closing(open_ledger(site)) as ledger:
        head, entries = ledger.audit()
    if format is Format.JSON:
        typer.echo(json.dumps({"site": site.name, "head": head._asdict(), "entries": entries}))
        return
    counted = {kind: sum(e["kind"] == kind for e in entries) for kind in _KINDS}
    typer.echo(f"Site {site.name}: {head.sequence} entries, all in line and signed by this site.")
    typer.echo("  " + ", ".join(f"{kind} {n}" for kind, n in counted.items() if n))
    typer.echo(f"  head {head.sequence}:{head.hash}\n  witness {site.witness} agrees")


_KINDS = ("open", "approve", "reserve", "commit", "void", "withdraw", "exclude", "loss")


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
