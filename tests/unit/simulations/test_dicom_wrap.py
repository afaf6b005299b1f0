from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from medfed.client.scans.read import read_scans
from medfed.common.errors import ConfigError
from medfed.common.study import Study
from medfed.simulations.dicom_wrap import wrap_npz
from tests.support.scans import HASH, random_pixels, study_of


def flat(folder: Path, images: NDArray[np.uint8], groups: Any = None) -> Path:
    arrays: dict[str, Any] = {"images": images, "labels": np.arange(len(images)) % 2}
    if groups is not None:
        arrays["field"] = groups
    np.savez(folder / "scans.npz", **arrays)
    return folder / "scans.npz"


def parted(folder: Path) -> Path:
    arrays: dict[str, Any] = {}
    for seed, name in enumerate(("train", "val", "test")):
        arrays[f"{name}_images"] = random_pixels(seed, (seed + 2, 32, 32))
        arrays[f"{name}_labels"] = np.arange(seed + 2)[:, None] % 2
    np.savez(folder / "scans.npz", **arrays)
    return folder / "scans.npz"


def assert_same(npz: Path, folder: Path, study: Study) -> None:
    wrap_npz(npz, folder, study)
    direct, wrapped = read_scans(npz, study), read_scans(folder, study)
    for name in ("images", "labels", "patient", "part"):
        one, other = getattr(direct, name), getattr(wrapped, name)
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes(), name


@pytest.mark.parametrize("size", [16, 32, 50])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 3), (27, 33), (27, 33, 3)])
@pytest.mark.parametrize("intensity", ["window", "stored", "percentile"])
def test_a_wrapped_data_set_is_the_same_to_the_bit(
    tmp_path: Path, size: int, channels: int, shape: tuple[int, ...], intensity: str
) -> None:
    scans = f'group_key = "field"\nmean = 0.45\nstd = 0.21\nintensity = "{intensity}"'
    study = study_of(size=size, channels=channels, scans=scans, split=HASH)
    npz = flat(tmp_path, random_pixels(1, (5, *shape)), np.asarray([4, 1, 4, 2, 1]))

    assert_same(npz, tmp_path / "dicom", study)


def test_parts_survive_and_images_without_patients_stay_without(tmp_path: Path) -> None:
    study = study_of(split='rule = "given"')
    assert_same(parted(tmp_path), tmp_path / "dicom", study)

    assert read_scans(tmp_path / "dicom", study).unit == "image"


def test_every_value_of_eight_bits_survives(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)

    assert_same(flat(tmp_path, ramp), tmp_path / "dicom", study_of(size=16, split=HASH))


def test_names_are_padded_so_that_they_sort_in_order(tmp_path: Path) -> None:
    npz = flat(tmp_path, random_pixels(0, (11, 8, 8)))

    wrap_npz(npz, tmp_path / "dicom", study_of(split=HASH))

    names = [path.name for path in sorted((tmp_path / "dicom").glob("*.dcm"))]
    assert names == [f"{number:02d}.dcm" for number in range(11)]


def test_a_wrapped_picture_is_a_valid_object_without_a_window(tmp_path: Path) -> None:
    npz = flat(tmp_path, random_pixels(0, (2, 8, 8, 3)), np.asarray(["left", "right"]))
    wrap_npz(npz, tmp_path / "dicom", study_of(scans='group_key = "field"', split=HASH))

    first, second = (pydicom.dcmread(tmp_path / "dicom" / f"{n}.dcm") for n in (0, 1))

    assert (first.PatientID, second.PatientID) == ("left", "right")
    assert (first.PhotometricInterpretation, first.BitsStored) == ("RGB", 8)
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SOPInstanceUID.is_valid and len(first.SOPInstanceUID) <= 64
    assert "WindowCenter" not in first and "RescaleSlope" not in first


def test_wrapping_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    npz = parted(tmp_path)
    for folder in ("one", "two"):
        wrap_npz(npz, tmp_path / folder, study_of())

    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_an_interrupted_run_leaves_no_worklist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npz = parted(tmp_path)
    wrap_npz(npz, tmp_path / "dicom", study_of())

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medfed.simulations.dicom_wrap.write_object", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wrap_npz(npz, tmp_path / "dicom", study_of())

    assert not (tmp_path / "dicom" / "worklist.csv").exists()


@pytest.mark.parametrize("group", ["a\\b", "x" * 65])
def test_a_group_that_is_no_patient_id_is_refused(tmp_path: Path, group: str) -> None:
    npz = flat(tmp_path, random_pixels(0, (1, 8, 8)), np.asarray([group]))

    with pytest.raises(ConfigError, match="cannot be written as DICOM"):
        wrap_npz(npz, tmp_path / "dicom", study_of(scans='group_key = "field"', split=HASH))


def test_the_command_refuses_with_a_message_and_the_exit_code(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text("[study]\n")

    command = [sys.executable, "-m", "medfed.simulations.dicom_wrap", "x.npz", "out"]
    done = subprocess.run([*command, "--study", str(study)], capture_output=True, text=True)

    assert done.returncode == 10  # a study file that is wrong
    assert "Next step" in done.stderr and "Traceback" not in done.stderr
