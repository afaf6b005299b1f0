from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from medfed.client.scans import pixels as pixels_module
from medfed.client.scans.allowed_attributes import ALLOWED, Allowed, age_band, keep_allowed
from medfed.client.scans.guards import open_scan
from medfed.client.scans.pixels import read_dicom
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.simulations.dicom_objects import write_object
from tests.support.scans import random_pixels, scan_object, study_of, write_scan


def kept(dataset: Dataset, path: Path) -> Dataset:
    write_object(dataset, path)
    return keep_allowed(open_scan(path)[0])


def test_every_allowed_keyword_is_one_of_the_standard() -> None:
    def check(allowed: Allowed) -> None:
        for keyword, inside in allowed.items():
            element = Dataset()
            setattr(element, keyword, [Dataset()] if inside else None)
            (found,) = element
            assert found.keyword == keyword
            assert (found.VR == "SQ") is bool(inside), keyword
            check(inside)

    check(ALLOWED)


def test_no_name_text_or_date_is_allowed() -> None:
    # An age is banded, and the identifiers are for grouping and joining in memory.
    allowed = {keyword for keyword in ALLOWED if keyword not in ("PatientAge",)}
    for keyword in allowed:
        element = Dataset()
        setattr(element, keyword, [] if ALLOWED[keyword] else None)
        (found,) = element
        assert found.VR not in ("PN", "DA", "TM", "DT", "LT", "ST", "UT", "UC", "UR", "AE", "UN")


def test_what_is_allowed_keeps_its_value(tmp_path: Path) -> None:
    pixels = random_pixels()
    group = Dataset()
    group.PixelMeasuresSequence = [Dataset()]
    group.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.25]
    group.PixelMeasuresSequence[0].PatientName = "Doe^Jane"
    dataset = scan_object(pixels, WindowCenter=40, WindowWidth=400, Modality="CT", KVP=120)
    dataset.SharedFunctionalGroupsSequence = [group]
    dataset.SpecificCharacterSet, dataset.PatientID = "ISO_IR 192", "Müller-7"

    found = kept(dataset, tmp_path / "a.dcm")

    assert found.PatientID == "Müller-7"
    assert (found.WindowCenter, found.WindowWidth, found.Modality, found.KVP) == (
        40,
        400,
        "CT",
        120,
    )
    (measures,) = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert measures.PixelSpacing == [0.5, 0.25]
    assert "PatientName" not in measures
    assert np.array_equal(np.frombuffer(found.PixelData, np.uint8), pixels.reshape(-1))


def test_what_is_not_allowed_is_gone(tmp_path: Path) -> None:
    dataset = scan_object(random_pixels(), InstitutionName="St. Elsewhere", StudyDate="20200102")
    dataset.private_block(0x0009, "VENDOR", create=True).add_new(1, "LO", "Jane")
    dataset.file_meta.SourceApplicationEntityTitle = "WARD7"

    found = kept(dataset, tmp_path / "a.dcm")

    assert {e.keyword for e in found} <= ALLOWED.keys()
    assert {e.keyword for e in found.file_meta} == {"TransferSyntaxUID"}
    assert not hasattr(found, "filename") and not getattr(found, "preamble", None)


@pytest.mark.parametrize(
    ("age", "band"),
    # PS3.5 6.2, AS: three digits and D, W, M or Y.
    [("000Y", "000Y"), ("009Y", "000Y"), ("010Y", "010Y"), ("089Y", "080Y"), ("090Y", "090Y"),
     ("114Y", "090Y"), ("023M", "000Y"), ("052W", "000Y"), ("003D", "000Y")],
)  # fmt: skip
def test_an_age_is_known_by_its_decade(tmp_path: Path, age: str, band: str) -> None:
    dataset = scan_object(random_pixels(), PatientAge=age)

    assert kept(dataset, tmp_path / "a.dcm").PatientAge == band == age_band(age)


@pytest.mark.parametrize("age", ["43", "43Y", "Jane", "0043Y", ""])
def test_what_is_no_age_is_gone(tmp_path: Path, age: str) -> None:
    dataset = scan_object(random_pixels())
    dataset[0x00101010] = DataElement(0x00101010, "LO", age)

    assert "PatientAge" not in kept(dataset, tmp_path / "a.dcm")


def test_a_sequence_that_is_none_is_refused(tmp_path: Path) -> None:
    dataset = scan_object(random_pixels())
    dataset[0x00283010] = DataElement(0x00283010, "UT", "no table")  # VOILUTSequence

    with pytest.raises(RefusedScanError) as caught:
        kept(dataset, tmp_path / "a.dcm")

    assert caught.value.reason is Reason.HEADER


def test_every_file_that_is_read_passes_the_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def door(dataset: Dataset) -> Dataset:
        assert dataset.InstitutionName == "St. Elsewhere"
        kept = keep_allowed(dataset)
        kept.PatientID = "behind the door"
        return kept

    monkeypatch.setattr(pixels_module, "keep_allowed", door)
    path = write_scan(tmp_path / "a.dcm", random_pixels(), InstitutionName="St. Elsewhere")

    assert read_dicom(path, study_of().scans).patient_id == "behind the door"
