"""Series and views in the index: which files are one scan, and which scans a study takes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import EnhancedCTImageStorage

from medfed.client.scans.layouts.layout import Entry, Index, LineReason
from medfed.client.scans.layouts.series import by_series
from medfed.client.scans.layouts.views import of_views
from medfed.client.scans.read import index_scans, read_scans
from medfed.client.scans.refusals import Reason
from medfed.common.errors import ScanError
from medfed.simulations.dicom_objects import write_object
from tests.support.scans import GIVEN, HASH, study_of, write_list
from tests.support.series import CT, ct_slice, enhanced_ct, hounsfield, write_series

SERIES = CT + 'series = true\ntake = "middle"'


def index_of(folder: Path, *entries: Entry) -> Index:
    return Index("dicom-worklist", folder, entries, {"before": 2})


def two_series(folder: Path) -> None:
    write_series(folder / "a", [0.0, 1.0, 2.0], [10, 20, 30], series="1", PatientID="P1")
    write_series(folder / "b", [0.0, 1.0, 2.0], [40, 50, 60], series="2", PatientID="P2")


def entries(*names: str, label: int = 0) -> list[Entry]:
    return [Entry(name, label) for name in names]


A = ("a/000.dcm", "a/001.dcm", "a/002.dcm")
B = ("b/000.dcm", "b/001.dcm", "b/002.dcm")


@pytest.mark.parametrize("seed", range(5))
def test_the_files_of_a_series_become_one_scan(tmp_path: Path, seed: int) -> None:
    two_series(tmp_path)
    listed = [*entries(*A, label=0), *entries(*B, label=1)]
    random.Random(seed).shuffle(listed)

    joined = by_series(index_of(tmp_path, *listed))

    expected = {Entry(A[0], 0, others=A[1:]), Entry(B[0], 1, others=B[1:])}
    assert set(joined.entries) == expected
    assert len(joined.entries) == 2
    assert joined.refused == {"before": 2}  # what was left out before stays counted


def test_files_that_hold_a_whole_scan_stay_scans_of_their_own(tmp_path: Path) -> None:
    for name, z in (("one", 0.0), ("two", 50.0)):  # of one series, as of two injections
        dataset = enhanced_ct([hounsfield(0), hounsfield(0)], [z, z + 1], [-1024, -1024])
        write_object(dataset, tmp_path / f"{name}.dcm")
    (tmp_path / "text.dcm").write_text("no DICOM file")
    own = entries("one.dcm", "two.dcm", "a.nii.gz", "b.png", "text.dcm", "gone.dcm")

    assert by_series(index_of(tmp_path, *own)).entries == own


@pytest.mark.parametrize(
    "other", [Entry(A[1], 1), Entry(A[1], 0, patient="P9"), Entry(A[1], 0, part=2)]
)
def test_a_series_whose_files_contradict_each_other_is_left_out_and_counted(
    tmp_path: Path, other: Entry
) -> None:
    two_series(tmp_path)
    listed = [Entry(A[0], 0), other, Entry(A[2], 0), *entries(*B)]

    joined = by_series(index_of(tmp_path, *listed))

    assert [entry.file for entry in joined.entries] == [B[0]]
    assert joined.refused == {"before": 2, LineReason.CONTRADICTION.value: 3}


def test_a_file_without_a_series_is_left_out_and_counted(tmp_path: Path) -> None:
    two_series(tmp_path)
    dataset = ct_slice(hounsfield(0), 0.0)
    del dataset.SeriesInstanceUID
    write_object(dataset, tmp_path / "none.dcm")

    joined = by_series(index_of(tmp_path, *entries(*A, "none.dcm")))

    assert [entry.file for entry in joined.entries] == [A[0]]
    assert joined.refused == {"before": 2, LineReason.NO_SERIES.value: 1}


def test_a_study_of_series_reads_one_scan_for_each(tmp_path: Path) -> None:
    two_series(tmp_path)
    write_series(tmp_path / "c", [0.0, 1.0, 4.0], [1, 2, 3], series="3", PatientID="P3")
    labels = {"a": "opacity", "b": "normal", "c": "normal"}
    files = [(f"{name}/{number:03}.dcm", name) for name in labels for number in range(3)]
    write_list(tmp_path, [(file, labels[name], "train") for file, name in files])
    study = study_of(size=8, scans=SERIES, split=GIVEN)

    scans = read_scans(tmp_path, study)

    assert scans.labels.tolist() == [1, 0]
    assert scans.patients == 2
    assert scans.unit == "patient"
    assert scans.refused == {Reason.SLICE_MISSING.value: 1}
    # 20 and 50 HU under the window of 2,001 around 0: (x + 0.5) / 2000 + 0.5
    images = scans.images[np.arange(2)]
    assert images[:, 0, 0, 0] == pytest.approx([0.51025, 0.52525], abs=1e-5)


def test_a_worklist_of_series_labels_every_file_of_them(tmp_path: Path) -> None:
    two_series(tmp_path)
    one, two = (ct_slice(hounsfield(0), 0.0, series=name).SeriesInstanceUID for name in ("1", "2"))
    write_list(tmp_path, [(one, "normal"), (two, "opacity")], "series_uid", "label")

    index = index_scans(tmp_path, study_of(size=8, scans=SERIES, split=HASH))

    assert list(index.entries) == [Entry(A[0], 0, others=A[1:]), Entry(B[0], 1, others=B[1:])]


def test_without_series_every_file_is_a_scan(tmp_path: Path) -> None:
    two_series(tmp_path)
    write_list(tmp_path, [(name, "normal") for name in (*A, *B)], "file", "label")

    index = index_scans(tmp_path, study_of(size=8, scans=CT, split=HASH))

    assert [entry.file for entry in index.entries] == [*A, *B]
    assert not any(entry.others for entry in index.entries)


def test_an_index_of_nothing_but_contradictions_is_an_error(tmp_path: Path) -> None:
    write_series(tmp_path / "a", [0.0, 1.0], [1, 2])
    write_list(tmp_path, [(A[0], "normal"), (A[1], "opacity")], "file", "label")

    with pytest.raises(ScanError, match="contradict each other: 2"):
        index_scans(tmp_path, study_of(size=8, scans=SERIES, split=HASH))


def test_scans_are_chosen_by_the_view_that_a_table_says() -> None:
    views = {"a.png": "PA", "b.png": "ap", "c.png": "LL", "d.png": "", "e.nii": "", "f.dcm": ""}
    listed = [Entry(file, 0, view=view) for file, view in views.items()]

    chosen = of_views(index_of(Path(), *listed), ("PA", "AP"))

    # A DICOM file's header says its view; a picture's says none.
    assert [entry.file for entry in chosen.entries] == ["a.png", "b.png", "f.dcm"]
    assert chosen.refused == {"before": 2, Reason.VIEW.value: 3}
    untouched = index_of(Path(), *listed)
    assert of_views(untouched, None) is untouched


def test_the_class_of_enhanced_objects_is_read_from_the_header(tmp_path: Path) -> None:
    dataset = enhanced_ct([hounsfield(0)], [0.0], [-1024])
    assert dataset.SOPClassUID == EnhancedCTImageStorage
    write_object(dataset, tmp_path / "a.dcm")
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"  # a slice: then the two are one series
    write_object(dataset, tmp_path / "b.dcm")
    write_object(dataset, tmp_path / "c.dcm")

    joined = by_series(index_of(tmp_path, *entries("a.dcm", "b.dcm", "c.dcm")))

    assert list(joined.entries) == [Entry("a.dcm", 0), Entry("b.dcm", 0, others=("c.dcm",))]
