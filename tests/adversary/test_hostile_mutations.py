"""Thousands of damaged files: each is read or refused with a reason, and none ends the import."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import imagecodecs
import jpeg_ls
import numpy as np
import pytest
from numpy.random import Generator
from pydicom import uid as uids

from medfed.client.scans.decoding import DecodingFailure, DecodingLimits
from medfed.client.scans.guards import COMPRESSED, NATIVE
from medfed.client.scans.npz import index_pictures, load_images
from medfed.client.scans.refusals import Reason
from medfed.common.errors import ScanError
from tests.support.hostile_files import deep, png, small, twelve_bits, volume, wrapped, written
from tests.support.hostile_sites import imported
from tests.support.misbehaving import let_children_import_tests
from tests.support.scans import HASH, random_pixels, scan_object, study_of, write_list
from tests.support.sites import make_site

STUDY = study_of(split=HASH)


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    let_children_import_tests(monkeypatch)


def native(syntax: uids.UID) -> bytes:
    dataset = scan_object(random_pixels(3, (24, 24)))
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == uids.ExplicitVRBigEndian:
        dataset["PixelData"].VR = "OB"
    stream = io.BytesIO()
    dataset.save_as(
        stream,
        implicit_vr=syntax == uids.ImplicitVRLittleEndian,
        little_endian=syntax != uids.ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return stream.getvalue()


def run_length() -> bytes:
    dataset = scan_object(random_pixels(3, (24, 24)))
    dataset.compress(uids.RLELossless)
    return written(dataset)


def of_syntax(syntax: uids.UID) -> bytes:
    """A sound file in a transfer syntax."""
    grey = random_pixels()
    lossy = {"irreversible": True} if syntax == uids.JPEG2000 else {}
    streams: dict[str, Callable[[], bytes]] = {
        uids.JPEGBaseline8Bit: lambda: small("JPEG"),
        uids.JPEGExtended12Bit: twelve_bits,
        uids.JPEGLossless: lambda: twelve_bits(lossless=True),
        uids.JPEGLosslessSV1: lambda: twelve_bits(lossless=True),
        uids.JPEGLSLossless: lambda: bytes(jpeg_ls.encode_array(grey)),
        uids.JPEGLSNearLossless: lambda: bytes(jpeg_ls.encode_array(grey, lossy_error=2)),
        uids.JPEG2000Lossless: lambda: small("JPEG2000", no_jp2=True),
        uids.JPEG2000: lambda: small("JPEG2000", **lossy),
        uids.HTJ2KLossless: lambda: imagecodecs.htj2k_encode(grey),
        uids.HTJ2KLosslessRPCL: lambda: imagecodecs.htj2k_encode(grey),
        uids.HTJ2K: lambda: imagecodecs.htj2k_encode(deep()),
    }
    if syntax in NATIVE:
        return native(syntax)
    if syntax == uids.RLELossless:
        return run_length()
    stream = streams[syntax]()
    twelve = syntax in (
        uids.JPEGExtended12Bit,
        uids.JPEGLossless,
        uids.JPEGLosslessSV1,
        uids.HTJ2K,
    )
    return wrapped(bytes(stream), syntax, twelve=twelve)


def dicom_files() -> dict[str, bytes]:
    """A sound file of every transfer syntax that medfed reads."""
    syntaxes = sorted(NATIVE | COMPRESSED)
    return {f"-{number}.dcm": of_syntax(uids.UID(uid)) for number, uid in enumerate(syntaxes)}


def other_files() -> dict[str, bytes]:
    """Sound pictures and volumes."""
    rows = b"".join(b"\0" + bytes(row) for row in random_pixels())
    return {
        "grey.png": small("PNG"),
        "colour.png": small("PNG", "RGB"),
        "palette.png": small("PNG", "P"),
        "comment.png": png(32, 32, zlib.compress(rows)),
        "plain.jpg": small("JPEG"),
        "steps.jpg": small("JPEG", "RGB", progressive=True),
        "plain.nii": volume(),
        "packed.nii.gz": gzip.compress(volume(), mtime=0),
    }


def mutated(content: bytes, random: Generator) -> bytes:
    """Bytes changed, cut out, doubled, or the end cut off."""
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 6))):
        at = int(random.integers(0, len(changed)))
        length = int(random.integers(1, 9))
        kind = int(random.integers(0, 5))
        if kind < 2:
            changed[at : at + length] = random.bytes(len(changed[at : at + length]))
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = changed[at : at + length]
        elif random.integers(0, 4) == 0:
            del changed[at:]
        changed = changed or bytearray(b"x")
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sound", "count"), [(dicom_files, 5_000), (other_files, 2_000)], ids=["dicom", "others"]
)
def test_mutations_are_read_or_refused_with_a_reason(
    tmp_path: Path, sound: Callable[[], Mapping[str, bytes]], count: int
) -> None:
    random, scans, files = np.random.default_rng(4), tmp_path / "scans", sound()
    scans.mkdir()
    names = list(files)
    for name, content in files.items():
        (scans / name).write_bytes(content)
    for number in range(count):
        kind = list(files)[number % len(files)]
        names.append(f"{number:04}{kind}")
        (scans / names[-1]).write_bytes(mutated(files[kind], random))
    write_list(scans, [(name, "opacity") for name in names], "file", "label")
    site = make_site(tmp_path, scans=scans, patient_array=None)

    tally, reasons = imported(site, limits=DecodingLimits(children=2, time_s=10.0))

    assert set(files).isdisjoint(reasons)
    assert tally.imported + tally.same + tally.refused.total() == len(names)
    assert tally.imported > count // 10  # a changed pixel is a picture still
    known = {reason.value for reason in (*Reason, *DecodingFailure)}
    assert tally.refused.keys() <= known - {DecodingFailure.UNFORESEEN.value}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_mutated_npz_is_read_or_refused_as_a_whole(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    random, path = np.random.default_rng(5), tmp_path / "a.npz"
    save(path, images=random_pixels(0, (5, 8, 8)), labels=np.arange(5) % 2)
    content, read = path.read_bytes(), 0

    for _ in range(1_000):
        path.write_bytes(mutated(content, random))
        try:
            index, images = index_pictures(path, STUDY), load_images(path)
        except ScanError:
            continue
        read += 1
        assert images.shape[0] == len(index.labels) == len(index.keys)
    assert read > 20
