"""Forty runs over real processes, each with one site killed (-9) at a random moment.

One server, several sites, each the only one of its studies. A killed site costs its run a minute
of waiting, so the sites' runs go on side by side, and each site's one after the other.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medfed.client.approvals import approve
from medfed.client.site_root import SiteRoot
from medfed.common.study import Study
from medfed.common.trust.keys import read_public_key
from tests.faults.deployment import Client, Kill, Server, running_server
from tests.faults.ledger_reading import committed, epsilon_of
from tests.faults.phases import PHASES
from tests.support.sites import make_site, make_study

pytestmark = [pytest.mark.slow, pytest.mark.network]

SITES, RUNS_EACH, ROUNDS = 8, 5, 6
DEADLINE_S = 400.0
LIMITS = "epsilon_limit = 1000.0\ndelta_limit = 1e-2\n"
DELTA = 1e-3  # the studies'
_ONE_LAUNCH = threading.Lock()  # the server makes one at a time, and a call that waits runs out


@dataclass(frozen=True)
class Run:
    """One run at one site.

    Attributes:
        digest: Of its study.
        kill: How the site was killed; None: it was not.
        result: The server's ``result.json``.
        received: Round and SHA-256 of every update that reached the server.
        paid: Round -> SHA-256 of what the site's ledger holds as paid for.
        epsilon: What the ledger says after the run, over all the site's runs.
        seconds: How long it took.
    """

    digest: str
    kill: Kill | None
    result: dict[str, Any]
    received: list[tuple[int, str]]
    paid: dict[int, str]
    epsilon: float
    seconds: float


def study_of(site: str, number: int) -> Study:
    """A study of one site; the number makes it another study, to be approved anew."""
    return make_study(
        ('name = "two_labels"', f'name = "faults_{site.lower()}_{number}"'),
        ("rounds = 2", f"rounds = {ROUNDS}"),
        ("quorum = 1", f"quorum = 1\nround_deadline_s = {DEADLINE_S}"),
        ('name = "A"', f'name = "{site}"'),
        ('[[site]]\nname = "B"\ndeclared_patients = 40\n', ""),
    )


def kills() -> list[list[Kill | None]]:
    """What befalls each run, site by site; nothing befalls the last site's."""
    planned: list[list[Kill | None]] = []
    for site in range(SITES):
        numbers = range(site * RUNS_EACH, (site + 1) * RUNS_EACH)
        planned.append(
            [
                Kill(
                    random.Random(n),
                    PHASES[n % len(PHASES)],
                    ROUNDS,
                    "worker" if (n // len(PHASES)) % 2 else "client",
                )
                for n in numbers
            ]
        )
    return [*planned, [None] * RUNS_EACH]


def runs_of(
    folder: Path, name: str, server: Server, plan: list[Kill | None], clients: list[Client]
) -> list[Run]:
    """All runs of one site, whose client the caller ends."""
    ca = server.root.trust / "ca.pem"
    site = make_site(folder, name=name, server=server.address, ca=ca, limits=LIMITS)
    server.control.enrol(name, read_public_key(site.public_key))
    approve(site, study_of(name, 0))
    clients.append(client := Client(site))
    return [one_run(server, site, client, number, kill) for number, kill in enumerate(plan)]


def one_run(server: Server, site: SiteRoot, client: Client, number: int, kill: Kill | None) -> Run:
    began, study = time.monotonic(), study_of(site.name, number)
    approve(site, study)
    with _ONE_LAUNCH:
        run, _ = server.control.launch(study.canonical())
    if kill is not None:
        kill.carry_out(client, limit_s=DEADLINE_S)
    while not (status := server.control.status(run)).ended:
        assert time.monotonic() < began + 2 * DEADLINE_S, status
        assert not client.ended, "the test was given up"
        client.told(0.5)  # what nobody hears would block the worker in the end
    return Run(
        digest=study.digest,
        kill=kill,
        result=server.result(run),
        received=server.received(run),
        paid=committed(site, study.digest),
        epsilon=epsilon_of(site, DELTA),
        seconds=time.monotonic() - began,
    )


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[list[Run]]]:
    folder, plans, clients = tmp_path_factory.mktemp("faults"), kills(), list[Client]()
    with running_server(folder) as server, ThreadPoolExecutor(len(plans)) as pool:
        waiting = [
            pool.submit(runs_of, folder / f"S{n}", f"S{n}", server, plan, clients)
            for n, plan in enumerate(plans)
        ]
        try:
            yield [made.result() for made in waiting]
        finally:
            for client in clients:
                client.end()


@pytest.fixture(scope="module")
def killed(all_runs: list[list[Run]]) -> list[Run]:
    return [run for runs in all_runs for run in runs if run.kill is not None]


def test_every_phase_was_hit_in_workers_and_in_whole_clients(killed: list[Run]) -> None:
    hits = Counter(run.kill.hit for run in killed if run.kill)
    victims = Counter(run.kill.victim for run in killed if run.kill)

    assert len(killed) == SITES * RUNS_EACH
    assert set(hits) == set(PHASES)
    assert min(hits.values()) >= 3, hits
    assert min(victims.values()) >= len(killed) // 3, victims


def test_every_run_finishes_without_a_missing_site(all_runs: list[list[Run]]) -> None:
    for run in (run for runs in all_runs for run in runs):
        said = run.kill and (run.kill.hit, run.kill.victim, run.kill.round)
        assert run.result["outcome"] == "finished", (run.result["headline"], said)
        assert len(run.result["rounds"]) == ROUNDS


def test_some_sites_had_to_be_asked_again_and_only_killed_ones(all_runs: list[list[Run]]) -> None:
    *killed, untouched = all_runs
    again = [[r["asked_again"] for r in run.result["rounds"]] for runs in killed for run in runs]

    assert sum(map(any, again)) >= 10  # half of the kills are before the update was sent
    assert not any(any(r["asked_again"] for r in run.result["rounds"]) for run in untouched)


def test_whatever_reached_the_server_was_paid_for_by_a_committed_entry(
    all_runs: list[list[Run]],
) -> None:
    for run in (run for runs in all_runs for run in runs):
        assert sorted(run.paid) == list(range(1, ROUNDS + 1))
        assert set(run.received) == set(run.paid.items())


def test_epsilon_is_that_of_uninterrupted_runs(all_runs: list[list[Run]]) -> None:
    *killed, untouched = [[run.epsilon for run in runs] for runs in all_runs]

    assert sorted(set(untouched)) == untouched  # every run costs
    assert killed == [untouched] * SITES
