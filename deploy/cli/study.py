"""Commands about study files: write one, show it, sign it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medfed.deploy.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from medfed.common.signed_study import StudyFile
    from medfed.common.study import Study

app = typer.Typer(help="Write, read and sign study files.", no_args_is_help=True)


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="The file to write.")],
) -> None:
    """Write a study file with every key explained, to be edited.

    Example: medfed study new study.toml
    """
    from importlib.resources import files

    from medfed.common.errors import ConfigError
    from medfed.common.study import parse_study

    text = (files("medfed.common") / "study_template.toml").read_text(encoding="utf-8")
    parse_study(text, source="template")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            f"{path}: exists already; it is not overwritten.", advice="choose another name."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}).", advice="choose another folder."
        ) from error
    typer.echo(f"Wrote {path}. Edit it, then read it back with `medfed study show {path}`.")


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="The study file: TOML, or signed.")],
    html: Annotated[
        Path | None, typer.Option(help="Write a page for those who decide about the study.")
    ] = None,
    format: FormatOption = Format.TEXT,
) -> None:
    """Check a study file, say what it means for a patient of each site, and who signed it.

    Example: medfed study show study.toml --html study.html
    """
    from medfed.common.signed_study import read_study_file

    file = read_study_file(path)
    if html is not None:
        _write_page(file, html)
    if format is Format.JSON:
        typer.echo(json.dumps(study_json(file)))
        return
    say_study(file.study)
    signed = file.fingerprint
    typer.echo(
        f"  signed   by {signed}; compare with what the coordinator reads out by phone"
        if signed
        else "  signed   by nobody"
    )
    if html is not None:
        typer.echo(f"Wrote {html}.")


@app.command()
def sign(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    coordinator: Annotated[
        Path, typer.Option(help="The coordinator's own folder, on no server.")
    ] = Path("medfed-coordinator"),
    out: Annotated[
        Path | None, typer.Option(help="The file to write.", show_default="NAME-SERIAL.study.json")
    ] = None,
    format: FormatOption = Format.TEXT,
) -> None:
    """Sign a study, so that the sites know whose it is; for the coordinator.

    Example: medfed study sign study.toml --coordinator medfed-coordinator
    """
    from medfed.common.signed_study import sign_study
    from medfed.common.study import load_study
    from medfed.common.trust.signatures import read_signing_key
    from medfed.deploy.coordinator_root import Coordinator

    read = load_study(study)
    office = Coordinator(coordinator)
    with office.held() as desk:
        signed = sign_study(read_signing_key(office.study_key), desk.root, read)
        fingerprint = desk.root.fingerprint
    path = out or Path(f"{read.name}-{read.study.serial}.study.json")
    _write_signed(path, signed)
    if format is Format.JSON:
        told = {"file": str(path), "digest": read.digest, "fingerprint": fingerprint}
        typer.echo(json.dumps(told))
        return
    typer.echo(
        f"Wrote {path}: study {read.name}, serial {read.study.serial}, digest {read.digest},\n"
        f"signed by {fingerprint}. Send it to the sites; each runs\n"
        f"  medfed site receive {path.name} --root ROOT\n"
        f"  medfed site approve {read.digest[:8]} --root ROOT"
    )


def say_study(study: Study) -> None:
    """Print what a study is and what it costs a patient."""
    from medfed.common.privacy.accounting import NEIGHBOURS
    from medfed.common.privacy.mechanism import evaluation_epsilon, study_epsilon
    from medfed.common.privacy.terms import EVALUATED_PARTS
    from medfed.common.report.preparation import preparation, preparation_warnings
    from medfed.common.report.words import clean

    about = study.study
    typer.echo(f"Study {study.name}: {clean(about.purpose)}")
    typer.echo(f"  digest   {study.digest}")
    follows = f", follows {about.supersedes}" if about.supersedes else ""
    typer.echo(f"  serial   {about.serial}{follows}")
    if about.expires:
        typer.echo(f"  expires  at the end of {about.expires} (UTC)")
    typer.echo(f"  decides  {', '.join(study.task.labels)}, by {study.network.name}")
    for name, line in preparation(study.scans, study.augmentation):
        typer.echo(f"  {name.lower():9}{line}")
    typer.echo(f"  rounds   {study.training.rounds}, quorum {study.cohort.quorum}")
    for site in study.site:
        cost = (
            f"epsilon {study_epsilon(study, site):.3f} at delta {study.privacy.delta:g} "
            f"({NEIGHBOURS})"
            if study.private
            else "no differential privacy"
        )
        typer.echo(f"  site {site.name}: {site.declared_patients} declared patients; {cost}")
    for part in EVALUATED_PARTS:
        if spent := evaluation_epsilon(study, part):
            typer.echo(
                f"  {part} patients, for score histograms: epsilon {spent:.3f} at the same delta"
            )
    for warning in preparation_warnings(study.augmentation):
        typer.echo(f"  Warning: {warning}")


def study_json(file: StudyFile) -> dict[str, Any]:
    """The same for programs."""
    from medfed.common.privacy.mechanism import evaluation_epsilon, study_epsilon
    from medfed.common.privacy.terms import EVALUATED_PARTS
    from medfed.common.report.preparation import preparation_warnings

    study = file.study
    return {
        "digest": study.digest,
        "study": study.model_dump(mode="json"),
        "signed_by": file.fingerprint,
        "epsilon": {s.name: study_epsilon(study, s) if study.private else None for s in study.site},
        "evaluation_epsilon": {part: evaluation_epsilon(study, part) for part in EVALUATED_PARTS},
        "warnings": preparation_warnings(study.augmentation),
    }


def _write_page(file: StudyFile, path: Path) -> None:
    from medfed.common.errors import ConfigError
    from medfed.common.files import write_atomically
    from medfed.common.networks.message_sizes import message_sizes
    from medfed.common.report.study_page import study_page

    page = study_page(file, message_sizes(file.study))
    try:
        write_atomically(path, page.encode("utf-8", "replace"), mode=0o644)  # all of it is public
    except OSError as error:
        raise ConfigError(
            f"--html {path}: cannot be written ({error.strerror}).",
            advice="name a file in a folder that exists.",
        ) from error


def _write_signed(path: Path, data: bytes) -> None:
    from medfed.common.errors import ConfigError
    from medfed.common.files import write_atomically

    try:
        if path.exists() and path.read_bytes() != data:
            raise ConfigError(
                f"{path}: exists already, and is another study; it is not overwritten.",
                advice="count the serial up, or give another file as --out.",
            )
        write_atomically(path, data, mode=0o644)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}).",
            advice="name a file in a folder that exists.",
        ) from error
