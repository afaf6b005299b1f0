"""Commands of a researcher: the demo, simulations, audits; study files are in ``study.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfed.deploy.cli import study
from medfed.deploy.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from medfed.common.report.content import RunReport


def register(app: typer.Typer) -> None:
    """Add the commands of a researcher to the program."""
    app.command()(demo)
    app.command()(simulate)
    app.command()(audit_privacy)
    app.add_typer(study.app, name="study")


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


def audit_privacy(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    site: Annotated[
        list[str] | None,
        typer.Option(help="A site whose declared numbers to audit; again for more. Default: all."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Seeded noise, to repeat an audit. Default: a site's secret noise."
        ),
    ] = None,
    canaries: Annotated[
        int, typer.Option(min=100, max=20_000, help="More bound epsilon more tightly.")
    ] = 4000,
    threads: Annotated[int, typer.Option(min=1, help="Threads that train.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="A file for the result, as JSON with the study's digest.")
    ] = None,
    format: FormatOption = Format.TEXT,
) -> None:
    """Test the code that protects patients against what a study claims of it.

    Planted synthetic patients measure what one of them can move, the noise and the sampling;
    planted canaries bound epsilon from below. Reads no patient's data. Ends with exit code 11
    if a check fails, so that a release can depend on it.

    Example: medfed audit-privacy study.toml --out audit.json
    """
    import torch

    from medfed.common.errors import PrivacyError
    from medfed.common.study import load_study
    from medfed.simulations.privacy_audit.audit import audit_study
    from medfed.simulations.privacy_audit.result import audit_json
    from medfed.simulations.privacy_audit.show import print_audit

    checked = load_study(study)
    torch.set_num_threads(threads)
    result = audit_study(
        checked,
        sites=tuple(site or ()),
        seed=seed,
        canaries=canaries,
        device=device,
        progress=_progress(format),
    )
    if out is not None:
        _write_result(out, audit_json(result))
    if format is Format.JSON:
        typer.echo(audit_json(result), nl=False)
    else:
        print_audit(result)
    if not result.passed:
        names = "; ".join(f"{check.site}: {check.name}" for check in result.failed)
        raise PrivacyError(
            f"study {checked.name!r}: {len(result.failed)} of {len(result.checks)} checks of the "
            f"privacy mechanism failed ({names}). Its epsilon cannot be relied on.",
            advice="release nothing that this installation trained; compare it with a clean "
            "installation of the same version.",
        )


def _write_result(path: Path, text: str) -> None:
    from medfed.common.errors import ConfigError
    from medfed.common.files import write_atomically

    try:
        write_atomically(path, text.encode("ascii"), mode=0o644)
    except OSError as error:
        raise ConfigError(
            f"--out {path}: cannot be written ({error.strerror}).",
            advice="name a file in a folder that exists.",
        ) from error


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
