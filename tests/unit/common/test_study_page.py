"""The page of a study: complete for those who decide, self-contained and safe to open."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfed.common.networks.message_sizes import message_sizes
from medfed.common.networks.parameters import network_for
from medfed.common.report.study_page import guess_text, size_text, study_page
from medfed.common.signed_study import StudyFile
from medfed.common.study import Study
from tests.support.sites import WITHOUT_PRIVACY, make_study

MARK = "K7QX-2MNA-RT5P-WZ3D"
STUDY = make_study(
    ("[task]", "expires = 2027-12-31\n[task]"),
    ("[cohort]", "[evaluation]\nbins = 10\ntest = true\nnoise_multiplier = 4.0\n[cohort]"),
)


class _Reader(HTMLParser):
    """The tags of a page, and the text that a person sees, on one line."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.seen: list[str] = []
        self.feed(page.partition("</style>")[2])
        self.text = " ".join(" ".join(self.seen).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.seen.append(data)


def page_of(study: Study, fingerprint: str | None = MARK) -> str:
    return study_page(StudyFile(study, fingerprint), message_sizes(study))


def text_of(study: Study, fingerprint: str | None = MARK) -> str:
    return _Reader(page_of(study, fingerprint)).text


def test_the_page_answers_what_a_board_asks() -> None:
    text = text_of(STUDY)

    for title in (
        "What it is for", "Who takes part", "What leaves each hospital",
        "What it costs a patient", "Who sees what", "How long", "How to withdraw",
        "Which scans, and how they are prepared", "To compare",
    ):  # fmt: skip
        assert title in text
    for fact in (
        STUDY.study.purpose,
        STUDY.digest,
        MARK,
        "2027-12-31 (UTC) is the last day",
        "epsilon 2.07 at delta 1e-3 (1 in 1,000)",  # 2.066: see test_approvals
        "resized to 28 x 28 pixels",
        f"medfed site withdraw {STUDY.digest[:8]}",
    ):
        assert fact in text


def test_the_sizes_are_those_of_what_is_really_sent() -> None:
    sizes = message_sizes(STUDY)
    weights = sum(weight.numel() for weight in network_for(STUDY).parameters())

    # float32; the rest is the header of names and shapes
    assert 4 * weights <= sizes.update <= 4 * weights + 4096
    assert set(sizes.histograms) == {"test"}
    assert 8 * 2 * 10 <= sizes.histograms["test"] <= 8 * 2 * 10 + 200  # float64, 2 rows, 10 bins
    assert f"2 times {size_text(sizes.update)} ({size_text(2 * sizes.update)} in all)" in text_of(
        STUDY
    )


def test_a_study_without_privacy_promises_none() -> None:
    text = text_of(make_study(WITHOUT_PRIVACY))

    assert "nothing limits what the model may tell about a patient" in text
    assert "without noise" in text and "not noised" in text and "no limit" in text
    assert "guesses right" not in text and "within the privacy loss" not in text


def test_who_signed_stands_on_the_page_and_that_anybody_could_have_made_it() -> None:
    assert f"Signed by {MARK}. Anybody can make such a file" in text_of(STUDY)
    assert "Signed by nobody. A draft" in text_of(STUDY, None)


def test_the_page_loads_and_runs_nothing_and_hostile_words_stay_words() -> None:
    hostile = '<script>alert(1)</script>\\"><img src=x onerror=alert(1)> & more'
    study = make_study(
        ("A study of tests: bright images against dark ones.", hostile),
        ('labels = ["dark", "bright"]', 'labels = ["<b>dark", "bright</dd>"]'),
    )

    page = page_of(study)
    reader = _Reader(page)

    assert reader.tags.isdisjoint({"script", "img", "link", "iframe", "object", "a", "form", "b"})
    assert reader.attributes.isdisjoint({"src", "href", "onerror", "style"})
    assert "default-src 'none'" in page and not re.search(r"https?://|url\(|@import", page)
    assert "<script>alert(1)</script>" in reader.text
    assert page == page_of(study)  # the same study, the same page


@given(epsilon=st.floats(0.0, 15.0), delta=st.floats(0.0, 0.05))
def test_how_often_a_guess_is_right_is_never_said_smaller_than_it_is(
    epsilon: float, delta: float
) -> None:
    right = 100.0 * (math.exp(epsilon) + delta) / (1.0 + math.exp(epsilon))

    said = float(guess_text(epsilon, delta).removesuffix(" %"))

    assert right - 1e-9 <= said <= right + max(0.1, (100.0 - right))


@pytest.mark.parametrize(
    ("epsilon", "said"),
    # e / (1 + e) = 0.7311; e^8 / (1 + e^8) = 0.999665: worked by hand
    [(0.0, "50 %"), (1.0, "73.2 %"), (8.0, "99.97 %"), (1e9, "practically 100 %")],
)
def test_how_often_a_guess_is_right(epsilon: float, said: str) -> None:
    assert guess_text(epsilon, 0.0) == said


@pytest.mark.parametrize(
    ("size", "said"), [(812, "812 bytes"), (48_213, "48.2 kB"), (31_400_000, "31.4 MB")]
)
def test_a_size_is_said_in_a_unit_that_fits(size: int, said: str) -> None:
    assert size_text(size) == said
