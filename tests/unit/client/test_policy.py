"""A site's policy: each rule in both directions, and what a refusal says."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfed.client.policy import check_enough_patients, check_now, check_policy
from medfed.client.release import PublicFact, fact_about
from medfed.client.site_settings import Policy, parse_site
from medfed.common.errors import ApprovalError, ConfigError, NotNowError
from medfed.common.study import Study
from tests.support.sites import WITHOUT_PRIVACY, make_study

LIMITS = Policy(epsilon_limit=8.0, delta_limit=1e-3)
TOML = """site = "A"
[server]
address = "hub:8443"
[scans]
folder = "/scans"
[ledger]
witness = "/w.json"
[policy]
"""


def check(study: Study, epsilon: float = 1.0, **limits: object) -> None:
    policy = LIMITS.model_copy(update=limits)
    check_policy(policy, study, study.site_named("A"), epsilon, source="/root/site.toml")


def check_at(time: str, **limits: object) -> None:
    at = datetime.datetime.combine(datetime.date(2027, 3, 1), datetime.time.fromisoformat(time))
    check_now(Policy(**limits), "A", at, source="/root/site.toml")  # type: ignore[arg-type]  # passed on


# ---- ceilings ------------------------------------------------------------------------------------
@pytest.mark.parametrize("epsilon", [8.0, 0.1])
def test_a_study_within_the_limits_is_allowed(epsilon: float) -> None:
    check(make_study(), epsilon)


@pytest.mark.parametrize("epsilon", [8.001, float("inf"), float("nan")])
def test_a_study_that_costs_more_than_the_limit_is_refused(epsilon: float) -> None:
    with pytest.raises(ApprovalError, match=r"epsilon_limit 8\.0"):
        check(make_study(), epsilon)


def test_one_study_may_cost_less_than_all_together() -> None:
    check(make_study(), 4.0, study_epsilon_limit=4.0)
    with pytest.raises(ApprovalError, match=r"study_epsilon_limit 4\.0"):
        check(make_study(), 4.1, study_epsilon_limit=4.0)


def test_a_study_with_a_larger_delta_is_refused() -> None:
    with pytest.raises(ApprovalError, match=r"its delta is 0\.002.*delta_limit 0\.001"):
        check(make_study(("delta = 1e-3", "delta = 2e-3")))


@pytest.mark.parametrize("missing", ["epsilon_limit", "delta_limit"])
def test_a_ceiling_that_is_not_written_allows_nothing(missing: str) -> None:
    with pytest.raises(ApprovalError, match=f"{missing} None"):
        check(make_study(), **{missing: None})


def test_a_study_without_privacy_needs_the_sites_word() -> None:
    study = make_study(WITHOUT_PRIVACY)

    check(study, float("inf"), allow_no_privacy=True)
    with pytest.raises(ApprovalError, match="Allowed here: dp-sgd only"):
        check(study, float("inf"))


# ---- what may be trained -------------------------------------------------------------------------
# The study of tests: two_labels, 2 rounds, medfed-small, 40 declared patients at A.
@pytest.mark.parametrize(
    ("key", "allows", "refuses", "says"),
    [
        ("rounds_limit", 2, 1, "it has 2 rounds. Allowed here: rounds_limit 1"),
        ("studies", ("two_labels",), ("others", "more"), "Allowed here: studies others, more"),
        ("studies", ("two_labels",), (), "Allowed here: studies none"),
        ("networks", ("medfed-small",), ("cnn28",), "trains medfed-small. Allowed here: networks"),
        ("minimum_patients", 40, 41, "declares 40 patients here. Allowed here: minimum_patients"),
    ],
)
def test_each_limit_allows_what_is_within_it_and_refuses_what_is_not(
    key: str, allows: object, refuses: object, says: str
) -> None:
    check(make_study())
    check(make_study(), **{key: allows})
    with pytest.raises(ApprovalError, match=r"site 'A': study 'two_labels' .*site\.toml") as caught:
        check(make_study(), **{key: refuses})

    assert says in str(caught.value)
    assert caught.value.exit_code == 17
    assert "ask the coordinator" in caught.value.advice


def test_the_limits_of_what_is_trained_hold_without_privacy_too() -> None:
    with pytest.raises(ApprovalError, match="rounds_limit 1"):
        check(make_study(WITHOUT_PRIVACY), allow_no_privacy=True, rounds_limit=1)


@pytest.mark.parametrize(("there", "enough"), [(50, True), (49, False), (0, False)])
def test_the_patients_who_are_there_are_held_against_the_minimum(there: int, enough: bool) -> None:
    policy, study = Policy(minimum_patients=50), make_study()

    check_enough_patients(Policy(), study, study.site_named("A"), there)
    if enough:
        check_enough_patients(policy, study, study.site_named("A"), there)
        return
    with pytest.raises(ApprovalError, match=rf"would find {there} patients.*minimum_patients 50"):
        check_enough_patients(policy, study, study.site_named("A"), there)


# ---- when ----------------------------------------------------------------------------------------
@given(begin=st.times(), end=st.times(), at=st.times())
def test_exchanging_begin_and_end_gives_the_other_hours(
    begin: datetime.time, end: datetime.time, at: datetime.time
) -> None:
    first, second = f"{begin:%H:%M}", f"{end:%H:%M}"
    if first == second:
        return
    one, other = Policy(hours=f"{first}-{second}"), Policy(hours=f"{second}-{first}")

    assert one.within_hours(at) is not other.within_hours(at)


@pytest.mark.parametrize(
    ("hours", "at", "within"),
    [
        ("20:00-06:00", "20:00", True),
        ("20:00-06:00", "23:59:59", True),
        ("20:00-06:00", "00:00", True),
        ("20:00-06:00", "05:59:59", True),
        ("20:00-06:00", "06:00", False),  # the end is not part of it
        ("20:00-06:00", "12:00", False),
        ("09:00-17:30", "17:29", True),
        ("09:00-17:30", "08:59:59", False),
        ("09:00-17:30", "17:30", False),
    ],
)
def test_rounds_begin_within_the_hours_only(hours: str, at: str, within: bool) -> None:
    check_at(at)
    if within:
        check_at(at, hours=hours)
        return
    with pytest.raises(NotNowError, match=f"no round at {at[:5]}.*hours {hours}, local time"):
        check_at(at, hours=hours)


def test_while_a_site_pauses_nothing_is_trained() -> None:
    check_at("12:00", pause=False)
    with pytest.raises(NotNowError, match="pause is true") as caught:
        check_at("12:00", pause=True, hours="00:00-23:59")

    assert "set pause = false" in caught.value.advice


def test_not_now_leaves_as_a_public_code_that_does_not_deny_the_approval() -> None:
    assert fact_about(NotNowError("x")) is PublicFact.REFUSED_BY_POLICY
    assert fact_about(ApprovalError("x")) is PublicFact.NOT_APPROVED


# ---- the file ------------------------------------------------------------------------------------
def test_every_key_of_the_policy_is_read_from_the_file() -> None:
    written = {
        "epsilon_limit": "8.0", "delta_limit": "1e-4", "study_epsilon_limit": "4.0",
        "allow_no_privacy": "true", "rounds_limit": "9", "studies": '["a", "b"]',
        "networks": '["cnn28"]', "minimum_patients": "7", "pause": "true",
        "hours": '"20:00-06:00"', "cpu_threads": "3", "gpu": "true", "gpu_memory_fraction": "0.5",
    }  # fmt: skip
    lines = "".join(f"{key} = {value}\n" for key, value in written.items())

    policy = parse_site(TOML + lines).policy

    assert set(written) == set(Policy.model_fields)
    assert (policy.rounds_limit, policy.studies, policy.networks) == (9, ("a", "b"), ("cnn28",))
    assert (policy.hours, policy.pause, policy.cpu_threads) == ("20:00-06:00", True, 3)
    assert (policy.gpu, policy.gpu_memory_fraction) == (True, 0.5)


def test_a_file_of_before_restricts_no_more_than_it_did() -> None:
    assert parse_site(TOML).policy == Policy()
    assert Policy().gpu and not Policy().pause
    assert Policy().within_hours(datetime.time(3))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('hours = "20-6"', 'must be "HH:MM-HH:MM"'),
        ('hours = "20:00-24:00"', "from 00:00 to 23:59"),
        ('hours = "20:00-20:00"', "different times"),
        ("hours = 20", "policy.hours: found 20"),
        ('studies = ["Not a name"]', "policy.studies"),
        ('studies = "two_labels"', "policy.studies"),
        ("rounds_limit = 0", "greater than or equal to 1"),
        ("minimum_patients = -1", "greater than or equal to 1"),
        ("cpu_threads = 0", "greater than or equal to 1"),
        ("gpu_memory_fraction = 1.5", "less than or equal to 1"),
        ("gpu = false\ngpu_memory_fraction = 0.5", "without a meaning"),
        ('pause = "yes"', "policy.pause"),
        ("round_limit = 3", "Did you mean 'rounds_limit'?"),
    ],
)
def test_what_the_policy_cannot_mean_is_refused_with_place_and_rule(line: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"site\.toml") as caught:
        parse_site(TOML + line + "\n")

    assert says in str(caught.value)
