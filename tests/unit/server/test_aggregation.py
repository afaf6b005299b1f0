"""The running mean: the same bits in any order, near the exact mean, closed to what is wrong."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.common.errors import CohortError, UpdateRejectedError
from medfed.common.updates import Parameters
from medfed.server.aggregation import RunningMean

SITES = "ABCDE"
VALUES = st.floats(-(2.0**20), 2.0**20, width=32, allow_nan=False)


def mean_of(weights: dict[str, int], updates: list[tuple[str, Parameters]]) -> Parameters:
    running = RunningMean(weights)
    for site, update in updates:
        running.add(site, update)
    return running.mean()


@st.composite
def rounds(draw: st.DrawFn) -> tuple[dict[str, int], list[tuple[str, Parameters]]]:
    weights = {site: draw(st.integers(1, 10**6)) for site in SITES}
    answered = draw(st.lists(st.sampled_from(SITES), min_size=1, max_size=5, unique=True))
    updates = [
        (site, {"w": np.array(draw(st.lists(VALUES, min_size=3, max_size=3)), np.float32)})
        for site in answered
    ]
    return weights, updates


@given(rounds(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=150)
def test_every_order_of_arrival_gives_the_same_bits(
    case: tuple[dict[str, int], list[tuple[str, Parameters]]], chance: object
) -> None:
    weights, updates = case
    first = mean_of(weights, updates)["w"].tobytes()

    for order in itertools.islice(itertools.permutations(updates), 0, None, 7):
        assert mean_of(weights, list(order))["w"].tobytes() == first
    backwards = dict(reversed(weights.items()))
    assert mean_of(backwards, updates[::-1])["w"].tobytes() == first


@given(rounds())
@settings(deadline=None, max_examples=150)
def test_it_is_as_near_the_exact_weighted_mean_as_it_says(
    case: tuple[dict[str, int], list[tuple[str, Parameters]]],
) -> None:
    weights, updates = case
    taking_part = sum(weights[site] for site, _ in updates)
    share = Fraction(taking_part, sum(weights.values()))
    count = len(updates)

    mean = mean_of(weights, updates)["w"]

    for place in range(3):
        exact = sum(
            (Fraction(weights[site], taking_part) * Fraction(float(update["w"][place])))
            for site, update in updates
        )
        largest = max(abs(float(update["w"][place])) for _, update in updates)
        error = abs(Fraction(float(mean[place])) - exact)
        assert error <= Fraction(count, 2**41) / share + Fraction(largest) * count / 2**50


def test_plain_floating_point_sums_do_depend_on_the_order() -> None:
    # Why the fixed point: the same four numbers, two orders, two sums.
    numbers = [0.1, 1e6, -1e6, 0.3]

    assert sum(numbers) != sum(sorted(numbers))
    weights = dict.fromkeys("ABCD", 1)
    updates = [(s, {"w": np.array([x])}) for s, x in zip("ABCD", numbers, strict=True)]
    ordered = sorted(updates, key=lambda pair: float(pair[1]["w"][0]))
    assert mean_of(weights, updates)["w"] == mean_of(weights, ordered)["w"]


def test_weights_are_those_of_the_study_among_the_sites_that_answered() -> None:
    updates = [("A", {"w": np.array([1.0])}), ("B", {"w": np.array([5.0])})]

    # (1 * 100 + 5 * 300) / 400 = 4; C has the largest weight and did not answer.
    assert mean_of({"A": 100, "B": 300, "C": 1000}, updates)["w"].tolist() == pytest.approx([4.0])


def test_one_site_alone_gives_its_own_update() -> None:
    update = np.array([0.1, -0.25, 3e-9], np.float32)

    mean = mean_of({"A": 7, "B": 7}, [("A", {"w": update})])["w"]

    assert np.abs(mean - update.astype(np.float64)).max() <= 2.0**-40


def test_the_largest_values_of_ten_thousand_sites_do_not_overflow() -> None:
    sites = [f"S{number}" for number in range(10_000)]
    running = RunningMean(dict.fromkeys(sites, 10**9))
    for site in sites:
        running.add(site, {"w": np.array([2.0**20, -(2.0**20)])})

    assert running.mean()["w"].tolist() == pytest.approx([2.0**20, -(2.0**20)])


def test_it_keeps_one_sum_and_not_the_updates() -> None:
    running = RunningMean({"A": 1, "B": 1})
    update = np.ones(4)
    running.add("A", {"w": update})
    update[:] = 99.0
    running.add("B", {"w": np.ones(4)})

    assert running.mean()["w"].tolist() == [1.0] * 4
    assert running.sites == ("A", "B")


# ---- refusals ------------------------------------------------------------------------------------
GOOD: Parameters = {"w": np.array([1.0, 2.0]), "b": np.array(0.5)}


@pytest.mark.parametrize(
    ("site", "update", "words"),
    [
        ("A", GOOD, "a second update for the same round"),
        ("Z", GOOD, "not in the study"),
        ("B", {**GOOD, "more": np.zeros(1)}, "other names or shapes"),
        ("B", {"w": np.zeros(2)}, "other names or shapes"),
        ("B", {**GOOD, "w": np.zeros(1)}, "other names or shapes"),  # would broadcast
        ("B", {**GOOD, "b": np.array(2.0**20 * 1.001)}, "beyond ±2^20"),
        ("B", {**GOOD, "b": np.array(-(2.0**20) * 1.001)}, "beyond ±2^20"),
        ("B", {**GOOD, "b": np.array(math.nan)}, "NaN"),
        ("B", {**GOOD, "b": np.array(math.inf)}, "NaN or a value beyond"),
    ],
)
def test_a_refused_update_names_the_site_and_leaves_no_trace(
    site: str, update: Parameters, words: str
) -> None:
    running = RunningMean({"A": 1, "B": 3})
    running.add("A", GOOD)
    before = running.mean()

    with pytest.raises(UpdateRejectedError, match=rf"^site '{site}': .*") as caught:
        running.add(site, update)

    assert words in str(caught.value)
    assert running.sites == ("A",)
    assert all(np.array_equal(running.mean()[name], before[name]) for name in before)


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(CohortError, match="nothing to average"):
        RunningMean({"A": 1}).mean()


@pytest.mark.parametrize("weights", [{}, {"A": 0}, {"A": 1, "B": -1}])
def test_weights_that_are_not_positive_are_refused(weights: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="weights must be positive"):
        RunningMean(weights)
