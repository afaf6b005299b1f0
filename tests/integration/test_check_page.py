"""The page of `medfed scans check` in a real browser.

Where no Chromium is installed and none can be fetched these tests are skipped (under CI they
fail).
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfed.client.scans.check.page import page_html, write_page
from tests.support.checked import Folder, healthy, noise, troubled
from tests.support.chromium import NoChromiumError, find_chromium, load, take_picture
from tests.support.scans import study_of

WHEN = datetime(2026, 3, 4, 17, 5)


@pytest.fixture(scope="module", autouse=True)
def browser() -> None:
    try:
        find_chromium()
    except NoChromiumError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def written(folder: Folder, path: Path, **how: object) -> Path:
    html = page_html(folder.examined(**how), folder.pictures, WHEN)  # type: ignore[arg-type]  # passed through
    write_page(html, path)
    return path


def test_the_browser_sees_requests_and_complaints(tmp_path: Path) -> None:
    # The tests below say that there are none: this one shows that they would be seen.
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://127.0.0.1:9/x.png"><script>nope()</script>')

    loaded = load(bad)

    assert loaded.requests == ["http://127.0.0.1:9/x.png"]
    assert "nope is not defined" in "".join(loaded.console)


def test_page_asks_nothing_of_the_network_and_the_browser_has_nothing_to_complain_about(
    tmp_path: Path,
) -> None:
    refused = {"<img src=http://127.0.0.1:9/x.png>": 3}
    loaded = load(written(troubled(), tmp_path / "index.html", refused=refused))

    assert loaded.requests == []
    assert loaded.console == []


def test_the_document_holds_what_the_page_says(tmp_path: Path) -> None:
    document = load(written(troubled(), tmp_path / "index.html")).document

    assert "Not ready for study tiny: 2 things must be put right first." in document
    assert "CR · Old &amp; Sons Portable &lt;1&gt;" in document
    assert document.count("<img") > 100
    assert "</main>" in document


def colours(picture: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(picture).convert("RGB"))


@pytest.mark.parametrize(("dark", "ground"), [(False, (243, 245, 248)), (True, (17, 21, 26))])
def test_page_is_light_or_dark_as_the_reader_has_it(
    dark: bool, ground: tuple[int, int, int], tmp_path: Path
) -> None:
    page = written(healthy(16), tmp_path / "index.html")
    take_picture(page, tmp_path / "page.png", dark=dark)

    # --ground of common/report/style.py: #f3f5f8 and #11151a
    assert tuple(colours(tmp_path / "page.png")[5, 5]) == ground


def test_on_a_telephone_nothing_is_wider_than_the_window(tmp_path: Path) -> None:
    made = Folder(study_of(labels=("a" * 60, "b"), size=32))
    for number in range(30):
        made.add(noise(number), patient=f"P{number // 3}", label=number % 2, part=number % 3)
    page = written(made, tmp_path / "index.html", refused={"x" * 200: 3})
    probe = page.read_text().replace(
        "</main>",
        "</main><script>document.title = [...document.querySelectorAll('body *')].filter("
        "e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName).join()"
        " || `all of ${innerWidth} px`</script>",
    )
    page.write_text(probe.replace("default-src 'none'", "script-src 'unsafe-inline'"))

    document = load(page, width=500).document

    assert "<title>all of 500 px</title>" in document
