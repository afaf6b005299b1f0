"""One site's round: what enters a step, what the update is, what does not matter."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from medfed.client import inputs
from medfed.client.inputs import Inputs, inputs_for
from medfed.client.training import (
    TrainingData,
    _batches,
    _shuffled_batches,
    batch_plan,
    prepare,
    train_round,
)
from medfed.common.networks.network import Network
from medfed.common.networks.parameters import load_parameters, network_for, parameters_of
from medfed.common.privacy.mechanism import Mechanism, mechanism_for
from medfed.common.study import Study
from medfed.common.updates import Parameters
from medfed.simulations.seeded import SeededRandomness
from tests.support.sites import make_study
from tests.support.virtual_sites import bright_and_dark

CPU = torch.device("cpu")
WITH_PRIVACY = """mode = "dp-sgd"
unit = "patient"
neighbours = "add-or-remove-one"
clip_norm = 1.0
noise_multiplier = 1.0
delta = 1e-3
scans_per_patient = 1"""
WITHOUT = (WITH_PRIVACY, 'mode = "none"')


def update_of(study: Study, *, key: str = "k", patients: int = 40, scans: int = 2) -> Parameters:
    torch.set_num_threads(1)
    network = network_for(study)
    data = prepare(network, bright_and_dark(patients, scans_each=scans), CPU)
    site = study.site[0]
    return train_round(
        network,
        data,
        parameters_of(network_for(study)),
        study=study,
        site=site,
        mechanism=mechanism_for(study, site) if study.private else None,
        randomness=SeededRandomness(key),
    )


def norm(update: Parameters) -> float:
    return float(np.sqrt(sum(np.square(a, dtype=np.float64).sum() for a in update.values())))


@pytest.mark.parametrize("study", [make_study(), make_study(WITHOUT)], ids=["private", "plain"])
def test_the_same_randomness_gives_the_same_bits_and_another_other_ones(study: Study) -> None:
    one, same, other = update_of(study), update_of(study), update_of(study, key="other")

    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_a_step_is_the_noised_sum_over_the_public_lot() -> None:
    # SGD at rate 0.1, sigma = 1000: the update is noise of std lr * sigma * S / lot per step.
    study = make_study(("noise_multiplier = 1.0", "noise_multiplier = 1000.0"))
    update = update_of(study)
    values = np.concatenate([a.ravel() for a in update.values()])

    expected = 0.1 * 1000.0 * 1.0 / 8 * np.sqrt(2)  # lot 8, two steps
    assert values.std() == pytest.approx(expected, rel=0.03)  # 25,000 values: 0.5 % standard error


def test_without_signal_a_site_with_nobody_sends_noise_of_the_same_size() -> None:
    study = make_study(("noise_multiplier = 1.0", "noise_multiplier = 50.0"))

    nobody, many = norm(update_of(study, patients=0)), norm(update_of(study, patients=40))

    assert nobody == pytest.approx(many, rel=0.05)


def test_each_sampled_patient_gives_some_of_their_scans() -> None:
    mechanism = mechanism_for(make_study(), make_study().site[0])
    three = replace(mechanism, scans_per_patient=3)
    data = prepared(patients=6, scans_each=5)

    batch = next(_batches(data, np.array([1, 4]), three, SeededRandomness("k")))

    assert batch.units == 2
    assert batch.unit.tolist() == [0, 0, 0, 1, 1, 1]
    rows = [find(data, scan) for scan in batch.inputs[:6]]
    assert all(row in data.scans_of[1] for row in rows[:3])
    assert all(row in data.scans_of[4] for row in rows[3:])
    assert len(set(rows)) == 6  # without replacement


def prepared(patients: int, scans_each: int) -> TrainingData:
    study = make_study()
    return prepare(network_for(study), bright_and_dark(patients, scans_each=scans_each), CPU)


def find(data: TrainingData, scan: torch.Tensor) -> int:
    return int(
        np.flatnonzero(
            [(row == scan).all() for row in data.inputs.rows(np.arange(len(data.inputs)))]
        )[0]
    )


def a_mechanism(lot: int = 8, rate: float = 0.2, scans: int = 1) -> Mechanism:
    mechanism = mechanism_for(make_study(), make_study().site[0])
    return replace(mechanism, lot=lot, sampling_rate=rate, scans_per_patient=scans)


def with_scans(counts: list[int]) -> TrainingData:
    """Patients with so many scans; each scan is the number of its row plus one."""
    rows = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    numbers = torch.arange(1.0, sum(counts) + 1)[:, None]
    labels = torch.ones(sum(counts), dtype=torch.int64)
    return TrainingData(Inputs(numbers, CPU), labels, tuple(rows), torch.nn.Identity())


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 6), max_size=60),
    lot=st.integers(1, 30),
    scans=st.integers(1, 5),
    most=st.integers(1, 40),
)
@example(counts=[], lot=8, scans=1, most=3)
@example(counts=[1] * 16, lot=8, scans=1, most=4)  # as many as there is room for
@example(counts=[2, 3, 3] * 20, lot=20, scans=3, most=10)
def test_every_physical_batch_is_as_large_and_no_patient_is_split_or_lost(
    counts: list[int], lot: int, scans: int, most: int
) -> None:
    mechanism, data = a_mechanism(lot, 0.5, scans), with_scans(counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "_CHUNK_VALUES", most)
        plan = batch_plan(mechanism, data.inputs.shape)
        everyone = np.arange(len(counts))
        batches = list(_batches(data, everyone, mechanism, SeededRandomness("k")))

    assert {batch.inputs.shape for batch in batches} == {(plan.rows, 1)}
    assert plan.rows <= max(most, 4, scans)  # 4: the least rows of a batch
    assert len(batches) >= plan.least
    if len(counts) <= lot + 4 * math.sqrt(lot / 2):  # whatever their numbers of scans
        assert len(batches) == plan.least
    assert [int(n) for batch in batches for n in batch.unit.bincount(minlength=batch.units)] == [
        min(count, scans) for count in counts
    ]
    for batch in batches:
        taken = len(batch.unit)
        assert batch.padding == plan.rows - taken
        assert not batch.inputs[taken:].any() and not batch.labels[taken:].any()
        assert batch.inputs[:taken].all() and batch.labels[:taken].all()
    given_rows = [float(x) for batch in batches for x in batch.inputs[: len(batch.unit)]]
    assert given_rows == sorted(set(given_rows))


def test_the_plan_depends_on_public_numbers_only() -> None:
    few, many = with_scans([1]), with_scans([5] * 100)

    assert batch_plan(a_mechanism(), few.inputs.shape) == batch_plan(
        a_mechanism(), many.inputs.shape
    )


def test_the_plan_has_room_for_all_but_one_sample_in_thirty_thousand_and_little_more() -> None:
    # lot 512 of 1569, as in the pneumonia study: a standard deviation is 18.57; 503 scans of
    # 81 x 7 x 7 are 2,000,000 numbers. 512 + 4 * 18.57 = 586.3, in two batches: 294 each.
    mechanism = a_mechanism(512, 512 / 1569)

    assert batch_plan(mechanism, (81, 7, 7)) == (294, 2)
    assert binom.sf(588, 1569, 512 / 1569) < 1 / 30_000


def test_nobody_sampled_costs_what_a_usual_sample_costs() -> None:
    rows: list[int] = []
    study, network = make_study(), network_for(make_study())
    network.body.register_forward_pre_hook(lambda _, x: rows.append(len(x[0])))

    def rows_of(patients: int) -> list[int]:
        rows.clear()
        train_round(
            network,
            prepare(network, bright_and_dark(patients), CPU),
            parameters_of(network_for(study)),
            study=study,
            site=study.site[0],
            mechanism=mechanism_for(study, study.site[0]),
            randomness=SeededRandomness("k"),
        )
        return list(rows)

    # lot 8 of 40: 8 + 4 * 2.53 = 18.1 patients fit in one batch of 19 rows; two steps
    assert rows_of(0) == rows_of(40) == [19, 19]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    # 10 scans in batches of 4: an epoch is 4 + 4 + 2.
    [("local_epochs = 2", [4, 4, 2, 4, 4, 2]), ("local_steps = 4", [4, 4, 2, 4])],
)
def test_without_privacy_epochs_and_steps_are_what_the_study_says(
    schedule: str, expected: list[int]
) -> None:
    study = make_study(WITHOUT, ("local_steps = 2", schedule), ("batch_size = 8", "batch_size = 4"))

    batches = list(_shuffled_batches(10, study, study.site[0], SeededRandomness("k")))

    assert [len(batch) for batch in batches] == expected
    assert sorted(np.concatenate(batches[:3]).tolist()) == list(range(10))


def test_plain_training_separates_bright_from_dark() -> None:
    study = make_study(WITHOUT, ("local_steps = 2", "local_epochs = 8"))
    network = network_for(study)
    start = parameters_of(network)
    update = update_of(study, patients=100)
    load_parameters(network, {name: start[name] + update[name] for name in start})
    scans = bright_and_dark(50, seed=9)

    with torch.no_grad():
        decided = network(torch.from_numpy(scans.images)).argmax(1).numpy()

    assert (decided == scans.labels).mean() > 0.95


@pytest.mark.parametrize("penalty", ["l1 = 0.5", "l2 = 0.5"])
def test_penalties_shrink_the_weights_though_nobody_is_sampled(penalty: str) -> None:
    quiet = ("noise_multiplier = 1.0", "noise_multiplier = 0.001")
    study = make_study(quiet, ("learning_rate = 0.1", f"learning_rate = 0.1\n{penalty}"))
    start = parameters_of(network_for(study))

    update = update_of(study, patients=0)

    name = next(name for name in start if start[name].ndim == 4)
    assert np.corrcoef(start[name].ravel(), update[name].ravel())[0, 1] < -0.7


def test_the_cached_front_changes_nothing() -> None:
    study = make_study(("medfed-small", "scatter-small"))
    network = network_for(study).eval()
    images = torch.from_numpy(bright_and_dark(8).images)

    fed, trained = inputs_for(network, images.numpy(), CPU)

    assert isinstance(network, Network) and trained is network.body
    with torch.no_grad():
        assert torch.equal(trained(fed.rows(np.arange(8))), network(images))
