"""What a report takes and refuses, and how its numbers and words are said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfed.common.report.as_json import report_json
from medfed.common.report.content import Interval
from medfed.common.report.scale import count_scale, share_scale
from medfed.common.report.words import (
    clean,
    delta_text,
    duration,
    epsilon_text,
    levels,
    relation,
    seeds_text,
    signed,
)
from tests.support.reports import run_report, site_row


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_shown_epsilon_is_never_smaller_than_it_is(epsilon: float) -> None:
    shown = float(epsilon_text(epsilon))

    assert shown >= epsilon * (1 - 1e-11)
    assert shown <= epsilon * 1.01 + 1e-12  # three digits: at most 1 % above


@given(st.text())
def test_cleaned_text_is_printable_on_one_line(text: str) -> None:
    assert clean(text).isprintable()
    assert len(clean(text)) == len(text)


@given(st.lists(st.floats(-0.1, 1.1), min_size=1), st.integers(3, 9))
def test_share_axis_holds_its_values_and_has_few_ticks(values: list[float], most: int) -> None:
    scale = share_scale(values, 10, 110, most=most)

    assert scale.low <= max(min(values), 0) + 1e-9
    assert 2 <= len(scale.ticks) <= most
    assert (scale.at(scale.low), scale.at(scale.high)) == (10, 110)
    assert all(10 <= scale.at(value) <= 110 for value in values)


@given(st.lists(st.integers(0, 100_000), min_size=1), st.integers(3, 9))
def test_count_axis_has_whole_ticks_within_its_ends(numbers: list[int], most: int) -> None:
    scale = count_scale(numbers, 10, 110, most=most)

    assert scale.at(min(numbers)) == 10
    assert 1 <= len(scale.ticks) <= most
    assert all(scale.low <= tick <= scale.high and tick == int(tick) for tick in scale.ticks)


def test_ticks_are_round_numbers() -> None:
    # 0.851 lies above 0.85 = 17 * 0.05, the last multiple of 0.05 below it
    assert share_scale([0.851], 0, 1).ticks == pytest.approx([0.85, 0.9, 0.95, 1.0])
    assert count_scale([1, 50], 0, 1).ticks == (10, 20, 30, 40, 50)


@pytest.mark.parametrize(
    ("number", "say", "words"),
    [
        (7.941, epsilon_text, "7.95"),  # 7.94 would promise more than holds
        (8.0, epsilon_text, "8.00"),
        (0.1 + 0.2, epsilon_text, "0.300"),  # 0.30000000000000004: rounding dust
        (123.4, epsilon_text, "124"),
        (0.0, epsilon_text, "0"),
        (1e-4, delta_text, "1e-4"),
        (2.5e-5, delta_text, "2.5e-5"),
        (0.0412, signed, "+0.041"),
        (-0.0034, signed, "−0.003"),
        (-0.0001, signed, "0.000"),
        (4.21, duration, "4.2 s"),
        (192.4, duration, "3 min 12 s"),
        (3599.6, duration, "1 h 0 min"),
        (7500.0, duration, "2 h 5 min"),
    ],
)
def test_numbers_are_said_in_three_digits(
    number: float, say: Callable[[float], str], words: str
) -> None:
    assert say(number) == words


def test_relation_names_every_unit_once() -> None:
    sites = (site_row(), site_row(site="B"), site_row(site="C", unit="image"))

    assert relation(sites[:2]) == "add-or-remove one patient"
    assert relation(sites) == "add-or-remove one patient or one image"


def test_intervals_of_several_levels_are_all_named() -> None:
    other = site_row(alone=Interval(0.9, 0.8, 0.95, level=0.9))

    assert levels(run_report()) == "95 %"
    assert levels(run_report(sites=(other,))) == "95 % or 90 %"


def test_several_seeds_are_said_with_mean_and_spread() -> None:
    words = seeds_text(run_report())

    assert "3 seeds: mean AUROC 0.944, lowest 0.938, highest 0.952" in words  # 2.831 / 3
    assert "of seed 0" in words
    assert seeds_text(run_report(seeds=((0, 0.941),))) == ""


def test_gain_is_together_minus_alone() -> None:
    assert site_row().gain == pytest.approx(0.051)  # 0.953 - 0.902
    assert site_row(alone=None).gain is None
    assert site_row(auroc=None).gain is None


def test_report_cannot_change_after_it_is_made() -> None:
    spent = {"training": 75.7}
    report = run_report(seconds=spent)

    spent["training"] = 0.0

    assert report.seconds["training"] == 75.7
    with pytest.raises(TypeError):
        report.seconds["training"] = 0.0  # type: ignore[index]  # the refusal is the point


def test_json_keeps_its_keys() -> None:
    # machines read these: a key that vanishes here needs a new FORMAT
    written = json.loads(report_json(run_report()))

    assert list(written) == (
        "format title headline outcome study_name study_digest purpose metric network device "
        "randomness privacy_statement sites model_path page_path pooled curve evaluations "
        "preparation notes seconds seeds"
    ).split(" ")
    assert list(written["sites"][0]) == (
        "site patients unit rounds_done scans auroc alone epsilon delta missing gain neighbours"
    ).split(" ")
    assert list(written["pooled"]) == ["value", "low", "high", "level"]


def test_json_holds_every_digit_and_what_is_unknown_as_null() -> None:
    report = run_report(pooled=None, sites=(site_row(alone=None, epsilon=7.9412345678),))

    written = json.loads(report_json(report))

    assert written["sites"][0]["epsilon"] == 7.9412345678
    assert written["sites"][0]["neighbours"] == "add-or-remove one patient"
    assert written["pooled"] is None
    assert written["sites"][0]["alone"] is None and written["sites"][0]["gain"] is None
    assert written["seconds"] == {"reading the scans": 4.4, "training": 75.7}
    assert written["curve"][1] == [1, 0.64]


def test_json_of_a_broken_file_name_can_be_written() -> None:
    report_json(run_report(model_path="/data/\udcff")).encode("ascii")


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1])
def test_figure_that_is_no_share_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="value must be in"):
        Interval(value, 0.0, 1.0)
    with pytest.raises(ValueError, match="curve must be in"):
        run_report(curve=((1, value),))
    with pytest.raises(ValueError, match="seeds must be in"):
        run_report(seeds=((1, value),))


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.8), (math.nan, 1.0), (0.0, math.inf)])
def test_interval_without_order_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="finite and in order"):
        Interval(0.85, low, high)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_level_that_is_no_probability_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level must be in"):
        Interval(0.9, 0.8, 1.0, level)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patients": -1}, "must be >= 0"),
        ({"scans": -1}, "must be >= 0"),
        ({"rounds_done": -1}, "must be >= 0"),
        ({"delta": None}, "without its delta"),
        ({"epsilon": None}, "without its delta"),
        ({"epsilon": math.inf}, "epsilon must be finite"),
        ({"epsilon": -0.1}, "epsilon must be finite"),
        ({"delta": 1.0}, "delta must be in"),
    ],
)
def test_row_outside_its_range_is_refused_with_its_site(
    changes: dict[str, float | None], words: str
) -> None:
    with pytest.raises(ValueError, match=f"site 'A': .*{words}"):
        site_row(**changes)


@pytest.mark.parametrize("rounds", [(2, 1), (1, 1), (-1, 0)])
def test_curve_that_goes_back_is_refused(rounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        run_report(curve=tuple((number, 0.5) for number in rounds))


@pytest.mark.parametrize("spent", [-1.0, math.nan, math.inf])
def test_time_that_cannot_be_is_refused(spent: float) -> None:
    with pytest.raises(ValueError, match="seconds must be"):
        run_report(seconds={"training": spent})
