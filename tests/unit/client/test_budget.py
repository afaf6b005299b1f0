"""What the admin is told of the budget is what the ledger holds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from medfed.client.approvals import approve, withdraw
from medfed.client.budget import budget_json, budget_of, plan_for, plan_json
from medfed.client.ledger import RoundKey
from medfed.client.site_root import SiteRoot, open_ledger, open_site
from medfed.common.errors import ConfigError
from medfed.common.privacy.accounting import Spend, composed_epsilon
from medfed.common.privacy.mechanism import study_epsilon
from medfed.common.privacy.renyi_filter import held_epsilon
from medfed.common.study import Study
from tests.support.ledgers import pay
from tests.support.sites import WITHOUT_PRIVACY, make_ready_site, make_site, make_study

STUDY = make_study()
OTHER = make_study(("rounds = 2", "rounds = 3"))
DELTA = 1e-2  # of make_site's limits
ROUND = Spend(1.0, 8 / 40, 2)  # of STUDY: noise, batch over declared patients, local steps
TRAINING = sum(STUDY.split.part_of(str(patient)) == "train" for patient in range(60))


def key(number: int, study: Study = STUDY) -> RoundKey:
    return RoundKey(study.digest, "run-1", number, "b" * 64)


def pay_rounds(site: SiteRoot, *keys: RoundKey) -> None:
    ledger = open_ledger(site)
    for each in keys:
        pay(ledger, each)
    ledger.close()


def test_a_new_site_has_spent_nothing(tmp_path: Path) -> None:
    found = budget_of(make_site(tmp_path))

    assert (found.spent, found.held, found.reserved) == (0.0, 0.0, 0.0)
    assert (found.patients, found.excluded, found.purposes) == (0, 0, ())
    assert found.ceiling == (50.0, DELTA)


def test_it_tells_what_was_spent_what_the_next_round_costs_and_what_is_left(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)
    pay_rounds(site, key(1))

    found = budget_of(site)

    one, two = (composed_epsilon([ROUND] * rounds, DELTA) for rounds in (1, 2))
    assert found.spent == one
    assert found.reserved == two
    assert found.held == held_epsilon([ROUND], epsilon_limit=50.0, delta_limit=DELTA)
    assert found.patients == TRAINING
    (told,) = found.purposes
    assert (told.study, told.digest, told.purpose) == ("two_labels", STUDY.digest, "train")
    assert (told.open, told.paid, told.left, told.patients) == (True, 1, 1, TRAINING)
    assert (told.epsilon, told.whole_epsilon) == (one, two)
    assert told.next_epsilon == two - one


def test_the_whole_schedule_costs_what_the_approval_said(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path, limits="epsilon_limit = 50.0\ndelta_limit = 1e-3\n")

    (told,) = budget_of(site).purposes

    assert told.whole_epsilon == study_epsilon(STUDY, STUDY.site_named("A"))  # delta = 1e-3 too


def test_when_all_is_paid_no_next_round_has_a_price(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)
    pay_rounds(site, key(1), key(2))

    (told,) = budget_of(site).purposes

    assert (told.paid, told.left, told.next_epsilon) == (2, 0, None)
    assert told.epsilon == told.whole_epsilon == budget_of(site).spent


def test_two_studies_add_up_for_the_most_exposed_patient(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)
    approve(site, OTHER)
    pay_rounds(site, key(1), key(1, OTHER), key(2, OTHER))

    found = budget_of(site)

    assert found.spent == composed_epsilon([ROUND] * 3, DELTA)
    assert [p.paid for p in found.purposes] == [1, 2]
    assert [p.epsilon for p in found.purposes] == [
        composed_epsilon([ROUND] * rounds, DELTA) for rounds in (1, 2)
    ]


def test_a_withdrawn_study_keeps_what_it_spent_and_has_nothing_left(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)
    pay_rounds(site, key(1))
    withdraw(site, STUDY.digest)

    found = budget_of(site)

    (told,) = found.purposes
    assert (told.open, told.paid, told.left, told.patients) == (False, 1, 0, 0)
    assert found.spent == found.reserved == told.whole_epsilon


def test_a_study_without_privacy_is_told_as_infinite_and_written_as_null(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    settings = site.folder / "site.toml"
    settings.write_text(settings.read_text().replace("no_privacy = false", "no_privacy = true"))
    site = open_site(site.folder)
    study = make_study(WITHOUT_PRIVACY)
    planned = plan_for(site, study)
    approve(site, study)
    pay_rounds(site, key(1, study))

    found = budget_of(site)

    assert (found.spent, found.held) == (math.inf, math.inf)
    assert planned[0].epsilon == math.inf
    # Found here: the plan was written as Infinity, which is no JSON.
    for content in (budget_json(found), plan_json(study, planned)):
        assert "Infinity" not in json.dumps(content)
    assert budget_json(found)["most_exposed_patient"]["spent"] is None
    assert plan_json(study, planned)["purposes"][0]["epsilon"] is None


def test_excluded_patients_are_counted(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)
    ledger = open_ledger(site)
    eligible = ledger.eligible(STUDY.digest, "train")
    assert eligible is not None
    ledger.exclude(sorted(eligible)[:2])
    ledger.close()

    found = budget_of(site)

    assert found.excluded == 2
    assert found.patients == TRAINING  # they were eligible once
    assert found.purposes[0].patients == TRAINING - 2


# ---- plans ---------------------------------------------------------------------------------------
def test_a_plan_tells_the_cost_and_approves_nothing(tmp_path: Path) -> None:
    site = make_site(tmp_path)

    (planned,) = plan_for(site, STUDY)

    assert (planned.purpose, planned.releases) == ("train", 2)
    assert planned.epsilon == composed_epsilon([ROUND] * 2, DELTA)
    assert (planned.patients, planned.eligible) == (TRAINING, TRAINING)
    assert budget_of(site).purposes == ()
    assert plan_json(STUDY, (planned,))["digest"] == STUDY.digest


def test_a_plan_tells_who_cannot_afford_it(tmp_path: Path) -> None:
    # OTHER alone costs 1.5 (PLD) of 2.2; beside STUDY the filter reads 3.1.
    site = make_site(tmp_path, limits="epsilon_limit = 2.2\ndelta_limit = 1e-2\n")
    assert plan_for(site, OTHER)[0].eligible == TRAINING
    approve(site, STUDY)

    (planned,) = plan_for(site, OTHER)

    assert (planned.patients, planned.eligible) == (TRAINING, 0)


def test_a_plan_for_a_study_without_this_site_is_refused(tmp_path: Path) -> None:
    site = make_site(tmp_path, name="C")

    with pytest.raises(ConfigError, match="is not in study"):
        plan_for(site, STUDY)


def test_nothing_private_is_shown_by_what_is_printed_or_logged(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)
    pay_rounds(site, key(1))
    found = budget_of(site)

    again = make_study(('name = "two_labels"', 'name = "again"'))

    for shown in (found, found.purposes[0], plan_for(site, again)[0]):
        assert repr(shown).startswith(f"<medfed.client.budget.{type(shown).__name__} object at ")
