"""The command ``medfed scans import``: decode each scan once, into the site's encrypted cache."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfed.deploy.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from medfed.client.scans.importing import Tally
    from medfed.client.site_root import SiteRoot
    from medfed.common.study import Study


def register(scans_app: typer.Typer) -> None:
    """Add the command to the group of commands about scans."""
    scans_app.command("import")(import_)


def import_(
    root: Annotated[Path, typer.Option(help="The site's folder.")],
    study: Annotated[
        Path | None, typer.Option(help="A study file. Default: the study approved last.")
    ] = None,
    children: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Processes that decode. Default: 2; for an .npz 1."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Try files again that were refused before.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the whole cache; import anew what is damaged.")
    ] = False,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Erase from the cache what the folder does not have any more."
        ),
    ] = False,
    format: FormatOption = Format.TEXT,
) -> None:
    """Import the site's scans into its encrypted cache; only what is new is read.

    It may be ended at any moment and started again. Nothing leaves the site.

    Example: medfed scans import --root /srv/medfed-A --study study.toml
    """
    from medfed.client.approvals import approved_studies
    from medfed.client.site_root import open_site
    from medfed.common.study import load_study

    site = open_site(root)
    wanted = load_study(study) if study else approved_studies(site)[0]
    begin = time.monotonic()
    tally, report = _run(
        site,
        wanted,
        children,
        again=again,
        verify=verify,
        prune=prune,
        quiet=format is Format.JSON,
    )
    if format is Format.JSON:
        typer.echo(json.dumps(_as_json(tally, report)))
    else:
        _tell(tally, report, time.monotonic() - begin)
    if not tally.listed - tally.refused.total():
        from medfed.client.scans.layouts.layout import nothing_left

        raise nothing_left(site.scans, tally.refused + tally.left_out)


def _run(
    site: SiteRoot,
    study: Study,
    children: int | None,
    *,
    again: bool,
    verify: bool,
    prune: bool,
    quiet: bool,
) -> tuple[Tally, Path]:
    from medfed.client.scans.cache import REFUSED
    from medfed.client.scans.cached import index_of, open_cache
    from medfed.client.scans.importing import import_scans, limits_for
    from medfed.deploy.progress import show_progress

    show = show_progress(quiet=quiet)
    index = index_of(site, study)
    limits = limits_for(index)
    if children is not None:
        limits = replace(limits, children=children)
    with open_cache(site, study.scans) as cache:
        tally = import_scans(
            index,
            study.scans,
            cache,
            limits=limits,
            on_progress=lambda done, total: show("importing", done, total),
            again=again,
            verify=verify,
            prune=prune,
        )
        return tally, cache.folder / REFUSED


def _as_json(tally: Tally, report: Path) -> dict[str, object]:
    return {
        "listed": tally.listed,
        "unchanged": tally.unchanged,
        "same_content": tally.same,
        "imported": tally.imported,
        "damaged": tally.damaged,
        "erased": tally.erased,
        "refused": dict(tally.refused),
        "left_out": dict(tally.left_out),
        "report": str(report),
    }


def _tell(tally: Tally, report: Path, seconds: float) -> None:
    from medfed.common.report.words import duration

    typer.echo(f"  scans listed    {tally.listed:9}   in {duration(seconds)}")
    typer.echo(f"  there already   {tally.unchanged + tally.same:9}")
    typer.echo(f"  imported        {tally.imported:9}")
    if tally.damaged:
        typer.echo(f"  damaged         {tally.damaged:9}   records of the cache; read anew")
    if tally.erased:
        typer.echo(f"  erased          {tally.erased:9}   their files are not there any more")
    for reason, count in sorted(tally.refused.items()):
        typer.echo(f"  refused         {count:9}   {reason}")
    for reason, count in sorted(tally.left_out.items()):
        typer.echo(f"  left out        {count:9}   {reason}")
    if tally.refused:
        typer.echo(f"Which files were refused stands in {report}.")
    typer.echo("These numbers are for you; none of them leaves the site.")
