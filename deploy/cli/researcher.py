"""Commands of a researcher: the demo, simulations, and study files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfed.deploy.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from medfed.common.report.content import RunReport


study_app = typer.Typer(help="Write and read study files.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands of a researcher to the program."""
    app.command()(demo)
    app.command()(simulate)
    app.add_typer(study_app, name="study")


def demo(
    folder: Annotated[Path, typer.Option(help="Where scans, model and report go.")] = Path(
        "medfed-demo"
    ),
    deploy: Annotated[
        bool, typer.Option("--deploy", help="With a server and a client process per hospital.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Makes other patients.")] = 0,
    format: FormatOption = Format.TEXT,
) -> None:
    """Three synthetic hospitals train one model on DICOM files, end to end.

    Example: medfed demo
    """
    from medfed.deploy.demo import run_demo

    _finish(run_demo(folder, deploy=deploy, seed=seed, progress=_progress(format)), folder, format)


def simulate(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    data: Annotated[
        Path,
        typer.Option(
            help="An .npz file or a folder with a worklist.csv, dealt to the sites; or a folder "
            "with one such folder per site."
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs, each with a seed.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    partition: Annotated[str, typer.Option(help="iid, or dirichlet:ALPHA.")] = "iid",
    alone: Annotated[bool, typer.Option("--alone", help="Compare with each site alone.")] = False,
    curve: Annotated[bool, typer.Option("--curve", help="Test after every round.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Sites at a time; 0: one per core.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads per site.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Where model and report go. Default: medfed-results/STUDY.")
    ] = None,
    format: FormatOption = Format.TEXT,
) -> None:
    """Run a study with many sites on this machine, through the real server and client code.

    The randomness is seeded, so that a run can be repeated; its model is never released.

    Example: medfed simulate study.toml --data scans.npz --seeds 3
    """
    import os

    from medfed.common.study import load_study
    from medfed.simulations.experiment import Plan, run_experiment
    from medfed.simulations.simulate import Execution, use_threads
    from medfed.simulations.sources import open_source

    checked = load_study(study)
    use_threads(threads)
    source = open_source(data, checked)
    workers = workers or min(len(checked.site), os.cpu_count() or 1)
    plan = Plan(
        seeds=tuple(range(seed, seed + seeds)),
        partition=partition,
        curve=curve,
        alone=alone,
        execution=Execution(seed, workers, device),
    )
    folder = out or Path("medfed-results") / checked.name
    report = run_experiment(
        checked, source, plan, out=folder, title="medfed simulate", progress=_progress(format)
    )
    _finish(report, folder, format)


def _finish(report: RunReport, folder: Path, format: Format) -> None:
    """Write the page, print the report, the figures last; exit as the run ended."""
    from dataclasses import replace

    from medfed.common.report.as_json import report_json
    from medfed.common.report.page import write_page
    from medfed.common.report.terminal import print_report
    from medfed.server.rounds import EXIT_CODES
    from medfed.simulations.experiment import figures

    page = folder / "report.html"
    report = replace(report, page_path=str(page))
    write_page(report, page)
    if format is Format.JSON:
        typer.echo(report_json(report))
    else:
        print_report(report)
        typer.echo()
        for name, value in figures(report).items():
            typer.echo(f"{name}: {value:.4f}")
    if report.outcome != "finished":
        raise typer.Exit(EXIT_CODES[report.outcome])


def _progress(format: Format) -> Callable[[str, int, int], None]:
    from medfed.deploy.progress import show_progress

    return show_progress(quiet=format is Format.JSON)


@study_app.command()
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


@study_app.command()
def show(
    path: Annotated[Path, typer.Argument(help="The study file.")],
    format: FormatOption = Format.TEXT,
) -> None:
    """Check a study file and say what it means for a patient of each site.

    Example: medfed study show study.toml
    """
    from medfed.common.privacy.accounting import NEIGHBOURS
    from medfed.common.privacy.mechanism import study_epsilon
    from medfed.common.study import load_study

    study = load_study(path)
    epsilons = {s.name: study_epsilon(study, s) if study.private else None for s in study.site}
    if format is Format.JSON:
        facts = {"digest": study.digest, "study": study.model_dump(mode="json")}
        typer.echo(json.dumps({**facts, "epsilon": epsilons}))
        return
    typer.echo(f"Study {study.name}: {study.study.purpose}")
    typer.echo(f"  digest   {study.digest}")
    typer.echo(f"  decides  {', '.join(study.task.labels)}, by {study.network.name}")
    typer.echo(f"  rounds   {study.training.rounds}, quorum {study.cohort.quorum}")
    for site in study.site:
        epsilon = epsilons[site.name]
        cost = (
            "no differential privacy"
            if epsilon is None
            else f"epsilon {epsilon:.3f} at delta {study.privacy.delta:g} ({NEIGHBOURS})"
        )
        typer.echo(f"  site {site.name}: {site.declared_patients} declared patients; {cost}")
