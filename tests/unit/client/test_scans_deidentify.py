from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from medfed.client.scans import deidentify
from medfed.client.scans.confidentiality import Profile
from medfed.client.scans.confidentiality_table import EDITION, actions
from medfed.client.scans.deidentify import CleanFile, LeftOut, deidentify_file, deidentify_folder
from medfed.client.scans.export_names import KEY_BYTES, MAX_SHIFT_DAYS, ExportNames, open_names
from medfed.common.errors import ConfigError, ScanError
from medfed.simulations.dicom_objects import derived_uid, write_object
from tests.support.scans import random_pixels, scan_object

NAMES = ExportNames(bytes(KEY_BYTES))


def scan(instance: int = 0, patient_id: str = "P1", **elements: object) -> Dataset:
    dataset = scan_object(random_pixels(instance), patient_id=patient_id, **elements)
    dataset.SOPInstanceUID = derived_uid("instance", patient_id, instance)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def clean(dataset: Dataset, folder: Path, *, shift_dates: bool = False) -> pydicom.FileDataset:
    path = folder / "source.dcm"
    write_object(dataset, path)
    found = deidentify_file(path, Profile(NAMES, shift_dates=shift_dates), NAMES)
    assert isinstance(found, CleanFile), found
    return pydicom.dcmread(io.BytesIO(found.content))


def left_out(dataset: Dataset, folder: Path) -> CleanFile | LeftOut:
    write_object(dataset, folder / "source.dcm")
    return deidentify_file(folder / "source.dcm", Profile(NAMES), NAMES)


# ---- names ---------------------------------------------------------------------------------------
def test_one_key_gives_the_same_names_and_another_key_others() -> None:
    other = ExportNames(bytes(KEY_BYTES - 1) + b"\1")

    assert NAMES.patient("P1") == ExportNames(bytes(KEY_BYTES)).patient(" P1 ")
    assert NAMES.uid("1.2.3") == NAMES.uid("1.2.3")
    names = {n.patient(p, i) for n in (NAMES, other) for p in ("P1", "P2") for i in ("", "X")}
    assert len(names) == 8
    assert NAMES.uid("1.2.3") != other.uid("1.2.3") != other.uid("1.2.4")
    assert NAMES.patient("AB", "C") != NAMES.patient("B", "CA")


def test_a_new_uid_is_valid_and_days_are_never_nought() -> None:
    uids = [pydicom.uid.UID(NAMES.uid(str(i))) for i in range(200)]
    days = [NAMES.shift_days(str(i)) for i in range(9000)]

    assert all(uid.is_valid and len(uid) <= 64 for uid in uids)
    assert {abs(day) for day in days} <= set(range(1, MAX_SHIFT_DAYS + 1))
    # 730 values in 9000 draws, each sign half of them: 4500, with a standard deviation of 47.
    assert min(days) < -300 and max(days) > 300 and abs(sum(day > 0 for day in days) - 4500) < 300


def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    first = open_names(tmp_path / "key")

    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert open_names(tmp_path / "key").patient("P1") == first.patient("P1")
    assert repr(first.patient("P1")) not in repr(first)


@pytest.mark.parametrize(
    ("content", "mode", "found"),
    [(b"x" * 31, 0o600, "32 bytes"), (b"x" * 33, 0o600, "32 bytes"), (b"x" * 32, 0o644, "0644")],
)
def test_a_key_that_is_none_or_open_to_others_is_refused(
    tmp_path: Path, content: bytes, mode: int, found: str
) -> None:
    (tmp_path / "key").write_bytes(content)
    (tmp_path / "key").chmod(mode)

    with pytest.raises(ConfigError, match=found):
        open_names(tmp_path / "key")


# ---- one file ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
    ],
)
def test_the_pixels_keep_their_syntax_and_their_values(tmp_path: Path, syntax: str) -> None:
    pixels = random_pixels().astype(np.uint16) * 257
    dataset = scan_object(pixels)
    if syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = pixels.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax

    found = clean(dataset, tmp_path)

    assert found.file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(pixel_array(found), pixels)


def test_of_several_frames_all_stay(tmp_path: Path) -> None:
    dataset = scan(NumberOfFrames=3)
    dataset.PixelData = b"".join(random_pixels(seed).tobytes() for seed in range(3))

    found = clean(dataset, tmp_path)

    assert np.array_equal(pixel_array(found), [random_pixels(seed) for seed in range(3)])


def test_references_between_files_still_meet(tmp_path: Path) -> None:
    first, second = scan(1), scan(2)
    reference = Dataset()
    reference.ReferencedSOPClassUID = SecondaryCaptureImageStorage
    reference.ReferencedSOPInstanceUID = first.SOPInstanceUID
    second.ReferencedImageSequence = [reference]

    one, two = clean(first, tmp_path), clean(second, tmp_path)

    (found,) = two.ReferencedImageSequence
    assert found.ReferencedSOPInstanceUID == one.SOPInstanceUID != first.SOPInstanceUID
    assert found.ReferencedSOPClassUID == SecondaryCaptureImageStorage  # the standard's own stay
    assert one.StudyInstanceUID == two.StudyInstanceUID
    assert one.PatientID == two.PatientID == NAMES.patient("P1")


def test_how_the_picture_was_made_stays(tmp_path: Path) -> None:
    dataset = scan(Manufacturer="ACME", Modality="CR", KVP="70.5", WindowCenter=100, WindowWidth=9)
    dataset.PixelSpacing = [0.1, 0.2]

    found = clean(dataset, tmp_path)

    assert (found.Manufacturer, found.Modality, found.KVP) == ("ACME", "CR", 70.5)
    assert (found.WindowCenter, found.WindowWidth) == (100, 9)
    assert found.PixelSpacing == [0.1, 0.2]


def test_dates_go_unless_asked_for(tmp_path: Path) -> None:
    found = clean(scan(StudyDate="20200131", PatientBirthDate="19501231"), tmp_path)

    assert not found.StudyDate and not found.StudyTime and not found.PatientBirthDate
    assert found.LongitudinalTemporalInformationModified == "REMOVED"
    assert [c.CodeValue for c in found.DeidentificationMethodCodeSequence] == ["113100"]


def test_moved_dates_keep_their_distance_and_the_birth_date_goes(tmp_path: Path) -> None:
    dates = {"StudyDate": "20200131", "AcquisitionDateTime": "20200301235959.5+0100"}
    one = clean(scan(**dates, PatientBirthDate="19501231"), tmp_path, shift_dates=True)
    two = clean(scan(2, patient_id="P2", **dates), tmp_path, shift_dates=True)

    study = pydicom.valuerep.DA(one.StudyDate)
    acquired = pydicom.valuerep.DA(one.AcquisitionDateTime)  # only the day is left
    assert (acquired - study).days == 30  # 31 January to 1 March 2020, a leap year
    assert study != pydicom.valuerep.DA("20200131")
    assert one.StudyDate != two.StudyDate
    assert not one.PatientBirthDate and not one.StudyTime
    assert one.LongitudinalTemporalInformationModified == "MODIFIED"
    codes = [c.CodeValue for c in one.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113107"]  # PS3.16 CID 7050


@pytest.mark.parametrize("date", ["00010101", "20201399", "99991231", "soon", "2020"])
def test_a_date_that_cannot_be_moved_goes(tmp_path: Path, date: str) -> None:
    dataset = scan()
    dataset[0x00080020] = DataElement(0x00080020, "DA", date, validation_mode=0)

    found = clean(dataset, tmp_path, shift_dates=True)

    assert not found.StudyDate or abs(int(found.StudyDate[:4]) - int(date[:4])) <= 1


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("Modality", "LT", "Jane"),  # a type that it is not
        ("KVP", "DS", "Jane"),  # no number
        ("ViewPosition", "CS", "Jane"),  # no code
        ("PixelDataProviderURL", "UR", "http://ward7/Jane"),  # not in the table: free text
        ("ICCProfile", "OB", b"Jane is no profile"),
        ("DeviceID", "UN", b"Jane"),
    ],
)
def test_what_could_hold_a_name_goes_though_the_table_does_not_name_it(
    tmp_path: Path, keyword: str, vr: str, value: object
) -> None:
    dataset = scan()
    tag = pydicom.datadict.tag_for_keyword(keyword)
    assert tag is not None and tag not in actions()
    element = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), vr, 4, b"Jane", 0, False, True)
    dataset[tag] = element if vr in ("DS", "CS") else DataElement(tag, vr, value)
    write_object(dataset, tmp_path / "a.dcm")
    assert b"Jane" in (tmp_path / "a.dcm").read_bytes()

    found = deidentify_file(tmp_path / "a.dcm", Profile(NAMES), NAMES)

    assert isinstance(found, CleanFile)
    assert b"Jane" not in found.content


def test_without_a_patient_id_the_examination_stands_for_the_patient(tmp_path: Path) -> None:
    one, two = scan(1, patient_id=""), scan(2, patient_id="")
    two.StudyInstanceUID = derived_uid("another")

    assert clean(one, tmp_path).PatientID == clean(scan(3, patient_id=""), tmp_path).PatientID
    assert clean(one, tmp_path).PatientID != clean(two, tmp_path).PatientID


def test_doing_it_twice_finds_nothing_more_to_remove(tmp_path: Path) -> None:
    once = clean(scan(InstitutionName="St. Elsewhere"), tmp_path)
    again = clean(once, tmp_path)

    assert {e.tag for e in again} == {e.tag for e in once}
    assert again.PatientID != once.PatientID  # a name of a name


def test_a_file_that_says_its_picture_holds_text_is_left_out(tmp_path: Path) -> None:
    assert left_out(scan(BurnedInAnnotation="YES"), tmp_path) is LeftOut.BURNED_IN
    assert isinstance(left_out(scan(BurnedInAnnotation="NO"), tmp_path), CleanFile)


@pytest.mark.parametrize(
    ("elements", "risky"),
    [
        ({"Modality": "US"}, True),
        ({"Modality": "CR", "ImageType": ["DERIVED", "SECONDARY"]}, True),
        ({"Modality": "CR", "ImageType": ["ORIGINAL", "PRIMARY"]}, False),
    ],
)
def test_kinds_that_often_hold_text_are_pointed_out(
    tmp_path: Path, elements: dict[str, object], risky: bool
) -> None:
    found = left_out(scan(**elements), tmp_path)

    assert isinstance(found, CleanFile) and found.may_show_text is risky


def test_a_vendor_s_own_sop_class_is_left_out(tmp_path: Path) -> None:
    dataset = scan()
    dataset.SOPClassUID = "1.3.46.670589.5.0.10"

    assert left_out(dataset, tmp_path) is LeftOut.SOP_CLASS


def test_a_clean_file_shows_nothing_of_itself(tmp_path: Path) -> None:
    assert "content" not in repr(left_out(scan(), tmp_path))


# ---- a folder ------------------------------------------------------------------------------------
def write_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "Doe^Jane").mkdir()
    for patient_id, instance in (("P1", 1), ("P1", 2), ("P2", 3)):
        write_object(scan(instance, patient_id), folder / "Doe^Jane" / f"{instance}.dcm")
    write_object(scan(1, "P1"), folder / "copy.dcm")
    write_object(scan(4, BurnedInAnnotation="YES"), folder / "burned.dcm")
    (folder / "notes.txt").write_text("Jane")
    (folder / "link.dcm").symlink_to(folder / "copy.dcm")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_folder_becomes_a_clean_folder(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    before, told = contents(source), []

    done = deidentify_folder(
        source, tmp_path / "target", tmp_path / "key", seen=lambda *step: told.append(step)
    )

    assert (done.written, done.patients, done.may_show_text) == (3, 2, 0)
    assert done.left_out == {
        LeftOut.BURNED_IN.value: 1,
        LeftOut.THERE.value: 1,
        LeftOut.LINK.value: 1,
        "not a DICOM file": 1,
    }
    assert told == [(count, 7) for count in range(1, 8)]
    assert contents(source) == before
    found = contents(tmp_path / "target")
    assert len(found) == 3 and not any("Jane" in name or ".part" in name for name in found)
    for name, content in found.items():
        dataset = pydicom.dcmread(io.BytesIO(content))
        assert name == f"{dataset.PatientID}/{dataset.SOPInstanceUID}.dcm"
    assert {p.name for p in tmp_path.iterdir()} == {"source", "target", "key"}
    for path in (tmp_path / "target").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


def test_an_interrupted_run_goes_on_and_changes_nothing_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target, key = write_folder(tmp_path / "source"), tmp_path / "target", tmp_path / "key"
    deidentify_folder(source, tmp_path / "whole", key)

    def interrupt(looked_at: int, total: int) -> None:
        if looked_at == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deidentify_folder(source, target, key, seen=interrupt)
    first = contents(target)
    assert 0 < len(first) < 3
    stamps = {path: path.stat().st_mtime_ns for path in target.rglob("*.dcm")}

    deidentify_folder(source, target, key, resume=True)

    assert contents(target) == contents(tmp_path / "whole")
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_a_target_that_holds_something_is_refused(tmp_path: Path) -> None:
    source, target = write_folder(tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    (target / "mine").write_text("keep")

    with pytest.raises(ConfigError, match="not empty"):
        deidentify_folder(source, target, tmp_path / "key")

    assert contents(target) == {"mine": b"keep"}
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(
    ("source", "target", "key"),
    [
        ("source", "source/clean", "key"),
        ("source", "source", "key"),
        ("source", ".", "key"),
        ("source", "link", "key"),
        ("source", "target", "source/key"),
        ("source", "target", "target/key"),
        ("source", "link/clean", "key"),
        ("source/Doe^Jane", "source", "key"),
        ("source", "source/notes.txt", "key"),
        ("nowhere", "target", "key"),
        ("source/notes.txt", "target", "key"),
    ],
)
def test_places_that_mix_originals_clean_files_and_key_are_refused(
    tmp_path: Path, source: str, target: str, key: str, fresh: bool
) -> None:
    write_folder(tmp_path / "source")
    (tmp_path / "link").symlink_to(tmp_path / "source")
    if not fresh and not (tmp_path / target).exists():
        (tmp_path / target).mkdir()
    before = contents(tmp_path)

    with pytest.raises(ConfigError):
        deidentify_folder(tmp_path / source, tmp_path / target, tmp_path / key, resume=not fresh)

    assert contents(tmp_path) == before


def test_a_folder_without_images_says_why(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "Jane.txt").write_text("Jane")

    with pytest.raises(ScanError, match="not a DICOM file: 1") as caught:
        deidentify_folder(tmp_path / "source", tmp_path / "target", tmp_path / "key")

    assert "Jane" not in str(caught.value)


def test_a_disk_that_fails_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    (tmp_path / "key").write_bytes(bytes(KEY_BYTES))
    (tmp_path / "key").chmod(0o600)

    with pytest.raises(ScanError, match="No space left"):
        deidentify_folder(write_folder(tmp_path / "source"), tmp_path / "target", tmp_path / "key")

    assert contents(tmp_path / "target") == {}


def test_hostile_identifiers_never_name_a_path(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    dataset = scan(patient_id="..")
    with warnings.catch_warnings(action="ignore"):  # pydicom's, about the path
        dataset.SOPInstanceUID = "../../../x"
        write_object(dataset, source / "a.dcm")

    deidentify_folder(source, tmp_path / "target", tmp_path / "key")

    assert {p.name for p in tmp_path.iterdir()} == {"source", "target", "key"}
    (path,) = (tmp_path / "target").rglob("*.dcm")
    assert path.resolve().is_relative_to(tmp_path / "target")


def test_what_cannot_be_written_is_left_out_without_a_word_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_what: object) -> bytes:
        raise ValueError("Jane Doe")

    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(deidentify, "_bytes", broken)

    assert left_out(scan(), tmp_path) is LeftOut.UNWRITABLE
    assert "Jane" not in caplog.text


def test_without_the_table_the_way_to_get_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dicomanonymizer.dicom_anonymization_databases", None)

    with pytest.raises(ConfigError, match=r"pip install 'medfed\[deid\]'"):
        Profile(NAMES)


def test_the_table_is_whole() -> None:
    # PS3.15 2026c, counted in the library: 415 X, 42 Z + 11 X/Z, 93 D + 6 Z/D + 23 X/D + 8 X/Z/D,
    # 55 U, 2 X/Z/U*; of the X, the three lines of overlays and curves are ranges, not in here.
    table = list(actions().values())

    assert {a: table.count(a) for a in "XZDUC"} == {"X": 412, "Z": 53, "D": 130, "U": 55, "C": 2}
    assert EDITION == "2026c"
