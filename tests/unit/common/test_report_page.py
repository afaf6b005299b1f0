"""The page: complete, self-contained and safe to open."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from medfed.common.report.content import Interval, Outcome, RunReport
from medfed.common.report.page import page_html, write_page
from tests.support.reports import run_report, site_row

_VOID = {"meta"}
_HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> & \x1b[2J"


class _Reader(HTMLParser):
    """Reads a page as a browser does: tags, attributes and the text a person sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: dict[str, set[str]] = {}
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")
        if tag not in _VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not (self.get_starttag_text() or "").endswith("/>") or self.open[-1:] == [tag]:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += f" {data}"


def hostile_report() -> RunReport:
    texts = dict.fromkeys(
        (
            "title headline study_name study_digest purpose network device randomness "
            "privacy_statement model_path page_path"
        ).split(),
        _HOSTILE,
    )
    sites = (site_row(site=_HOSTILE, unit=_HOSTILE, missing=_HOSTILE),)
    return run_report(
        **texts,
        sites=sites,
        notes=(_HOSTILE,),
        seconds={_HOSTILE: 1.0},
        preparation=((_HOSTILE, _HOSTILE),),
    )


@pytest.mark.parametrize("report", [run_report(), hostile_report()], ids=["plain", "hostile"])
def test_page_is_well_formed_and_loads_and_runs_nothing(report: RunReport) -> None:
    page = page_html(report)
    reader = _Reader(page)

    assert reader.open == []
    assert reader.tags.isdisjoint({"script", "img", "link", "iframe", "object", "a", "form"})
    assert reader.attributes.keys().isdisjoint({"src", "href", "onerror", "onclick", "style"})
    assert not re.search(r"https?://|url\(|@import|javascript:", page)
    assert "default-src 'none'; style-src 'unsafe-inline'" in reader.attributes["content"]


def test_hostile_text_is_shown_as_text() -> None:
    page = page_html(hostile_report())

    assert "<script" not in page and "<img" not in page and "\x1b" not in page
    assert "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> &" in _Reader(page).text


def test_page_says_everything_the_report_holds() -> None:
    text = " ".join(_Reader(page_html(run_report())).text.split())

    for words in (
        "Finished, but not as planned",
        run_report().headline,
        "medfed demo · study demo-opacity · Show how three hospitals",
        "Site C: did not answer within 60 s in round 6.",
        "The scans of site B come from one scanner only.",
        "0.953 0.921–0.978 0.902 0.851–0.944 +0.051 7.95 at 1e-4 10",
        "all sites 450 1,108 0.941 0.919–0.960",
        "add-or-remove one patient",
        "Every patient is protected over all rounds",
        "3f9a1c77ab" * 6,
        "Scans modality DX, any view Varied no Network scatter-small",
        "cpu (2 threads)",
        "secret",
        "1 min 20 s (reading the scans 4.4 s, training 1 min 16 s)",  # 4.4 + 75.7 = 80.1 s
        "/data/runs/demo/model.safetensors",
        "mean AUROC 0.944",
    ):
        assert words in text


@pytest.mark.parametrize("term", ["AUROC", "Epsilon", "Delta", "Site", "Round", "Interval"])
def test_page_explains_its_terms(term: str) -> None:
    assert re.search(rf"<dt>{term}[^<]*</dt><dd>[^<]+</dd>", page_html(run_report()))


@pytest.mark.parametrize("outcome", ["finished", "incomplete", "failed", "stopped"])
def test_outcome_sets_the_banner_and_is_said_in_words(outcome: Outcome) -> None:
    page = page_html(run_report(outcome=outcome))

    assert f'<header class="{outcome}">' in page
    assert f".{outcome}" in page  # the style sheet knows it


def test_seeded_run_carries_a_warning_and_a_secret_one_none() -> None:
    seeded = page_html(run_report(randomness="seeded (seed 0)"))

    assert "<strong>Not for release.</strong> Randomness: seeded (seed 0)." in seeded
    assert "Not for release" not in page_html(run_report())


def test_training_without_privacy_is_said_wherever_privacy_is() -> None:
    sites = (site_row(), site_row(site="B", epsilon=None, delta=None))

    text = _Reader(page_html(run_report(sites=sites))).text

    assert "no limit" in text  # one site without is enough
    assert "nothing limits what the model may tell" in text


def test_tile_shows_the_weakest_guarantee() -> None:
    sites = (site_row(epsilon=2.0), site_row(site="B", epsilon=6.0, delta=1e-5))

    page = page_html(run_report(sites=sites))

    assert "<strong>6.00</strong><small>epsilon at delta 1e-5, per patient</small>" in page


def test_gain_and_loss_differ_in_sign_and_colour() -> None:
    worse = site_row(site="B", alone=Interval(0.96, 0.93, 0.98))

    page = page_html(run_report(sites=(site_row(), worse)))

    assert '<strong class="good">+0.051</strong>' in page
    assert '<strong class="bad">−0.007</strong>' in page  # 0.953 - 0.960


def test_page_of_a_run_with_nothing_in_it_can_be_drawn() -> None:
    empty = run_report(
        sites=(), pooled=None, curve=(), notes=(), seconds={}, seeds=(), model_path="",
        privacy_statement="", outcome="failed",
    )  # fmt: skip

    text = _Reader(page_html(empty)).text

    assert "No site took part." in text
    assert "none written" in text
    assert "<svg" not in page_html(empty)


def test_page_without_problems_says_so_only_if_it_finished() -> None:
    fine = {"sites": (site_row(),), "notes": ()}

    assert "<p>Nothing.</p>" in page_html(run_report(**fine, outcome="finished"))
    assert "<p>Nothing.</p>" not in page_html(run_report(**fine, outcome="stopped"))


def test_page_without_a_curve_has_no_place_for_it() -> None:
    assert "How the model learnt" in page_html(run_report())
    assert "How the model learnt" not in page_html(run_report(curve=()))


def test_page_fits_light_dark_narrow_and_paper() -> None:
    page = page_html(run_report())

    for rule in ("prefers-color-scheme: dark", "max-width: 640px", "@media print"):
        assert rule in page
    light, dark = re.findall(r"--ink: (#\w+)", page)[:2]
    assert light != dark


def test_page_is_written_whole_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    write_page(run_report(), path)

    assert path.read_text(encoding="utf-8") == page_html(run_report())
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_page_of_a_broken_file_name_can_be_written(tmp_path: Path) -> None:
    write_page(run_report(model_path="/data/\udcff"), tmp_path / "report.html")


def test_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        write_page(run_report(), tmp_path / "missing" / "report.html")
