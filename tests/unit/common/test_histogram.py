"""The histogram's wire form and bins: what server and site agree on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from medfed.common.errors import UpdateRejectedError
from medfed.common.privacy.histogram import (
    GRID,
    HistogramMechanism,
    bin_of,
    decode_histogram,
    encode_histogram,
)
from medfed.common.privacy.score_bins import score_at
from medfed.common.updates import HEADER_BYTES

MECHANISM = HistogramMechanism(
    bins=5, targets=(0, 1, 2), noise_multiplier=2.0, histograms=4, delta=1e-4
)
GOOD = np.arange(30, dtype=np.float64).reshape(3, 2, 5) - 7.25


def refused(data: bytes) -> str:
    with pytest.raises(UpdateRejectedError) as caught:
        decode_histogram(data, MECHANISM, who="site 'A'")
    message = str(caught.value)
    assert message.startswith("site 'A': the score histogram holds ")
    assert "allowed: " in message
    return message


@given(hnp.arrays(np.int64, (3, 2, 5), elements=st.integers(-(2**52), 2**52)))
@settings(deadline=None)
def test_what_a_site_sends_is_what_the_server_reads(steps: np.ndarray) -> None:
    noised = steps * GRID

    data = encode_histogram(noised)

    assert np.array_equal(decode_histogram(data, MECHANISM, who="A"), noised)
    assert encode_histogram(noised.copy()) == data


@given(st.integers(1, 200), st.floats(0.0, 1.0))
def test_a_score_is_at_or_above_an_edge_exactly_where_its_bin_is(bins: int, score: float) -> None:
    found = int(bin_of(np.array([score]), bins)[0])

    assert 0 <= found < bins
    for edge in range(1, bins):
        assert (score >= score_at(edge / bins)) == (found >= edge)


def test_scores_beyond_the_ends_fall_into_the_end_bins() -> None:
    assert bin_of(np.array([-1.0, -0.0, 1.0, 1.0000001]), 10).tolist() == [0, 0, 9, 9]


def test_the_noise_grows_with_the_sensitivity_and_the_cost_does_not() -> None:
    assert MECHANISM.sensitivity == math.sqrt(3)
    assert MECHANISM.noise_std == 2.0 * math.sqrt(3)
    assert MECHANISM.spend == (2.0, 1.0, 1)
    assert MECHANISM.whole_spend == (2.0, 1.0, 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    spoilt = GOOD.copy()
    spoilt[1, 1, 1] = bad

    assert "NaN or infinity" in refused(encode_histogram(spoilt))


def test_numbers_that_no_site_sends_are_refused() -> None:
    large, between = GOOD.copy(), GOOD.copy()
    large[0, 0, 0] = -(2.0**28) - 1.0
    between[0, 0, 0] = 1.0 + GRID / 2

    assert "beyond 2^28 patients" in refused(encode_histogram(large))
    assert "off the grid" in refused(encode_histogram(between))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "no safetensors file"),
        (b"\x00" * 64, "no safetensors file"),
        (save({"histogram": GOOD[:2]}), r"float64 (2, 2, 5)"),
        (save({"histogram": GOOD.reshape(-1)}), r"float64 (30,)"),
        (save({"histogram": GOOD.astype(np.float32)}), "float32 (3, 2, 5)"),
        (save({"weights": GOOD}), "1 arrays with other names"),
        (save({"histogram": GOOD, "more": GOOD}), "2 arrays with other names"),
        (bytes(8 * 30 + HEADER_BYTES + 1), f"{8 * 30 + HEADER_BYTES + 1} bytes; allowed: at most"),
    ],
)
def test_any_other_message_is_refused_and_told_what_it_holds(data: bytes, found: str) -> None:
    assert found in refused(data)
