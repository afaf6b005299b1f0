from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from medfed.client.scans.read import read_scans
from medfed.simulations.phantoms import (
    FIELD_MM,
    LABELS,
    SCANNERS,
    acquire,
    contact_sheet,
    write_hospitals,
)
from medfed.simulations.thorax import Pose, Thorax, draw
from tests.support.scans import HASH, study_of

STILL = Pose(shift_x=0.0, shift_y=0.0, turn=0.0, magnification=1.0)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows(folder: Path) -> Sequence[dict[str, str]]:
    with (folder / "worklist.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospitals")
    write_hospitals(folder, patients_per_site=10, seed=3)
    return folder


def test_the_same_seed_writes_the_same_bytes(hospitals: Path, tmp_path: Path) -> None:
    write_hospitals(tmp_path, patients_per_site=10, seed=3)

    assert files(tmp_path) == files(hospitals)


def test_another_seed_writes_other_patients(hospitals: Path, tmp_path: Path) -> None:
    write_hospitals(tmp_path, patients_per_site=10, seed=4)

    one, other = (
        [pydicom.dcmread(path) for path in folder.rglob("*.dcm")]
        for folder in (tmp_path, hospitals)
    )
    assert not {scan.PixelData for scan in one} & {scan.PixelData for scan in other}
    assert not {scan.SOPInstanceUID for scan in one} & {scan.SOPInstanceUID for scan in other}


def test_a_site_does_not_depend_on_the_size_of_another(hospitals: Path, tmp_path: Path) -> None:
    write_hospitals(tmp_path, patients_per_site=(2, 10, 1), seed=3)

    assert files(tmp_path / "B") == files(hospitals / "B")


def test_every_file_is_read_as_the_study_says(hospitals: Path) -> None:
    for site in "ABC":
        scans = read_scans(hospitals / site, study_of(labels=LABELS, split=HASH))

        assert dict(scans.refused) == {}
        assert (scans.patients, scans.unit) == (10, "patient")
        assert len(scans) == len(rows(hospitals / site))
        assert 0.0 <= scans.images.min() and scans.images.max() <= 1.0


def test_scanners_differ_and_what_they_show_is_alike(hospitals: Path) -> None:
    study = study_of(labels=LABELS, split=HASH)
    means = []
    kinds = set()
    for site in "ABC":
        dataset = pydicom.dcmread(hospitals / site / rows(hospitals / site)[0]["file"])
        kinds.add((dataset.BitsStored, dataset.PhotometricInterpretation, dataset.Rows))
        field_mm = float(dataset.ImagerPixelSpacing[0]) * dataset.Rows
        assert field_mm == pytest.approx(FIELD_MM)
        means.append(read_scans(hospitals / site, study).images.mean(axis=0)[0])

    assert kinds == {(12, "MONOCHROME2", 96), (10, "MONOCHROME1", 72), (16, "MONOCHROME1", 120)}
    for mean in means:
        assert mean[24:28, 14:18].mean() > mean[14:18, 8:11].mean()  # belly above lung
        assert mean[:4, :4].mean() < 0.1  # air beside the neck is black
    # A polarity read the wrong way round gives a correlation below 0.
    assert np.corrcoef([mean.ravel() for mean in means]).min() > 0.9


def test_each_object_has_what_its_kind_requires(hospitals: Path) -> None:
    uids: Counter[str] = Counter()
    for path in hospitals.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        uids.update([dataset.SOPInstanceUID, dataset.SeriesInstanceUID])
        assert dataset.SOPInstanceUID.startswith("2.25.") and dataset.SOPInstanceUID.is_valid
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert dataset.Modality == ("CR" if path.parent.name == "B" else "DX")
        if dataset.Modality == "DX":  # PS3.3 C.8.11.3.1.2: inverse goes with MONOCHROME1
            inverse = dataset.PhotometricInterpretation == "MONOCHROME1"
            assert dataset.PresentationLUTShape == ("INVERSE" if inverse else "IDENTITY")
            assert (dataset.RescaleSlope, dataset.RescaleIntercept) == (1, 0)

    assert set(uids.values()) == {1}


def test_a_patient_has_one_label_and_one_to_four_scans(hospitals: Path) -> None:
    for site, share in zip("ABC", (0.5, 0.4, 0.6), strict=True):
        labels: dict[str, set[str]] = {}
        scans: Counter[str] = Counter()
        for row in rows(hospitals / site):
            patient = pydicom.dcmread(hospitals / site / row["file"]).PatientID
            labels.setdefault(patient, set()).add(row["label"])
            scans[patient] += 1

        assert all(len(found) == 1 for found in labels.values())
        assert set(scans.values()) <= {1, 2, 3, 4}
        assert max(scans.values()) > 1
        # The scanner's share of the 10 patients, as `SCANNERS` says.
        assert sum(found == {"opacity"} for found in labels.values()) == round(10 * share)


@pytest.mark.parametrize("seed", range(6))
def test_an_opacity_only_brightens_and_only_where_there_is_lung(seed: int) -> None:
    sick = Thorax.of(np.random.default_rng(seed), opacity=True)
    well = sick._replace(opacities=())

    added = draw(sick, STILL, 96, FIELD_MM) - draw(well, STILL, 96, FIELD_MM)

    assert added.min() >= 0.0
    assert 0.08 < added.max() < 0.45  # visible, and no brighter than a lung without air
    changed = np.argwhere(added > 0.02) * (FIELD_MM / 96) - FIELD_MM / 2
    assert np.abs(changed[:, 1]).max() < sick.half_width  # inside the chest
    assert changed[:, 0].max() < sick.diaphragm_y + 30.0  # not in the belly


def test_scans_of_a_patient_are_alike_and_not_the_same() -> None:
    random = np.random.default_rng(0)
    one, other = (Thorax.of(random, opacity=True) for _ in range(2))

    first, second = (acquire(one, SCANNERS[0], random).astype(float) for _ in range(2))

    assert not np.array_equal(first, second)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.6  # unrelated noise gives 0
    assert one != other


def test_a_turned_patient_keeps_opacities_in_place() -> None:
    # The picture of a shifted and turned patient, moved back, is the picture at rest: blobs
    # and outlines go by the same transform.
    sick = Thorax.of(np.random.default_rng(1), opacity=True)
    well = sick._replace(opacities=())
    pose = Pose(shift_x=20.0, shift_y=-10.0, turn=0.0, magnification=1.0)

    still = draw(sick, STILL, 66, 330.0) - draw(well, STILL, 66, 330.0)
    moved = draw(sick, pose, 66, 330.0) - draw(well, pose, 66, 330.0)

    # 5 mm pixels: 4 columns to the right, 2 rows up.
    assert moved[8:50, 12:60] == pytest.approx(still[10:52, 8:56], abs=1e-9)


def test_names_and_numbers_of_sites_are_free(tmp_path: Path) -> None:
    write_hospitals(tmp_path, sites=("north", "south"), patients_per_site=1)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["north", "south"]


@pytest.mark.parametrize("patients", [0, -1, (1, 2), (1, 2, 0)])
def test_patient_numbers_that_do_not_fit_the_sites_are_refused(
    tmp_path: Path, patients: int | Sequence[int]
) -> None:
    with pytest.raises(ValueError, match="3 numbers above 0"):
        write_hospitals(tmp_path, patients_per_site=patients)

    assert list(tmp_path.iterdir()) == []


def test_a_contact_sheet_shows_every_scanner_and_label(tmp_path: Path) -> None:
    contact_sheet(tmp_path / "sheet.png", patients=2, scale=1)

    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 96, 3 * 2 * 96)  # 3 scanners × 2 labels
