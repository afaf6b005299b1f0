"""What a person reads on a terminal, in windows and encodings of every kind."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console

from medfed.common.report.content import Interval, RunReport
from medfed.common.report.terminal import print_report
from tests.support.reports import run_report, site_row


def printed(report: RunReport, *, width: int = 120, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    print_report(report, console=Console(file=file, width=width))
    file.flush()
    return raw.getvalue().decode(encoding)


def words_of(text: str) -> str:
    return " ".join(text.split())


def test_headline_comes_first_and_paths_last() -> None:
    lines = printed(run_report()).splitlines()

    assert lines[0] == "FINISHED, BUT NOT AS PLANNED"
    assert lines[1] == run_report().headline
    assert lines[-2] == "Model:  /data/runs/demo/model.safetensors"
    assert lines[-1] == "Report: /data/runs/demo/report.html"


def test_a_site_has_its_figures_on_one_line_of_a_wide_window() -> None:
    lines = printed(run_report()).splitlines()

    # 0.953 - 0.902 = 0.051; epsilon 7.941 is rounded up
    assert words_of(next(line for line in lines if line.startswith("A "))) == (
        "A 152 371 0.953 0.921-0.978 0.902 0.851-0.944 +0.051 7.95 at 1e-4 10"
    )
    # 152 + 148 + 150 patients, 371 + 360 + 377 scans
    assert words_of(next(line for line in lines if line.startswith("all sites"))) == (
        "all sites 450 1,108 0.941 0.919-0.960"
    )


@pytest.mark.parametrize("width", [20, 40, 60, 79, 80, 100, 140])
def test_every_figure_survives_any_width(width: int) -> None:
    shown = printed(run_report(), width=width)

    for figure in ("0.953", "0.902", "+0.051", "7.95", "1e-4", "1,108", "450"):
        assert figure in shown
    if width >= 60:
        assert "0.921-0.978" in shown


def test_table_stays_a_table_in_80_columns() -> None:
    shown = printed(run_report(), width=80)

    assert "patients: 152" not in shown
    assert max(map(len, shown.splitlines()[:20])) <= 80
    assert "patients: 152" in printed(run_report(), width=60)


def test_relation_stands_with_epsilon() -> None:
    by_image = run_report(sites=(site_row(unit="image"),))

    assert "privacy loss for add-or-remove one patient" in words_of(printed(run_report()))
    assert "privacy loss for add-or-remove one image" in words_of(printed(by_image))


def test_lost_site_and_notes_are_said_below_the_table() -> None:
    lines = printed(run_report()).splitlines()

    assert any(line.startswith("C * ") for line in lines)
    assert "* C: did not answer within 60 s in round 6." in lines
    assert "! The scans of site B come from one scanner only." in lines


def test_training_without_privacy_is_said_in_words() -> None:
    shown = printed(run_report(sites=(site_row(epsilon=None, delta=None),)))

    assert "not private" in shown
    assert "nothing limits what the model may tell about a patient" in words_of(shown)
    assert "Epsilon:" not in shown


def test_seeded_run_is_marked_and_a_secret_one_is_not() -> None:
    seeded = run_report(randomness="seeded (seed 0): a simulation, never to be released")

    assert "Randomness: seeded (seed 0): a simulation, never to be released" in printed(seeded)
    assert "Randomness" not in printed(run_report())


def test_what_was_not_measured_has_no_column_or_says_so() -> None:
    sites = (site_row(alone=None, scans=None), site_row(site="B", alone=None, auroc=None))

    shown = printed(run_report(sites=sites, pooled=None))

    assert "alone" not in shown.lower() and "gain" not in shown
    assert shown.count("not measured") == 2  # site B and all sites
    assert shown.count("not told") == 2  # the scans of A, hence of all sites


def test_each_site_has_its_own_epsilon_and_delta() -> None:
    sites = (site_row(epsilon=2.0), site_row(site="B", epsilon=6.0, delta=1e-5))

    lines = printed(run_report(sites=sites)).splitlines()

    assert "2.00 at 1e-4" in next(line for line in lines if line.startswith("A "))
    assert "6.00 at 1e-5" in next(line for line in lines if line.startswith("B "))


def test_scans_that_are_the_units_are_not_counted_twice() -> None:
    sites = (site_row(unit="image", patients=371, scans=371),)

    shown = printed(run_report(sites=sites))

    assert "images" in shown
    assert "scans " not in shown.split("all sites")[0]


def test_run_without_any_site_can_be_shown() -> None:
    shown = printed(
        run_report(sites=(), pooled=None, outcome="failed", model_path="", page_path="")
    )

    assert "FAILED" in shown
    assert "No site took part." in shown
    assert "Model:  none written" in shown


def test_path_is_not_broken_by_a_narrow_window() -> None:
    path = "/data/" + "a-long-folder/" * 8 + "model of  today.safetensors"

    assert f"Model:  {path}\n" in printed(run_report(model_path=path), width=40)


def test_text_from_outside_is_shown_as_it_is() -> None:
    shown = printed(run_report(headline="[red]A[/red] :boom: \x1b[2J\u202e", notes=("[/]",)))

    assert "[red]A[/red] :boom: \ufffd[2J\ufffd" in shown
    assert "! [/]" in shown
    assert "\x1b" not in shown


def test_old_console_gets_what_it_can_show() -> None:
    report = run_report(sites=(site_row(site="Köln", missing="größer als erlaubt"),))

    shown = printed(report, encoding="ascii")

    assert "K?ln *" in shown
    assert "0.921-0.978" in shown


def test_interval_beyond_one_is_shown() -> None:
    assert "0.970-1.004" in printed(run_report(pooled=Interval(0.99, 0.97, 1.004)))


def test_rich_is_loaded_only_when_something_is_printed() -> None:
    program = (
        "import sys, medfed.common.report.terminal, medfed.common.report.page; "
        "print([name for name in ('rich', 'torch', 'pydantic') if name in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"
