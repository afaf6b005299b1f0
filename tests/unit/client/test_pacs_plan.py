from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import BasicTextSRStorage, CTImageStorage

from medfed.client.scans.pacs.plan import (
    Query,
    Study,
    is_image,
    is_uid,
    pixel_bytes,
    read_accessions,
    study_keys,
    wants_series,
    wants_study,
)
from medfed.common.errors import ConfigError
from tests.support.memory_archive import instance

YEAR = Query(since=date(2025, 1, 1), until=date(2025, 12, 31))


@given(st.dates(), st.dates(), st.dates())
def test_a_study_is_wanted_exactly_when_its_day_is_in_the_range(
    day: date, one: date, other: date
) -> None:
    first, last = sorted((one, other))
    study = Study("1.2", day.strftime("%Y%m%d"), "", "")

    # %Y writes the year 987 as 987 on Linux, no DICOM date; such years are not compared
    if min(day, first).year >= 1000:
        assert wants_study(Query(since=first, until=last), study) == (first <= day <= last)


@pytest.mark.parametrize("day", ["", "unknown", "2025", "20260101", "20241231"])
def test_a_study_without_a_day_in_the_range_is_not_wanted(day: str) -> None:
    assert not wants_study(YEAR, Study("1.2", day, "", ""))


def test_a_study_without_a_day_fits_no_range_that_is_open_to_the_past() -> None:
    assert not wants_study(Query(until=date(2025, 12, 31)), Study("1.2", "", "", ""))


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("*chest*", "XR CHEST PA", True),
        ("CHEST ??", "chest pa", True),
        ("CHEST ?", "chest pa", False),
        ("chest", "chest pa", False),
        ("a.c*", "abc", False),  # a dot is a dot
        ("*[ab]*", "b", False),  # and a bracket a bracket
        ("*chest*", "", False),
    ],
)
def test_a_description_is_matched_with_the_standard_wildcards(
    pattern: str, text: str, fits: bool
) -> None:
    assert wants_study(Query(description=pattern), Study("1.2", "", text, "")) is fits


def test_only_listed_accession_numbers_are_wanted() -> None:
    query = Query(accessions=("A1", "A2"))

    assert wants_study(query, Study("1.2", "", "", "A2"))
    assert not wants_study(query, Study("1.2", "", "", "A3"))


def test_every_part_of_a_query_must_hold() -> None:
    query = Query(since=date(2025, 1, 1), description="chest*")

    assert wants_study(query, Study("1.2", "20250102", "chest pa", ""))
    assert not wants_study(query, Study("1.2", "20250102", "hand", ""))
    assert not wants_study(query, Study("1.2", "20240102", "chest pa", ""))


def test_series_are_kept_by_their_modality_and_objects_by_being_images() -> None:
    assert wants_series(Query(("CR",), since=date(2025, 1, 1)), "CR")
    assert not wants_series(Query(("CR",), since=date(2025, 1, 1)), "SR")
    assert wants_series(YEAR, "anything")
    assert is_image(instance("1", sop_class=CTImageStorage))
    assert is_image(instance("1", sop_class=None))
    assert not is_image(instance("1", sop_class=BasicTextSRStorage))


def test_keys_name_each_modality_by_itself_and_a_range_once() -> None:
    query = Query(("CR", "DX"), date(2025, 1, 1), date(2025, 1, 31), "*chest*")

    assert list(study_keys(query)) == [
        {
            "StudyDate": "20250101-20250131",  # PS3.4 C.2.2.2.5.1, range matching
            "StudyDescription": "*chest*",
            "ModalitiesInStudy": code,
        }
        for code in ("CR", "DX")
    ]


def test_keys_name_each_accession_number_by_itself() -> None:
    keys = list(study_keys(Query(("CR",), until=date(2025, 1, 31), accessions=("A1", "A2"))))

    assert [key["AccessionNumber"] for key in keys] == ["A1", "A2"]
    assert all(key["StudyDate"] == "-20250131" for key in keys)


def test_no_key_names_a_patient() -> None:
    query = Query(("CR",), date(2025, 1, 1), None, "chest", ("A1",))

    assert not any("Patient" in name for keys in study_keys(query) for name in keys)


def test_what_is_private_does_not_show() -> None:
    text = repr(
        [
            Query(accessions=("SECRET",)),
            Study("1.2.SECRET", "SECRET", "SECRET", "SECRET"),
            instance("1.2.SECRET", study="SECRET"),
        ]
    )

    assert "SECRET" not in text


def test_size_without_compression_is_computed_where_all_numbers_are_told() -> None:
    assert pixel_bytes(2000, 2500, 1, 12, 3) == 30_000_000  # 2000 * 2500 * 3 frames * 2 bytes
    assert pixel_bytes(2000, 0, 1, 16, 1) is None


@pytest.mark.parametrize("text", ["1.2.840", "2.25.123", "1.02.3"])
def test_a_uid_is_digits_and_single_dots(text: str) -> None:
    assert is_uid(text)


@pytest.mark.parametrize(
    "text", ["", "..", "1..2", "1.2/../3", "1.2?x=1", "1.2\n", "١.٢", "1." * 32 + "1"]
)
def test_what_is_no_uid_cannot_become_part_of_an_address(text: str) -> None:
    assert not is_uid(text)


def test_accession_numbers_are_read_once_each_in_order(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("\ufeff# chest, 2025\nA2\n\n  A1 \nA2\n", encoding="utf-8")

    assert read_accessions(file) == ("A2", "A1")


@pytest.mark.parametrize("bad", ["SECRET*", "SECRET?", "SEC\\RET", "SECRET" * 3, "SEC\tRET"])
def test_a_line_that_is_no_accession_number_is_named_but_not_quoted(
    tmp_path: Path, bad: str
) -> None:
    file = tmp_path / "list.txt"
    file.write_text(f"A1\n{bad}\n")

    with pytest.raises(ConfigError, match="line 2 is no accession number") as refusal:
        read_accessions(file)
    assert "SEC" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "found"), [(b"# none\n", "holds no"), (b"\xff\xfe", "not UTF-8"), (None, "read")]
)
def test_a_list_that_cannot_be_used_is_refused(
    tmp_path: Path, content: bytes | None, found: str
) -> None:
    file = tmp_path / "list.txt"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ConfigError, match=found):
        read_accessions(file)


@pytest.mark.parametrize(
    "parts",
    [{}, {"modalities": ("CR",)}, {"description": "*"}, {"description": " ?* "}],
)
def test_a_query_for_the_whole_archive_is_refused(parts: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="whole archive"):
        Query(**parts)  # type: ignore[arg-type]  # the cases above


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ({"modalities": ("CR\\DX",)}, "no DICOM code"),
        ({"modalities": ("*",)}, "no DICOM code"),
        ({"since": date(2025, 2, 1), "until": date(2025, 1, 1)}, "no range"),
        ({"description": "a" * 65}, "1 to 64"),
        ({"description": "chest\\hand"}, "no backslash"),
    ],
)
def test_a_query_that_is_none_is_refused(parts: dict[str, object], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        Query(**({"since": date(2024, 1, 1)} | parts))  # type: ignore[arg-type]  # as above
