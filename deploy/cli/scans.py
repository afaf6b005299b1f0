"""Commands for a hospital's scans: what there is, what is fetched, what may be given away."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfed.deploy.cli import scans_check, scans_import, scans_pull
from medfed.deploy.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from medfed.client.scans.deidentify import Outcome

scans_app = typer.Typer(
    help="Commands for a hospital's scans: check, import, pull, deidentify.", no_args_is_help=True
)


class Dates(StrEnum):
    """What becomes of dates."""

    REMOVE = "remove"
    SHIFT = "shift"


def register(app: typer.Typer) -> None:
    """Add the commands for scans to the program."""
    scans_check.register(scans_app)
    scans_import.register(scans_app)
    scans_pull.register(scans_app)
    app.add_typer(scans_app, name="scans")


@scans_app.command()
def deidentify(
    source: Annotated[Path, typer.Argument(help="Folder of DICOM files; only read.")],
    target: Annotated[Path, typer.Argument(help="New folder for the clean files.")],
    key: Annotated[
        Path,
        typer.Option(
            help="Secret key of the new names; made if there is none. The same key gives the "
            "same names; whoever has it can test whose a file is.",
        ),
    ],
    dates: Annotated[
        Dates,
        typer.Option(help="shift: keep days of examination, each patient's moved differently."),
    ] = Dates.REMOVE,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in a target that holds an earlier run's files.")
    ] = False,
    label_column: Annotated[
        str, typer.Option(help="Column of the labels in the source's worklist.csv.")
    ] = "label",
    format: FormatOption = Format.TEXT,
) -> None:
    """Write DICOM images without what names a patient (PS3.15 basic profile, all levels).

    Headers are cleaned, pictures are not looked at: look at them before you give them away. Where
    the source has a worklist.csv the target gets one: the new names, the labels and the split.

    Example: medfed scans deidentify /data/scans /data/clean --key /secure/export.key
    """
    from medfed.client.scans.deidentify import deidentify_folder
    from medfed.deploy.progress import show_progress

    show = show_progress(quiet=format is Format.JSON)
    done = deidentify_folder(
        source,
        target,
        key,
        shift_dates=dates is Dates.SHIFT,
        resume=resume,
        label_column=label_column,
        seen=lambda looked_at, total: show("de-identifying", looked_at, total),
    )
    if format is Format.JSON:
        typer.echo(json.dumps(_as_json(done)))
        return
    _tell(done, target, key)


def _as_json(done: Outcome) -> dict[str, object]:
    return {
        "written": done.written,
        "patients": done.patients,
        "may_show_text": done.may_show_text,
        "left_out": dict(done.left_out),
        "labelled": done.labelled,
        "label_notes": dict(done.label_notes),
    }


def _tell(done: Outcome, target: Path, key: Path) -> None:
    left_out = sum(done.left_out.values())
    typer.echo(
        f"{done.written} files of {done.patients} patients are in {target}"
        + (f"; {left_out} files were left out:" if left_out else ".")
    )
    for reason, count in sorted(done.left_out.items()):
        typer.echo(f"  left out    {count:7} {reason}")
    if done.labelled is not None:
        typer.echo(f"{done.labelled} of the files there have a label in its worklist.csv.")
    for note, count in sorted(done.label_notes.items()):
        typer.echo(f"  no label    {count:7} {note}")
    if done.may_show_text:
        typer.secho(
            f"Warning: {done.may_show_text} are of kinds that often have text in the picture "
            "(ultrasound, photographs, screen shots).",
            fg=typer.colors.YELLOW,
        )
    typer.echo(
        "The pictures themselves were not changed: look at them for names and faces before they\n"
        f"leave. Keep {key} secret: with it a new name can be tested against an old one."
    )
