"""The command ``medfed scans check``: is this folder ready for this study?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfed.deploy.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from rich.console import Console

    from medfed.client.scans.check.examine import Examination
    from medfed.client.scans.check.site_check import Checked


def register(scans_app: typer.Typer) -> None:
    """Add the command to the group of commands about scans."""
    scans_app.command()(check)


def check(
    root: Annotated[Path, typer.Option(help="The site's folder.")],
    study: Annotated[
        Path | None, typer.Option(help="A study file. Default: the study approved last.")
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            help="Where the page is written.",
            show_default="check/STUDY-DATE/index.html in the site's folder",
        ),
    ] = None,
    format: FormatOption = Format.TEXT,
) -> None:
    """Look over the site's scans for a study: what is there, what is wrong, what to do about it.

    Imports what is new into the site's cache first, then writes a page with tables and pictures
    for the admin's browser. Nothing leaves the site. Ends with exit code 16 where something must
    be put right before training.

    Example: medfed scans check --root /srv/medfed-A --study study.toml
    """
    from medfed.client.approvals import approved_studies
    from medfed.client.scans.check.remark import Severity
    from medfed.client.scans.check.site_check import check_site
    from medfed.client.site_root import open_site
    from medfed.common.errors import ScanError
    from medfed.common.study import load_study
    from medfed.deploy.progress import show_progress

    site = open_site(root)
    wanted = load_study(study) if study else approved_studies(site)[0]
    show = show_progress(quiet=format is Format.JSON)
    checked = check_site(
        site,
        wanted,
        page=page.absolute() if page else None,
        on_progress=lambda done, total: show("importing", done, total),
    )
    if format is Format.JSON:
        typer.echo(json.dumps(_as_json(checked)))
    else:
        _tell(checked)
    if checked.found.severity is Severity.STOP:
        raise typer.Exit(ScanError.exit_code)


def _as_json(checked: Checked) -> dict[str, object]:
    return {
        **checked.found.as_json(),
        "files": None if checked.names is None else str(checked.names),
        "page": str(checked.page),
    }


def _tell(checked: Checked) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    colours = {"stop": "bold red", "look": "bold yellow", "fine": "bold green"}
    found, plain = checked.found, _plainly(console)
    console.print(Text(plain(found.headline), colours[found.severity]))
    console.print()
    _tell_labels(console, found, plain)
    console.print()
    _tell_remarks(console, found, colours, plain)
    console.print("These numbers are for you; none of them leaves the site.")
    if checked.names is not None:
        console.print(Text(f"Files: {plain(str(checked.names))}"), soft_wrap=True)
    console.print(Text(f"Page:  {plain(str(checked.page))}"), soft_wrap=True)


def _tell_labels(console: Console, found: Examination, plain: Callable[[str], str]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from medfed.client.scans.scanset import PARTS

    overview = found.overview
    shown = Table(box=box.ASCII2, show_edge=False, pad_edge=False, header_style="")
    shown.add_column("label")
    for part in PARTS:
        shown.add_column(part, justify="right")
    shown.add_column("scans", justify="right")
    for name, patients, scans in zip(
        overview.study.task.labels, overview.patients.tolist(), overview.scans, strict=True
    ):
        numbers = [f"{number:,}" for number in (*patients, int(scans.sum()))]
        shown.add_row(Text(plain(name)), *numbers)
    totals = [*overview.patients_of_part.tolist(), overview.total]
    shown.add_row("all", *(f"{number:,}" for number in totals), style="bold")
    console.print(shown)
    console.print(f"({overview.units} by part; scans in all)")


def _tell_remarks(
    console: Console,
    found: Examination,
    colours: dict[str, str],
    plain: Callable[[str], str],
) -> None:
    from rich.padding import Padding
    from rich.text import Text

    for remark in found.remarks:
        words = Text(f"{remark.severity.upper():5} ", colours[remark.severity])
        words.append(plain(remark.text), "default not bold")
        console.print(words)
        if remark.next_step:
            console.print(Padding(Text(plain(remark.next_step), "dim"), (0, 0, 0, 6)))
    console.print()


def _plainly(console: Console) -> Callable[[str], str]:
    """Make the function that makes words fit for a console, also for an old one."""
    from medfed.common.report.words import clean

    fine = str.maketrans({"“": '"', "”": '"', "–": "-", "×": "x", "·": "-"})
    known = console.encoding

    def plain(words: str) -> str:
        return clean(words).translate(fine).encode(known, "replace").decode(known)

    return plain
