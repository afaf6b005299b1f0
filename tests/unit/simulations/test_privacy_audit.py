"""The audit finds every planted fault, and finds nothing in honest code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from medfed.client.noise import SecretRandomness
from medfed.common.errors import ConfigError, PrivacyError
from medfed.common.privacy.mechanism import mechanism_for, study_epsilon
from medfed.common.study import Study, load_study
from medfed.deploy.cli.output import Format
from medfed.deploy.cli.researcher import audit_privacy
from medfed.simulations.privacy_audit.audit import audit_study, code_digest
from medfed.simulations.privacy_audit.bounds import Range
from medfed.simulations.privacy_audit.noise_level import check_generator, check_noise
from medfed.simulations.privacy_audit.result import AuditResult, Check, audit_json
from medfed.simulations.privacy_audit.sampling import check_sampling
from medfed.simulations.privacy_audit.sensitivity import check_sensitivity
from medfed.simulations.privacy_audit.subject import Subject
from medfed.simulations.seeded import SeededRandomness
from tests.support import planted_faults
from tests.support.planted_faults import PLANTED, Fault
from tests.support.sites import STUDY, make_study

SMALL = (
    ("size = [28, 28]", "size = [8, 8]"),
    ("scans_per_patient = 1", "scans_per_patient = 3"),
    ("rounds = 2", "rounds = 20"),
)
"""Lot 8 of 40 patients: sampled at 0.2, in 40 steps."""

SENSITIVITY = "sensitivity / S, "
EPSILON = "epsilon, GDP bound"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def small_audit(
    study: Study | None = None, seed: int | None = 0, canaries: int = 1000
) -> AuditResult:
    return audit_study(study or make_study(*SMALL), seed=seed, canaries=canaries)


@pytest.fixture(scope="module")
def honest() -> AuditResult:
    torch.set_num_threads(1)
    return small_audit()


def a_subject(seed: int = 0, study: Study | None = None) -> Subject:
    study = study or make_study(*SMALL)
    site = study.site[0]
    return Subject(
        study=study,
        site=site,
        mechanism=mechanism_for(study, site),
        device=torch.device("cpu"),
        randomness_for=lambda key: SeededRandomness(f"{seed} {key}"),
        patients=np.random.default_rng(seed),
    )


def failed(checks: AuditResult | list[Check]) -> set[str]:
    if isinstance(checks, AuditResult):
        return {check.name for check in checks.failed}
    return {check.name for check in checks if not check.passed}


# ---- honest code ---------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [None, 1], ids=["secret", "1"])
def test_honest_code_passes_every_check(seed: int | None) -> None:
    result = small_audit(seed=seed)  # secret: by chance one of 21 checks fails in 1 of 500 runs

    assert failed(result) == set()
    assert result.passed and result.secret == (seed is None)


def test_the_bound_on_epsilon_is_below_the_claim_and_not_far_below(honest: AuditResult) -> None:
    study = make_study(*SMALL)
    checks = {check.name: check for check in honest.checks}

    gdp, one_run = checks[EPSILON], checks["epsilon, one-run bound"]
    # The whole schedule is audited: what is claimed is what `medfed study show` says.
    assert gdp.asked == one_run.asked == study_epsilon(study, study.site[0])
    assert 0.4 * gdp.asked < gdp.measured < gdp.asked
    assert one_run.measured < gdp.measured


@pytest.mark.parametrize(
    "changes",
    [
        [("clip_norm = 1.0", "clip_norm = 1e-6"), ("multiplier = 1.0", "multiplier = 20.0")],
        [("batch_size = 8", "batch_size = 40")],  # everybody in each step
        [("declared_patients = 40\n[[", "declared_patients = 800\n[[")],  # rate 0.01
        [("scans_per_patient = 3", "scans_per_patient = 1000"), ("norm = 1.0", "norm = 1e4")],
        [("learning_rate = 0.1", 'learning_rate = 0.1\nl1 = 0.1\nl2 = 0.1\noptimizer = "adam"')],
        [('["dark", "bright"]', '["a", "b", "c"]'), ("local_steps = 2", "local_steps = 7")],
    ],
)
def test_honest_code_passes_whatever_the_study_says(changes: list[tuple[str, str]]) -> None:
    assert failed(small_audit(make_study(*SMALL, *changes), canaries=100)) == set()


@pytest.mark.parametrize("network", ["cnn32", "scatter-small"])
def test_every_kind_of_network_keeps_the_bound(network: str) -> None:
    size = ("size = [8, 8]", "size = [32, 32]")
    subject = a_subject(study=make_study(*SMALL, size, ("medfed-small", network)))

    assert failed(check_sensitivity(subject)) == set()


def test_the_studies_that_come_with_medfed_pass() -> None:
    folder = Path(__file__).parents[3] / "simulations" / "studies"
    studies = [load_study(path) for path in sorted(folder.glob("*.toml"))]

    assert studies
    for study in studies:
        if study.private:
            site = study.site[0].name
            assert failed(audit_study(study, sites=(site,), seed=0, canaries=200)) == set()


# ---- planted faults ------------------------------------------------------------------------------
FOUND_BY = {
    "no noise": {"noise variance / (sigma S)^2", "tensors with that noise / all", EPSILON},
    "clipping per batch": {
        f"{SENSITIVITY}against all others",
        "signal / S of each of 8 patients",
        "canaries: signal / (q T S)",
    },
    "half the noise": {"noise variance / (sigma S)^2", "tensors with that noise / all", EPSILON},
    "twice the sampling rate": {"sampled / (q N)", "canaries: signal / (q T S)", EPSILON},
    "clipping per image": {f"{SENSITIVITY}many scans"},
}
"""Fault -> the checks that must find it. Others may find it, too."""


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTED[name](monkeypatch)

    result = small_audit()

    assert not result.passed
    assert failed(result) >= FOUND_BY[name]
    if name == "half the noise":  # which the one-run bound alone would have missed
        assert "epsilon, one-run bound" not in failed(result)


def test_per_image_clipping_moves_the_sum_by_one_clip_norm_per_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    PLANTED["clipping per image"](monkeypatch)

    checks = {check.name: check for check in check_sensitivity(a_subject())}

    # The same image 7 times, of which a step takes 3, each clipped to 1 - MARGIN.
    assert checks[f"{SENSITIVITY}many scans"].measured == pytest.approx(3 * 0.999, rel=1e-3)
    assert checks[f"{SENSITIVITY}one scan"].passed


@pytest.mark.parametrize(
    ("fault", "found_by"),
    [
        (planted_faults.clip_each_tensor, f"{SENSITIVITY}one scan"),
        (planted_faults.lot_of_the_patients_at_hand, f"{SENSITIVITY}one scan"),
    ],
)
def test_other_faults_of_clipping_are_found(
    fault: Fault, found_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)

    assert found_by in failed(check_sensitivity(a_subject()))


def test_a_single_tensor_without_noise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    planted_faults.one_quiet_tensor(monkeypatch)

    # 2 of 18,826 weights: the variance of all of them does not show it.
    assert failed(check_noise(a_subject())) == {"tensors with that noise / all"}


def test_noise_that_repeats_is_found() -> None:
    subject = a_subject()
    same = Subject(**{**vars(subject), "randomness_for": lambda key: SeededRandomness("same")})

    assert "correlation of two rounds' noise" in failed(check_noise(same))


@pytest.mark.parametrize("fault", [planted_faults.shuffle, planted_faults.sample_a_fixed_number])
def test_sampling_with_the_right_mean_and_dependent_coins_is_found(
    fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)

    found = failed(check_sampling(a_subject()))

    assert "sampling variance, patients of a step" in found
    assert "sampled / (q N)" not in found


def test_a_generator_that_is_not_normal_is_found() -> None:
    class Flat:
        is_secret = True

        def normal(self, count: int) -> np.ndarray:
            return np.random.default_rng(0).uniform(-math.sqrt(3), math.sqrt(3), count)

        coins = SecretRandomness().coins

    assert failed(check_generator(a_subject(), "flat", Flat())) == {"flat: fourth moment / 3"}  # type: ignore[arg-type]  # no choose, no permutation


# ---- the result ----------------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_result(honest: AuditResult) -> None:
    assert audit_json(small_audit()) == audit_json(honest)


def test_sites_of_equal_numbers_are_audited_once_and_others_by_themselves(
    honest: AuditResult,
) -> None:
    uneven = make_study(*SMALL, ('"B"\ndeclared_patients = 40', '"B"\ndeclared_patients = 80'))

    assert {check.site for check in honest.checks} == {"A"}
    assert {check.site for check in small_audit(uneven, canaries=100).checks} == {"A", "B"}


def test_the_result_names_the_study_the_code_and_every_number(honest: AuditResult) -> None:
    read = json.loads(audit_json(honest))

    assert read["digest"] == make_study(*SMALL).digest and read["code"] == code_digest()
    assert read["passed"] is True and read["secret"] is False
    assert read["false_alarm"] == 1e-4
    assert len(read["checks"]) == len(honest.checks)
    assert set(read["checks"][0]) == {"name", "site", "asked", "measured", "tolerance", "passed"}


def test_no_number_fails_and_is_null() -> None:
    check = Check("c", "A", 1.0, math.nan, Range(0.0, 2.0))
    result = AuditResult("s", "d", "c", "v", True, (check,))

    assert not result.passed
    assert json.loads(audit_json(result))["checks"][0]["measured"] is None


def test_an_audit_without_checks_has_not_passed() -> None:
    assert not AuditResult("s", "d", "c", "v", True, ()).passed


# ---- the command ---------------------------------------------------------------------------------


def run_command(folder: Path, **options: object) -> Path:
    text = STUDY
    for old, new in (*SMALL, ("rounds = 20", "rounds = 2")):
        text = text.replace(old, new)
    (folder / "study.toml").write_text(text)
    out = folder / "audit.json"
    given = {"site": ["A"], "seed": 0, "canaries": 100, "threads": 1, "device": "cpu"}
    audit_privacy(folder / "study.toml", **{"out": out, **given, **options})  # type: ignore[arg-type]  # passed through
    return out


def test_the_command_prints_the_table_and_writes_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run_command(tmp_path)

    shown = capsys.readouterr().out
    assert shown.startswith("PASSED: all 18 checks")
    assert "epsilon, one-run bound" in shown and "FAILED" not in shown
    assert json.loads(out.read_text())["passed"] is True


def test_as_json_the_command_prints_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run_command(tmp_path, format=Format.JSON)

    assert capsys.readouterr().out == out.read_text()


def test_a_failed_audit_exits_11_after_the_result_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    PLANTED["no noise"](monkeypatch)

    with pytest.raises(PrivacyError, match=r"A: noise variance .* cannot be relied on") as caught:
        run_command(tmp_path)

    assert caught.value.exit_code == 11
    assert capsys.readouterr().out.startswith("FAILED: ")
    assert json.loads((tmp_path / "audit.json").read_text())["passed"] is False


def test_a_result_that_cannot_be_written_is_an_error_of_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--out .*away/audit.json"):
        run_command(tmp_path, out=tmp_path / "away" / "audit.json")


# ---- refusals ------------------------------------------------------------------------------------
def test_a_study_without_privacy_has_nothing_to_audit() -> None:
    limits = STUDY[STUDY.index('mode = "dp-sgd"') : STUDY.index("[cohort]")]

    with pytest.raises(ConfigError, match="mode = .none."):
        audit_study(make_study((limits, 'mode = "none"\n')))


def test_a_site_that_the_study_does_not_list_is_refused() -> None:
    with pytest.raises(ConfigError, match="'C' is not in study"):
        audit_study(make_study(), sites=("C",))


def test_too_few_canaries_are_refused() -> None:
    with pytest.raises(ValueError, match="canaries must be >= 100, got 99"):
        audit_study(make_study(), canaries=99)
