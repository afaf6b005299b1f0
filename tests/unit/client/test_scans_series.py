from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medfed.client.scans import series
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.client.scans.series import read_series
from medfed.client.scans.slice_order import slice_order
from medfed.simulations.dicom_objects import write_object
from tests.support.dicom_files import SHIPPED
from tests.support.scans import scan_object
from tests.support.series import (
    AXIAL,
    ct_series,
    ct_slice,
    enhanced_ct,
    hounsfield,
    item,
    write_series,
)

REAL = SHIPPED / "dicomdirtests"


def shown(hu: float) -> float:
    """Brightness of a value under the window of 2,001 around 0: PS3.3 C.11.2.1.2.1."""
    return (hu + 0.5) / 2000 + 0.5


def refusal(paths: list[Path], take: str = "middle") -> Reason:
    with pytest.raises(RefusedScanError) as caught:
        read_series(paths, ct_series(take))
    return caught.value.reason


def rotated(seed: int) -> NDArray[np.float64]:
    """A random rotation."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return np.asarray(q if np.linalg.det(q) > 0 else -q)


@pytest.mark.parametrize("seed", range(20))
def test_slices_are_ordered_along_their_normal_however_they_lie_and_come(seed: int) -> None:
    draws = np.random.default_rng(seed)
    turn, count = rotated(seed), int(draws.integers(1, 40))
    step, shear = draws.uniform(0.3, 8.0), draws.uniform(-1, 1, 2)  # a tilted gantry shears
    places = np.asarray([[*(shear * k), step * k] for k in range(count)]) + draws.normal(size=3)
    places += draws.uniform(-1e-3, 1e-3, places.shape) * step  # written with few digits
    shuffle = draws.permutation(count)
    orientation = np.tile(np.concatenate([turn[:, 0], turn[:, 1]]), (count, 1))

    order = slice_order((places @ turn.T)[shuffle], orientation)

    assert shuffle[order].tolist() == list(range(count))


@pytest.mark.parametrize("seed", range(20))
def test_a_slice_missing_anywhere_but_at_the_ends_shows(seed: int) -> None:
    draws = np.random.default_rng(seed)
    count = int(draws.integers(3, 40))
    heights = np.delete(np.arange(count) * draws.uniform(0.3, 8.0), draws.integers(1, count - 1))
    positions = np.stack([np.zeros(count - 1), np.zeros(count - 1), heights], axis=1)
    if count == 3:  # of two slices nothing says which step is right
        return

    with pytest.raises(RefusedScanError) as caught:
        slice_order(positions, np.tile(AXIAL, (count - 1, 1)))

    assert caught.value.reason is Reason.SLICE_MISSING


@pytest.mark.parametrize(
    ("heights", "reason"),
    [
        ([0.0, 2.5, 5.0, 7.5], None),
        ([0.0, 2.5, 5.02, 7.5], None),  # 0.02 mm of 2.5 is 0.8 %
        ([0.0, 2.5, 5.03, 7.5], Reason.SLICE_MISSING),  # 1.2 %
        ([0.0, 2.5, 2.5, 5.0], Reason.SAME_POSITION),
        ([0.0, 2.5, 7.5, 10.0], Reason.SLICE_MISSING),
        ([0.0, 0.0, 2.5, 2.5], Reason.SAME_POSITION),  # two phases of a heart
        ([float("nan"), 2.5], Reason.POSITION),
        ([float("inf"), 2.5], Reason.POSITION),
        ([1e300, 2.5], Reason.POSITION),
    ],
)
def test_steps_may_differ_by_a_hundredth(heights: list[float], reason: Reason | None) -> None:
    positions = np.asarray([[0.0, 0.0, z] for z in heights])
    if reason is None:
        assert slice_order(positions, np.tile(AXIAL, (len(heights), 1))).tolist() == [0, 1, 2, 3]
        return
    with pytest.raises(RefusedScanError) as caught:
        slice_order(positions, np.tile(AXIAL, (len(heights), 1)))
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("orientation", "reason"),
    [
        ((1, 0, 0, 0, 1, 0.0005), None),  # what few digits do
        ((1, 0, 0, 0, 0.9997, 0.0175), Reason.MIXED_SERIES),  # turned by one degree
        ((0, 1, 0, 0, 0, -1), Reason.MIXED_SERIES),  # sagittal
    ],
)
def test_slices_must_be_parallel(orientation: Any, reason: Reason | None) -> None:
    positions = np.asarray([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    orientations = np.asarray([AXIAL, orientation], dtype=np.float64)
    if reason is None:
        assert slice_order(positions, orientations).tolist() == [0, 1]
        return
    with pytest.raises(RefusedScanError) as caught:
        slice_order(positions, orientations)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 1, 0, 0), (0, 0, 0, 0, 0, 0), (2, 0, 0, 0, 2, 0), (np.nan,) * 6]
)
def test_an_orientation_that_is_none_is_refused(orientation: Any) -> None:
    with pytest.raises(RefusedScanError) as caught:
        slice_order(np.zeros((1, 3)), np.asarray([orientation], dtype=np.float64))

    assert caught.value.reason is Reason.POSITION


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("take", ["middle", "maximum", "mean"])
def test_neither_names_nor_numbers_nor_the_order_of_files_change_a_scan(
    tmp_path: Path, seed: int, take: str
) -> None:
    draws = np.random.default_rng(seed)
    pixels = draws.integers(0, 4096, (7, 8, 8), dtype=np.uint16)
    names, numbers = draws.permutation(7), draws.permutation(7)
    (tmp_path / "plain").mkdir()
    (tmp_path / "mixed").mkdir()
    for index, plane in enumerate(pixels):
        z = 3.0 * index - 50
        write_object(ct_slice(plane, z, number=index), tmp_path / "plain" / f"{index}.dcm")
        mixed = ct_slice(plane, z, number=int(numbers[index]))
        write_object(mixed, tmp_path / "mixed" / f"{names[index]}.dcm")
    shuffled = sorted((tmp_path / "mixed").iterdir())
    random.Random(seed).shuffle(shuffled)

    plain = read_series(sorted((tmp_path / "plain").iterdir()), ct_series(take)).tensor
    mixed_up = read_series(shuffled, ct_series(take)).tensor

    assert np.array_equal(plain, mixed_up)


def test_the_middle_slice_is_the_middle_by_height(tmp_path: Path) -> None:
    # Heights and values out of order on disk: by height 100, 200, 300, 400, 500 HU.
    paths = write_series(tmp_path, [10.0, -10.0, 5.0, 0.0, -5.0], [500, 100, 400, 300, 200])

    assert read_series(paths, ct_series()).tensor == pytest.approx(shown(300))


def test_of_an_even_number_the_middle_is_the_upper_of_two(tmp_path: Path) -> None:
    paths = write_series(tmp_path, [0.0, 5.0, 10.0, 15.0], [100, 200, 300, 400])

    # As of a NIfTI volume: count // 2 from the feet.
    assert read_series(paths, ct_series()).tensor == pytest.approx(shown(300))


def test_projections_of_a_series_are_of_hounsfield_units(tmp_path: Path) -> None:
    paths = write_series(tmp_path, [0.0, 5.0, 10.0], [-500, 250, 100])

    assert read_series(paths, ct_series("maximum")).tensor == pytest.approx(shown(250))
    assert read_series(paths, ct_series("mean")).tensor == pytest.approx(shown(-50))


def test_slices_are_projected_by_their_own_rescale(tmp_path: Path) -> None:
    # PET writes another slope into every slice: stored 100 is 100 here and 300 there.
    for index, slope in enumerate((1, 3, 2)):
        dataset = ct_slice(np.full((8, 8), 100, np.uint16), 4.0 * index, Modality="PT")
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, 0
        write_object(dataset, tmp_path / f"{index}.dcm")

    tensor = read_series(sorted(tmp_path.iterdir()), ct_series("mean")).tensor

    assert tensor == pytest.approx(shown(200))


def test_one_slice_is_a_series_and_tells_whose_it_is(tmp_path: Path) -> None:
    paths = write_series(tmp_path, [0.0], [100], PatientID=" P7 ")

    scan = read_series(paths, ct_series())

    assert scan.patient_id == "P7"
    assert scan.tensor == pytest.approx(shown(100))


def test_the_facts_of_a_series_count_its_slices(tmp_path: Path) -> None:
    facts = read_series(write_series(tmp_path, [0.0, 2.0, 4.0], [1, 2, 3]), ct_series()).facts

    assert (facts.modality, facts.frames) == ("CT", 3)


def test_a_missing_slice_refuses_the_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path, [0.0, 5.0, 10.0, 15.0, 20.0], [1, 2, 3, 4, 5])

    assert read_series(paths, ct_series()).tensor.shape == (1, 8, 8)
    assert refusal([*paths[:2], *paths[3:]]) is Reason.SLICE_MISSING
    assert refusal([*paths, paths[2]]) is Reason.SAME_POSITION


def no_position(dataset: Dataset) -> None:
    del dataset.ImagePositionPatient


def other_patient(dataset: Dataset) -> None:
    dataset.PatientID = "P2"


def other_spacing(dataset: Dataset) -> None:
    dataset.PixelSpacing = [0.6, 0.6]


def no_spacing(dataset: Dataset) -> None:
    del dataset.PixelSpacing


def localizer(dataset: Dataset) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def larger(dataset: Dataset) -> None:
    dataset.Rows, dataset.PixelData = 16, dataset.PixelData * 2


def other_region(dataset: Dataset) -> None:
    corners = dict(zip(("MinX0", "MinY0", "MaxX1", "MaxY1"), (0, 0, 4, 4), strict=True))
    named = {f"RegionLocation{name}": value for name, value in corners.items()}
    dataset.SequenceOfUltrasoundRegions = [item(RegionSpatialFormat=1, RegionDataType=1, **named)]


def short(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:-2]


def no_units(dataset: Dataset) -> None:
    del dataset.RescaleSlope, dataset.RescaleIntercept


def sideways(dataset: Dataset) -> None:
    dataset.ImagePositionPatient = [-90.0, -120.0, dataset.ImagePositionPatient[2]]


@pytest.mark.parametrize("which", [0, 2, 4])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (no_position, Reason.POSITION),
        (other_patient, Reason.MIXED_SERIES),
        (other_spacing, Reason.MIXED_SERIES),
        (no_spacing, Reason.MIXED_SERIES),
        (larger, Reason.MIXED_SERIES),
        (other_region, Reason.MIXED_SERIES),
        (localizer, Reason.LOCALIZER),
        (short, Reason.DECODE),
        (no_units, Reason.NO_UNITS),
        (sideways, Reason.SLICE_MISSING),
    ],
)
def test_one_slice_that_does_not_fit_refuses_the_series(
    tmp_path: Path, change: Callable[[Dataset], None], reason: Reason, which: int
) -> None:
    for index in range(5):
        dataset = ct_slice(hounsfield(0), 2.0 * index)
        if index == which:
            change(dataset)
        write_object(dataset, tmp_path / f"{index}.dcm")

    assert refusal(sorted(tmp_path.iterdir()), "maximum") is reason


@pytest.mark.parametrize("content", [b"", b"no DICOM file" * 100])
def test_every_file_of_a_series_passes_the_guards(tmp_path: Path, content: bytes) -> None:
    paths = write_series(tmp_path, [0.0, 1.0, 2.0], [1, 2, 3])
    paths[2].write_bytes(content)

    assert refusal(paths) is Reason.NOT_DICOM  # even where only the middle one is shown


def test_a_series_larger_than_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_series(tmp_path, [0.0, 1.0, 2.0], [1, 2, 3])
    monkeypatch.setattr(series, "MAX_SERIES_PIXELS", 3 * 64)
    assert read_series(paths, ct_series()).tensor.shape == (1, 8, 8)

    monkeypatch.setattr(series, "MAX_SERIES_PIXELS", 3 * 64 - 1)
    assert refusal(paths) is Reason.SERIES_LIMIT
    monkeypatch.setattr(series, "MAX_SERIES_PIXELS", 3 * 64)
    monkeypatch.setattr(series, "MAX_SLICES", 2)
    assert refusal(paths) is Reason.SERIES_LIMIT


def test_a_file_of_a_million_frames_without_places_is_refused_at_once(tmp_path: Path) -> None:
    dataset = scan_object(np.zeros((1, 1), np.uint8), NumberOfFrames=1_000_000)
    dataset.PixelData = bytes(1_000_000)
    write_object(dataset, tmp_path / "a.dcm")

    assert refusal([tmp_path / "a.dcm"]) is Reason.SERIES_LIMIT


def test_a_refusal_carries_nothing_of_the_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path, [0.0, 5.0, 20.0], [1, 2, 3], PatientID="CANARY")

    with pytest.raises(RefusedScanError) as caught:
        read_series(paths, ct_series())

    assert caught.value.__cause__ is None and caught.value.__context__ is None
    trace, seen = caught.value.__traceback__, []
    while trace is not None:
        seen += [repr(value) for value in trace.tb_frame.f_locals.values()]
        trace = trace.tb_next
    assert "CANARY" not in "".join(seen)


@pytest.mark.parametrize(("take", "expected"), [("middle", 200), ("maximum", 300), ("mean", 200)])
def test_an_enhanced_file_is_a_series_whose_frames_are_ordered_by_position(
    tmp_path: Path, take: str, expected: float
) -> None:
    # By height 100, 200, 300 HU; in the file 300, 100, 200, each under its own intercept.
    frames = [np.full((8, 8), v, np.uint16) for v in (1324, 300, 700)]
    dataset = enhanced_ct(frames, [20.0, 0.0, 10.0], [-1024, -200, -500])
    write_object(dataset, tmp_path / "a.dcm")

    scan = read_series([tmp_path / "a.dcm"], ct_series(take))

    assert scan.tensor == pytest.approx(shown(expected), abs=1e-6)
    assert scan.facts.frames == 3


def test_an_enhanced_file_lacking_a_frame_is_refused(tmp_path: Path) -> None:
    frames = [hounsfield(v) for v in (1, 2, 3, 4)]
    dataset = enhanced_ct(frames, [0.0, 1.0, 2.0, 4.0], [-1024] * 4)
    write_object(dataset, tmp_path / "a.dcm")

    assert refusal([tmp_path / "a.dcm"]) is Reason.SLICE_MISSING


def test_real_series_are_read_or_refused_as_they_are(tmp_path: Path) -> None:
    # They come with pydicom. highdicom 0.28.2 gives the first a spacing of 2.5 mm, and finds the
    # others no regular volume, and of different orientations.
    paths = sorted((REAL / "98892001" / "CT5N").iterdir())
    assert len(paths) == 5

    middle = read_series(paths, ct_series(size=16)).tensor

    assert np.array_equal(read_series(paths[::-1], ct_series(size=16)).tensor, middle)
    assert 0.1 < middle.mean() < 0.9
    assert refusal(sorted((REAL / "77654033" / "CT2").iterdir())) is Reason.SLICE_MISSING
    assert refusal(sorted((REAL / "98892001" / "CT2N").iterdir())) is Reason.LOCALIZER
    shutil.copy(paths[1], tmp_path / "again.dcm")
    assert refusal([*paths, tmp_path / "again.dcm"]) is Reason.SAME_POSITION
