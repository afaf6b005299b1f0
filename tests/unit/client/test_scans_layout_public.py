"""The layouts of public data sets, each as a small folder that looks like it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfed.client.scans.layouts import tables
from medfed.client.scans.layouts.layout import Index, LineReason, SourceRules
from medfed.client.scans.read import index_scans, read_scans
from medfed.client.scans.scanset import TEST, TRAIN, VALIDATION
from medfed.common.errors import ScanError
from medfed.common.findings import Findings, Unlabelled
from medfed.common.study import Study
from tests.support.scans import GIVEN, HASH, mapping, random_pixels, study_of, write_scan


def pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_pixels(number)).save(folder / name)


def table(path: Path, lines: Sequence[str], *, separator: str = ",", mark: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = mark + "\r\n".join(lines) + "\r\n"
    path.write_bytes(text.replace(",", separator).encode())


def found(index: Index) -> list[tuple[str, int, str | None, int | None]]:
    return [(entry.file, entry.label, entry.patient, entry.part) for entry in index.entries]


# ---- NIH ChestX-ray14 ----------------------------------------------------------------------------
NIH_HEAD = (  # the first line as published: its last columns are cut by their own commas
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


def nih_line(name: str, findings: str, patient: str) -> str:
    return f"{name},{findings},0,{patient},58,M,PA,2682,2749,0.143,0.143,"


def nih_study(split: str = HASH) -> Study:
    return study_of(labels=("No Finding", "Pneumonia"), split=split)


def nih(folder: Path, *lines: str) -> None:
    table(folder / "Data_Entry_2017.csv", [NIH_HEAD, *lines])


def test_nih_pictures_are_found_in_any_folder_and_grouped_by_patient(tmp_path: Path) -> None:
    pictures(tmp_path, "images_001/images/1_0.png", "images_002/images/1_1.png", "images/2_0.png")
    nih(
        tmp_path,
        nih_line("1_0.png", "No Finding", "1"),
        nih_line("1_1.png", "Cardiomegaly|Pneumonia", "1"),
        nih_line("2_0.png", "Pneumonia", "2"),
    )

    scans = read_scans(tmp_path, nih_study())

    assert scans.labels.tolist() == [0, 1, 1]
    assert scans.patient.tolist() == [0, 0, 1]
    assert (scans.unit, dict(scans.refused)) == ("patient", {})
    assert np.array_equal(scans.images[2, 0], (random_pixels(2) / 255.0).astype(np.float32))
    assert {entry.view for entry in index_scans(tmp_path, nih_study()).entries} == {"PA"}


def test_nih_lists_give_the_parts(tmp_path: Path) -> None:
    pictures(tmp_path, *(f"images/{name}.png" for name in "abc"))
    nih(tmp_path, *(nih_line(f"{name}.png", "Pneumonia", name) for name in "abc"))
    (tmp_path / "train_val_list.txt").write_text("a.png\r\n\r\n")
    (tmp_path / "test_list.txt").write_text("b.png")

    index = index_scans(tmp_path, nih_study(GIVEN))

    assert [entry.part for entry in index.entries] == [TRAIN, TEST]
    assert index.refused == {LineReason.NO_PART: 1}
    assert len(index_scans(tmp_path, nih_study(HASH)).entries) == 3


def test_nih_without_lists_has_no_split(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    nih(tmp_path, nih_line("a.png", "Pneumonia", "1"))

    with pytest.raises(ScanError, match="says no split"):
        read_scans(tmp_path, nih_study(GIVEN))


def test_nih_picture_on_both_lists_is_refused(tmp_path: Path) -> None:
    nih(tmp_path, nih_line("a.png", "Pneumonia", "1"))
    for name in ("train_val_list.txt", "test_list.txt"):
        (tmp_path / name).write_text("a.png\n")

    with pytest.raises(ScanError, match="1 pictures are on both"):
        read_scans(tmp_path, nih_study(GIVEN))


def test_nih_patient_on_both_lists_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png")
    nih(tmp_path, nih_line("a.png", "Pneumonia", "1"), nih_line("b.png", "Pneumonia", "1"))
    (tmp_path / "train_val_list.txt").write_text("a.png\n")
    (tmp_path / "test_list.txt").write_text("b.png\n")

    with pytest.raises(ScanError, match="1 of 1 privacy units"):
        read_scans(tmp_path, nih_study(GIVEN))


def test_what_is_wrong_with_a_line_is_counted_and_the_others_are_read(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png", "x/c.png", "y/c.png", "d.png")
    nih(
        tmp_path,
        nih_line("a.png", "Pneumonia", "1"),
        nih_line("a.png", "Pneumonia", "1"),  # again
        nih_line("b.png", "Pneumonia", "1"),
        nih_line("b.png", "No Finding", "1"),  # the contrary
        nih_line("b.png", "Pneumonia", "1"),
        nih_line("c.png", "Pneumonia", "1"),  # there are two
        nih_line("gone.png", "Pneumonia", "1"),
        nih_line("../d.png", "Pneumonia", "1"),  # a name, not a path
        nih_line("d.png", "Doe John|Hernia", "1"),
        nih_line("d.png", "No Finding|Pneumonia", "1"),
        nih_line("d.png", "", "1"),
        nih_line("d.png", "Pneumonia", ""),
        "d.png",
        "",
    )

    index = index_scans(tmp_path, nih_study())

    assert found(index) == [("a.png", 1, "1", None)]
    assert index.refused == {
        LineReason.REPEATED: 1,
        LineReason.CONTRADICTION: 3,
        LineReason.SAME_NAME: 1,
        LineReason.NOT_THERE: 2,
        LineReason.LINE: 3,
        Unlabelled.NONE: 1,
        Unlabelled.SEVERAL: 1,
    }


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_any_separator_and_a_byte_order_mark_are_read(
    tmp_path: Path, separator: str, mark: str
) -> None:
    pictures(tmp_path, "a.png")
    lines = ["Image Index,Finding Labels,Patient ID", "a.png,Pneumonia,1"]
    table(tmp_path / "Data_Entry_2017.csv", lines, separator=separator, mark=mark)

    assert found(index_scans(tmp_path, nih_study())) == [("a.png", 1, "1", None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Image Index,Patient ID\n", "columns missing in its first line: Finding Labels"),
        (b"Image Index,Patient ID,Finding Labels,Patient ID\n", "repeated .*: Patient ID"),
        (b"", "columns missing"),
        (b"\xff\xfeI\0", r"cannot be read \(UnicodeDecodeError\)"),
        (b'Image Index,Finding Labels,Patient ID\n"Doe', "line 2: not valid CSV"),
        (b'Image Index,Finding Labels,Patient ID\n"D"oe,a,b\n', "line 2: not valid CSV"),
        (b"Image Index,Finding Labels,Patient ID\n" + b"x" * 200_000, "line 2: not valid CSV"),
        (b"Image Index,Finding Labels,Patient ID\n", "none of the 0 files or lines"),
    ],
)
def test_a_table_that_is_none_is_refused_and_not_quoted(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "Data_Entry_2017.csv").write_bytes(content)

    with pytest.raises(ScanError, match=message) as caught:
        read_scans(tmp_path, nih_study())

    assert "Doe" not in str(caught.value)
    assert "Next step" in str(caught.value)


def test_a_table_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nih(tmp_path, nih_line("a.png", "Pneumonia", "1"))
    monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 100)

    with pytest.raises(ScanError, match="longer than 100 bytes"):
        read_scans(tmp_path, nih_study())


# ---- CheXpert ------------------------------------------------------------------------------------
CHEXPERT_HEAD = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Pneumonia,Fracture"
A = "patient00001/study1/view1_frontal.jpg"
B = "patient00001/study1/view2_lateral.jpg"
C = "patient00002/study1/view1_frontal.jpg"


def chexpert(folder: Path, name: str, *lines: str, head: str = CHEXPERT_HEAD) -> None:
    table(folder / f"{name}.csv", [head, *lines])


@pytest.mark.parametrize("prefix", ["", "CheXpert-v1.0-small/", "site/"])
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_chexpert_paths_are_found_with_and_without_the_data_set_s_name(
    tmp_path: Path, prefix: str, slash: str
) -> None:
    site = tmp_path / "site"
    pictures(site, f"train/{A}", f"train/{B}", f"valid/{C}")
    paths = [(prefix + path).replace("/", slash) for path in (f"train/{A}", f"train/{B}")]
    chexpert(
        site,
        "train",
        f"{paths[0]},Female,68,Frontal,AP,,1.0,",
        f"{paths[1]},Female,68,Lateral,,,1.0,0.0",
    )
    chexpert(site, "valid", f"{prefix}valid/{C},Male,7,Frontal,PA,1.0,0.0,0.0")

    scans = read_scans(site, nih_study(GIVEN))
    index = index_scans(site, nih_study(GIVEN))

    assert found(index) == [
        (f"train/{A}", 1, "patient00001", TRAIN),
        (f"train/{B}", 1, "patient00001", TRAIN),
        (f"valid/{C}", 0, "patient00002", VALIDATION),
    ]
    assert [entry.view for entry in index.entries] == ["AP", "Lateral", "PA"]
    assert (scans.patient.tolist(), scans.unit) == ([0, 0, 1], "patient")


@pytest.mark.parametrize(
    ("policy", "labels", "refused"),
    [
        # Lines: 1; -1; 0; blank; -1 of a finding that nobody asks for.
        ("leave-out", [1, 0, 0, 0], {Unlabelled.UNCERTAIN: 1}),
        ("positive", [1, 1, 0, 0, 0], {}),
        ("negative", [1, 0, 0, 0, 0], {}),
    ],
)
def test_chexpert_s_uncertain_labels_count_as_the_policy_says(
    tmp_path: Path, policy: str, labels: list[int], refused: dict[str, int]
) -> None:
    names = [f"train/patient0000{n}/study1/view1_frontal.jpg" for n in range(5)]
    pictures(tmp_path, *names)
    states = ["1.0,", "-1.0,", "0.0,", ",", "0.0,-1.0"]
    chexpert(
        tmp_path,
        "train",
        *(f"{n},F,1,Frontal,AP,,{state}" for n, state in zip(names, states, strict=True)),
    )
    findings = Findings.model_validate(
        {"means": {"opacity": ("Pneumonia",)}, "rest": "normal", "uncertain": policy}
    )

    index = index_scans(tmp_path, mapping(study_of(split=HASH), findings))

    assert ([entry.label for entry in index.entries], index.refused) == (labels, refused)


def test_chexpert_lines_that_break_a_rule_are_counted(tmp_path: Path) -> None:
    pictures(tmp_path, f"train/{A}")
    pictures(tmp_path.parent, f"{tmp_path.name}_out/{A}")
    chexpert(
        tmp_path,
        "train",
        f"train/{A},F,1,Frontal,AP,,1.0,",
        f"../{tmp_path.name}_out/{A},F,1,Frontal,AP,,1.0,",
        f"C:\\{A},F,1,Frontal,AP,,1.0,",
        "train/Doe/view1_frontal.jpg,F,1,Frontal,AP,,1.0,",
        f"train/{B},F,1,Frontal,AP,,2.0,",
        f"train/{B},F,1,Frontal,AP,,=1+1,",
        f"train/{C},F,1,Frontal,AP,,,1.0",
        f"train/{A}\0,F,1,Frontal,AP,,1.0,",
        ",F,1,Frontal,AP,,1.0,",
    )

    index = index_scans(tmp_path, nih_study())

    assert found(index) == [(f"train/{A}", 1, "patient00001", TRAIN)]
    assert index.refused == {LineReason.OUTSIDE: 2, LineReason.LINE: 5, Unlabelled.NONE: 1}


def test_a_chexpert_patient_in_two_tables_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path, f"train/{A}", f"valid/{B}")
    chexpert(tmp_path, "train", f"train/{A},F,1,Frontal,AP,,1.0,")
    chexpert(tmp_path, "valid", f"valid/{B},F,1,Lateral,,,1.0,")

    with pytest.raises(ScanError, match="1 of 1 privacy units"):
        read_scans(tmp_path, nih_study(GIVEN))


@pytest.mark.parametrize(("head", "missing"), [("Path,Sex", "No Finding"), ("Sex,Edema", "Path")])
def test_a_chexpert_table_without_its_columns_is_refused(
    tmp_path: Path, head: str, missing: str
) -> None:
    chexpert(tmp_path, "train", head=head)

    with pytest.raises(ScanError, match=f"columns missing .*: {missing}"):
        read_scans(tmp_path, nih_study(), rules=SourceRules(layout="chexpert"))


# ---- RSNA ----------------------------------------------------------------------------------------
def rsna(folder: Path, *targets: str) -> None:
    lines = [f"{name},,,,,{target}" for name, target in (t.split() for t in targets)]
    table(folder / "stage_2_train_labels.csv", ["patientId,x,y,width,height,Target", *lines])


TARGET = Findings(means={"normal": ("0",), "opacity": ("1",)})


def test_an_rsna_picture_with_several_boxes_is_one_scan(tmp_path: Path) -> None:
    (tmp_path / "stage_2_train_images").mkdir()
    for number, name in enumerate("abc"):
        path = tmp_path / "stage_2_train_images" / f"{name}.dcm"
        write_scan(path, random_pixels(number), patient_id="anonymous")
    rsna(tmp_path, "a 1", "b 0", "a 1", "c 0", "c 1", "c 0", "gone 1", "a x", "a 2")

    scans = read_scans(tmp_path, mapping(study_of(split=HASH), TARGET))

    assert scans.labels.tolist() == [1, 0, 1]
    assert (scans.patients, scans.unit) == (3, "patient")
    assert dict(scans.refused) == {LineReason.NOT_THERE.value: 1, LineReason.LINE.value: 2}


def test_rsna_s_detailed_classes_are_findings_too(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png", "c.png")
    rsna(tmp_path, "a 1", "b 0", "c 0")
    table(
        tmp_path / "stage_2_detailed_class_info.csv",
        ["patientId,class", "a,Lung Opacity", "a,Lung Opacity", "b,Normal"]
        + ["c,No Lung Opacity / Not Normal", "gone,Normal"],
    )
    findings = Findings(means={"normal": ("Normal",), "opacity": ("Lung Opacity",)})

    index = index_scans(tmp_path, mapping(study_of(split=HASH), findings))

    assert found(index) == [("a.png", 1, "a", None), ("b.png", 0, "b", None)]
    assert index.refused == {Unlabelled.NONE: 1}


def test_rsna_s_targets_mean_no_label_until_the_study_says_so(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    rsna(tmp_path, "a 1")

    with pytest.raises(ScanError, match=r"label is none of the study's: 1(.|\n)*findings\.means"):
        read_scans(tmp_path, study_of(split=HASH))


# ---- ISIC ----------------------------------------------------------------------------------------
def isic_study(split: str = HASH) -> Study:
    return study_of(labels=("NV", "MEL"), split=split)


def test_isic_s_columns_of_0_and_1_are_findings(tmp_path: Path) -> None:
    pictures(tmp_path, "i/I_1.jpg", "i/I_2.jpg", "i/I_3.jpg")
    table(
        tmp_path / "ISIC_2019_Training_GroundTruth.csv",
        ["image,MEL,NV,BCC", "I_1,1.0,0.0,0.0", "I_2,0.0,1.0,0.0", "I_3,0.0,0.0,1.0"]
        + ["I_1,1.0,1.0,0.0", "I_2,0.0,0.0,0.0", "I_3,,1.0,", "I_9,1.0,0.0,0.0", ",1.0,0.0,0.0"],
    )
    table(
        tmp_path / "ISIC_2019_Training_Metadata.csv",
        ["image,age_approx,lesion_id,patient_id,sex", "I_1,55,L1,P1,f", "I_2,55,L2,P1,f"],
    )

    index = index_scans(tmp_path, isic_study())

    assert found(index) == [("i/I_1.jpg", 1, "P1", TRAIN), ("i/I_2.jpg", 0, "P1", TRAIN)]
    assert index.unit == "patient"
    assert index.refused == {Unlabelled.NONE: 1, LineReason.LINE: 4, LineReason.NOT_THERE: 1}


def test_isic_columns_that_say_nothing_outweigh_a_text(tmp_path: Path) -> None:
    pictures(tmp_path, "I_0.jpg", "I_1.jpg")
    table(tmp_path / "x_GroundTruth.csv", ["image,MEL,NV,dx", "I_0,0,0,MEL", "I_1,0,1,nevus"])

    index = index_scans(tmp_path, isic_study())

    assert found(index) == [("I_1.jpg", 0, None, None)]
    assert index.refused == {LineReason.LINE: 1}


def test_isic_pictures_of_one_lesion_stay_together_and_are_no_patient(tmp_path: Path) -> None:
    pictures(tmp_path, *(f"I_{n}.jpg" for n in range(4)))
    table(
        tmp_path / "ISIC2018_Task3_Training_GroundTruth.csv",
        ["image,MEL,NV", *(f"I_{n},1.0,0.0" for n in range(4))],
    )
    table(
        tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv",
        ["image,lesion_id,diagnosis_confirm_type", "I_0,L1,x", "I_2,L1,x", "I_3,L2,x"],
    )

    scans = read_scans(tmp_path, isic_study())

    assert scans.patient.tolist() == [0, 1, 0, 2]
    assert scans.unit == "image"  # a patient may have two lesions: not a claim about patients


def test_one_picture_without_patient_makes_the_isic_claim_the_weaker_one(tmp_path: Path) -> None:
    pictures(tmp_path, "I_0.jpg", "I_1.jpg")
    table(
        tmp_path / "x_GroundTruth.csv",
        ["image_name,patient_id,lesion_id,diagnosis,benign_malignant"]
        + ["I_0,P0,L0,nevus,benign", "I_1,,L1,melanoma,malignant"],
    )
    findings = Findings(means={"NV": ("benign",), "MEL": ("malignant",)})

    index = index_scans(tmp_path, mapping(isic_study(), findings))

    assert found(index) == [("I_0.jpg", 0, "P0", None), ("I_1.jpg", 1, "L1", None)]
    assert index.unit == "image"


def test_ham10000_metadata_is_ground_truth(tmp_path: Path) -> None:
    pictures(tmp_path, "HAM10000_images_part_1/I_0.jpg")
    table(tmp_path / "HAM10000_metadata.csv", ["lesion_id,image_id,dx,dx_type", "L0,I_0,mel,histo"])

    index = index_scans(tmp_path, mapping(isic_study(), Findings(means={"MEL": ("mel",)})))

    assert found(index) == [("HAM10000_images_part_1/I_0.jpg", 1, "L0", None)]


def test_isic_tables_of_several_parts_give_them(tmp_path: Path) -> None:
    pictures(tmp_path, "I_0.jpg", "I_1.jpg", "I_2.jpg")
    for number, word in enumerate(("Training", "Validation", "Test")):
        table(tmp_path / f"ISIC_{word}_GroundTruth.csv", ["image,MEL", f"I_{number},1"])

    index = index_scans(tmp_path, isic_study(GIVEN))

    assert {(entry.file, entry.part) for entry in index.entries} == {
        ("I_0.jpg", TRAIN),
        ("I_1.jpg", VALIDATION),
        ("I_2.jpg", TEST),
    }


@pytest.mark.parametrize("head", ["picture,MEL", "image,age"])
def test_an_isic_table_without_image_or_diagnosis_is_refused(tmp_path: Path, head: str) -> None:
    table(tmp_path / "x_GroundTruth.csv", [head])

    with pytest.raises(ScanError, match="names no image, or no diagnosis"):
        read_scans(tmp_path, isic_study())


def test_an_isic_folder_without_ground_truth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="no ground truth"):
        read_scans(tmp_path, isic_study(), rules=SourceRules(layout="isic"))


# ---- MedMNIST ------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_an_npz_in_a_folder_is_indexed_without_its_pixels(
    tmp_path: Path, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {"images": random_pixels(0, (4, 32, 32)), "labels": np.asarray([0, 1, 1, 0])}
    arrays["labels"] = arrays["labels"].reshape(shape)
    np.savez(tmp_path / "xrays.npz", **arrays)

    index = index_scans(tmp_path, study_of(split=HASH))
    scans = read_scans(tmp_path, study_of(split=HASH))

    assert [(entry.label, entry.frame) for entry in index.entries] == [
        (0, 0),
        (1, 1),
        (1, 2),
        (0, 3),
    ]
    assert (index.layout, index.unit) == ("medmnist", "image")
    assert np.array_equal(scans.images[:, 0], (arrays["images"] / 255.0).astype(np.float32))


@pytest.mark.parametrize("names", [(), ("a.npz", "b.npz")])
def test_a_folder_without_exactly_one_npz_is_refused(tmp_path: Path, names: Sequence[str]) -> None:
    for name in names:
        (tmp_path / name).touch()

    with pytest.raises(ScanError, match=f"holds {len(names)} .npz files"):
        read_scans(tmp_path, study_of(), rules=SourceRules(layout="medmnist"))
