"""What a site answers: paid updates, the same bytes again, and codes instead of texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medfed.client import session as module
from medfed.client.exposure import Ceiling
from medfed.client.ledger import Ledger, RoundKey
from medfed.client.release import PublicFact
from medfed.client.scans.scanset import ScanSet
from medfed.client.session import RoundRequest, SiteSession
from medfed.client.training import TrainingData
from medfed.common.errors import ApprovalError, ScanError
from medfed.common.networks.parameters import network_for, parameters_of
from medfed.common.privacy.terms import Term, Terms, terms_of
from medfed.common.refusals import REFUSALS
from medfed.common.study import Study
from medfed.common.updates import Parameters, decode, encode, fingerprint, shapes_of
from medfed.simulations.seeded import SeededRandomness
from tests.support.ledgers import LedgerPlace, memory_ledger
from tests.support.sites import make_study
from tests.support.virtual_sites import bright_and_dark

STUDY = make_study()
TERMS = terms_of(STUDY, STUDY.site_named("A"))
NAMES = tuple(bytes([number]) * 16 for number in range(1, 31))


def session(ledger: Ledger | None = None, **changes: object) -> SiteSession:
    made = SiteSession(
        site="A",
        study_for=approved,
        scans_for=lambda study: bright_and_dark(30),
        randomness_for=lambda key: SeededRandomness(str(np.random.default_rng().random())),
        ledger=ledger or memory_ledger(STUDY),
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # fields by name


def approved(digest: str) -> Study:
    if digest != STUDY.digest:
        raise ApprovalError("site 'A': Anna Mustermann's study is not approved")
    return STUDY


def request(**changes: object) -> RoundRequest:
    start = encode(parameters_of(network_for(STUDY)))
    return replace(RoundRequest(STUDY.digest, "run-1", 1, start), **changes)  # type: ignore[arg-type]  # fields by name


def named_scans(study: Study) -> ScanSet:
    return replace(bright_and_dark(30), pseudonyms=NAMES)


@pytest.fixture
def place(tmp_path: Path) -> LedgerPlace:
    made = LedgerPlace(tmp_path)
    ledger = made.open()
    ledger.approve(STUDY.digest, STUDY.name, TERMS, {"train": NAMES})
    ledger.close()
    return made


def test_an_approved_round_gives_an_update_of_the_networks_shapes() -> None:
    ledger = memory_ledger(STUDY)

    released = session(ledger).answer(request())

    assert released.code is None and released.payload is not None
    decode(released.payload, shapes_of(parameters_of(network_for(STUDY))), who="site A")
    assert released.head == ledger.head


def test_asking_again_gives_the_same_bytes_though_the_noise_is_fresh(place: LedgerPlace) -> None:
    first = session(place.open(), scans_for=named_scans).answer(request())
    after_a_restart = session(place.open(), scans_for=named_scans).answer(request())

    assert first.payload is not None
    assert first == after_a_restart
    assert place.open().rounds_paid(STUDY.digest) == 1


def test_a_second_base_model_for_a_paid_round_is_refused() -> None:
    ledger = memory_ledger(STUDY)
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
        ({"purpose": "validation"}, PublicFact.REFUSED_BY_POLICY),
        ({"purpose": "test", "round": 2}, PublicFact.REFUSED_BY_POLICY),
        ({"model": b"no safetensors"}, PublicFact.WRONG_MESSAGE),
    ],
)
def test_what_was_not_agreed_is_refused_by_a_code_and_costs_nothing(
    asked: dict[str, object], code: PublicFact
) -> None:
    ledger = memory_ledger(STUDY)

    released = session(ledger).answer(request(**asked))

    assert (released.payload, released.code, released.head) == (None, code.value, None)
    assert ledger.head.sequence == 1  # the approval: nothing was even reserved


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


def test_a_study_that_the_ledger_does_not_hold_is_not_trained() -> None:
    site = session(Ledger.in_memory("A"))

    assert site.answer(request()).code == PublicFact.NOT_APPROVED.value


def test_a_study_that_would_cost_other_than_was_approved_is_not_trained() -> None:
    # As after an update of medfed that accounts for a study in another way.
    ledger = Ledger.in_memory("A")
    cheaper = TERMS["train"].cost
    assert cheaper is not None
    terms: Terms = {"train": Term(cheaper._replace(noise_multiplier=99.0), 2)}
    ledger.approve(STUDY.digest, STUDY.name, terms, None)

    assert session(ledger).answer(request()).code == PublicFact.REFUSED_BY_POLICY.value
    assert ledger.rounds_paid(STUDY.digest) == 0


def test_one_approval_buys_one_schedule_whatever_the_runs_are_called() -> None:
    # Found by an attack: each new run name, and each round below 1, bought another training.
    ledger = memory_ledger(STUDY)
    site = session(ledger)

    codes = [
        site.answer(request(run=f"run-{run}", round=round_)).code
        for run in range(3)
        for round_ in (1, 2)
    ]

    assert codes == [None, None] + [PublicFact.REFUSED_BY_POLICY.value] * 4
    assert ledger.rounds_paid(STUDY.digest) == STUDY.training.rounds == 2


# ---- who is trained on ---------------------------------------------------------------------------
def test_only_eligible_patients_are_trained_on_and_an_exclusion_holds_at_the_next_round(
    place: LedgerPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[frozenset[bytes]] = []

    def train_round(_: object, data: TrainingData, start: Parameters, **__: object) -> Parameters:
        rows = {int(row) for rows in data.scans_of for row in rows}
        seen.append(frozenset(NAMES[row] for row in rows))  # bright_and_dark: a scan each, in order
        return start

    monkeypatch.setattr(module, "train_round", train_round)
    ledger = place.open()
    new = (b"\xff" * 16, *NAMES[1:])  # the first patient has left, and another came

    def scans_for(study: Study) -> ScanSet:
        return replace(bright_and_dark(30), pseudonyms=new)

    site = session(ledger, scans_for=scans_for)
    site.answer(request())
    ledger.exclude(NAMES[1:3])
    site.answer(request(round=2))

    assert [len(rows) for rows in seen] == [29, 27]
    assert seen[0] == frozenset(NAMES[1:])
    assert seen[1] == frozenset(NAMES[3:])


def test_a_site_where_nobody_is_eligible_answers_like_any_other(tmp_path: Path) -> None:
    place = LedgerPlace(tmp_path)
    ledger = place.open(Ceiling(0.1, 1e-3))  # a round of STUDY alone costs 1.6 at this delta
    ledger.approve(STUDY.digest, STUDY.name, TERMS, {"train": NAMES})
    assert ledger.eligible(STUDY.digest, "train") == frozenset()

    released = session(ledger, scans_for=named_scans).answer(request())

    assert released.code is None and released.payload is not None
    update = decode(released.payload, shapes_of(parameters_of(network_for(STUDY))), who="site A")
    assert any(np.abs(array).max() > 0 for array in update.values())  # noise, as of any site
    assert ledger.epsilon(1e-3) == 0.0


# ---- no quiet rollback ---------------------------------------------------------------------------
def test_a_head_that_the_server_knows_and_the_ledger_does_not_stops_the_site(
    place: LedgerPlace,
) -> None:
    ahead = place.signer.sign(99, "a" * 64)
    ledger = place.open()
    site = session(ledger, scans_for=named_scans)

    for _ in range(2):
        assert site.answer(request(known=ahead)).code == PublicFact.LEDGER_MISMATCH.value
    for known in (ledger.head, None):  # nor does it train for a server that knows less
        assert site.answer(request(known=known)).code == PublicFact.LEDGER_MISMATCH.value
    assert place.kinds() == ["open", "approve"]


def test_a_head_that_the_site_never_signed_is_a_wrong_message(place: LedgerPlace) -> None:
    site = session(place.open(), scans_for=named_scans)
    forged = place.open().head._replace(sequence=99)

    assert site.answer(request(known=forged)).code == PublicFact.WRONG_MESSAGE.value
    assert site.answer(request()).payload is not None


def test_a_round_goes_on_from_the_head_that_the_server_knows(place: LedgerPlace) -> None:
    site = session(place.open(), scans_for=named_scans)
    first = site.answer(request())

    assert site.answer(request(round=2, known=first.head)).payload is not None


# ---- defects and attempts ------------------------------------------------------------------------
def test_of_a_defect_not_even_the_class_leaves(caplog: pytest.LogCaptureFixture) -> None:
    def scans_for(study: Study) -> None:
        raise MemoryError("MUSTERMANN^ANNA has 60 scans")

    released = session(scans_for=scans_for).answer(request())

    assert released.code == PublicFact.UNAVAILABLE.value
    assert "MemoryError" in caplog.text and "MUSTERMANN" not in caplog.text


def test_a_training_that_fails_again_and_again_withdraws_the_site() -> None:
    def randomness_for(key: RoundKey) -> None:
        raise MemoryError

    ledger = memory_ledger(STUDY)
    site = session(ledger, randomness_for=randomness_for)

    codes = [site.answer(request()).code for _ in range(5)]

    assert codes == [PublicFact.UNAVAILABLE.value] * 3 + [PublicFact.NOT_APPROVED.value] * 2
    assert ledger.epsilon(1e-3) == 0.0


def test_a_payment_names_the_model_it_started_from() -> None:
    ledger = memory_ledger(STUDY)
    session(ledger).answer(request())

    start = parameters_of(network_for(STUDY))
    assert ledger.paid(RoundKey(STUDY.digest, "run-1", 1, fingerprint(start))) is not None


def test_every_code_a_site_may_send_has_words_at_the_server_and_no_other() -> None:
    assert {fact.value for fact in PublicFact} == set(REFUSALS)
