"""The charts are drawn to scale and say in words what they show."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from medfed.common.report.charts import curve_svg, forest_svg
from medfed.common.report.content import Interval
from tests.support.reports import run_report, site_row


def marks(svg: str, kind: str) -> list[tuple[float, float]]:
    """Places of the middles of a chart's marks."""
    found = []
    for element in ElementTree.fromstring(svg).iter():
        if element.get("class") == f"{kind} mark":
            at = element.attrib
            if "cx" in at:
                found.append((float(at["cx"]), float(at["cy"])))
            else:
                found.append((float(at["x"]) + 4, float(at["y"]) + 4))  # squares are 8 px wide
    return found


@pytest.mark.parametrize("width", [340, 800])
def test_forest_puts_every_mark_where_its_figure_is(width: int) -> None:
    sites = tuple(
        site_row(
            site=str(place), auroc=Interval(value, value, value), alone=Interval(0.5, 0.5, 0.6)
        )
        for place, value in enumerate((0.6, 0.7, 0.8))
    )
    svg = forest_svg(run_report(sites=sites, pooled=Interval(0.9, 0.9, 0.9)), width)

    together, alone = marks(svg, "together"), marks(svg, "alone")

    xs = [x for x, _ in together]
    # 0.6, 0.7, 0.8, 0.9 are 0.1 apart, so their marks are equally far apart; 0.1 px is rounding
    assert [b - a for a, b in zip(xs, xs[1:], strict=False)] == pytest.approx(
        [xs[1] - xs[0]] * 3, abs=0.2
    )
    assert xs[1] - xs[0] == pytest.approx(xs[0] - alone[0][0], abs=0.2)  # 0.5 to 0.6
    assert 0 < alone[0][0] < xs[-1] < width
    assert [y for _, y in together] == sorted(y for _, y in together)


def test_forest_draws_the_interval_around_its_mark() -> None:
    svg = forest_svg(run_report(sites=(site_row(alone=None),), pooled=None), 800)

    ((x, _),) = marks(svg, "together")
    (span,) = [e for e in ElementTree.fromstring(svg) if e.get("class") == "together span"]
    left, right = float(span.attrib["x1"]), float(span.attrib["x2"])
    # 0.921, 0.953, 0.978: the mark stands at 32 / 57 of its line
    assert (x - left) / (right - left) == pytest.approx(32 / 57, abs=0.01)


def test_forest_says_what_was_not_measured_and_is_absent_if_nothing_was() -> None:
    unknown = site_row(auroc=None, alone=None)

    assert "not measured" in forest_svg(run_report(sites=(unknown,)), 800)
    assert forest_svg(run_report(sites=(unknown,), pooled=None), 800) == ""


def test_long_site_names_keep_their_ends_apart() -> None:
    names = [f"university-hospital-of-a-long-name-{place}" for place in (1, 2)]

    svg = forest_svg(run_report(sites=tuple(site_row(site=name) for name in names)), 340)

    shown = [e.text for e in ElementTree.fromstring(svg).iter() if e.get("class") == "label"]
    assert shown[0] != shown[1]
    assert all(len(text or "") < 20 for text in shown)
    assert names[0] in svg  # whole, as its title


@pytest.mark.parametrize("width", [340, 800])
def test_curve_rises_with_the_figure_and_runs_with_the_rounds(width: int) -> None:
    points = marks(curve_svg(run_report(), width), "together")

    # rounds 0, 1, 2, 10: the last gap is eight rounds wide
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = points
    assert x3 - x2 == pytest.approx(8 * (x1 - x0), abs=1)
    assert y0 > y1 > y2 > y3  # svg counts downwards
    # 0.51, 0.64, 0.733
    assert (y0 - y1) / (y1 - y2) == pytest.approx(0.13 / 0.093, abs=0.02)


def test_one_point_is_no_curve() -> None:
    assert curve_svg(run_report(curve=((3, 0.9),)), 800) == ""


def test_line_of_guessing_is_drawn_only_where_it_is_in_sight() -> None:
    poor = run_report(sites=(site_row(auroc=Interval(0.5, 0.4, 0.6)),), curve=((1, 0.4), (2, 0.6)))

    assert "guessing" in forest_svg(poor, 800) and "guessing" in curve_svg(poor, 800)
    assert "guessing" not in forest_svg(run_report(), 800) + curve_svg(run_report(), 800)


def test_chart_is_told_to_who_cannot_see_it() -> None:
    said = ElementTree.fromstring(forest_svg(run_report(), 800)).get("aria-label") or ""

    assert "A together 0.953, alone 0.902; B together 0.947" in said
    assert "from 0.510 after round 0 to 0.941 after round 10" in curve_svg(run_report(), 340)
