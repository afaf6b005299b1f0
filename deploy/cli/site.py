"""Commands of a hospital: make a site, check it, approve a study, take part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medfed.deploy.cli import site_ledger, site_patients, site_studies
from medfed.deploy.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from medfed.client.preflight import Notice, ScanReport
    from medfed.client.site_root import SiteRoot

_Root = Annotated[Path, typer.Option("--root", help="The site's data root.")]
_RootOfSite = Annotated[
    Path | None,
    typer.Option("--root", help="The site's data root.", show_default="medfed-SITE"),
]

_KEY_IN_BACKUPS = (
    "the pseudonym key lies in the site's folder: every backup has it together with the ledger. "
    "Move keys/pseudonym.key elsewhere and name the place in site.toml: [ledger] pseudonym_key."
)

site_app = typer.Typer(
    help="Commands of a hospital's admin: set up, approve, budget, exclude, merge, audit.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands of a hospital to the program."""
    site_studies.register(site_app)
    site_ledger.register(site_app)
    site_patients.register(site_app)
    app.add_typer(site_app, name="site")
    app.command()(client)


@site_app.command()
def init(
    site: Annotated[str, typer.Option(help="The site's name, as studies will list it.")],
    scans: Annotated[Path, typer.Option(help="Folder of the site's scans, or one .npz file.")],
    server: Annotated[str, typer.Option(help="host:port of the coordinator's server.")],
    ca: Annotated[
        Path | None,
        typer.Option(
            help="The server's ca.pem, for a coordinator who asks for node_key.pub. Leave it out "
            "to be enrolled by a request; it comes with the approval.",
            show_default=False,
        ),
    ] = None,
    root: _RootOfSite = None,
    patient_array: Annotated[
        str | None, typer.Option(help="In an .npz: the array that says whose each scan is.")
    ] = None,
    witness: Annotated[
        Path | None,
        typer.Option(
            help="File that remembers how far the ledger has come; keep it out of backups.",
            show_default="in ~/.local/state/medfed, one for these scans",
        ),
    ] = None,
    pseudonym_key: Annotated[
        Path | None,
        typer.Option(
            help="File of the key by which the ledger names patients; not in backups of the root.",
            show_default="beside the witness",
        ),
    ] = None,
    epsilon_limit: Annotated[
        float | None,
        typer.Option(help="Most that all studies together may spend per patient. No default."),
    ] = None,
    delta_limit: Annotated[
        float | None, typer.Option(help="Its failure probability, at most this. No default.")
    ] = None,
    study_epsilon_limit: Annotated[
        float | None, typer.Option(help="Most that one study may spend per patient.")
    ] = None,
    format: FormatOption = Format.TEXT,
) -> None:
    """Make a site: its folder, its keys, its site.toml and its request to be let in.

    The limits are your data board's. They can be written into site.toml later as well.

    Example: medfed site init --site A --root /srv/medfed-A --scans /data/scans
    --server hub.example:8443 --epsilon-limit 8 --delta-limit 1e-4
    """
    from medfed.client.site_root import create_site

    board = {
        "epsilon_limit": epsilon_limit,
        "delta_limit": delta_limit,
        "study_epsilon_limit": study_epsilon_limit,
    }
    limits = {key: value for key, value in board.items() if value is not None}
    made = create_site(
        root or _root_of(site),
        name=site,
        scans=scans,
        server=server,
        ca=ca,
        patient_array=patient_array,
        witness=witness,
        pseudonym_key=pseudonym_key,
        limits=limits,
    )
    facts, steps = _first_steps(made, by_request=ca is None)
    if format is Format.JSON:
        _write(facts)
        return
    if not {"epsilon_limit", "delta_limit"} <= limits.keys():
        toml = made.folder / "site.toml"
        steps.append(f"Write your data board's limits into {toml}, table [policy].")
    study = "STUDY.toml" if ca is not None else "STUDY.study.json"  # signed, for an enrolled site
    steps.append(f"medfed site approve {study} --root {made.folder}")
    typer.echo(
        f"Site {made.name} is in {made.folder}; keep a backup of it, and show it to nobody.\n"
        f"Its witness is {made.witness}; keep that out of the backups.\n"
        f"Its pseudonym key is {made.pseudonym_key}; keep a copy in a safe, apart from the\n"
        f"backups: without it nobody's spend is known, with it and a backup everybody's is.\n"
        f"Next steps:"
    )
    for number, step in enumerate(steps, 1):
        typer.echo(f"  {number}. {step}")


def _first_steps(site: SiteRoot, *, by_request: bool) -> tuple[dict[str, Any], list[str]]:
    """What a new site sends to the coordinator: for programs, and in words."""
    from medfed.client.enrolment import write_request
    from medfed.common.trust.keys import fingerprint, read_public_key

    facts = {
        "site": site.name,
        "root": str(site.folder),
        "public_key": str(site.public_key),
    }
    if by_request:
        file, mark = write_request(site.folder)
        return {**facts, "request": str(file), "fingerprint": mark}, [
            f"Send {file} to the coordinator; read out by phone\n"
            f"     the fingerprint of this site's key: {mark}",
            f"Take up what comes back, with the fingerprint that the coordinator reads out:\n"
            f"     medfed enrol accept {site.name}.approval.json --root {site.folder} "
            "--fingerprint ...",
        ]
    mark = fingerprint(read_public_key(site.public_key))
    return {**facts, "fingerprint": mark}, [
        f"Send {site.public_key} to the coordinator as {site.name}.pub; compare the\n"
        f"     fingerprint by phone: {mark}"
    ]


@site_app.command()
def check(
    root: _Root,
    study: Annotated[
        Path | None, typer.Option(help="A study file. Default: the study approved last.")
    ] = None,
    format: FormatOption = Format.TEXT,
) -> None:
    """Read the scans as a study would, and say what it would find. Nothing leaves the site.

    Example: medfed site check --root /srv/medfed-A --study study.toml
    """
    from medfed.client.approvals import approved_studies
    from medfed.client.preflight import look_at_scans
    from medfed.client.site_root import open_site
    from medfed.common.report.words import clean
    from medfed.common.signed_study import read_study_file
    from medfed.deploy.progress import show_progress

    site = open_site(root)
    show = show_progress(quiet=format is Format.JSON)
    report = look_at_scans(
        site,
        read_study_file(study).study if study else approved_studies(site)[0],
        on_progress=lambda done, total: show("importing", done, total),
    )
    warnings = [*report.warnings, *([_KEY_IN_BACKUPS] if site.key_is_backed_up else [])]
    if format is Format.JSON:
        _write({**_report_json(report), "warnings": warnings})
        return
    typer.echo(f"Site {site.name}, study {report.study}: what training here will find")
    typer.echo(f"  {'layout':12}{report.layout:>7}")
    typer.echo(
        f"  {clean(report.unit) + 's':12}{report.patients[0]:7} ({report.patients[1]} to train on)"
    )
    typer.echo(f"  {'scans':12}{report.scans[0]:7} ({report.scans[1]} to train on)")
    for label, count in report.labels.items():
        typer.echo(f"  {clean(label):12}{count:7}")
    for reason, count in report.refused.items():
        typer.echo(f"  left out    {count:7} {reason}")
    for warning in warnings:
        typer.secho(f"Warning: {clean(warning)}", fg=typer.colors.YELLOW)
    typer.echo("These numbers are for you; none of them leaves the site.")


def _report_json(report: ScanReport) -> dict[str, Any]:
    return {
        "study": report.study,
        "layout": report.layout,
        "unit": report.unit,
        "patients": report.patients[0],
        "training_patients": report.patients[1],
        "scans": report.scans[0],
        "training_scans": report.scans[1],
        "labels": dict(report.labels),
        "refused": dict(report.refused),
    }


def client(
    site: Annotated[str, typer.Option(help="The site's name.")],
    root: _RootOfSite = None,
    retry_for: Annotated[
        float,
        typer.Option(help="How long to try to reach the server at first, in seconds.", min=0.0),
    ] = 60.0,
    format: FormatOption = Format.TEXT,
) -> None:
    """Join the server and train in its rounds, until stopped with Ctrl-C.

    Example: medfed client --site A
    """
    from medfed.client.site_root import check_may_join, open_site
    from medfed.client.supervisor import Supervisor
    from medfed.common.errors import ConfigError

    opened = open_site(root or _root_of(site))
    if opened.name != site:
        raise ConfigError(
            f"--site {site} was given, but {opened.folder} is the root of site {opened.name!r}.",
            advice=f"give --site {opened.name}, or the other site's --root.",
        )
    check_may_join(opened)
    say = _say_json if format is Format.JSON else _say_text
    try:
        Supervisor(opened, lambda notice: say(opened.name, notice)).run(retry_for_s=retry_for)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _root_of(site: str) -> Path:
    """Where a site lies if nobody says so: in this folder, under its name."""
    return Path(f"medfed-{site}")


def _say_text(site: str, notice: Notice) -> None:
    from medfed.common.report.words import clean

    text = f"warning: {notice.text}" if notice.kind == "warning" else notice.text
    typer.echo(f"[{site}] {clean(text)}")


def _say_json(site: str, notice: Notice) -> None:
    _write({"site": site, "kind": notice.kind, "text": notice.text})


def _write(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value))
