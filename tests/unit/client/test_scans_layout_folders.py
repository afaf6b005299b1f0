from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from medfed.client.scans.entries import EntryReader
from medfed.client.scans.layouts.detect import LAYOUTS, layout_of
from medfed.client.scans.layouts.layout import Entry, Index, LineReason, SourceRules
from medfed.client.scans.read import index_scans, read_scans
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.client.scans.scanset import TEST, TRAIN, VALIDATION
from medfed.common.errors import ScanError
from medfed.common.findings import Findings, Unlabelled
from tests.support.scans import HASH, mapping, random_pixels, study_of, write_scan

PERSON = SourceRules(patient=r"person(\d+)_")


def pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_pixels(number)).save(folder / name)


def test_the_folder_gives_the_label_and_the_rule_the_patient(tmp_path: Path) -> None:
    pictures(
        tmp_path,
        "opacity/person2_virus_1.jpeg",
        "normal/person1_a.png",
        "opacity/person2_virus_2.PNG",
    )

    scans = read_scans(tmp_path, study_of(split=HASH), rules=PERSON)

    assert scans.labels.tolist() == [0, 1, 1]
    assert scans.patient.tolist() == [0, 1, 1]
    assert (scans.unit, dict(scans.refused)) == ("patient", {})
    assert np.array_equal(scans.images[0, 0], (random_pixels(1) / 255.0).astype(np.float32))


def test_the_folder_above_the_picture_may_be_the_patient(tmp_path: Path) -> None:
    pictures(tmp_path, "opacity/P2/1.png", "opacity/P2/2.png", "opacity/P1/1.png")

    scans = read_scans(tmp_path, study_of(split=HASH), rules=SourceRules(patient="parent"))

    assert (scans.patient.tolist(), scans.unit) == ([0, 1, 1], "patient")  # P1, P2, P2


def test_folders_above_the_classes_give_the_parts(tmp_path: Path) -> None:
    pictures(tmp_path, "train/normal/1.png", "val/normal/2.png", "Test/opacity/3.png")

    scans = read_scans(tmp_path, study_of())

    # By name: Test, train, val.
    assert scans.part.tolist() == [TEST, TRAIN, VALIDATION]
    assert scans.labels.tolist() == [1, 0, 0]


def test_without_a_rule_each_picture_is_its_own_unit(tmp_path: Path) -> None:
    pictures(tmp_path, "normal/person1_1.png", "normal/person1_2.png")

    scans = read_scans(tmp_path, study_of(split=HASH))

    assert (scans.patients, scans.unit) == (2, "image")


def test_a_picture_on_which_the_rule_finds_no_patient_is_left_out(tmp_path: Path) -> None:
    pictures(tmp_path, "normal/person1_1.png", "normal/somebody.png", "normal/person_2.png")

    scans = read_scans(tmp_path, study_of(split=HASH), rules=PERSON)

    assert dict(scans.refused) == {LineReason.NO_PATIENT.value: 2}


def test_folders_that_are_no_label_are_counted_and_not_named(tmp_path: Path) -> None:
    pictures(tmp_path, "normal/1.png", "Doe/1.png", "Doe/2.png", "loose.png", "train/1.png")

    index = index_scans(tmp_path, study_of(split=HASH))

    assert [entry.file for entry in index.entries] == ["normal/1.png"]
    assert index.refused == {Unlabelled.NONE: 3}


def test_what_is_hidden_and_what_a_mac_adds_is_not_looked_at(tmp_path: Path) -> None:
    pictures(tmp_path, "normal/1.png", "normal/.1.png", ".trash/1.png", "__MACOSX/normal/1.png")

    index = index_scans(tmp_path, study_of(split=HASH))

    assert ([entry.file for entry in index.entries], index.refused) == (["normal/1.png"], {})


def test_links_are_not_followed(tmp_path: Path) -> None:
    pictures(tmp_path, "site/normal/1.png", "other/normal/2.png")
    (tmp_path / "site/normal/3.png").symlink_to(tmp_path / "other/normal/2.png")
    (tmp_path / "site/opacity").symlink_to(tmp_path / "other/normal")

    index = index_scans(tmp_path / "site", study_of(split=HASH))

    assert [entry.file for entry in index.entries] == ["normal/1.png"]


def test_dicom_files_in_class_folders_are_read_where_the_site_says_so(tmp_path: Path) -> None:
    for number, name in enumerate(("normal", "opacity")):
        (tmp_path / name).mkdir()
        write_scan(tmp_path / name / "1.dcm", random_pixels(number), patient_id="a")

    rules = SourceRules(layout="class-folders")
    scans = read_scans(tmp_path, study_of(split=HASH), rules=rules)

    assert (scans.labels.tolist(), scans.patient.tolist()) == ([0, 1], [0, 0])
    with pytest.raises(ScanError, match="holds no worklist"):
        read_scans(tmp_path, study_of(split=HASH))


def test_a_patient_in_two_parts_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path, "train/normal/person7_1.png", "test/normal/person7_2.png")

    with pytest.raises(ScanError, match="1 of 1 privacy units"):
        read_scans(tmp_path, study_of(), rules=PERSON)


def test_when_no_folder_is_a_label_the_study_s_map_is_the_next_step(tmp_path: Path) -> None:
    pictures(tmp_path, "NORMAL/1.png", "PNEUMONIA/1.png")
    study = study_of(split=HASH)

    with pytest.raises(ScanError, match=r"none of the 2 files(.|\n)*findings\.means"):
        read_scans(tmp_path, study)
    findings = Findings(means={"normal": ("NORMAL",), "opacity": ("PNEUMONIA",)})
    assert read_scans(tmp_path, mapping(study, findings)).labels.tolist() == [0, 1]


@pytest.mark.parametrize("rule", ["(", "person", r"(a)(b)", "Parent"])
def test_a_patient_rule_that_gives_no_patient_is_refused(rule: str) -> None:
    with pytest.raises(ValidationError, match=r"no regular expression|one \(group\)"):
        SourceRules(patient=rule)


# ---- which layout --------------------------------------------------------------------------------
SIGNS = {
    "dicom-worklist": "worklist.csv",
    "chestxray14": "Data_Entry_2017.csv",
    "chexpert": "train.csv",
    "rsna": "stage_2_train_labels.csv",
    "isic": "ISIC_2019_Training_GroundTruth.csv",
    "nifti": "participants.tsv",
    "medmnist": "xrays.npz",
    "class-folders": "normal/1.png",
}


def put(folder: Path, *layouts: str) -> None:
    for layout in layouts:
        (folder / SIGNS[layout]).parent.mkdir(parents=True, exist_ok=True)
        (folder / SIGNS[layout]).write_text("Path,Sex,No Finding,Pneumonia\n")


@pytest.mark.parametrize("name", SIGNS)
def test_each_layout_is_known_by_its_sign(tmp_path: Path, name: str) -> None:
    assert set(SIGNS) == {layout.name for layout in LAYOUTS}
    put(tmp_path, name)

    assert layout_of(tmp_path).name == name


@pytest.mark.parametrize("name", [name for name in SIGNS if name != "dicom-worklist"])
def test_a_worklist_goes_before_any_other_sign(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, "dicom-worklist")

    assert layout_of(tmp_path).name == "dicom-worklist"


@pytest.mark.parametrize("name", [name for name in SIGNS if name != "dicom-worklist"])
def test_folders_of_pictures_beside_a_sign_are_not_classes(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, "class-folders")

    assert layout_of(tmp_path).name == name


@pytest.mark.parametrize("name", SIGNS)
def test_what_the_site_names_is_taken(tmp_path: Path, name: str) -> None:
    put(tmp_path, "dicom-worklist")

    found = layout_of(tmp_path, SourceRules.model_validate({"layout": name}).layout)

    assert found.name == name


def test_two_signs_are_not_guessed_between(tmp_path: Path) -> None:
    put(tmp_path, "rsna", "chestxray14")

    with pytest.raises(ScanError, match=r"several layouts: chestxray14, rsna(.|\n)*site\.toml"):
        layout_of(tmp_path)


def test_a_table_train_csv_without_findings_is_no_sign(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("Path,label\n")

    with pytest.raises(ScanError, match="holds no worklist"):
        layout_of(tmp_path)


def test_where_nothing_fits_all_that_was_looked_for_is_listed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()

    with pytest.raises(ScanError) as caught:
        layout_of(tmp_path)

    assert all(layout.sign in str(caught.value) for layout in LAYOUTS)


@pytest.mark.parametrize("name", ["normal/1.png", "normal/1.dcm", "normal/1.nii"])
def test_a_broken_file_is_left_out_and_its_refusal_carries_nothing_of_it(
    tmp_path: Path, name: str
) -> None:
    pictures(tmp_path, "normal/2.png")
    (tmp_path / name).write_bytes(b"Doe John " * 50)
    entry = Entry(name, 0)
    index = Index("class-folders", tmp_path, [entry], {})

    with pytest.raises(RefusedScanError) as caught:
        EntryReader(index, study_of().scans).read(entry)

    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    if name.endswith(".png"):
        scans = read_scans(tmp_path, study_of(split=HASH))
        assert (len(scans), dict(scans.refused)) == (1, {Reason.NOT_PICTURE.value: 1})
