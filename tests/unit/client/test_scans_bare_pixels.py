from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.utils import pixel_array
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from medfed.client.scans.bare_pixels import bare_pixels, without_comments
from medfed.client.scans.guards import open_scan
from medfed.client.scans.refusals import RefusedScanError
from medfed.simulations.dicom_objects import write_object
from tests.support.scans import random_pixels, scan_object

SECRET = b"Jane Doe, Ward 7"


def jpeg(*, progressive: bool = False) -> bytes:
    """A JPEG with a comment, EXIF, and bytes behind its end."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x013B] = SECRET.decode()  # Artist
    picture = Image.fromarray(random_pixels())
    picture.save(buffer, "JPEG", progressive=progressive, comment=SECRET, exif=exif)
    return buffer.getvalue() + SECRET


def jpeg_2000(*, boxes: bool) -> bytes:
    """A JPEG 2000 codestream with a comment, bare or in a JP2 file with an XML box behind."""
    buffer = io.BytesIO()
    picture = Image.fromarray(random_pixels())
    picture.save(buffer, "JPEG2000", no_jp2=not boxes, comment=SECRET.decode())
    stream = buffer.getvalue()
    if not boxes:
        return stream + SECRET
    last = struct.pack(">L4s", 8 + len(SECRET), b"xml ") + SECRET
    at = stream.index(b"jp2c") - 4
    (length,) = struct.unpack_from(">L", stream, at)
    length = length or len(stream) - at  # 0: to the end of the file
    return stream[:at] + struct.pack(">L", length) + stream[at + 4 :] + last


def decoded(stream: bytes) -> list[object]:
    return np.asarray(Image.open(io.BytesIO(stream))).tolist()


def compressed(frame: bytes, syntax: str) -> Dataset:
    dataset = scan_object(random_pixels())
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def bared(dataset: Dataset, path: Path) -> bytes:
    write_object(dataset, path)
    return bare_pixels(*open_scan(path))


STREAMS = {
    "jpeg": jpeg(),
    "progressive jpeg": jpeg(progressive=True),
    "jpeg 2000": jpeg_2000(boxes=False),
    "jp2": jpeg_2000(boxes=True),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_comments_go_and_the_picture_stays(stream: bytes) -> None:
    assert SECRET in stream

    bare = without_comments(stream)

    assert SECRET not in bare and b"Jane" not in bare
    assert len(bare) == len(stream)
    assert decoded(bare) == decoded(stream)
    assert without_comments(bare) == bare


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_stream_cut_anywhere_ends_in_an_error_or_without_the_secret(stream: bytes) -> None:
    for end in range(0, len(stream), 7):
        try:
            bare = without_comments(stream[:end])
        except (ValueError, IndexError, struct.error):
            continue
        assert b"Jane" not in bare


@pytest.mark.parametrize(
    ("frame", "syntax"),
    [(STREAMS["jpeg"], JPEGBaseline8Bit), (STREAMS["jp2"], JPEG2000Lossless)],
)
def test_a_compressed_file_keeps_its_syntax_and_its_values(
    tmp_path: Path, frame: bytes, syntax: str
) -> None:
    dataset = compressed(frame, syntax)

    pixels = bared(dataset, tmp_path / "a.dcm")

    assert SECRET not in pixels
    before = pixel_array(dataset)
    dataset.PixelData = pixels
    assert np.array_equal(pixel_array(dataset), before)


def test_a_frame_in_pieces_becomes_one_piece(tmp_path: Path) -> None:
    dataset = compressed(STREAMS["jpeg"], JPEGBaseline8Bit)
    dataset.PixelData = encapsulate([STREAMS["jpeg"]], fragments_per_frame=3, has_bot=False)

    pixels = bared(dataset, tmp_path / "a.dcm")

    (frame,) = generate_frames(pixels, number_of_frames=1)
    assert decoded(frame) == decoded(STREAMS["jpeg"])


@pytest.mark.parametrize("signed", [False, True])
def test_unused_bits_are_cleared_and_the_values_stay(tmp_path: Path, signed: bool) -> None:
    stored = random_pixels().astype(np.uint16) * 16  # 12 bits; from 2048 on negative if signed
    secret = np.frombuffer(SECRET * 64, np.uint8).reshape(32, 32) & 0x0F
    dataset = scan_object(stored | (secret.astype(np.uint16) << 12), bits_stored=12)
    dataset.PixelRepresentation = int(signed)
    before = pixel_array(dataset)

    pixels = np.frombuffer(bared(dataset, tmp_path / "a.dcm"), "<i2" if signed else "<u2")

    assert np.array_equal(pixels.reshape(32, 32), before)
    sign = (stored >> 11) & signed
    assert np.array_equal(pixels.reshape(32, 32).view(np.uint16) >> 12, sign * 0xF)


def test_bytes_behind_the_last_pixel_go(tmp_path: Path) -> None:
    dataset = scan_object(random_pixels(shape=(3, 3)))
    dataset.PixelData = dataset.PixelData[:9] + SECRET + b"!"

    pixels = bared(dataset, tmp_path / "a.dcm")

    assert pixels == random_pixels(shape=(3, 3)).tobytes() + b"\0"


@pytest.mark.parametrize("high_bit", [11, 15])
def test_an_overlay_inside_the_pixels_goes_or_the_file_is_refused(
    tmp_path: Path, high_bit: int
) -> None:
    stored = random_pixels().astype(np.uint16)
    dataset = scan_object(stored | 0x1000, bits_stored=12)
    dataset.HighBit = high_bit
    dataset[0x60000010] = DataElement(0x60000010, "US", 32)
    dataset[0x60000102] = DataElement(0x60000102, "US", 12)  # its bit

    if high_bit == 11:
        pixels = np.frombuffer(bared(dataset, tmp_path / "a.dcm"), "<u2")
        assert np.array_equal(pixels.reshape(32, 32), stored)
    else:
        with pytest.raises(RefusedScanError):
            bared(dataset, tmp_path / "a.dcm")


def test_an_overlay_inside_compressed_pixels_is_refused(tmp_path: Path) -> None:
    dataset = scan_object(random_pixels().astype(np.uint16), bits_stored=12)
    dataset[0x60000010] = DataElement(0x60000010, "US", 32)
    dataset.compress(RLELossless, generate_instance_uid=False)

    with pytest.raises(RefusedScanError):
        bared(dataset, tmp_path / "a.dcm")


@pytest.mark.parametrize(
    "stream", [b"", b"\xff", b"\xff\xd8", b"GIF89a", b"\xff\x4f\xff", b"\0\0\0\x0cjP  \0"]
)
def test_what_is_no_stream_is_no_crash(stream: bytes) -> None:
    try:
        assert without_comments(stream) == stream
    except (ValueError, IndexError, struct.error):
        pass
