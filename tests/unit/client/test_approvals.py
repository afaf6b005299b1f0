from __future__ import annotations

import stat
from pathlib import Path

import pytest

from medfed.client import approvals
from medfed.client.approvals import approve, approved_studies, approved_study, check_policy
from medfed.client.site_root import Policy
from medfed.common.errors import ApprovalError, ConfigError
from tests.support.sites import STUDY, make_ready_site, make_site, make_study

LIMITS = Policy(epsilon_limit=8.0, delta_limit=1e-3)
WITHOUT_PRIVACY = (
    STUDY[STUDY.index("[privacy]") : STUDY.index("[cohort]")],
    '[privacy]\nmode = "none"\n',
)


def test_an_approved_study_is_read_back_as_it_was_approved(tmp_path: Path) -> None:
    study = make_study()
    site = make_site(tmp_path)

    given = approve(site, study)

    assert approved_study(site, study.digest) == study
    assert given.file.name == f"{study.digest}.json"
    assert stat.S_IMODE(given.file.stat().st_mode) == 0o600


def test_the_approval_tells_what_the_whole_schedule_costs(tmp_path: Path) -> None:
    given = approve(make_site(tmp_path), make_study())

    # Opacus' PRV accountant on sigma 1, q = 8 / 40, 2 rounds of 2 steps, delta 1e-3: 2.076 +- 0.01
    assert given.epsilon == pytest.approx(2.076, abs=0.02)
    assert given.delta == 1e-3


def test_approving_twice_changes_nothing(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    approve(site, make_study())
    approve(site, make_study())

    assert len(approved_studies(site)) == 1


def test_the_latest_approval_comes_first(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)
    later = make_study(("rounds = 2", "rounds = 3"))
    approve(site, later)

    assert [study.training.rounds for study in approved_studies(site)] == [3, 2]


@pytest.mark.parametrize("epsilon", [8.0, 0.1])
def test_a_study_within_the_limits_is_allowed(epsilon: float) -> None:
    check_policy(LIMITS, make_study(), epsilon, source="site.toml")


@pytest.mark.parametrize("epsilon", [8.001, float("inf"), float("nan")])
def test_a_study_that_costs_more_than_the_limit_is_refused(epsilon: float) -> None:
    with pytest.raises(ApprovalError, match=r"epsilon_limit 8\.0"):
        check_policy(LIMITS, make_study(), epsilon, source="site.toml")


def test_a_study_with_a_larger_delta_is_refused() -> None:
    with pytest.raises(ApprovalError, match=r"its delta is 0\.002.*delta_limit 0\.001"):
        check_policy(LIMITS, make_study(("delta = 1e-3", "delta = 2e-3")), 1.0, source="site.toml")


@pytest.mark.parametrize("missing", ["epsilon_limit", "delta_limit"])
def test_limits_that_are_not_written_are_asked_for(tmp_path: Path, missing: str) -> None:
    other = {"epsilon_limit": "delta_limit = 1e-2\n", "delta_limit": "epsilon_limit = 9.0\n"}
    site = make_site(tmp_path, limits=other[missing])

    with pytest.raises(ConfigError, match=f"has no {missing}"):
        approve(site, make_study())
    assert not list(site.approved.iterdir())


def test_a_study_without_privacy_needs_the_sites_word(tmp_path: Path) -> None:
    study = make_study(WITHOUT_PRIVACY)
    site = make_site(tmp_path / "a")

    with pytest.raises(ApprovalError, match="trains without privacy"):
        approve(site, study)
    check_policy(Policy(allow_no_privacy=True), study, float("inf"), source="site.toml")


def test_a_site_that_the_study_does_not_list_is_refused(tmp_path: Path) -> None:
    site = make_site(tmp_path, name="C")

    with pytest.raises(ConfigError, match="'C' is not in study 'two_labels', which lists A, B"):
        approve(site, make_study())


def test_a_refused_study_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path)
    monkeypatch.setattr(approvals, "study_epsilon", lambda study, member: 51.0)  # limit: 50

    with pytest.raises(ApprovalError):
        approve(site, make_study())
    assert not list(site.approved.iterdir())


def test_an_approval_that_was_changed_afterwards_is_refused(tmp_path: Path) -> None:
    study = make_study()
    site = make_ready_site(tmp_path, study)
    file = site.approved / f"{study.digest}.json"
    file.write_bytes(file.read_bytes().replace(b'"rounds":2', b'"rounds":9'))

    with pytest.raises(ApprovalError, match="was changed after it was given"):
        approved_study(site, study.digest)


def test_a_study_that_nobody_approved_is_refused_with_the_next_step(tmp_path: Path) -> None:
    site = make_site(tmp_path)

    with pytest.raises(ApprovalError, match=r"is not approved here.*\n.*medfed site approve"):
        approved_study(site, make_study().digest)
    with pytest.raises(ApprovalError, match="no study is approved"):
        approved_studies(site)


@pytest.mark.parametrize("digest", ["", "../keys/node_key", "A" * 64, "a" * 63])
def test_a_digest_that_is_none_is_refused_before_the_disk_is_asked(
    tmp_path: Path, digest: str
) -> None:
    with pytest.raises(ApprovalError, match="no digest"):
        approved_study(make_site(tmp_path), digest)
