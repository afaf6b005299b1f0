"""Many hospitals on one machine, through the real server and client code.

The rounds (``server/run_study.py``), the messages (``flower_app.py`` on both sides), the sites
(``client/session.py``) and their ledgers are what a deployment runs. Replaced are the network
between them (``grid.py``) and, because a researcher must be able to repeat a run, the source
of randomness: it is seeded, and every result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from medfed.client.flower_app import build_app
from medfed.client.ledger import Ledger, RoundKey
from medfed.client.scans.scanset import ScanSet
from medfed.client.session import SiteSession
from medfed.common.errors import ApprovalError
from medfed.common.privacy.terms import terms_of
from medfed.common.study import Study
from medfed.common.updates import Parameters
from medfed.server.flower_app import GridLink
from medfed.server.rounds import RunState
from medfed.server.run_study import RunResult, StudyRun
from medfed.simulations.grid import InProcessGrid
from medfed.simulations.seeded import SeededRandomness


@dataclass(frozen=True)
class Execution:
    """How a simulation is run, which changes its speed but not its meaning.

    Attributes:
        seed: Public; chooses initial weights, sampling and noise.
        workers: Sites that train at the same time.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    seed: int = 0
    workers: int = 1
    device: str = "auto"


def simulate(
    study: Study,
    site_scans: Mapping[str, ScanSet],
    execution: Execution,
    *,
    folder: Path | None = None,
    on_change: Callable[[RunState], None] = lambda state: None,
    on_model: Callable[[int, Parameters], None] = lambda round_, model: None,
) -> RunResult:
    """Run a study with one virtual site per entry of ``site_scans``.

    Args:
        study: The study; its sites are the keys of ``site_scans``.
        site_scans: Site -> its scans.
        execution: Seed, threads and device.
        folder: Where the model is written after each round; None: nowhere.
        on_change: Told every state of the run.
        on_model: Told every released model with its round.

    Returns:
        The run's result. Its model is seeded: it protects nobody and is never released.
    """
    apps = {
        site: build_app(simulated_session(study, site, scans, execution))
        for site, scans in site_scans.items()
    }
    grid = InProcessGrid(apps, workers=execution.workers)
    try:
        link = GridLink(grid, study, "simulation", lambda: grid.node_of)
        return StudyRun(
            study,
            link,
            folder=folder,
            on_change=on_change,
            on_model=on_model,
            seed=execution.seed,
        ).run()
    finally:
        grid.close()


def simulated_session(study: Study, site: str, scans: ScanSet, execution: Execution) -> SiteSession:
    """A site that trains one study on given scans with seeded randomness."""

    def study_for(digest: str) -> Study:
        if digest != study.digest:
            raise ApprovalError(f"site {site!r} takes part in study {study.name!r} only.")
        return study

    ledger = Ledger.in_memory(site)
    ledger.approve(study.digest, study.name, terms_of(study, study.site_named(site)), None)
    return SiteSession(
        site=site,
        study_for=study_for,
        scans_for=lambda _: scans,
        randomness_for=lambda key: seeded_for(execution.seed, site, key),
        ledger=ledger,
        prefer_device=execution.device,
    )


def seeded_for(seed: int, site: str, key: RoundKey) -> SeededRandomness:
    """The randomness of one site in one round of a repeatable run."""
    about = "" if key.purpose == "train" else f" purpose={key.purpose}"
    return SeededRandomness(
        f"medfed seed={seed} study={key.digest} site={site} round={key.round}{about}"
    )


def use_threads(count: int) -> None:
    """Set how many threads one site's training uses; 1 makes runs repeat bit for bit."""
    torch.set_num_threads(count)
