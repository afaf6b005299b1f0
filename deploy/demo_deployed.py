"""The demo as a deployment: a server and a client per hospital, each its own process.

What is started here by one command is what a coordinator and three site admins would type on
four machines: ``medfed server``, ``medfed site init``, ``medfed enrol approve``, ``medfed site
approve``, ``medfed client`` and ``medfed launch``. Noise and coins are secret, as in a hospital.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medfed.client.approvals import approve
from medfed.client.site_root import create_site, open_site
from medfed.common.errors import CohortError, TransportError
from medfed.common.exact_metrics import figure_with_interval
from medfed.common.networks.build import describe_device, pick_device
from medfed.common.networks.parameters import network_for, parameters_of
from medfed.common.processes import Child, end_children, free_port, start_child
from medfed.common.report.content import RunReport
from medfed.common.report.preparation import preparation
from medfed.common.study import Study
from medfed.common.trust.keys import read_public_key
from medfed.common.updates import Parameters, decode, shapes_of
from medfed.deploy.demo import Progress
from medfed.server.control_client import ControlClient
from medfed.server.data_root import DataRoot
from medfed.server.journal import RunStatus
from medfed.server.result import evaluations_in, history_of, outcome_of
from medfed.simulations.evaluate import Judge
from medfed.simulations.experiment import (
    Models,
    Plan,
    Stopwatch,
    models_alone,
    privacy_statement,
    site_rows,
    source_notes,
)
from medfed.simulations.sources import Source

_START_LIMIT_S = 90.0
_POLICY = "[policy]\nepsilon_limit = 10.0\ndelta_limit = 0.001\n"


def run_deployed_demo(
    folder: Path, study: Study, hospitals: Path, source: Source, *, progress: Progress
) -> RunReport:
    """Start server and clients, launch the study, wait for it, end them all.

    Args:
        folder: Gets ``deployment/`` with a data root per party, and the model.
        study: The study.
        hospitals: One folder of scans per site.
        source: The same scans, read; for the tests at the end, which the demo may see.
        progress: Told (what, done, of how many).

    Raises:
        TransportError: the server did not start.
        CohortError: too few of the clients stayed to the end.

    Guarantee:
        When this returns or raises, every process it started has ended.
    """
    place = folder.absolute() / "deployment"
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)
    clock = Stopwatch()
    with _started_server(place, progress) as (server, control):
        with clock.phase("enrolling the hospitals"):
            roots = _make_sites(place, study, hospitals, server, control)
        clients = [_start_client(place, name, root) for name, root in roots.items()]
        try:
            with clock.phase("training"):
                status = _follow(control, study, clients, progress)
        finally:
            end_children(clients)
    run = DataRoot(place / "server").run_folder(status.run)
    return _report(folder, study, source, status, run, clock, progress)


@contextmanager
def _started_server(place: Path, progress: Progress) -> Iterator[tuple[str, ControlClient]]:
    """A running ``medfed server``: its address for the sites, and its control service."""
    progress("starting the server", 0, 1)
    port, control_port = free_port(), free_port()
    command = [*_MEDFED, "server", "--root", str(place / "server")]
    ports = ["--port", str(port), "--control-port", str(control_port)]
    log = place / "server.log"
    server = start_child([*command, *ports], name="medfed server", output=log)
    try:
        control = _wait_for_control(server, DataRoot(place / "server").coordinator, log)
        with control:
            progress("starting the server", 1, 1)
            yield f"127.0.0.1:{port}", control
    finally:
        server.end()


_MEDFED = [sys.executable, "-m", "medfed.deploy.cli"]


def _wait_for_control(server: Child, access: Path, log: Path) -> ControlClient:
    until = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < until and server.exit_code() is None:
        if "The server answers" in log.read_text(encoding="utf-8", errors="replace"):
            return ControlClient(access)
        time.sleep(0.2)
    raise TransportError(
        f"the demo's server did not start within {_START_LIMIT_S:.0f} s.",
        advice=f"read {log}.",
    )


def _make_sites(
    place: Path, study: Study, hospitals: Path, server: str, control: ControlClient
) -> dict[str, Path]:
    """For each hospital: its data root, its limits, its enrolment, its approval."""
    ca = DataRoot(place / "server").trust / "ca.pem"
    roots = {}
    for site in study.site:
        root = place / f"site-{site.name}"
        scans, witness = hospitals / site.name, place / f"witness-{site.name}.json"
        made = create_site(root, name=site.name, scans=scans, server=server, ca=ca, witness=witness)
        settings = root / "site.toml"
        text = settings.read_text(encoding="utf-8")
        settings.write_text(text.replace("[policy]\n", _POLICY, 1), encoding="utf-8")
        approve(open_site(root), study)
        control.enrol(site.name, read_public_key(made.public_key))
        roots[site.name] = root
    return roots


def _start_client(place: Path, site: str, root: Path) -> Child:
    command = [*_MEDFED, "client", "--site", site, "--root", str(root)]
    return start_child(command, name=f"client {site}", output=place / f"client-{site}.log")


def _follow(
    control: ControlClient, study: Study, clients: list[Child], progress: Progress
) -> RunStatus:
    run, _ = control.launch(study.canonical())
    status = control.status(run)
    for status in control.watch(run):
        done = status.rounds if status.ended else status.round - 1
        progress("training at three hospitals", done, status.rounds)
    if status.state not in ("finished", "incomplete"):
        gone = [child.name for child in clients if child.exit_code() is not None]
        raise CohortError(
            f"the run gave no model: {status.headline}. Ended too early: "
            f"{', '.join(gone) or 'no client'}.",
            advice="read the .log files in the demo's folder `deployment`.",
        )
    return status


def _report(
    folder: Path,
    study: Study,
    source: Source,
    status: RunStatus,
    run: Path,
    clock: Stopwatch,
    progress: Progress,
) -> RunReport:
    model_path = run / "model.safetensors"
    model = _read_model(study, model_path)
    plan = Plan()
    with clock.phase("training each site alone"):
        alone = models_alone(study, source.own, plan, progress)
    with clock.phase("testing"):
        result = (run / "result.json").read_bytes()
        history = history_of(result)
        tests = {name: source.test_of(scans) for name, scans in source.own.items()}
        rows = site_rows(study, source.own, tests, history, Models(model, alone), "auto")
        device = pick_device("auto")
        pooled = figure_with_interval(
            Judge(study, source.test, device).score(model), positive=study.task.positive_index
        )
    return RunReport(
        title="medfed demo --deploy",
        headline=status.headline,
        outcome=outcome_of(result),
        study_name=study.name,
        study_digest=study.digest,
        purpose=study.study.purpose,
        metric=study.metric,
        network=study.network.name,
        device=describe_device(device),
        randomness="secret",
        privacy_statement=privacy_statement(study, source.unit),
        sites=rows,
        model_path=str(model_path),
        pooled=pooled,
        evaluations=evaluations_in(result),
        preparation=preparation(study.scans, study.augmentation),
        notes=tuple(source_notes(study, source, source.own)),
        seconds=clock.seconds,
    )


def _read_model(study: Study, path: Path) -> Parameters:
    shapes = shapes_of(parameters_of(network_for(study)))
    return decode(path.read_bytes(), shapes, who="the server")
