from __future__ import annotations

import csv
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from medfed.client.scans import clean_labels
from medfed.client.scans.clean_labels import CleanLabels, LabelNote
from medfed.client.scans.deidentify import Outcome, deidentify_folder
from medfed.client.scans.label_safety import Identity, SafeLabels, identity_of
from medfed.common.errors import ScanError
from medfed.simulations.dicom_objects import derived_uid, write_object
from tests.support.canaries import Canaries
from tests.support.scans import random_pixels, scan_object, write_list

PATIENTS = 4


def scan(number: int, **elements: object) -> Dataset:
    """A scan of a patient, in a study and series of its own."""
    dataset = scan_object(random_pixels(number), patient_id=f"PAT-{number:04}", **elements)
    dataset.AccessionNumber = f"ACC{number:05}"
    dataset.StudyInstanceUID = derived_uid("study", number)
    dataset.SeriesInstanceUID = derived_uid("series", number)
    dataset.SOPInstanceUID = derived_uid("instance", number)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


KEYS = {
    "file": lambda number: f"sub/Doe{number}.dcm",
    "sop_uid": lambda number: scan(number).SOPInstanceUID,
    "series_uid": lambda number: scan(number).SeriesInstanceUID,
    "study_uid": lambda number: scan(number).StudyInstanceUID,
    "accession": lambda number: scan(number).AccessionNumber,
    "patient_id": lambda number: scan(number).PatientID,
}
"""Column of a worklist -> what stands in it for the scan of a number."""


def source_of(folder: Path, rows: list[list[str]], *columns: str) -> Path:
    """Scans of four patients, and a worklist."""
    (folder / "source" / "sub").mkdir(parents=True)
    for number in range(PATIENTS):
        dataset = scan(number, PatientName=f"Doe^Norma{number}" if number else "Li^Ng^B")
        write_object(dataset, folder / "source" / "sub" / f"Doe{number}.dcm")
    write_list(folder / "source", rows, *columns)
    return folder / "source"


def cleaned(folder: Path, source: Path, **how: bool | str) -> Outcome:
    return deidentify_folder(source, folder / "target", folder / "key", **how)  # type: ignore[arg-type]  # passed on


def labels_in(target: Path) -> dict[str, tuple[str, ...]]:
    """Old instance number -> what the new worklist says, by the pixels' new file."""
    with (target / "worklist.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] in (["file", "label"], ["file", "label", "split"])
    for name, *_ in lines[1:]:
        assert (target / name).is_file() and name.endswith(".dcm") and name.count("/") == 1
    return {name: tuple(said) for name, *said in lines[1:]}


# ---- what is carried over ------------------------------------------------------------------------
@pytest.mark.parametrize("join", KEYS)
def test_labels_follow_their_files_whatever_they_are_matched_by(tmp_path: Path, join: str) -> None:
    rows = [[KEYS[join](n), ("normal", "opacity")[n % 2], "train"] for n in range(PATIENTS)]
    source = source_of(tmp_path, rows, join, "label", "split")

    done = cleaned(tmp_path, source)

    assert (done.labelled, done.label_notes, done.left_out) == (PATIENTS, {}, {})
    names = {  # the same key gives the same names: find each file's by cleaning it alone
        path.relative_to(tmp_path / "target").as_posix()
        for path in (tmp_path / "target").rglob("*.dcm")
    }
    found = labels_in(tmp_path / "target")
    assert found.keys() == names
    by_alone = {}
    for number in range(PATIENTS):
        alone = tmp_path / f"alone{number}"
        alone.mkdir()
        write_object(scan(number), alone / "x.dcm")
        deidentify_folder(alone, tmp_path / f"clean{number}", tmp_path / "key")
        (path,) = (tmp_path / f"clean{number}").rglob("*.dcm")
        by_alone[path.relative_to(tmp_path / f"clean{number}").as_posix()] = number
    assert {by_alone[name]: said for name, said in found.items()} == {
        number: (("normal", "opacity")[number % 2], "train") for number in range(PATIENTS)
    }


def test_the_new_list_has_names_labels_and_splits_and_nothing_else(tmp_path: Path) -> None:
    canaries = Canaries()
    columns = ["file", "label", "split", "patient", "patient_name", "comment", "accession", "date"]
    rows = [
        [
            KEYS["file"](n),
            f"finding {n % 2}",
            "test",
            *(canaries.text(f"{n} {c}") for c in columns[3:]),
        ]
        for n in range(PATIENTS)
    ]
    rows.append(
        ["gone.dcm", "finding 1", "test", *(canaries.text(f"gone {c}") for c in columns[3:])]
    )

    done = cleaned(tmp_path, source_of(tmp_path, rows, *columns))

    content = (tmp_path / "target" / "worklist.csv").read_bytes()
    assert done.labelled == PATIENTS
    assert canaries.leaks(content) == []
    assert b"Doe" not in content and b"sub" not in content and b"PAT" not in content
    assert content.startswith(b"file,label,split\n")
    assert (tmp_path / "target" / "worklist.csv").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "label",
    [
        "PAT-0002",
        "see pat 0002",
        "nodule (Pat_0002)",
        "acc00002 left",
        "norma2",
        "Doe, opacity",
        "doe_norma2",
        "DoeNorma2",
        "like Li",
        "Ng?",
        derived_uid("study", 2),
    ],
)
def test_a_label_that_names_a_patient_of_the_set_is_left_out_for_all(
    tmp_path: Path, label: str
) -> None:
    rows = [[KEYS["file"](n), label if n else "normal"] for n in range(PATIENTS)]

    done = cleaned(tmp_path, source_of(tmp_path, rows, "file", "label"))

    assert list(labels_in(tmp_path / "target").values()) == [("normal",)]  # though Norma is here
    assert done.labelled == 1
    assert done.label_notes == {LabelNote.IDENTIFIER: 1}


def test_an_identifier_that_only_the_list_knows_is_one_too(tmp_path: Path) -> None:
    rows = [[KEYS["file"](0), "MRN 55512 opacity", ""], [KEYS["file"](1), "normal", "555-12"]]

    done = cleaned(tmp_path, source_of(tmp_path, rows, "file", "label", "patient"))

    assert list(labels_in(tmp_path / "target").values()) == [("normal",)]
    assert done.label_notes == {LabelNote.IDENTIFIER: 1, LabelNote.NO_LINE: 2}


@pytest.mark.parametrize("different", [100, 101])
def test_more_than_a_hundred_labels_are_texts_and_none_is_kept(
    tmp_path: Path, different: int
) -> None:
    rows = [[KEYS["file"](n), f"label {chr(0x100 + n)}"] for n in range(PATIENTS)]
    rows += [[f"gone{n}.dcm", f"label {chr(0x100 + n)}"] for n in range(PATIENTS, different)]

    done = cleaned(tmp_path, source_of(tmp_path, rows, "file", "label"))

    if different == 100:
        assert (done.labelled, done.label_notes) == (PATIENTS, {})
    else:
        assert (done.labelled, done.label_notes) == (0, {LabelNote.TOO_MANY: 1})
        assert not (tmp_path / "target" / "worklist.csv").exists()


@pytest.mark.parametrize(
    ("row", "note"),
    [
        ([KEYS["file"](1), "", "train"], LabelNote.NO_LABEL),
        ([KEYS["file"](1), "opacity", "holdout"], LabelNote.NO_SPLIT),
        ([KEYS["file"](1), "opa\x1b[2Jcity", "train"], LabelNote.ODD),
        ([KEYS["file"](1), "x" * 65, "train"], LabelNote.ODD),
        ([KEYS["file"](0), "normal", "test"], LabelNote.CONTRADICTION),
    ],
)
def test_a_line_that_cannot_be_used_is_counted(tmp_path: Path, row: list[str], note: str) -> None:
    rows = [[KEYS["file"](n), "opacity", "train"] for n in (0, 2, 3)] + [row]

    done = cleaned(tmp_path, source_of(tmp_path, rows, "file", "label", "split"))

    contradicts = note == LabelNote.CONTRADICTION
    assert done.labelled == (2 if contradicts else 3)
    assert done.label_notes == {note: 1, LabelNote.NO_LINE: 1}
    assert set(labels_in(tmp_path / "target").values()) == {("opacity", "train")}


def test_a_split_that_is_not_there_for_all_is_left_away(tmp_path: Path) -> None:
    rows = [[KEYS["file"](n), "opacity", "train" if n else ""] for n in range(PATIENTS)]

    cleaned(tmp_path, source_of(tmp_path, rows, "file", "label", "split"))

    assert set(labels_in(tmp_path / "target").values()) == {("opacity",)}


@pytest.mark.parametrize(
    "name", ["sub\\Doe0.dcm", "./sub/Doe0.dcm", "{source}/sub/Doe0.dcm", "sub/../sub/Doe0.dcm"]
)
def test_paths_are_understood_as_the_reader_does(tmp_path: Path, name: str) -> None:
    source = tmp_path.resolve() / "source"
    rows = [[name.format(source=source), "opacity"]]

    assert cleaned(tmp_path, source_of(tmp_path, rows, "file", "label")).labelled == 1


def test_the_column_of_labels_can_be_named(tmp_path: Path) -> None:
    rows = [[KEYS["file"](n), "opacity"] for n in range(PATIENTS)]
    source = source_of(tmp_path, rows, "file", "Befund")

    assert cleaned(tmp_path, source, label_column="befund").labelled == PATIENTS


def test_without_such_a_column_the_images_are_written_and_it_is_said(tmp_path: Path) -> None:
    rows = [[KEYS["file"](n), "opacity"] for n in range(PATIENTS)]

    done = cleaned(tmp_path, source_of(tmp_path, rows, "file", "Befund"))

    assert (done.written, done.labelled) == (PATIENTS, 0)
    assert done.label_notes == {LabelNote.NO_COLUMNS: 1}


def test_a_list_that_is_no_table_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = source_of(tmp_path, [], "file", "label")
    (source / "worklist.csv").write_bytes(b"file,label\n\xff\xfe,x\n")

    with pytest.raises(ScanError, match="cannot be read"):
        cleaned(tmp_path, source)
    assert list((tmp_path / "target").rglob("*.dcm")) == []


def test_without_a_list_there_is_none(tmp_path: Path) -> None:
    source = source_of(tmp_path, [], "file", "label")
    (source / "worklist.csv").unlink()

    done = cleaned(tmp_path, source)

    assert (done.labelled, done.label_notes) == (None, {})
    assert not (tmp_path / "target" / "worklist.csv").exists()


# ---- again ---------------------------------------------------------------------------------------
def test_a_run_that_is_gone_on_with_ends_in_the_same_list(tmp_path: Path) -> None:
    rows = [[KEYS["file"](n), "opacity", "train"] for n in range(PATIENTS)]
    source = source_of(tmp_path, rows, "file", "label", "split")
    cleaned(tmp_path, source)
    whole = (tmp_path / "target" / "worklist.csv").read_bytes()
    (tmp_path / "target" / "worklist.csv").unlink()
    patient = next(path for path in (tmp_path / "target").iterdir() if path.is_dir())
    (patient / ".x.dcm.abc.part").write_bytes(b"half")  # as kill -9 leaves it

    done = cleaned(tmp_path, source, resume=True)

    assert (done.written, done.labelled) == (0, PATIENTS)
    assert (tmp_path / "target" / "worklist.csv").read_bytes() == whole
    assert list((tmp_path / "target").rglob("*.part")) == []


def test_a_second_source_adds_to_the_list_and_its_patients_are_looked_for_in_the_first_labels(
    tmp_path: Path,
) -> None:
    rows = [[KEYS["file"](n), ("opacity", "as in ACC00077")[n % 2]] for n in range(PATIENTS)]
    cleaned(tmp_path, source_of(tmp_path, rows, "file", "label"))
    assert len(labels_in(tmp_path / "target")) == PATIENTS
    other = tmp_path / "other"
    other.mkdir()
    write_object(scan(77), other / "77.dcm")
    write_list(other, [["77.dcm", "effusion"]], "file", "label")

    done = cleaned(tmp_path, other, resume=True)

    assert done.label_notes == {LabelNote.IDENTIFIER: 1}
    labels = sorted(labels_in(tmp_path / "target").values())
    assert labels == [("effusion",), ("opacity",), ("opacity",)]


def test_a_label_that_was_corrected_since_takes_the_place_of_the_first(tmp_path: Path) -> None:
    rows = [[KEYS["file"](n), "opacity"] for n in range(PATIENTS)]
    source = source_of(tmp_path, rows, "file", "label")
    cleaned(tmp_path, source)
    write_list(source, [[KEYS["file"](0), "normal"], *rows[1:]], "file", "label")

    done = cleaned(tmp_path, source, resume=True)

    assert (done.labelled, done.label_notes) == (PATIENTS, {})
    assert sorted(labels_in(tmp_path / "target").values()) == [("normal",)] + 3 * [("opacity",)]


@pytest.mark.parametrize("join", ["accession", "study_uid"])
def test_a_line_that_names_nothing_is_of_no_file(tmp_path: Path, join: str) -> None:
    source = source_of(tmp_path, [["", "opacity"], [KEYS[join](1), "normal"]], join, "label")
    dataset = scan(0, PatientName="Doe")
    dataset.AccessionNumber = dataset.StudyInstanceUID = ""
    write_object(dataset, source / "sub" / "Doe0.dcm")

    done = cleaned(tmp_path, source)

    assert list(labels_in(tmp_path / "target").values()) == [("normal",)]
    assert done.label_notes == {LabelNote.NO_LINE: 3}


def test_labels_of_an_earlier_run_go_when_the_next_patients_make_them_unsafe(
    tmp_path: Path,
) -> None:
    rows = [[KEYS["file"](n), "as in ACC00077"] for n in range(PATIENTS)]
    cleaned(tmp_path, source_of(tmp_path, rows, "file", "label"))
    other = tmp_path / "other"
    other.mkdir()
    write_object(scan(77), other / "77.dcm")
    write_list(other, [], "file", "label")

    cleaned(tmp_path, other, resume=True)

    assert labels_in(tmp_path / "target") == {}


def test_copies_of_a_file_with_different_labels_have_none(tmp_path: Path) -> None:
    rows = [[KEYS["file"](n), "opacity"] for n in range(PATIENTS)] + [["copy.dcm", "normal"]]
    source = source_of(tmp_path, rows, "file", "label")
    (source / "copy.dcm").write_bytes((source / "sub" / "Doe0.dcm").read_bytes())

    done = cleaned(tmp_path, source)

    assert done.labelled == PATIENTS - 1
    assert done.label_notes == {LabelNote.CONTRADICTION: 1}


# ---- what counts as an identifier ----------------------------------------------------------------
def test_a_name_is_a_word_and_a_number_may_stand_anywhere() -> None:
    labels = SafeLabels()
    for label in (
        "normal",
        "hepatitis B",
        "grade 12",
        "x0012y",
        "12",
        "kidney stone",
        "肺炎王小明型",
        "grade17",
        "ab cd",
        "StoneNorma left",
    ):
        labels.add(label)
    patient = Dataset()
    patient.PatientName, patient.PatientID = "Norma^B^Stone", "0012"
    patient.PatientBirthDate = "19800131"
    labels.hold_against(identity_of(patient).identifiers)
    safe = ("normal", "hepatitis B", "grade 12", "12")
    assert all(labels.is_safe(label) for label in safe)
    assert not labels.is_safe("x0012y") and not labels.is_safe("kidney stone")
    assert not labels.is_safe("StoneNorma left")

    labels.hold_against(["17"])
    assert labels.is_safe("grade17")
    labels.hold_against(["abcd"])
    assert not labels.is_safe("ab cd")
    labels.hold_against(["王小明型"])
    assert not labels.is_safe("肺炎王小明型")
    labels.hold_against(["12"])
    assert not labels.is_safe("grade 12") and not labels.is_safe("12")
    assert len(labels) == 10 and labels.unsafe == 7


def test_what_is_known_of_a_file_shows_nothing() -> None:
    assert "PAT" not in repr(identity_of(scan(1)))
    assert repr(Identity({}, frozenset())) == "Identity()"


def test_labels_show_nothing(tmp_path: Path) -> None:
    source = source_of(tmp_path, [["sub/Doe0.dcm", "opacity"]], "file", "label")

    assert "opacity" not in repr(CleanLabels(source, tmp_path))
    assert clean_labels.MAX_LABELS == 100  # as docs/scans.md says
