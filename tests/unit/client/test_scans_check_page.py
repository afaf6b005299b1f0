"""The page of a check: complete, self-contained, safe to open, and silent about who is who."""

from __future__ import annotations

import base64
import csv
import io
import re
import stat
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfed.client.scans.check import charts, sheets
from medfed.client.scans.check.page import page_html, write_names, write_page
from medfed.client.scans.check.sheets import by_label, shown, suspects
from tests.support.checked import CR, Folder, healthy, noise, troubled
from tests.support.scans import study_of

WHEN = datetime(2026, 3, 4, 17, 5)
_VOID = {"meta", "img"}
_HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> & \u202e"


class _Reader(HTMLParser):
    """Reads a page as a browser does."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.attributes: set[str] = set()
        self.without_words = 0
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.attributes |= given.keys()
        if "src" in given:
            self.sources.append(given["src"] or "")
        if tag == "img":
            self.without_words += not given.get("alt")
        if tag == "svg":
            self.without_words += not (given.get("aria-label") or given.get("aria-hidden"))
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


def page(folder: Folder, **how: object) -> str:
    return page_html(folder.examined(**how), folder.pictures, WHEN)  # type: ignore[arg-type]  # passed through


def hostile() -> Folder:
    made = Folder(study_of(labels=(_HOSTILE[:24], "b"), size=32))
    facts = replace(CR, manufacturer=_HOSTILE[:40], model="", view="<b>", text_risk=True)
    for number in range(6):
        made.add(noise(number), patient=f"P{number}", label=number % 2, facts=facts)
    return made


@pytest.fixture(scope="module")
def sick() -> Folder:
    return troubled(side=32)


@pytest.fixture(scope="module")
def sick_page(sick: Folder) -> str:
    refused = {"not a DICOM file": 7, _HOSTILE: 1}
    return page(sick, refused=refused, left_out={"no line names the file": 140}, declared=400)


# ---- properties ----------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [healthy, troubled, hostile])
def test_page_is_well_formed_and_loads_and_runs_nothing(make: type[Folder]) -> None:
    written = page(make(), refused={_HOSTILE: 2})
    reader = _Reader(written)

    assert reader.open == []
    assert not {"script", "link", "iframe", "object", "form", "a"} & set(reader.tags)
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert not {"href", "onerror", "onclick", "style", "srcset"} & reader.attributes
    assert not re.search(r"https?://|url\(|@import|javascript:", written)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in written
    assert "<script" not in written and "\u202e" not in written
    assert reader.without_words == 0  # each picture and drawing is told to who cannot see it


def test_page_names_no_file_and_no_patient(sick: Folder, sick_page: str) -> None:
    for scan in sick.scans:
        assert scan.file not in sick_page
        assert scan.patient.hex() not in sick_page and scan.content.hex() not in sick_page


def test_the_same_scans_give_the_same_page_in_any_order() -> None:
    made, turned = healthy(40, side=32), healthy(40, side=32)
    turned.scans.reverse()
    turned.tensors.reverse()

    assert page(made) == page(turned)


# ---- what stands on it ---------------------------------------------------------------------------
def test_page_says_what_was_found(sick_page: str) -> None:
    text = " ".join(_Reader(sick_page).text.split())

    for words in (
        "Not ready for study tiny: 2 things must be put right first.",
        "These numbers are for you; none of them leaves the site.",
        "7 pictures stand in more than one of train, validation and test",
        "8 of 303 listed scans (3 %) cannot be used",
        "CR · Old & Sons Portable <1>",
        "May have text in the picture 24 of 46 scans, drawn at random.",
        "Show one even grey All 3 scans",
        "Same picture in two parts",
        "Nearly the same picture in two parts",
        "normal · train",
        "opacity · validation",
        "2026-03-04 17:05",
        "no line names the file 140",
    ):
        assert words in text


def test_page_has_no_part_for_what_nobody_said() -> None:
    made = Folder(study_of(size=32))
    for number in range(4):
        facts = replace(CR, modality="", manufacturer="", model="", rows=0, columns=0, bits=0)
        made.add(noise(number), patient=f"{number}", label=number % 2, facts=facts)
    text = _Reader(page(made, unit="image")).text

    assert "No file says by what device it was taken." in text
    assert "age, years" not in text and "longer side" not in text
    assert "scans of one" not in text
    assert "What is not used" not in text and "Look at these" not in text


def test_the_table_of_labels_counts_patients_and_scans() -> None:
    made = Folder(study_of(labels=("a", "b"), size=32))
    for number, (patient, label, part) in enumerate(
        [("P", 0, 0), ("P", 0, 0), ("Q", 1, 0), ("R", 0, 2), ("S", 0, 2)]
    ):
        made.add(noise(number), patient=patient, label=label, part=part)
    text = " ".join(_Reader(page(made)).text.split())

    # train: 1 patient with 2 scans of a, of 3 in train; nobody is in validation
    assert "label train: patients test: patients scans in all" in text
    assert "a 1 2 scans, 67 % 2 2 scans, 100 % 4 80 %" in text
    assert "b 1 1 scan, 33 % 0 0 scans, 0 % 1 20 %" in text
    assert "all 2 3 scans 2 2 scans 5" in text


# ---- pictures ------------------------------------------------------------------------------------
def pictures_of(written: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        for source in _Reader(written).sources
    ]


def test_pictures_show_the_scans_as_the_study_prepares_them() -> None:
    made = Folder(study_of(size=32, scans="mean = 0.5\nstd = 0.25"))
    plain = noise(1)
    made.add((plain - 0.5) / 0.25, patient="P")

    (picture,) = pictures_of(page(made))
    assert np.array_equal(np.asarray(picture), np.rint(plain[0] * 255).astype(np.uint8))


def test_colour_is_shown_as_colour() -> None:
    made = Folder(study_of(size=32, channels=3))
    made.add(noise(1, channels=3), patient="P")

    (picture,) = pictures_of(page(made))
    assert picture.mode == "RGB"
    expected = np.rint(made.tensors[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    assert np.array_equal(np.asarray(picture), expected)


def test_values_beyond_black_and_white_are_held_at_them() -> None:
    study = study_of(size=32)
    tensor = np.array([[[-3.0, 0.0], [1.0, 7.0]]], dtype=np.float32)

    assert shown(tensor, study.scans).tolist() == [[0, 0], [255, 255]]


def test_a_large_scan_becomes_a_small_picture_without_words_in_its_file() -> None:
    made = Folder(study_of(size=512))
    made.add(noise(1, side=512), patient="P")

    (picture,) = pictures_of(page(made))
    assert picture.size == (sheets.TILE, sheets.TILE)
    assert not picture.info and len(picture.getexif()) == 0


def test_a_page_of_many_labels_holds_a_bounded_number_of_pictures() -> None:
    labels = tuple(f"l{number}" for number in range(40))
    made = Folder(study_of(labels=labels, size=8))
    for number in range(3000):
        label, part = number % 40, number // 40 % 3
        made.add(noise(number, side=8), patient=f"P{number}", label=label, part=part)
    drawn = list(by_label(made.overview()))

    assert len(drawn) == 120
    assert sum(len(sheet.tiles) for sheet in drawn) == 120 * sheets.FEWEST


def test_pairs_stand_beside_each_other(sick: Folder) -> None:
    found = sick.examined()
    chosen = {sheet.title: sheet for sheet in suspects(found.overview, found.copies)}

    sheet = chosen["Same picture in two parts"]
    assert sheet.pairs and len(sheet.tiles) == 14
    for left, right in zip(sheet.tiles[::2], sheet.tiles[1::2], strict=True):
        assert np.array_equal(sick.tensors[left.place], sick.tensors[right.place])
    assert repr(sheet) == "Sheet()" and repr(sheet.tiles[0]) == "Tile()"


# ---- charts --------------------------------------------------------------------------------------
def test_bars_are_as_high_as_their_numbers() -> None:
    drawn = charts.bars_svg([("a", 10), ("b", 5), ("c", 0)], 380, "letters")
    heights = [float(h) for h in re.findall(r'class="bar" [^>]*height="([\d.]+)"', drawn)]

    assert heights[0] == 2 * heights[1] > 0 and heights[2] == 0
    assert 'aria-label="letters: a: 10; b: 5; c: 0"' in drawn
    assert charts.bars_svg([], 380, "letters") == ""


def test_brightness_is_drawn_per_label_and_hostile_labels_are_escaped() -> None:
    levels = {0: np.eye(32)[3], 1: np.full(32, 1 / 32)}
    drawn = charts.brightness_svg(levels, [_HOSTILE, "b"], 340)

    assert drawn.count("<polygon") == 2
    assert "<script" not in drawn
    assert charts.brightness_svg({}, [], 340) == ""


# ---- files ---------------------------------------------------------------------------------------
def test_page_and_names_can_be_read_by_their_owner_only(
    sick: Folder, sick_page: str, tmp_path: Path
) -> None:
    write_page(sick_page, tmp_path / "index.html")
    assert write_names(sick.examined(), sick.scans, tmp_path / "files.csv")

    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_names_of_suspect_files_stand_beside_the_page(sick: Folder, tmp_path: Path) -> None:
    path = tmp_path / "files.csv"
    write_names(sick.examined(), sick.scans, path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))

    twins = [r["file"] for r in rows if r["reason"] == "same picture in two parts"]
    assert {"00000.dcm", "00279.dcm"} <= set(twins)  # 279 scans, then copies of 0, 1, 2 and 3
    (number,) = {r["group"] for r in rows if r["file"] in ("00000.dcm", "00279.dcm") and
                 r["reason"] == "same picture in two parts"}  # fmt: skip
    assert number == "1"
    burned = [s for s in sick.scans if s.facts.burned_in == "yes"]
    assert sum(r["reason"] == "header says that text is burned in" for r in rows) == len(burned)
    assert sum(r["reason"] == "shows one even grey" for r in rows) == 3


def test_a_file_with_a_name_that_is_no_text_is_named_byte_by_byte(tmp_path: Path) -> None:
    made = Folder(study_of(size=32))
    made.add(np.zeros((1, 32, 32)), patient="P")
    made.scans[0] = made.scans[0]._replace(file="caf\udce9\n.dcm", frame=3)

    write_names(made.examined(), made.scans, tmp_path / "files.csv")

    assert b'shows one even grey,,"caf\xe9\n.dcm",3' in (tmp_path / "files.csv").read_bytes()


def test_where_nothing_is_suspect_no_names_are_left(tmp_path: Path) -> None:
    path = tmp_path / "files.csv"
    path.write_text("of another day")
    made = healthy(8, side=32)

    assert not write_names(made.examined(), made.scans, path)
    assert not path.exists()
