from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfed.client.scans.read import read_scans
from medfed.client.scans.refusals import Reason
from medfed.client.scans.scanset import TEST, TRAIN, VALIDATION
from medfed.common.errors import ScanError
from tests.support.scans import HASH, random_pixels, study_of, write_list, write_scan


def hospital(folder: Path, patients: str = "aab", parts: str = "train train test") -> None:
    """One scan per letter of ``patients``, named 0.dcm …, and their worklist."""
    rows = []
    for number, (patient, part) in enumerate(zip(patients, parts.split(), strict=True)):
        patient_id = "" if patient == "-" else patient
        write_scan(folder / f"{number}.dcm", random_pixels(number), patient_id=patient_id)
        rows.append((f"{number}.dcm", ("normal", "opacity")[number % 2], part))
    write_list(folder, rows)


def test_scans_are_grouped_by_the_patient_in_the_header(tmp_path: Path) -> None:
    hospital(tmp_path, "abac", "train validation train test")

    scans = read_scans(tmp_path, study_of())

    assert scans.patient.tolist() == [0, 1, 0, 2]
    assert scans.labels.tolist() == [0, 1, 0, 1]
    assert scans.part.tolist() == [TRAIN, VALIDATION, TRAIN, TEST]
    assert (scans.unit, dict(scans.refused)) == ("patient", {})
    expected = np.stack([random_pixels(number) for number in range(4)]) / 255.0
    assert np.array_equal(scans.images[:, 0], expected.astype(np.float32))


def test_the_worklist_gives_the_order_and_not_the_file_system(tmp_path: Path) -> None:
    hospital(tmp_path)
    (tmp_path / "deep").mkdir()
    os.replace(tmp_path / "0.dcm", tmp_path / "deep" / "z.dcm")
    names = ("2.dcm", "deep/z.dcm", "1.dcm")
    write_list(tmp_path, [(name, "normal", "train") for name in names])

    scans = read_scans(tmp_path, study_of())

    expected = np.stack([random_pixels(number) for number in (2, 0, 1)]) / 255.0
    assert np.array_equal(scans.images[:, 0], expected.astype(np.float32))


def test_a_file_that_is_not_on_the_worklist_is_not_read(tmp_path: Path) -> None:
    hospital(tmp_path)
    (tmp_path / "9.dcm").write_bytes(b"no scan")

    scans = read_scans(tmp_path, study_of())

    assert (len(scans), dict(scans.refused)) == (3, {})


def test_a_hash_split_goes_by_patient_id_and_needs_no_column(tmp_path: Path) -> None:
    hospital(tmp_path, "abcdefabcdef", "x " * 12)
    study = study_of(split=HASH)

    scans = read_scans(tmp_path, study)

    names = ("train", "validation", "test")
    expected = [study.split.part_of(key) for key in "abcdefabcdef"]
    assert [names[part] for part in scans.part] == expected
    assert len(set(expected)) > 1


def test_a_scan_without_patient_id_is_its_own_unit(tmp_path: Path) -> None:
    hospital(tmp_path, "-a-a", "train train test train")

    scans = read_scans(tmp_path, study_of())

    assert scans.patient.tolist() == [0, 1, 2, 1]
    assert scans.unit == "image"  # the weaker claim, for a set that mixes both


def test_a_file_that_is_no_scan_is_counted_and_left_out(tmp_path: Path) -> None:
    hospital(tmp_path, "aabb", "train train test test")
    (tmp_path / "1.dcm").write_bytes(b"no scan")
    (tmp_path / "2.dcm").unlink()

    scans = read_scans(tmp_path, study_of())

    assert scans.labels.tolist() == [0, 1]
    assert scans.patient.tolist() == [0, 1]
    assert dict(scans.refused) == {Reason.NOT_DICOM.value: 1, Reason.MISSING.value: 1}


def test_a_worklist_in_excel_s_form_is_read(tmp_path: Path) -> None:
    hospital(tmp_path)
    text = "\ufefffile,note,label,split\r\n0.dcm,x, normal ,train\r\n"  # byte order mark, CRLF
    (tmp_path / "worklist.csv").write_bytes(text.encode())

    assert read_scans(tmp_path, study_of()).labels.tolist() == [0]


def test_when_no_scan_is_left_the_reasons_are_counted_and_no_file_is_named(
    tmp_path: Path,
) -> None:
    hospital(tmp_path)
    for name in ("0.dcm", "1.dcm"):
        (tmp_path / name).write_bytes(b"no scan")
    (tmp_path / "2.dcm").unlink()

    with pytest.raises(ScanError) as caught:
        read_scans(tmp_path, study_of())

    assert "none of the 3 files" in str(caught.value)
    assert "(file missing or unreadable: 1; not a DICOM file: 2)" in str(caught.value)
    assert ".dcm" not in str(caught.value)
    assert caught.value.exit_code == 16  # the table of exit codes


def test_a_patient_in_two_parts_is_refused_and_not_named(tmp_path: Path) -> None:
    hospital(tmp_path, "xx", "train test")

    with pytest.raises(ScanError, match="1 of 1 privacy units") as caught:
        read_scans(tmp_path, study_of())

    assert "'x'" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (("0.dcm", "Doe John", "train"), r"line 3: its label is none of .* \(normal, opacity\)"),
        (("0.dcm", "", "train"), "line 3: its label"),
        (("0.dcm", "normal", "Doe John"), "line 3: its split is none of train, validation, test"),
        (("0.dcm", "normal"), "line 3: its split"),
        (("", "normal", "train"), "line 3: names no file"),
        (("../Doe John", "normal", "train"), "line 3: its file is outside"),
        (("/etc/Doe John", "normal", "train"), "line 3: its file is outside"),
        ((".", "normal", "train"), "line 3: its file is outside"),
        (("Doe John\0", "normal", "train"), "line 3"),
        (("1.dcm", "normal", "train"), "a file stands on more than one line"),
        (("./1.dcm", "normal", "train"), "a file stands on more than one line"),
    ],
)
def test_a_line_that_breaks_a_rule_is_named_and_not_quoted(
    tmp_path: Path, row: Any, found: str
) -> None:
    hospital(tmp_path)
    write_list(tmp_path, [("1.dcm", "normal", "train"), row])

    with pytest.raises(ScanError, match=found) as caught:
        read_scans(tmp_path, study_of())

    assert "Doe" not in str(caught.value)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "site"
    inside.mkdir()
    write_scan(tmp_path / "other.dcm", random_pixels())
    (inside / "0.dcm").symlink_to(tmp_path / "other.dcm")
    write_list(inside, [("0.dcm", "normal", "train")])

    with pytest.raises(ScanError, match="outside the folder"):
        read_scans(inside, study_of())


@pytest.mark.parametrize(
    ("columns", "missing"),
    [(("file", "split"), "label"), (("path", "labels"), "file, label, split"), ((), "file")],
)
def test_missing_columns_are_named(tmp_path: Path, columns: tuple[str, ...], missing: str) -> None:
    (tmp_path / "worklist.csv").write_text(",".join(columns) + "\n")

    with pytest.raises(ScanError, match=f"columns missing in its first line: {missing}"):
        read_scans(tmp_path, study_of())


def test_an_empty_folder_a_missing_list_and_an_empty_list_are_told_apart(
    tmp_path: Path,
) -> None:
    with pytest.raises(ScanError, match="the scans folder is empty"):
        read_scans(tmp_path, study_of())
    (tmp_path / "0.dcm").touch()
    with pytest.raises(ScanError, match="holds no worklist.csv"):
        read_scans(tmp_path, study_of())
    write_list(tmp_path, [])
    with pytest.raises(ScanError, match="names no scan"):
        read_scans(tmp_path, study_of())


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match=r"cannot be read \(FileNotFoundError\)"):
        read_scans(tmp_path / "nowhere", study_of())


def test_a_folder_that_may_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path) -> None:  # a mode would not stop root, who may run the tests
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", denied)

    with pytest.raises(ScanError, match=r"cannot be read \(PermissionError\)"):
        read_scans(tmp_path, study_of())


@pytest.mark.parametrize("content", [b"\xff\xfe", b'file,label,split\n"0.dcm', b"\0"])
def test_a_worklist_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "worklist.csv").write_bytes(content)

    with pytest.raises(ScanError):
        read_scans(tmp_path, study_of())


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scans.zip").touch()

    with pytest.raises(ScanError, match="allowed are an .npz file, or a folder"):
        read_scans(tmp_path / "scans.zip", study_of())


@pytest.mark.parametrize("header", [b'"' + b"x" * 200_000 + b'"\n', b'"file"x,label,split\n'])
def test_a_first_line_that_is_no_csv_is_refused(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "worklist.csv").write_bytes(header)

    with pytest.raises(ScanError, match="line 1: not valid CSV"):
        read_scans(tmp_path, study_of())


def test_links_that_lead_in_a_circle_are_refused_and_not_named(tmp_path: Path) -> None:
    (tmp_path / "Doe").symlink_to("Doe")
    write_list(tmp_path, [("Doe", "normal", "train")])

    with pytest.raises(ScanError, match="line 2: its file cannot be found") as caught:
        read_scans(tmp_path, study_of())

    assert "Doe" not in str(caught.value)
