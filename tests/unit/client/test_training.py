"""One site's round: what enters a step, what the update is, what does not matter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medfed.client.training import (
    TrainingData,
    _batches,
    _shuffled_batches,
    apply_front,
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


def test_the_number_of_scans_of_a_patient_does_not_bound_the_batch() -> None:
    mechanism = mechanism_for(make_study(), make_study().site[0])
    three = replace(mechanism, scans_per_patient=3)
    data = prepared(patients=6, scans_each=5)

    batch = next(_batches(data, np.array([1, 4]), three, SeededRandomness("k")))

    assert batch.units == 2
    assert batch.unit.tolist() == [0, 0, 0, 1, 1, 1]
    rows = [find(data, scan) for scan in batch.inputs]
    assert all(row in data.scans_of[1] for row in rows[:3])
    assert all(row in data.scans_of[4] for row in rows[3:])
    assert len(set(rows)) == 6  # without replacement


def prepared(patients: int, scans_each: int) -> TrainingData:
    study = make_study()
    return prepare(network_for(study), bright_and_dark(patients, scans_each=scans_each), CPU)


def find(data: TrainingData, scan: torch.Tensor) -> int:
    return int(np.flatnonzero([(row == scan).all() for row in data.inputs])[0])


def test_no_patient_is_split_between_physical_batches_and_all_are_there() -> None:
    big = replace(a_mechanism(), scans_per_patient=400)
    data = prepared(patients=20, scans_each=3)

    batches = list(_batches(data, np.arange(20), big, SeededRandomness("k")))

    assert len(batches) > 1
    assert sum(batch.units for batch in batches) == 20
    assert sum(len(batch.labels) for batch in batches) == 60


def a_mechanism() -> Mechanism:
    return mechanism_for(make_study(), make_study().site[0])


def test_nobody_sampled_gives_no_batch() -> None:
    nobody = np.array([], dtype=np.int64)

    assert list(_batches(prepared(4, 1), nobody, a_mechanism(), SeededRandomness("k"))) == []


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

    inputs, trained = apply_front(network, images, CPU)

    assert isinstance(network, Network) and trained is network.body
    with torch.no_grad():
        assert torch.equal(trained(inputs), network(images))
