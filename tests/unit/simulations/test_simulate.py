"""Many sites in one process: the same study, the same seed, the same bits; honest marks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medfed.client.scans.scanset import TEST, ScanSet
from medfed.common.errors import ConfigError, ScanError
from medfed.common.study import Study
from medfed.common.updates import encode
from medfed.server.rounds import RunState
from medfed.simulations.cohorts import deal_patients
from medfed.simulations.experiment import Plan, figures, run_experiment
from medfed.simulations.phantoms import write_hospitals
from medfed.simulations.simulate import Execution, simulate, use_threads
from medfed.simulations.sources import open_source, together
from tests.support.sites import make_study, write_scans
from tests.support.virtual_sites import bright_and_dark

WITHOUT_NOISE = ("noise_multiplier = 1.0", "noise_multiplier = 0.01")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    use_threads(1)


def two_sites(study: Study, scans_each: int = 1) -> dict[str, ScanSet]:
    return deal_patients(bright_and_dark(80, scans_each=scans_each), study)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_seed_repeats_bit_for_bit_whatever_runs_at_the_same_time(workers: int) -> None:
    study = make_study(("quorum = 1", "quorum = 2"))

    one = simulate(study, two_sites(study), Execution(seed=3))
    same = simulate(study, two_sites(study), Execution(seed=3, workers=workers))
    other = simulate(study, two_sites(study), Execution(seed=4))

    assert one.state.outcome == same.state.outcome == "finished"
    assert encode(one.model) == encode(same.model)
    assert encode(one.model) != encode(other.model)


def test_a_site_that_cannot_train_is_named_and_the_run_is_incomplete() -> None:
    study = make_study()
    sites = two_sites(study)
    del sites["B"]  # it never connects
    slow = study.cohort.model_copy(update={"round_deadline_s": 0.1})

    states: list[RunState] = []
    result = simulate(
        study.model_copy(update={"cohort": slow}), sites, Execution(), on_change=states.append
    )

    assert result.state.outcome == "incomplete"
    assert [record.missing for record in result.state.history] == [{"B": "not connected"}] * 2


@pytest.mark.parametrize("rule", ["iid", "dirichlet:0.3"])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_patient_is_dealt_to_exactly_one_site(rule: str, seed: int) -> None:
    scans = bright_and_dark(80, scans_each=3)
    scans.images[:, 0, 0, 0] = scans.patient  # a mark that survives renumbering

    dealt = deal_patients(scans, make_study(), rule=rule, seed=seed)

    marks = [set(site.images[:, 0, 0, 0].tolist()) for site in dealt.values()]
    assert sum(len(site) for site in dealt.values()) == 240
    assert set.union(*marks) == set(range(80)) and not set.intersection(*marks)


def test_dealing_follows_declared_sizes_and_the_seed() -> None:
    study = make_study(
        ('name = "B"\ndeclared_patients = 40', 'name = "B"\ndeclared_patients = 120')
    )
    scans = bright_and_dark(80)

    one, other = (deal_patients(scans, study, seed=seed) for seed in (0, 1))

    assert [one[site].patients for site in "AB"] == [20, 60]  # shares 1 : 3
    assert not np.array_equal(one["A"].images, other["A"].images)


def test_a_dirichlet_deal_is_less_even_than_an_iid_one() -> None:
    study, scans = make_study(), bright_and_dark(400)

    def unevenness(rule: str) -> float:
        ones = [
            deal_patients(scans, study, rule=rule, seed=seed)["A"].labels.sum() for seed in range(8)
        ]
        return float(np.std(ones))

    assert unevenness("dirichlet:0.1") > 2 * unevenness("iid")


@pytest.mark.parametrize("rule", ["even", "dirichlet:", "dirichlet:-1", "dirichlet:nan"])
def test_an_unknown_deal_is_refused(rule: str) -> None:
    with pytest.raises(ConfigError, match=r"(allowed: iid|above 0)"):
        deal_patients(bright_and_dark(10), make_study(), rule=rule)


def test_patients_of_different_sites_stay_apart_when_joined() -> None:
    joined = together([bright_and_dark(3, scans_each=2), bright_and_dark(4)])

    assert joined.patients == 7
    assert joined.patient.tolist() == [0, 0, 1, 1, 2, 2, 3, 4, 5, 6]


def test_a_data_set_without_a_test_part_is_refused(tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "scans.npz")

    with pytest.raises(ScanError, match="none of its patients is a test patient"):
        open_source(scans, make_study(("test_fraction = 0.2", "test_fraction = 0.0")))


def test_a_site_without_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()

    with pytest.raises(ScanError, match="no folder 'B'|worklist"):
        open_source(tmp_path, make_study())


def test_the_report_of_an_experiment_tells_everything(tmp_path: Path) -> None:
    study = make_study(WITHOUT_NOISE, ("local_steps = 2", "local_steps = 10"))
    scans = write_scans(tmp_path / "scans.npz", patients=120)
    told: list[tuple[str, int, int]] = []

    report = run_experiment(
        study,
        open_source(scans, study),
        Plan(seeds=(0, 1), curve=True, alone=True),
        out=tmp_path / "out",
        title="test",
        progress=lambda *step: told.append(step),
    )

    assert report.outcome == "finished" and "seeded" in report.randomness
    assert [round_ for round_, _ in report.curve] == [1, 2]
    assert ("seed 1", 2, 2) in told and ("site B alone", 2, 2) in told
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 1000
    values = [value for _, value in report.seeds]
    assert figures(report)["two_labels_auroc"] == pytest.approx(sum(values) / 2)
    assert list(figures(report))[-1] == "two_labels_auroc"
    assert (
        sum(row.patients for row in report.sites) + open_source(scans, study).test.patients == 120
    )
    assert all(row.auroc is not None and row.alone is not None for row in report.sites)
    assert "patient" in report.privacy_statement and "add-or-remove" in report.privacy_statement


def test_hospitals_with_folders_of_their_own_are_tested_each(tmp_path: Path) -> None:
    study = make_study(
        ('["dark", "bright"]', '["normal", "opacity"]'),
        ('group_key = "patient"', ""),
        ("test_fraction = 0.2", "test_fraction = 0.5"),
    )
    write_hospitals(tmp_path / "h", sites=("A", "B"), patients_per_site=16)
    source = open_source(tmp_path / "h", study)

    report = run_experiment(
        study, source, Plan(), out=tmp_path, title="test", progress=lambda *step: None
    )

    assert source.unit == "patient"
    assert [row.patients for row in report.sites] == [16, 16]
    assert all(row.auroc is not None for row in report.sites)
    assert source.test.patients == sum(s.part_of(TEST).patients for s in source.own.values())
