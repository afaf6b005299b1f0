from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfed.client.scans import npz
from medfed.client.scans.npz import index_pictures
from medfed.client.scans.read import read_scans
from medfed.client.scans.scanset import TEST, TRAIN, VALIDATION
from medfed.common.errors import ScanError
from tests.support.scans import HASH, random_pixels, study_of


def three_parts(**changes: Any) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for seed, (name, scans) in enumerate({"train": 5, "val": 2, "test": 3}.items()):
        arrays[f"{name}_images"] = random_pixels(seed, (scans, 32, 32))
        arrays[f"{name}_labels"] = np.arange(scans).reshape(-1, 1) % 2
    return {name: array for name, array in (arrays | changes).items() if array is not None}


def one_part(**changes: Any) -> dict[str, Any]:
    arrays = {"images": random_pixels(0, (6, 32, 32, 3)), "labels": np.arange(6) % 2}
    arrays["field"] = np.asarray([7, 7, 3, 7, 3, 5])
    return arrays | changes


def write(folder: Path, arrays: dict[str, Any]) -> Path:
    np.savez(folder / "scans.npz", **arrays)
    return folder / "scans.npz"


def test_three_parts_come_in_order_with_each_image_its_own_unit(tmp_path: Path) -> None:
    arrays = three_parts()

    scans = read_scans(write(tmp_path, arrays), study_of())

    pixels = np.concatenate([arrays[f"{name}_images"] for name in ("train", "val", "test")])
    assert np.array_equal(scans.images[:, 0], pixels.astype(np.float32) / np.float32(255))
    assert scans.labels.tolist() == [0, 1, 0, 1, 0, 0, 1, 0, 1, 0]
    assert scans.part.tolist() == [TRAIN] * 5 + [VALIDATION] * 2 + [TEST] * 3
    assert scans.patient.tolist() == list(range(10))
    assert (scans.unit, dict(scans.refused)) == ("image", {})


def test_a_group_array_makes_the_unit_and_keeps_it_in_one_part(tmp_path: Path) -> None:
    study = study_of(channels=3, scans='group_key = "field"', split=HASH)

    scans = read_scans(write(tmp_path, one_part()), study)

    assert scans.patient.tolist() == [0, 0, 1, 0, 1, 2]  # fields 7, 3, 5 by first appearance
    names = ("train", "validation", "test")
    expected = [study.split.part_of(key) for key in "773735"]
    assert [names[part] for part in scans.part] == expected
    assert scans.unit == "field"


def test_groups_of_three_parts_stand_beside_each(tmp_path: Path) -> None:
    groups = {"train_case": np.asarray(list("aabbc")), "val_case": np.asarray(["d", "d"])}
    groups["test_case"] = np.asarray(["e", "f", "e"])

    scans = read_scans(write(tmp_path, three_parts(**groups)), study_of(scans='group_key = "case"'))

    assert scans.patient.tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 5, 4]


def test_a_hash_split_overrides_the_given_parts(tmp_path: Path) -> None:
    study = study_of(split=HASH)

    scans = read_scans(write(tmp_path, three_parts()), study)

    names = ("train", "validation", "test")  # without groups, the running number is the key
    assert [names[part] for part in scans.part] == [study.split.part_of(str(n)) for n in range(10)]


def test_colour_and_size_become_what_the_study_says(tmp_path: Path) -> None:
    scans = read_scans(write(tmp_path, one_part()), study_of(size=16, channels=1, split=HASH))

    assert scans.images.shape == (6, 1, 16, 16)


def test_a_group_in_two_parts_is_refused(tmp_path: Path) -> None:
    groups = {f"{name}_case": np.zeros(n, int) for name, n in (("train", 5), ("val", 2))}
    path = write(tmp_path, three_parts(**groups, test_case=np.ones(3, int)))

    with pytest.raises(ScanError, match=r"1 of 2 privacy units \(case\)"):
        read_scans(path, study_of(scans='group_key = "case"'))


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        (three_parts(val_labels=None), "arrays missing: val_labels; found: train_images"),
        (three_parts(test_images=None), "arrays missing: test_images"),
        ({"pictures": np.zeros(3)}, "arrays missing: images, labels; found: pictures"),
        (three_parts(val_labels=np.zeros(3, int)), r"val_labels is int64 of shape \(3,\)"),
        (three_parts(val_labels=np.zeros((2, 14), int)), r"val_labels is int64 of shape \(2, 14"),
        (three_parts(val_labels=np.zeros(2)), "val_labels is float64"),
        (
            three_parts(val_labels=np.asarray([0, 2])),
            "val_labels has 1 values .* allowed are 0 to 1",
        ),
        (three_parts(val_labels=np.asarray([0, -1])), "val_labels has 1 values"),
        (three_parts(val_images=np.zeros((2, 32, 32))), "val_images is float64"),
        (three_parts(val_images=np.zeros((2, 32), np.uint8)), r"val_images .* shape \(2, 32\)"),
        (three_parts(val_images=np.zeros((2, 32, 32, 4), np.uint8)), "val_images is uint8"),
        (three_parts(val_images=np.zeros((2, 0, 32), np.uint8)), "val_images is uint8"),
        (three_parts(val_images=np.zeros((2, 9, 9), np.uint8)), "pictures of shapes"),
        (one_part(), "says no split"),
        ({"images": np.zeros((0, 9, 9), np.uint8), "labels": np.zeros(0, int)}, "no picture"),
        (three_parts(val_labels=np.asarray([0, {}], dtype=object)), "cannot be read"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(
    tmp_path: Path, arrays: dict[str, Any], found: str
) -> None:
    with pytest.raises(ScanError, match=found) as caught:
        read_scans(write(tmp_path, arrays), study_of())

    assert "Next step" in str(caught.value)


@pytest.mark.parametrize(
    "field",
    [np.zeros(5, int), np.zeros((6, 2), int), np.zeros(6), np.asarray(["a"] * 5 + [" "])],
)
def test_groups_that_name_no_unit_are_refused(tmp_path: Path, field: Any) -> None:
    path = write(tmp_path, one_part(field=field))

    with pytest.raises(ScanError, match="field is"):
        read_scans(path, study_of(scans='group_key = "field"', split=HASH))


def test_a_missing_group_array_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="arrays missing: case"):
        read_scans(write(tmp_path, one_part()), study_of(scans='group_key = "case"', split=HASH))


def test_a_spacing_cannot_be_had_from_an_npz(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="no pixel spacing"):
        read_scans(write(tmp_path, three_parts()), study_of(scans="spacing_mm = 1.0"))


def test_arrays_above_the_limit_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, three_parts())
    monkeypatch.setattr(npz, "MAX_ARRAYS_BYTES", 10_000)  # ten pictures have 10,240 bytes
    monkeypatch.setattr(npz, "read_array", None)  # calling it would fail

    with pytest.raises(ScanError, match="above 10000"):
        read_scans(path, study_of())


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "scans.npz").write_bytes(content)

    with pytest.raises(ScanError, match="cannot be read") as caught:
        read_scans(tmp_path / "scans.npz", study_of())

    assert caught.value.exit_code == 16  # the table of exit codes


def damaged(path: Path, how: str) -> Path:
    """An archive that says something untrue about its one member."""
    broken_header = b"{'descr':'|u1',\n"
    member = {
        "no array": ("images", b"text"),
        "header": (
            "images.npy",
            b"\x93NUMPY\x01\x00" + struct.pack("<H", len(broken_header)) + broken_header,
        ),
    }.get(how)
    if member is None:
        np.savez_compressed(path, images=random_pixels(0, (9, 32, 32)))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(*member)
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\x01\x02")
    if how == "encrypted":
        content[6] |= 1
        content[central + 8] |= 1
    elif how == "method":
        content[8] = content[central + 10] = 99
    elif how == "stream":
        content[200:260] = b"\xff" * 60
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("how", ["stream", "encrypted", "method", "header", "no array"])
def test_a_damaged_archive_is_refused_and_nothing_else_comes_out(tmp_path: Path, how: str) -> None:
    with pytest.raises(ScanError, match=r"cannot be read \(\w+\)|no array") as caught:
        read_scans(damaged(tmp_path / "a.npz", how), study_of())

    assert "Next step" in str(caught.value)


# ---- what else an archive may hold ---------------------------------------------------------------
def header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    stream = io.BytesIO()
    said = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, said)
    return stream.getvalue()


def write_members(path: Path, **members: tuple[bytes, int]) -> Path:
    """An archive of arrays, each a beginning and so many zeros more."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, (start, zeros) in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(start)
                for left in range(zeros, 0, -(1 << 20)):
                    member.write(bytes(min(left, 1 << 20)))
    return path


BIG = 96 << 20
"""Bytes that must not be inflated; the arrays of ``LITTLE`` are some thousand."""
LITTLE = {"images": (header((6, 8, 8)), 6 * 64), "labels": (header((6,)), 6)}


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"labels": (header((BIG,)), BIG)}, "labels is uint8 of shape"),
        ({"case": (header((BIG,)), BIG)}, "case is uint8 of shape"),
        ({"case": (header((6,), f"<U{4 << 20}"), BIG)}, "case is <U"),
        ({"images": (header((BIG // 64, 8, 8)), BIG)}, "more than 1000000 pictures"),
        ({"images": (header((6, 8, 8)), BIG)}, r"cannot be read \(ValueError\)"),
        ({"images": (header((6, 8, 8)), 6 * 64 - 1)}, r"cannot be read \(ValueError\)"),
        ({"images": (header((2**62, 2**62, 1)), 64)}, r"cannot be read \(ValueError\)"),
        ({"labels": (header((6,), "|O"), 48)}, r"cannot be read \(ValueError\)"),
        (
            {"labels": None, "other": (header((BIG,)), BIG)},
            "missing: labels; found: images, case, other",
        ),
        ({"labels": None, "\x1b[31m\nBIG": LITTLE["labels"]}, "images, case, \ufffd.31m BIG"),
    ],
)
def test_the_index_inflates_no_more_than_labels_and_groups_of_its_pictures(
    tmp_path: Path, changed: dict[str, Any], found: str
) -> None:
    members = LITTLE | {"case": (header((6,)), 6)} | changed
    path = write_members(tmp_path / "a.npz", **{k: v for k, v in members.items() if v})

    tracemalloc.start()
    with pytest.raises(ScanError, match=found) as caught:
        index_pictures(path, study_of(scans='group_key = "case"', split=HASH))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 8 << 20  # of 96 MiB; one piece of the file is up to 1 MiB
    assert len(str(caught.value)) < 1000


def test_an_archive_of_very_many_members_is_refused_before_they_are_listed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for number in range(20_000):  # 60 bytes each in the list at the archive's end
            archive.writestr(f"{number:010}.npy", b"")

    with pytest.raises(ScanError, match=r"cannot be read \(ValueError\)"):
        index_pictures(tmp_path / "a.npz", study_of())


@pytest.mark.parametrize("packed", [False, True])
def test_arrays_in_either_order_of_axes_give_the_same(tmp_path: Path, packed: bool) -> None:
    save = np.savez_compressed if packed else np.savez
    images = random_pixels(0, (3, 40, 32, 1))
    save(tmp_path / "c.npz", images=images)
    save(tmp_path / "f.npz", images=np.asfortranarray(images))

    for name in ("c.npz", "f.npz"):
        assert np.array_equal(npz.load_images(tmp_path / name), images[..., 0])
