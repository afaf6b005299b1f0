from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medfed.client.scans.layouts import dicom_headers
from medfed.client.scans.layouts.dicom_headers import header_value
from medfed.client.scans.layouts.layout import LineReason, SourceRules
from medfed.client.scans.read import index_scans, read_scans
from medfed.client.scans.refusals import Reason
from medfed.client.scans.scanset import TEST, TRAIN
from medfed.common.errors import ScanError
from medfed.common.findings import Findings
from tests.support.scans import (
    HASH,
    mapping,
    random_pixels,
    scan_object,
    study_of,
    write_list,
    write_scan,
)

ELEMENTS = {
    "sop_uid": "SOPInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "study_uid": "StudyInstanceUID",
    "accession": "AccessionNumber",
}


def archive(folder: Path, **elements: list[str]) -> None:
    """One scan per value, in folders and without endings, as exports are."""
    for keyword, values in elements.items():
        for number, value in enumerate(values):
            place = folder / f"export{number % 2}" / f"IM{number}"
            place.parent.mkdir(parents=True, exist_ok=True)
            write_scan(place, random_pixels(number), patient_id=f"P{value}", **{keyword: value})


@pytest.mark.parametrize("join", ELEMENTS)
@pytest.mark.parametrize("spelling", [str, ELEMENTS.__getitem__])
def test_lines_and_files_are_matched_by_the_column_that_is_there(
    tmp_path: Path, join: str, spelling: Any
) -> None:
    archive(tmp_path, **{ELEMENTS[join]: ["1.2.1", "1.2.2", "1.2.1"]})
    rows = [("1.2.2", "normal", "test"), ("1.2.1", "opacity", "train")]
    write_list(tmp_path, rows, spelling(join), "label", "split")

    scans = read_scans(tmp_path, study_of())

    # By folder and name: export0/IM0, export0/IM2, export1/IM1.
    assert scans.labels.tolist() == [1, 1, 0]
    assert scans.part.tolist() == [TRAIN, TRAIN, TEST]
    assert scans.patient.tolist() == [0, 0, 1]
    assert (scans.unit, dict(scans.refused)) == ("patient", {})
    expected = np.stack([random_pixels(number) for number in (0, 2, 1)]) / 255.0
    assert np.array_equal(scans.images[:, 0], expected.astype(np.float32))


def test_a_patient_s_line_labels_all_the_patient_s_scans(tmp_path: Path) -> None:
    archive(tmp_path, AccessionNumber=["7", "8", "7"])
    write_list(tmp_path, [("P7", "opacity"), ("P8", "normal")], "PatientID", "Label")

    scans = read_scans(tmp_path, study_of(split=HASH))

    assert scans.labels.tolist() == [1, 1, 0]


def test_semicolons_blanks_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    archive(tmp_path, AccessionNumber=["007", "8"])
    text = '\ufeffAccession Number;Text, free;LABEL\r\n 007 ;"a;b";opacity\r\n\r\n8;x, y;normal\r\n'
    (tmp_path / "worklist.csv").write_bytes(text.encode())

    assert read_scans(tmp_path, study_of(split=HASH)).labels.tolist() == [1, 0]


def test_what_has_no_line_and_what_has_no_file_is_counted(tmp_path: Path) -> None:
    archive(tmp_path, AccessionNumber=["1", "2", "3", ""])
    (tmp_path / "notes.txt").write_text("no DICOM file, and so not counted")
    rows = [("1", "normal", "train"), ("9", "normal", "train"), ("7", "opacity", "test")]
    write_list(tmp_path, rows, "accession", "label", "split")

    index = index_scans(tmp_path, study_of())

    assert [entry.file for entry in index.entries] == ["export0/IM0"]
    assert index.refused == {LineReason.NO_LINE: 3, LineReason.NOT_THERE: 2}


def test_lines_of_one_accession_that_contradict_each_other_drop_its_files(tmp_path: Path) -> None:
    archive(tmp_path, AccessionNumber=["1", "2", "1"])
    rows = [("1", "normal"), ("2", "normal"), ("1", "opacity"), ("2", "normal")]
    write_list(tmp_path, rows, "accession", "label")

    index = index_scans(tmp_path, study_of(split=HASH))

    assert [entry.file for entry in index.entries] == ["export1/IM1"]
    assert index.refused == {LineReason.CONTRADICTION: 2}


def test_the_site_may_say_what_to_match_by_and_where_the_label_is(tmp_path: Path) -> None:
    archive(tmp_path, AccessionNumber=["1", "2"])
    rows = [("export0/IM0", "2", "normal"), ("export1/IM1", "1", "opacity")]
    write_list(tmp_path, rows, "file", "accession", "result")
    study = study_of(split=HASH)

    by_file = read_scans(tmp_path, study, rules=SourceRules(label_column="result"))
    rules = SourceRules(join="accession", label_column="result")
    by_accession = read_scans(tmp_path, study, rules=rules)

    assert by_file.labels.tolist() == [0, 1]
    assert by_accession.labels.tolist() == [1, 0]


def test_windows_paths_are_found(tmp_path: Path) -> None:
    archive(tmp_path, AccessionNumber=["1", "2"])
    write_list(tmp_path, [("export1\\IM1", "opacity", "train")])

    assert read_scans(tmp_path, study_of()).labels.tolist() == [1]


@pytest.mark.parametrize("name", ["..\\Doe", "C:\\Doe", "C:Doe", "\\\\host\\share\\Doe", "/Doe"])
def test_paths_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    write_list(tmp_path, [(name, "normal", "train")])

    with pytest.raises(ScanError, match="line 2: its file is outside the folder") as caught:
        read_scans(tmp_path, study_of())

    assert "Doe" not in str(caught.value)


def test_the_study_s_findings_map_the_list_s_labels(tmp_path: Path) -> None:
    archive(tmp_path, AccessionNumber=["1", "2"])
    write_list(tmp_path, [("1", "J18.9"), ("2", "Z00")], "accession", "label")
    findings = Findings(means={"opacity": ("J18.9",)}, rest="normal")

    scans = read_scans(tmp_path, mapping(study_of(split=HASH), findings))

    assert scans.labels.tolist() == [1, 0]


def test_pictures_on_the_list_take_their_patient_from_it_and_dicom_files_do_not(
    tmp_path: Path,
) -> None:
    for number in range(3):
        Image.fromarray(random_pixels(number)).save(tmp_path / f"{number}.png")
    write_scan(tmp_path / "3.dcm", random_pixels(3), patient_id="b")
    rows = [(f"{n}.png", "normal", who) for n, who in enumerate("aba")] + [("3.dcm", "normal", "z")]
    write_list(tmp_path, rows, "file", "label", "patient")

    scans = read_scans(tmp_path, study_of(split=HASH))

    assert scans.patient.tolist() == [0, 1, 0, 1]
    assert scans.unit == "patient"


def test_a_picture_without_patient_makes_the_claim_the_weaker_one(tmp_path: Path) -> None:
    for number in range(2):
        Image.fromarray(random_pixels(number)).save(tmp_path / f"{number}.png")
    rows = [("0.png", "normal", "a"), ("1.png", "normal", "")]
    write_list(tmp_path, rows, "file", "label", "patient")

    assert read_scans(tmp_path, study_of(split=HASH)).unit == "image"


def test_a_file_that_is_gone_is_counted_when_it_is_read(tmp_path: Path) -> None:
    archive(tmp_path, AccessionNumber=["1"])
    rows = [("export0/IM0", "normal", "train"), ("export0/IM9", "normal", "train")]
    write_list(tmp_path, rows)

    assert dict(read_scans(tmp_path, study_of()).refused) == {Reason.MISSING.value: 1}


def test_an_index_and_its_entries_show_nothing_private(tmp_path: Path) -> None:
    archive(tmp_path, AccessionNumber=["Doe"])
    write_list(tmp_path, [("Doe", "normal")], "accession", "label")

    index = index_scans(tmp_path, study_of(split=HASH))

    assert "IM0" not in repr(index) + repr(index.entries[0]) + str(index)


@pytest.mark.parametrize(
    ("columns", "missing"),
    [
        (("accession", "split"), "label"),
        (("accession", "label"), "split"),
        (("name", "label", "split"), r"file \(instead of file: sop_uid, series_uid"),
    ],
)
def test_missing_columns_are_named(tmp_path: Path, columns: tuple[str, ...], missing: str) -> None:
    write_list(tmp_path, [], *columns)

    with pytest.raises(ScanError, match=f"columns missing in its first line: {missing}"):
        read_scans(tmp_path, study_of())


def test_a_list_that_matches_no_file_at_all_is_refused_with_its_counts(tmp_path: Path) -> None:
    archive(tmp_path, AccessionNumber=["1"])
    write_list(tmp_path, [("Doe", "normal")], "accession", "label")

    with pytest.raises(ScanError, match=r"none of the 2 files or lines .*names the file: 1") as e:
        read_scans(tmp_path, study_of(split=HASH))

    assert "Doe" not in str(e.value)


def test_a_header_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_scan(tmp_path / "a", random_pixels(), ImageComments="x" * 5000)
    assert header_value(path, "PatientID") == "P1"

    monkeypatch.setattr(dicom_headers, "MAX_HEADER_BYTES", 300)

    assert header_value(path, "PatientID") == ""


def test_a_broken_dicom_file_is_counted(tmp_path: Path) -> None:
    archive(tmp_path, AccessionNumber=["1"])
    (tmp_path / "broken").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\0\0\0XX" * 99)
    write_list(tmp_path, [("1", "normal")], "accession", "label")

    assert index_scans(tmp_path, study_of(split=HASH)).refused == {LineReason.NO_LINE: 1}


def test_a_deflated_header_is_read(tmp_path: Path) -> None:
    dataset = scan_object(random_pixels(), patient_id="P9")
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "a", enforce_file_format=True)

    assert header_value(tmp_path / "a", "PatientID") == "P9"


@pytest.mark.parametrize("content", [b"", b"DICM", b"\0" * 131 + b"DICM"])
def test_what_is_no_dicom_file_has_no_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)

    assert header_value(tmp_path / "a", "PatientID") is None
    assert header_value(tmp_path / "none", "PatientID") is None
    assert header_value(tmp_path, "PatientID") is None
