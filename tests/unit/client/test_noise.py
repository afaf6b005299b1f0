import copy
import math
import os
import pickle  # noqa: TID251  # to show that it is refused
import random
from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.client.noise import KeystreamRandomness, SecretRandomness
from medfed.common.errors import PrivacyError
from medfed.simulations.seeded import SeededRandomness

# The algorithms are shared, so their statistics are checked with a seed: a red test stays red.
# Limits are 5 standard errors; with a seed they cannot fail by chance from run to run.


def seeded(key: str) -> SeededRandomness:
    return SeededRandomness(f"test {key}")


def test_normals_have_the_moments_of_the_standard_normal_distribution() -> None:
    count = 400_001
    x = seeded("moments").normal(count)

    # standard errors of the mean, variance, skewness and kurtosis of n normals:
    # 1, sqrt 2, sqrt 15, sqrt 96, each over sqrt n
    for power, expected, error in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - expected) < 5 * math.sqrt(error / count), power


def test_normals_follow_the_normal_distribution_function() -> None:
    x = np.sort(seeded("distribution").normal(100_000))
    exact = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x[::100]])

    distance = np.abs(exact - np.arange(0, 100_000, 100) / 100_000).max()

    assert distance < 2.3 / math.sqrt(100_000)  # Kolmogorov: exceeded with probability 5e-5


def test_normals_are_not_correlated_with_their_neighbours_or_their_box_muller_partner() -> None:
    x = seeded("correlation").normal(1 << 16)  # blocks of 1 << 14: partners lie 1 << 13 apart
    for lag in (1, 2, 3, 4, 1 << 13, 1 << 14):
        products = x[lag:] * x[:-lag]
        assert abs(products.mean()) < 5 / math.sqrt(len(products)), lag


def test_each_normal_is_the_half_sum_of_four_box_muller_normals() -> None:
    raw = seeded("formula")._words("noise", 8).astype(object)  # the same key stream, read raw
    u = [int(word) >> 11 for word in raw]
    radii = [math.sqrt(-2 * math.log((k + 1) / 2**53)) for k in u[:4]]
    angles = [2 * math.pi * k / 2**53 for k in u[4:]]

    pair = seeded("formula").normal(2)

    # Box and Muller's formula, four times, by the standard library
    assert pair[0] == pytest.approx(sum(map(lambda r, a: r * math.cos(a), radii, angles)) / 2)
    assert pair[1] == pytest.approx(sum(map(lambda r, a: r * math.sin(a), radii, angles)) / 2)


def test_the_extreme_words_of_the_key_stream_give_finite_normals() -> None:
    class Constant(KeystreamRandomness):
        word = 0

        def _keystream(self, purpose: str) -> object:  # type: ignore[override]  # only update_into is used
            return self

        def update_into(self, data: bytes, out: memoryview) -> None:
            np.frombuffer(out, dtype="<u8")[:] = self.word

    zeros, ones = Constant(), Constant()
    ones.word = 2**64 - 1

    assert zeros.normal(1)[0] == pytest.approx(2 * math.sqrt(-2 * math.log(2**-53)))  # 17.1
    assert ones.normal(2).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert zeros.coins(1, 5e-324).tolist() == [True]  # 0 < any chance above 0
    assert ones.coins(1, 1 - 2**-53).tolist() == [False]
    assert ones.coins(1, 1.0).tolist() == [True]


@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.97])
def test_coins_fall_true_with_the_probability_asked_for(probability: float) -> None:
    count = 200_000
    heads = seeded("coins").coins(count, probability).sum()

    assert abs(heads - count * probability) < 5 * math.sqrt(count * probability * (1 - probability))


def test_coins_of_probability_0_and_1_are_certain() -> None:
    assert not seeded("never").coins(1000, 0.0).any()
    assert seeded("always").coins(1000, 1.0).all()


def test_every_subset_is_equally_likely() -> None:
    source, tries = seeded("choose"), 20_000
    seen = Counter(tuple(source.choose(5, 3).tolist()) for _ in range(tries))

    assert set(seen) == set(combinations(range(5), 3))  # the 10 subsets of 3 out of 5
    for subset, times in seen.items():
        assert abs(times - tries / 10) < 5 * math.sqrt(tries * 0.1 * 0.9), subset


def test_every_order_is_equally_likely() -> None:
    source, tries = seeded("permutation"), 24_000
    seen = Counter(tuple(source.permutation(4).tolist()) for _ in range(tries))

    assert set(seen) == set(permutations(range(4)))  # the 24 orders of 4
    for order, times in seen.items():
        assert abs(times - tries / 24) < 5 * math.sqrt(tries / 24), order


def test_large_bounds_show_no_modulo_bias() -> None:
    bound = 3 << 62  # 2**64 mod it is 1 << 62: plain modulo gives the lowest third half the draws
    draws = seeded("modulo")._below(np.full(30_000, bound, dtype=np.uint64))

    lowest = int((draws < (1 << 62)).sum())
    assert abs(lowest - 10_000) < 5 * math.sqrt(30_000 * (1 / 3) * (2 / 3))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 10**6))
def test_choices_are_sorted_distinct_and_in_range(count: int, at_most: int, seed: int) -> None:
    chosen = seeded(str(seed)).choose(count, at_most)

    assert chosen.dtype == np.int64
    assert len(chosen) == min(count, at_most)
    assert (np.diff(chosen) > 0).all()
    assert not len(chosen) or (chosen[0] >= 0 and chosen[-1] < count)
    assert sorted(seeded(str(seed)).permutation(count).tolist()) == list(range(count))


@pytest.mark.parametrize("at_most", [5, 6, 7, 1000])
def test_a_choice_that_covers_all_takes_all_and_draws_nothing(at_most: int) -> None:
    source = seeded("all")

    assert source.choose(5, at_most).tolist() == [0, 1, 2, 3, 4]
    assert source.permutation(20).tolist() == seeded("all").permutation(20).tolist()


@pytest.mark.parametrize("count", [0, 1, 2, 7, (1 << 14) - 1, 1 << 14, (1 << 14) + 1])
def test_any_number_of_draws_can_be_asked_for(count: int) -> None:
    source = SecretRandomness()

    normals, coins = source.normal(count), source.coins(count, 0.5)

    assert normals.shape == (count,) and normals.dtype == np.float64
    assert np.isfinite(normals).all() and len(np.unique(normals)) == count
    assert coins.shape == (count,) and coins.dtype == np.bool_


def test_two_secret_generators_differ_whatever_is_seeded_around_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws = []
    for _ in range(2):
        for name in ("SEED", "MEDFED_SEED", "PYTHONHASHSEED"):
            monkeypatch.setenv(name, "0")
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        source = SecretRandomness()
        draws += [source.normal(4).tolist(), source.normal(4).tolist()]

    assert len({tuple(draw) for draw in draws}) == 4


def test_a_secret_generator_cannot_be_given_a_seed() -> None:
    with pytest.raises(TypeError):
        SecretRandomness(0)  # type: ignore[call-arg]  # the point of the test
    with pytest.raises(TypeError):
        SecretRandomness(seed=0)  # type: ignore[call-arg]  # the point of the test
    with pytest.raises(TypeError, match="derived"):
        type("Seeded", (SecretRandomness,), {})


def test_a_secret_generator_cannot_be_pickled_or_copied() -> None:
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="draws would repeat"):
            attempt(SecretRandomness())


def test_a_secret_generator_shows_nothing_and_calls_itself_secret() -> None:
    source = SecretRandomness()

    assert repr(source) == str(source) == "SecretRandomness()"
    assert source.is_secret
    assert not any(isinstance(value, bytes | str) for value in vars(source).values())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of threads; the child only draws
def test_a_forked_child_does_not_repeat_the_parents_noise() -> None:
    source = SecretRandomness()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            source.coins(1, 0.5)
            os.write(writer, b"drew")
        except PrivacyError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)

    assert "would repeat that process's noise" in answer
    assert "Next step: make a new SecretRandomness()" in answer
    source.coins(1, 0.5)  # the parent goes on


@pytest.mark.parametrize("probability", [-1e-9, 1.0000001, math.nan, math.inf])
def test_a_probability_outside_0_to_1_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\], got"):
        SecretRandomness().coins(3, probability)


def test_a_negative_count_is_refused() -> None:
    source = SecretRandomness()
    for draw in (source.normal, source.permutation, lambda n: source.coins(n, 0.5)):
        with pytest.raises(ValueError, match="count must be >= 0, got -1"):
            draw(-1)
    for count, at_most in ((-1, 2), (2, -1)):
        with pytest.raises(ValueError, match="count must be >= 0, got -1"):
            source.choose(count, at_most)
