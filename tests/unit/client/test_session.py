"""What a site answers: paid updates, the same bytes again, and codes instead of texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medfed.client.ledger import Ledger
from medfed.client.release import PublicFact
from medfed.client.session import RoundRequest, SiteSession
from medfed.common.errors import ApprovalError, ScanError
from medfed.common.networks.parameters import network_for, parameters_of
from medfed.common.refusals import REFUSALS
from medfed.common.study import Study
from medfed.common.updates import decode, encode, shapes_of
from medfed.simulations.seeded import SeededRandomness
from tests.support.sites import make_study
from tests.support.virtual_sites import bright_and_dark

STUDY = make_study()


def session(ledger: Ledger | None = None, **changes: object) -> SiteSession:
    made = SiteSession(
        site="A",
        study_for=approved,
        scans_for=lambda study: bright_and_dark(30),
        randomness_for=lambda key: SeededRandomness(str(np.random.default_rng().random())),
        ledger=ledger or Ledger(None, site="A"),
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # fields by name


def approved(digest: str) -> Study:
    if digest != STUDY.digest:
        raise ApprovalError("site 'A': Anna Mustermann's study is not approved")
    return STUDY


def request(**changes: object) -> RoundRequest:
    start = encode(parameters_of(network_for(STUDY)))
    return replace(RoundRequest(STUDY.digest, "run-1", 1, start), **changes)  # type: ignore[arg-type]  # fields by name


def test_an_approved_round_gives_an_update_of_the_networks_shapes() -> None:
    released = session().answer(request())

    assert released.code is None and released.payload is not None
    decode(released.payload, shapes_of(parameters_of(network_for(STUDY))), who="site A")


def test_asking_again_gives_the_same_bytes_though_the_noise_is_fresh(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db", site="A")
    first = session(ledger).answer(request())
    after_a_restart = session(Ledger(tmp_path / "ledger.db", site="A")).answer(request())

    assert first.payload == after_a_restart.payload
    assert ledger.rounds_paid(STUDY.digest) == 1


def test_a_second_base_model_for_a_paid_round_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db", site="A")
    session(ledger).answer(request())
    other = {n: a + 1 for n, a in parameters_of(network_for(STUDY)).items()}

    released = session(ledger).answer(request(model=encode(other)))

    assert released.payload is None
    assert released.code == PublicFact.REFUSED_BY_POLICY.value
    assert ledger.rounds_paid(STUDY.digest) == 1


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"digest": "0" * 64}, PublicFact.NOT_APPROVED),
        ({"round": STUDY.training.rounds + 1}, PublicFact.REFUSED_BY_POLICY),
        ({"round": 0}, PublicFact.REFUSED_BY_POLICY),
        ({"round": -1}, PublicFact.REFUSED_BY_POLICY),
        ({"round": 10**30}, PublicFact.REFUSED_BY_POLICY),
        ({"model": b"no safetensors"}, PublicFact.WRONG_MESSAGE),
    ],
)
def test_what_was_not_agreed_is_refused_by_a_code_and_costs_nothing(
    asked: dict[str, object], code: PublicFact
) -> None:
    ledger = Ledger(None, site="A")

    released = session(ledger).answer(request(**asked))

    assert (released.payload, released.code) == (None, code.value)
    assert ledger.epsilon(1e-3) == 0.0


def test_trouble_with_the_scans_leaves_as_a_code_without_its_text() -> None:
    def scans_for(study: Study) -> None:
        raise ScanError("/pacs/MUSTERMANN^ANNA.dcm is no scan")

    released = session(scans_for=scans_for).answer(request())

    assert released.code == PublicFact.UNAVAILABLE.value
    assert "MUSTERMANN" not in repr(released)


def test_a_site_that_is_not_in_the_study_does_not_train() -> None:
    assert session(site="Z").answer(request()).code == PublicFact.NOT_APPROVED.value


def test_approval_is_asked_for_every_round_so_that_it_can_be_withdrawn() -> None:
    given = [True]

    def study_for(digest: str) -> Study:
        if not given[0]:
            raise ApprovalError("withdrawn")
        return STUDY

    site = session(study_for=study_for)
    assert site.answer(request()).payload is not None
    given[0] = False
    assert site.answer(request(round=2)).code == PublicFact.NOT_APPROVED.value


def test_the_ceiling_stops_the_round_that_would_pass_it() -> None:
    # One round of this study (2 steps at q = 8/40, sigma = 1, delta 1e-3) costs about 1.7.
    ledger = Ledger(None, site="A", epsilon_limit=0.5, delta_limit=1e-3)

    assert session(ledger).answer(request()).code == PublicFact.REFUSED_BY_POLICY.value
    assert ledger.epsilon(1e-3) == 0.0


def test_one_approval_buys_one_schedule_whatever_the_runs_are_called() -> None:
    # Found by an attack: each new run name, and each round below 1, bought another training.
    ledger = Ledger(None, site="A")
    site = session(ledger)

    codes = [
        site.answer(request(run=f"run-{run}", round=round_)).code
        for run in range(3)
        for round_ in (1, 2)
    ]

    assert codes == [None, None] + [PublicFact.REFUSED_BY_POLICY.value] * 4
    assert ledger.rounds_paid(STUDY.digest) == STUDY.training.rounds == 2


def test_of_a_defect_not_even_the_class_leaves(caplog: pytest.LogCaptureFixture) -> None:
    def scans_for(study: Study) -> None:
        raise MemoryError("MUSTERMANN^ANNA has 60 scans")

    released = session(scans_for=scans_for).answer(request())

    assert released.code == PublicFact.UNAVAILABLE.value
    assert "MemoryError" in caplog.text and "MUSTERMANN" not in caplog.text


def test_every_code_a_site_may_send_has_words_at_the_server_and_no_other() -> None:
    assert {fact.value for fact in PublicFact} == set(REFUSALS)
