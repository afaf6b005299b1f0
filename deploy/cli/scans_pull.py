"""The command ``medfed scans pull``: from the hospital's archive to a folder."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfed.deploy.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from medfed.client.scans.pacs.archive import Archive
    from medfed.client.scans.pacs.pace import Pace
    from medfed.client.scans.pacs.plan import Query
    from medfed.client.scans.pacs.pull import Tally
    from medfed.client.scans.pacs.settings import PacsSettings

_EVERY_S = 60.0


def register(scans_app: typer.Typer) -> None:
    """Add the command to the group of commands about scans."""
    scans_app.command()(pull)


def _example(asked: bool) -> None:
    """Print a pacs.toml with every key explained, and end."""
    if asked:
        from medfed.client.scans.pacs.settings import EXAMPLE

        typer.echo(EXAMPLE, nl=False)
        raise typer.Exit


def pull(
    pacs: Annotated[Path, typer.Option(help="pacs.toml: where the archive is, what was agreed.")],
    into: Annotated[Path, typer.Option(help="Folder for the files; a later run goes on there.")],
    modality: Annotated[
        list[str] | None, typer.Option(help="DICOM code, like CR; may be repeated.")
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First study date.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last study date.")
    ] = None,
    description: Annotated[
        str | None, typer.Option(help="Study description; * and ? stand for any text.")
    ] = None,
    accessions: Annotated[
        Path | None, typer.Option(help="File of accession numbers, one per line.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Search only: say what a pull would bring.")
    ] = False,
    example: Annotated[
        bool,
        typer.Option("--example", help="Print a pacs.toml.", is_eager=True, callback=_example),
    ] = False,
    format: FormatOption = Format.TEXT,
) -> None:
    """Pull images from the hospital's archive (DICOMweb or DIMSE), and only what is missing.

    medfed always asks and never listens: no port is opened. A run may be ended at any moment;
    the next one goes on. `--example` prints a pacs.toml to start from.

    Example: medfed scans pull --pacs pacs.toml --into /data/scans --modality CR --modality DX
    --since 2025-01-01 --until 2025-12-31 --dry-run
    """
    from medfed.client.scans.pacs.plan import Query, read_accessions
    from medfed.client.scans.pacs.settings import read_settings

    settings = read_settings(pacs)
    query = Query(
        modalities=tuple(dict.fromkeys(code.strip().upper() for code in modality or ())),
        since=since.date() if since else None,
        until=until.date() if until else None,
        description=description,
        accessions=read_accessions(accessions) if accessions else (),
    )
    tally = _run(settings, query, into, dry_run=dry_run, quiet=format is Format.JSON)
    if format is Format.JSON:
        typer.echo(json.dumps({"dry_run": dry_run} | tally.figures()))
    else:
        _write(tally, dry_run=dry_run)
    if tally.failed:
        from medfed.common.errors import IncompleteRunError

        raise IncompleteRunError(
            f"{tally.failed.total()} of {tally.files} images could not be pulled; the others lie "
            f"in {into}.",
            advice="run the same command again; if they fail again, ask the archive's keepers.",
        )


def _run(settings: PacsSettings, query: Query, into: Path, *, dry_run: bool, quiet: bool) -> Tally:
    from medfed.client.scans.pacs.pace import Pace
    from medfed.client.scans.pacs.pull import Pull
    from medfed.client.scans.pacs.store import PullStore

    def on_wait(seconds: float, for_window: bool) -> None:
        archive.hang_up()
        if not quiet:
            why = "until the window opens" if for_window else "to keep the agreed rate"
            sys.stderr.write(f"  waiting {_span(seconds)} {why}\n")

    limits = settings.limits
    window = None if dry_run else limits.time_window()  # a few searches burden nobody
    pace = Pace(limits.rates(), window, on_wait=on_wait)
    archive = open_archive(settings, pace)
    if not quiet:
        _announce(query)
    with PullStore.open(into) as store:
        job = Pull(archive, query, store, limits, pace, _watch(quiet))
        return job.plan() if dry_run else job.run()


def open_archive(settings: PacsSettings, pace: Pace) -> Archive:
    """Make the archive that ``pacs.toml`` names; nothing is connected yet.

    Raises:
        ConfigError: credentials or certificates cannot be used, or the libraries are missing.
    """
    from medfed.client.scans.pacs.settings import read_credentials
    from medfed.common.errors import ConfigError

    try:
        if settings.dicomweb is not None:
            from medfed.client.scans.pacs.dicomweb import DicomWebArchive

            secret = settings.dicomweb.credentials
            credentials = read_credentials(Path(secret)) if secret else None
            return DicomWebArchive(settings.dicomweb, credentials, pace.before_request)
        from medfed.client.scans.pacs.dimse import DimseArchive

        assert settings.dimse is not None  # exactly one of the two: checked when it was read
        return DimseArchive(settings.dimse, pace.before_request)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the library {error.name} is not installed, which asks archives.",
            advice="pip install 'medfed[pacs]'",
        ) from None


def _announce(query: Query) -> None:
    """Say exactly what the archive will be asked. Accession numbers are counted, not shown."""
    from medfed.client.scans.pacs.plan import study_keys
    from medfed.common.report.words import clean

    if query.accessions:
        typer.echo(f"Asking for {len(query.accessions)} accession numbers, and of each:")
    for keys in study_keys(query):
        shown = {k: v for k, v in keys.items() if k != "AccessionNumber"}
        typer.echo("  " + clean(", ".join(f"{k}={v}" for k, v in shown.items()) or "any study"))
        if query.accessions:
            break
    if query.modalities:
        typer.echo(f"  of each study the series of {', '.join(query.modalities)}")


def _write(tally: Tally, *, dry_run: bool) -> None:
    from medfed.common.report.words import clean

    kinds = ", ".join(f"{clean(k) or 'unknown'} {n}" for k, n in tally.modalities.most_common())
    typer.echo(f"  studies         {tally.studies:9}")
    typer.echo(f"  images          {tally.files:9}   {kinds}")
    typer.echo(f"  there already   {tally.there:9}")
    if dry_run:
        size = f"about {tally.estimated_bytes / 1e6:.0f} MB without compression"
        if tally.estimated < tally.missing:
            size += f", of {tally.estimated} whose size is known"
        typer.echo(f"  to be pulled    {tally.missing:9}   {size if tally.estimated else ''}")
    else:
        typer.echo(f"  pulled          {tally.pulled:9}   {tally.bytes_pulled / 1e6:.1f} MB")
    for reason, count in (tally.left_out + tally.failed).items():
        typer.echo(f"  left out        {count:9}   {reason}")
    if dry_run:
        typer.echo("Nothing was pulled. The same command without --dry-run pulls.")
    typer.echo("These numbers are for you; none of them leaves the site.")


def _watch(quiet: bool) -> Callable[[Tally], None]:
    """Show how far the job is: one line that is redrawn, or a line a minute in a log."""
    shown_at = time.monotonic()
    terminal = sys.stderr.isatty()

    def show(tally: Tally) -> None:
        nonlocal shown_at
        now = time.monotonic()
        if quiet or now - shown_at < (0.2 if terminal else _EVERY_S):
            return
        shown_at = now
        line = (
            f"  {tally.studies} studies, {tally.files} images, {tally.there} there, "
            f"{tally.pulled} pulled ({tally.bytes_pulled / 1e6:.1f} MB)"
        )
        sys.stderr.write(f"\r\033[K{line}" if terminal else f"{line}\n")
        sys.stderr.flush()

    return show


def _span(seconds: float) -> str:
    from medfed.common.report.words import duration

    return duration(seconds)
