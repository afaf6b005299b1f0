"""Forty runs of a site whose process is killed (-9) once each: no Flower, a real ledger on disk.

The site's session runs in a child; this process plays the server. Each kill is aimed at a phase
of a round and hits at a random moment; what it hit is what the child told last.
"""

from __future__ import annotations

import hashlib
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from medfed.client.session import RoundRequest
from medfed.client.site_root import SiteRoot
from medfed.common.networks.parameters import network_for, parameters_of
from medfed.common.privacy.accounting import Spend, composed_epsilon
from medfed.common.privacy.mechanism import mechanism_for
from medfed.common.updates import Parameters, decode, encode, shapes_of
from tests.faults.ledger_reading import Entry, committed, entries_of, epsilon_of
from tests.faults.phases import PHASES, Phase
from tests.faults.piped_site import PIECE_BYTES, PipedSite, start_fork_server
from tests.support.sites import make_ready_site, make_study

pytestmark = pytest.mark.slow

RUNS, ROUNDS = 40, 6


@dataclass
class Run:
    """One run of the study at one site, as the server saw it.

    Attributes:
        site: The site.
        received: Round -> SHA-256 of the update that the server took.
        hit: The phase in which the site was killed; None if it was not.
        left_behind: The ledger's entries about that round, right after the kill.
        seen: What the server had of that round's update when the site was killed.
        sent_again: The update that the server took of that round, after the restart.
        lasted: Phase -> how long it lasted, seconds, in a middling round.
    """

    site: SiteRoot
    received: dict[int, str] = field(default_factory=dict)
    hit: Phase | None = None
    left_behind: list[Entry] = field(default_factory=list)
    seen: bytes = b""
    sent_again: bytes = b""
    lasted: dict[Phase, float] = field(default_factory=dict)


STUDY = make_study(("rounds = 2", f"rounds = {ROUNDS}"))


class Aim:
    """When to kill a site: once, in one round, some time after a phase began.

    A kill that comes too late hits a later phase.
    """

    def __init__(self, rng: random.Random, phase: Phase, lasts_s: float, pieces: int) -> None:
        self.round, self.phase = rng.randint(1, ROUNDS), phase
        self._after_pieces = rng.randrange(pieces) if phase == "sending" else 0
        self._after_s = 0.0 if self._after_pieces else rng.uniform(0.0, lasts_s)

    def hits(self, phase: Phase, pieces: int) -> bool:
        if phase != self.phase or pieces < self._after_pieces:
            return False
        time.sleep(self._after_s)
        return True


def run_of(folder: Path, aim: Aim | None) -> Run:
    """Run the study to its end, with one kill on the way."""
    run = Run(make_ready_site(folder, STUDY))
    model = parameters_of(network_for(STUDY))
    site = PipedSite(run.site.folder)
    try:
        for number in range(1, ROUNDS + 1):
            request = RoundRequest(STUDY.digest, "run-1", number, encode(model))
            if aim is not None and aim.round == number:
                update = site.ask(request, aim.hits)
                assert update is None, f"not killed in {aim.phase}"
                note_kill(run, site, number)
                site = PipedSite(run.site.folder)
            update = site.ask(request)
            assert update is not None
            if aim is not None and aim.round == number:
                run.sent_again = update
            run.received[number] = hashlib.sha256(update).hexdigest()
            model = moved(model, update)
        if aim is None:
            run.lasted = lasted(site)
    finally:
        site.end()
    return run


def lasted(site: PipedSite) -> dict[Phase, float]:
    return {
        phase: statistics.median(
            end - begin for begin, end in zip(site.began[phase], site.began[next_], strict=True)
        )
        for phase, next_ in pairwise(PHASES)
    }


def note_kill(run: Run, site: PipedSite, number: int) -> None:
    run.hit, run.seen = site.phase, site.partial
    run.left_behind = [e for e in entries_of(run.site) if e.round == number]


def moved(model: Parameters, update: bytes) -> Parameters:
    changes = decode(update, shapes_of(model), who="the site")
    return {name: model[name] + changes[name] for name in model}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    start_fork_server()
    return run_of(tmp_path_factory.mktemp("uninterrupted"), None)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, uninterrupted: Run) -> list[Run]:
    size = len(encode(parameters_of(network_for(STUDY))))
    made = []
    for number in range(RUNS):
        phase = PHASES[number % len(PHASES)]
        aim = Aim(
            random.Random(number), phase, uninterrupted.lasted.get(phase, 0.0), size // PIECE_BYTES
        )
        made.append(run_of(tmp_path_factory.mktemp(f"killed-{number}"), aim))
    return made


def test_every_phase_was_hit_and_every_run_was_killed_once(killed: list[Run]) -> None:
    hits = Counter(run.hit for run in killed)

    assert sum(hits.values()) == RUNS
    assert set(hits) == set(PHASES)
    assert min(hits.values()) >= 3, hits


def test_every_run_finishes_with_one_payment_a_round_for_exactly_what_the_server_got(
    killed: list[Run], uninterrupted: Run
) -> None:
    for run in [*killed, uninterrupted]:
        assert sorted(run.received) == list(range(1, ROUNDS + 1))
        assert committed(run.site, STUDY.digest) == run.received


def test_epsilon_is_that_of_an_uninterrupted_run(killed: list[Run], uninterrupted: Run) -> None:
    delta = 1e-3  # the study's
    mechanism = mechanism_for(STUDY, STUDY.site_named("A"))
    steps = ROUNDS * mechanism.steps_per_round
    schedule = Spend(mechanism.noise_multiplier, mechanism.sampling_rate, steps)
    expected = epsilon_of(uninterrupted.site, delta)

    assert expected == composed_epsilon([schedule], delta)
    assert [epsilon_of(run.site, delta) for run in killed] == [expected] * RUNS


def test_nothing_left_a_site_before_its_payment_was_on_the_disk(killed: list[Run]) -> None:
    for run in killed:
        paid = [entry for entry in run.left_behind if entry.kind == "commit"]
        if run.seen or run.hit in ("sending", "acknowledgement"):
            assert len(paid) == 1, run.hit
        if run.hit in ("reserve", "training"):
            assert paid == [], run.hit


def test_what_was_sent_in_part_is_sent_again_byte_for_byte(killed: list[Run]) -> None:
    in_part = [run for run in killed if run.seen]
    assert len(in_part) >= 3
    for run in in_part:
        assert run.sent_again.startswith(run.seen)
        paid = next(entry.payload for entry in run.left_behind if entry.kind == "commit")
        assert hashlib.sha256(run.sent_again).hexdigest() == paid


def test_an_unfinished_reservation_is_voided_and_no_other_trace_of_a_kill_is_left(
    killed: list[Run],
) -> None:
    for run in killed:
        kinds = Counter(entry.kind for entry in entries_of(run.site))
        voids = int([entry.kind for entry in run.left_behind] == ["reserve"])
        assert kinds == Counter(reserve=ROUNDS + voids, commit=ROUNDS, void=voids), run.hit
        if run.hit in ("training", "sending"):  # in the other phases either side can be hit
            assert voids == (run.hit == "training")
