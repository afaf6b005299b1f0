"""A site's score histogram: bounded by patient, noised in every cell, whatever the data hold."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.client.evaluation import class_probabilities, exact_histogram, noised_histogram
from medfed.client.noise import SecretRandomness
from medfed.client.scans.scanset import TEST, ScanSet, number_in_order
from medfed.common.networks.network import Network
from medfed.common.networks.parameters import network_for
from medfed.common.privacy.histogram import GRID, HistogramMechanism, decode_histogram
from medfed.common.privacy.histogram import encode_histogram as encode
from medfed.simulations.seeded import SeededRandomness
from tests.support.sites import make_study

Floats = npt.NDArray[np.float64]
CPU = torch.device("cpu")


def mechanism_of(*, classes: int = 2, bins: int = 10, noise: float = 1.0) -> HistogramMechanism:
    return HistogramMechanism(
        bins=bins,
        targets=(1,) if classes == 2 else tuple(range(classes)),
        noise_multiplier=noise,
        histograms=1,
        delta=1e-4,
    )


def counted(
    labels: list[int], scores: list[float], patient: list[int], mechanism: HistogramMechanism
) -> Floats:
    """The exact histogram of two-class scans with these scores for class 1."""
    second = np.array(scores)
    table = np.stack([1 - second, second], axis=1)
    return exact_histogram(np.array(labels), table, np.array(patient), mechanism)


def scan_set(scans: int, *, seed: int = 0, per_patient: int = 1) -> ScanSet:
    generator = np.random.default_rng(seed)
    return ScanSet(
        images=generator.random((scans, 1, 28, 28)).astype(np.float32),
        labels=generator.integers(0, 2, scans),
        patient=np.arange(scans) // per_patient,
        part=np.full(scans, TEST, dtype=np.uint8),
        unit="patient",
    )


def network() -> Network:
    torch.manual_seed(0)
    return network_for(make_study())


# ---- sensitivity ---------------------------------------------------------------------------------
@given(
    data=st.data(),
    classes=st.integers(2, 5),
    bins=st.integers(1, 40),
    scans=st.lists(st.integers(0, 4), max_size=40),
    new=st.integers(1, 60),
)
@settings(deadline=None, max_examples=150)
def test_one_patient_moves_the_histogram_by_at_most_the_sensitivity(
    data: st.DataObject, classes: int, bins: int, scans: list[int], new: int
) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    mechanism = mechanism_of(classes=classes, bins=bins)
    patient = number_in_order([*scans, *([99] * new)])
    scores = generator.dirichlet(np.full(classes, 0.3), len(patient))
    spoilt = generator.random(scores.shape)
    scores[spoilt < 0.1] = math.nan
    scores[spoilt > 0.97] = math.inf
    labels = generator.integers(0, classes, len(patient))
    if data.draw(st.booleans()):  # the worst case: all of the patient's scans in one cell
        labels[len(scans) :], scores[len(scans) :] = 0, scores[-1]
    old = slice(0, len(scans))

    before = exact_histogram(labels[old], scores[old], patient[old], mechanism)
    after = exact_histogram(labels, scores, patient, mechanism)

    assert np.linalg.norm(after - before) <= mechanism.sensitivity  # not even 1e-12 more
    assert (after >= before).all()


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_the_sensitivity_is_reached_and_so_the_noise_is_not_too_large(classes: int) -> None:
    mechanism = mechanism_of(classes=classes)
    scores = np.full((1, classes), 1.0 / classes)

    histogram = exact_histogram(np.array([0]), scores, np.array([0]), mechanism)

    assert np.linalg.norm(histogram) == pytest.approx(math.sqrt(classes if classes > 2 else 1))


def test_ten_scans_weigh_as_much_as_one() -> None:
    many = counted([1] * 10, [0.95] * 10, [0] * 10, mechanism_of())
    one = counted([1], [0.95], [0], mechanism_of())

    assert one[0, 1, 6] == 1.0  # 0.95 is 2.9 in log-odds: the bin from 2 to 4
    assert many[0, 1, 6] == pytest.approx(1.0, abs=10 * GRID)
    assert many[0, 1, 6] <= 1.0


def test_a_patients_weight_is_spread_over_classes_and_scores() -> None:
    histogram = counted([0, 1, 1, 1], [0.05, 0.55, 0.55, 0.95], [0, 0, 0, 0], mechanism_of())

    assert histogram[0, 0, 3] == 0.25  # log-odds of -2.9, 0.2 and 2.9
    assert histogram[0, 1, 5] == 0.5
    assert histogram[0, 1, 6] == 0.25
    assert histogram.sum() == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_counts_nothing_and_the_rest_keeps_its_weight(
    bad: float,
) -> None:
    histogram = counted([1, 1], [bad, 0.95], [0, 0], mechanism_of())

    assert histogram.sum() == histogram[0, 1, 6] == 0.5


def test_with_more_classes_each_patient_is_in_each_histogram_once() -> None:
    scores = np.array([[0.2, 0.7, 0.1]])

    histogram = exact_histogram(np.array([1]), scores, np.array([0]), mechanism_of(classes=3))

    where = [tuple(int(i) for i in cell) for cell in np.argwhere(histogram)]
    assert where == [(0, 0, 4), (1, 1, 5), (2, 0, 3)]  # target, row (1: it is its class), bin
    assert histogram.sum() == 3.0


def test_the_order_of_scans_changes_no_bit() -> None:
    generator = np.random.default_rng(0)
    patient = number_in_order(generator.integers(0, 50, 300).tolist())
    labels, scores = generator.integers(0, 2, 300), generator.random(300)
    order = generator.permutation(300)
    shuffled = number_in_order(patient[order].tolist())

    one = counted(labels.tolist(), scores.tolist(), patient.tolist(), mechanism_of())
    other = counted(
        labels[order].tolist(), scores[order].tolist(), shuffled.tolist(), mechanism_of()
    )

    assert np.array_equal(one, other)


# ---- noise ---------------------------------------------------------------------------------------
def test_every_cell_gets_noise_of_the_stated_size_also_where_nobody_is() -> None:
    mechanism = mechanism_of(classes=3, bins=200, noise=2.0)
    empty = ScanSet(
        images=np.zeros((0, 1, 28, 28), np.float32),
        labels=np.zeros(0, np.int64),
        patient=np.zeros(0, np.int64),
        part=np.zeros(0, np.uint8),
        unit="patient",
    )
    drawn = np.stack(
        [
            noised_histogram(network(), empty, mechanism, SeededRandomness(f"{n}"), CPU)
            for n in range(10)
        ]
    )

    assert (drawn != 0.0).all()
    # 12,000 draws: the standard error of a standard deviation is 0.65 % of it.
    assert drawn.std() == pytest.approx(2.0 * math.sqrt(3), rel=0.03)
    assert drawn.mean() == pytest.approx(0.0, abs=0.1)


def test_the_noise_is_the_same_on_neighbouring_data_and_the_difference_exact() -> None:
    mechanism, net = mechanism_of(noise=3.3), network()
    full = scan_set(30, per_patient=3)
    fewer = full.select(np.arange(9))

    def release(scans: ScanSet) -> Floats:
        return noised_histogram(net, scans, mechanism, SeededRandomness("one key"), CPU)

    def exact(scans: ScanSet) -> Floats:
        scores = class_probabilities(net, scans, CPU)
        return exact_histogram(scans.labels, scores, scans.patient, mechanism)

    # Without rounding: a float's low bits tell nothing of the exact counts.
    assert np.array_equal(release(full) - exact(full), release(fewer) - exact(fewer))
    assert np.array_equal(np.rint(release(full) / GRID) * GRID, release(full))


def test_the_sites_own_generator_never_gives_the_same_release_twice() -> None:
    scans, mechanism, net = scan_set(5), mechanism_of(), network()

    one, two = (noised_histogram(net, scans, mechanism, SecretRandomness(), CPU) for _ in range(2))

    assert (one != two).all()
    assert np.array_equal(decode_histogram(encode(one), mechanism, who="A"), one)


# ---- scores --------------------------------------------------------------------------------------
def test_scores_are_those_of_the_network_whatever_the_size_of_a_chunk() -> None:
    net, scans = network().train(), scan_set(70)  # more than one chunk of 64

    scores = class_probabilities(net, scans, CPU)

    assert scores.shape == (70, 2)
    np.testing.assert_allclose(scores.sum(1), 1.0, atol=1e-6)
    last = class_probabilities(net, scans.select(np.array([69])), CPU)
    np.testing.assert_allclose(scores[69:], last, atol=1e-6)
    assert not net.training


def test_a_scan_that_makes_the_network_fail_numerically_is_left_out() -> None:
    scans, mechanism, net = scan_set(4), mechanism_of(), network()
    scans.images[2] = math.nan

    scores = class_probabilities(net, scans, CPU)
    histogram = exact_histogram(scans.labels, scores, scans.patient, mechanism)

    assert histogram.sum() == 3.0
