"""The demo: three synthetic hospitals, written as DICOM, train one model end to end.

With ``--deploy`` the same study runs as it would between institutions: a server and one client
per hospital as processes of their own, TLS, enrolment and approval, on loopback.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from medfed.common.errors import ConfigError
from medfed.common.report.content import RunReport
from medfed.common.study import Study, parse_study

PATIENTS_PER_SITE = 250

Progress = Callable[[str, int, int], None]


def demo_study() -> Study:
    """The study that the demo runs: ``simulations/studies/phantoms.toml``."""
    text = (files("medfed.simulations") / "studies" / "phantoms.toml").read_text(encoding="utf-8")
    return parse_study(text, source="phantoms.toml")


def run_demo(folder: Path, *, deploy: bool, seed: int, progress: Progress) -> RunReport:
    """Write the hospitals if they are not there yet, train, evaluate, compare.

    Args:
        folder: Gets ``hospitals/``, the model and, with ``deploy``, the data roots.
        deploy: With processes instead of in one.
        seed: Chooses the synthetic patients.
        progress: Told (what, done, of how many).

    Raises:
        ConfigError: the folder cannot be written.
    """
    from medfed.simulations.experiment import Plan, run_experiment  # noqa: PLC0415  loads torch
    from medfed.simulations.simulate import Execution, use_threads  # noqa: PLC0415  loads torch
    from medfed.simulations.sources import open_source  # noqa: PLC0415  loads torch

    study = demo_study()
    hospitals = prepare_hospitals(folder, study, seed=seed, progress=progress)
    use_threads(1)
    source = open_source(hospitals, study)
    progress("reading the scans", 1, 1)
    if deploy:
        from medfed.deploy.demo_deployed import run_deployed_demo  # noqa: PLC0415  loads flwr

        return run_deployed_demo(folder, study, hospitals, source, progress=progress)
    workers = min(len(study.site), os.cpu_count() or 1)
    plan = Plan(seeds=(seed,), curve=True, alone=True, execution=Execution(seed, workers))
    return run_experiment(study, source, plan, out=folder, title="medfed demo", progress=progress)


def prepare_hospitals(folder: Path, study: Study, *, seed: int, progress: Progress) -> Path:
    """Write the synthetic hospitals, or take those of an earlier demo with the same seed.

    Returns:
        The folder with one folder per site.

    Guarantee:
        A demo that was interrupted while writing leaves nothing that a later one would take
        for complete.
    """
    from medfed.simulations.phantoms import write_hospitals  # noqa: PLC0415  loads pydicom

    hospitals = folder / "hospitals"
    made_of = hospitals / "made-of.json"
    sites = [site.name for site in study.site]
    wanted = json.dumps({"seed": seed, "sites": sites, "patients": PATIENTS_PER_SITE, "version": 1})
    if made_of.is_file() and made_of.read_text(encoding="utf-8") == wanted:
        return hospitals
    progress("writing DICOM files of three hospitals", 0, 1)
    part = folder / ".hospitals.part"
    try:
        for old in (part, hospitals):
            if old.exists():
                shutil.rmtree(old)
        write_hospitals(part, sites=sites, seed=seed, patients_per_site=PATIENTS_PER_SITE)
        (part / "made-of.json").write_text(wanted, encoding="utf-8")
        part.rename(hospitals)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise ConfigError(
            f"{folder}: the demo's files cannot be written ({error.strerror}).",
            advice="choose another place with --folder.",
        ) from error
    progress("writing DICOM files of three hospitals", 1, 1)
    return hospitals
