from __future__ import annotations

import gzip
import struct
import sys
from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from medfed.client.scans import volumes
from medfed.client.scans.layouts.layout import LineReason
from medfed.client.scans.read import index_scans, read_scans
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.client.scans.scanset import TEST, TRAIN
from medfed.client.scans.volumes import read_volume
from medfed.common.errors import ScanError
from medfed.common.findings import Unlabelled
from tests.support.scans import HASH, study_of, write_list

SCANS = study_of(size=8).scans
PERCENTILE = study_of(size=8, scans='intensity = "percentile"').scans
SPACED = study_of(size=8, scans="spacing_mm = 2.0").scans


def volume(seed: int = 0, shape: tuple[int, ...] = (8, 8, 5)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, data: NDArray[Any], affine: NDArray[np.float64] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def bids(folder: Path, lines: Sequence[str], *files: str) -> None:
    for number, file in enumerate(files):
        save(folder / file, volume(number))
    (folder / "participants.tsv").write_text("\n".join(lines).replace(" ", "\t") + "\n")


def refusal(path: Path, scans: Any = SCANS) -> Reason:
    with pytest.raises(RefusedScanError) as caught:
        read_volume(path, scans)
    return caught.value.reason


# ---- one slice -----------------------------------------------------------------------------------
def test_the_middle_axial_slice_is_shown_as_dicom_shows_it(tmp_path: Path) -> None:
    data = volume()  # axes: to the right, to the front, to the head

    tensor = read_volume(save(tmp_path / "a.nii.gz", data), SCANS)

    # DICOM PS3.3 C.7.6.2.1.1: columns grow to the patient's left, rows to the back.
    shown = data[::-1, ::-1, 2].T
    assert np.array_equal(tensor[0], (shown / 255.0).astype(np.float32))


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_the_same_body_gives_the_same_slice_however_it_is_stored(
    tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    data = volume(shape=(8, 6, 4))  # an even number of slices: the middle must not depend on it
    expected = read_volume(save(tmp_path / "a.nii", data), SCANS)
    stored = data.transpose(axes)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (world, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[world, axis] = sign
        if sign < 0:
            stored = np.flip(stored, axis)

    assert np.array_equal(read_volume(save(tmp_path / "b.nii", stored, affine), SCANS), expected)


def test_a_slice_can_be_asked_for(tmp_path: Path) -> None:
    data = volume()
    path = save(tmp_path / "a.nii", data)
    upside_down = save(tmp_path / "b.nii", data[:, :, ::-1], np.diag([1.0, 1.0, -1.0, 1.0]))

    for number in range(5):
        shown = (data[::-1, ::-1, number].T / 255.0).astype(np.float32)
        assert np.array_equal(read_volume(path, SCANS, number)[0], shown)
        assert np.array_equal(read_volume(upside_down, SCANS, number)[0], shown)
    with pytest.raises(RefusedScanError):
        read_volume(path, SCANS, 5)


def test_of_several_volumes_and_of_a_flat_file_the_one_slice_is_taken(tmp_path: Path) -> None:
    data = volume(shape=(8, 8, 3, 2))

    series = read_volume(save(tmp_path / "a.nii", data), SCANS)
    flat = read_volume(save(tmp_path / "b.nii", data[:, :, 1, 0]), SCANS)

    assert np.array_equal(series, flat)


def test_values_of_any_range_need_percentiles(tmp_path: Path) -> None:
    data = volume().astype(np.float32) * 10 - 1000
    data[0, 0, 2], data[1, 0, 2], data[2, 0, 2] = np.nan, np.inf, -np.inf
    path = save(tmp_path / "a.nii", data)

    assert refusal(path) is Reason.GREY_SCALE
    tensor = read_volume(path, PERCENTILE)
    assert np.isfinite(tensor).all()
    assert (tensor.min(), tensor.max()) == (0.0, 1.0)


def test_signed_and_scaled_values_say_nothing_about_brightness(tmp_path: Path) -> None:
    scaled = header(slope=(112, "<2f", (2.0, -100.0)))
    (tmp_path / "a.nii").write_bytes(scaled)

    assert refusal(tmp_path / "a.nii") is Reason.GREY_SCALE
    assert refusal(save(tmp_path / "b.nii", volume().astype(np.int16))) is Reason.GREY_SCALE
    assert read_volume(save(tmp_path / "c.nii", volume().astype(np.uint16)), SCANS).max() < 0.01


def test_the_file_s_spacing_is_used(tmp_path: Path) -> None:
    data = np.zeros((8, 4, 1), dtype=np.uint8)
    data[:] = 200
    path = save(tmp_path / "a.nii", data, np.diag([2.0, 4.0, 1.0, 1.0]))  # 16 mm by 16 mm

    assert np.allclose(read_volume(path, SPACED), 200 / 255)  # 8 by 8 pixels of 2 mm, all of it


def test_first_and_middle_are_both_the_middle_slice(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", volume())
    middle = study_of(size=8, scans='take = "middle"').scans

    assert np.array_equal(read_volume(path, middle), read_volume(path, SCANS))


@pytest.mark.parametrize("slab", [1, 2, 32])
@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("sign", [1, -1])
def test_projections_run_from_the_feet_to_the_head_however_the_body_is_stored(
    tmp_path: Path, axes: tuple[int, ...], sign: int, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "SLAB", slab)
    data = volume(shape=(8, 8, 5))
    stored = data[:, :, ::sign].transpose(axes)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, world in enumerate(axes):
        affine[world, axis] = sign if world == 2 else 1
    path = save(tmp_path / "a.nii", stored, affine)

    shown = data[::-1, ::-1].transpose(1, 0, 2) / 255.0
    for take, expected in (("maximum", shown.max(axis=2)), ("mean", shown.mean(axis=2))):
        tensor = read_volume(path, study_of(size=8, scans=f'take = "{take}"').scans)
        assert tensor[0] == pytest.approx(expected, abs=1e-6)


def test_a_mean_is_the_same_to_the_bit_for_a_body_stored_upside_down(tmp_path: Path) -> None:
    # Of such values the sum depends on the order: 1e16 + 1 - 1e16 is 0, and 1e16 - 1e16 + 1 is 1.
    data = np.random.default_rng(0).permuted(np.tile([1e16, 1.0, -1e16, 2.0], (8, 8, 1)), axis=2)
    scans = study_of(size=8, scans='intensity = "percentile"\ntake = "mean"').scans
    flip = np.diag([1.0, 1.0, -1.0, 1.0])

    plain = read_volume(save(tmp_path / "a.nii", data), scans)
    upside_down = read_volume(save(tmp_path / "b.nii", data[:, :, ::-1], flip), scans)

    assert len(np.unique(plain)) > 2
    assert np.array_equal(plain, upside_down)


def test_a_slice_that_is_asked_for_is_not_projected(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", volume())
    brightest = study_of(size=8, scans='take = "maximum"').scans

    assert np.array_equal(read_volume(path, brightest, 1), read_volume(path, SCANS, 1))


def test_what_is_not_finite_has_no_part_in_a_projection(tmp_path: Path) -> None:
    data = np.zeros((8, 8, 3), dtype=np.float32)
    data[0, 0] = (np.nan, 100.0, 300.0)
    data[1, 1] = np.inf
    window = 'intensity = "fixed"\nwindow = { center = 0, width = 1001 }\n'
    scans = study_of(size=8, scans=window + 'take = "mean"').scans

    tensor = read_volume(save(tmp_path / "a.nii", data), scans)[0][::-1, ::-1].T

    # (x + 0.5) / 1000 + 0.5 of 200, of nothing, and of 0
    assert tensor[0, 0] == pytest.approx(0.7005)
    assert tensor[1, 1] == 0.0
    assert tensor[2, 2] == pytest.approx(0.5005)


def test_a_fixed_window_takes_hounsfield_units_of_any_type(tmp_path: Path) -> None:
    data = np.full((8, 8, 3), -400, dtype=np.int16)
    lung = 'intensity = "fixed"\nwindow = { center = -600, width = 1501 }'

    tensor = read_volume(save(tmp_path / "a.nii", data), study_of(size=8, scans=lung).scans)

    assert tensor == pytest.approx(200.5 / 1500 + 0.5)  # PS3.3 C.11.2.1.2.1


# ---- hostile files -------------------------------------------------------------------------------
def header(**fields: tuple[int, str, Sequence[float]]) -> bytes:
    """A header of nothing with some fields put in: offset, format, values."""
    content = bytearray(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_bytes())
    for offset, form, values in fields.values():
        struct.pack_into(form, content, offset, *values)
    return bytes(content)


HUGE = header(dim=(40, "<8h", (3, 30000, 30000, 30000, 1, 1, 1, 1)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (HUGE, Reason.PIXEL_LIMIT),
        (gzip.compress(HUGE, mtime=0), Reason.PIXEL_LIMIT),
        (header(dim=(40, "<8h", (3, -4, 4, 4, 1, 1, 1, 1))), None),
        (header(dim=(40, "<8h", (3, 0, 4, 4, 1, 1, 1, 1))), None),
        (header(dim=(40, "<8h", (3, 400, 400, 4, 1, 1, 1, 1))), Reason.DECODE),  # too short
        (header(type=(70, "<h", (128,))), Reason.COLOUR),  # RGB24
        (header(type=(70, "<h", (32,))), Reason.COLOUR),  # complex numbers
        (header(type=(70, "<h", (9999,))), Reason.DECODE),
        (header(place=(108, "<f", (float("nan"),))), None),
        (header(affine=(280, "<12f", (float("nan"),) * 12)), None),
        (header(affine=(280, "<12f", (0.0,) * 12)), None),
        (b"", Reason.NOT_NIFTI),
        (b"\x1f\x8b", Reason.DECODE),
        (gzip.compress(b"no volume", mtime=0), Reason.NOT_NIFTI),
        (gzip.compress(header(), mtime=0)[:-20], Reason.DECODE),
        (b"Doe" * 999, Reason.NOT_NIFTI),
    ],
)
def test_a_hostile_volume_is_refused_with_its_reason(
    tmp_path: Path, content: bytes, reason: Reason | None
) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)

    found = refusal(tmp_path / "a.nii.gz", PERCENTILE)

    assert reason is None or found is reason


def test_a_volume_that_inflates_above_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(bytes(5000), mtime=0) + gzip.compress(bytes(5000), mtime=0))
    monkeypatch.setattr(volumes, "MAX_FILE_BYTES", 9999)

    assert refusal(path) is Reason.TOO_LARGE


@pytest.mark.parametrize("seed", range(200))
def test_a_damaged_volume_is_read_or_refused_and_nothing_else(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    content = bytearray(nib.Nifti1Image(volume(), np.eye(4)).to_bytes())
    for place in random.integers(0, 352, 6):  # the header is what can be wrong
        content[place] = random.integers(0, 256)
    (tmp_path / "a.nii").write_bytes(content)

    try:
        tensor = read_volume(tmp_path / "a.nii", PERCENTILE)
    except RefusedScanError:
        return
    assert tensor.shape == (1, 8, 8)
    assert np.isfinite(tensor).all()


# ---- the table -----------------------------------------------------------------------------------
T1 = "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"
LINES = ["participant_id age label split", "sub-01 7 normal train", "sub-02 8 opacity test"]


def test_every_volume_of_a_participant_is_a_scan_of_that_patient(tmp_path: Path) -> None:
    files = [T1, "sub-01/anat/sub-01_T2w.nii", "sub-02/anat/sub-02_T1w.nii.gz"]
    bids(tmp_path, LINES, *files, "derivatives/sub-02/anat/sub-02_T1w.nii.gz")

    index = index_scans(tmp_path, study_of(size=8))
    scans = read_scans(tmp_path, study_of(size=8))

    assert {(entry.file, entry.modality) for entry in index.entries} == {
        (files[0], "T1w"),
        (files[1], "T2w"),
        (files[2], "T1w"),
    }
    assert scans.patient.tolist() == [0, 0, 1]
    assert scans.labels.tolist() == [0, 0, 1]
    assert scans.part.tolist() == [TRAIN, TRAIN, TEST]
    assert (scans.unit, dict(scans.refused)) == ("patient", {})


@pytest.mark.parametrize("column", ["group", "Diagnosis", "label"])
def test_the_label_s_column_has_one_of_three_names(tmp_path: Path, column: str) -> None:
    bids(tmp_path, [f"participant_id {column}", "01 opacity"], T1)

    assert [e.label for e in index_scans(tmp_path, study_of(split=HASH)).entries] == [1]


def test_participants_without_files_files_without_line_and_odd_lines_are_counted(
    tmp_path: Path,
) -> None:
    lines = ["participant_id label", "sub-01 normal", "sub-01 normal", "sub-09 normal"]
    lines += ["sub-02 opacity", "sub-02 normal", "sub-03 Doe", " normal"]
    subjects = [f"sub-0{n}/anat/sub-0{n}_T1w.nii" for n in (1, 2, 3, 4)]
    bids(tmp_path, lines, *subjects)

    index = index_scans(tmp_path, study_of(split=HASH))

    assert [entry.patient for entry in index.entries] == ["sub-01"]
    assert index.refused == {
        LineReason.REPEATED: 1,
        LineReason.NOT_THERE: 1,
        LineReason.CONTRADICTION: 2,
        LineReason.LINE: 1,
        LineReason.NO_LINE: 1,
        Unlabelled.NONE: 1,
    }


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["participant_id label"], "columns missing .*: split"),
        (["participant_id split"], "columns missing .*: label"),
        (["subject label split"], "columns missing .*: participant_id"),
        (["participant_id label split", "sub-01 normal Doe"], "line 2: its split is none"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused_and_not_quoted(
    tmp_path: Path, lines: list[str], found: str
) -> None:
    bids(tmp_path, lines, T1)

    with pytest.raises(ScanError, match=found) as caught:
        read_scans(tmp_path, study_of())

    assert "Doe" not in str(caught.value)


def test_a_volume_on_a_worklist_is_read(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", volume())
    write_list(tmp_path, [("a.nii.gz", "opacity", "p1")], "file", "label", "patient")

    scans = read_scans(tmp_path, study_of(size=8, split=HASH))

    assert (scans.labels.tolist(), scans.unit) == ([1], "patient")


def test_without_nibabel_the_pip_line_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bids(tmp_path, LINES, T1)
    monkeypatch.setitem(sys.modules, "nibabel", None)

    with pytest.raises(ScanError, match=r"pip install 'medfed\[nifti\]'"):
        index_scans(tmp_path, study_of())
    with pytest.raises(ScanError, match=r"pip install 'medfed\[nifti\]'"):
        read_volume(tmp_path / T1, SCANS)
