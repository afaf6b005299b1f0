from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, itemize_frame
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from medfed.client.scans import guards
from medfed.client.scans.codestream import CodestreamSize, codestream_size
from medfed.client.scans.frames import decoded_frame
from medfed.client.scans.guards import open_scan
from medfed.client.scans.pixels import read_dicom
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.simulations.dicom_objects import write_object
from tests.support.scans import random_pixels, scan_object, study_of, write_scan


def refusal(path: Path) -> Reason:
    """The reason for which reading the file is refused; no other error may come out."""
    with pytest.raises(RefusedScanError) as caught:
        read_dicom(path, study_of().scans)
    return caught.value.reason


def picture(form: str, size: tuple[int, int] = (32, 32), mode: str = "L") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, 200).save(stream, form)
    return stream.getvalue()


def siz(columns: int, rows: int, depths: str, components: int | None = None) -> bytes:
    """Start of a JPEG 2000 codestream with a size marker."""
    described = bytes.fromhex(depths)
    count = len(described) // 3 if components is None else components
    sizes = struct.pack(">8L", columns, rows, 0, 0, columns, rows, 0, 0)
    head = struct.pack(">HHH", 0xFF4F, 0xFF51, 38 + 3 * count)
    return head + bytes(2) + sizes + struct.pack(">H", count) + described


def write_compressed(path: Path, stream: bytes, syntax: UID, **elements: Any) -> Path:
    dataset = scan_object(random_pixels(), **elements)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    write_object(dataset, path)
    return path


@pytest.mark.parametrize("cut", range(0, 1800, 97))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, cut: int) -> None:
    whole = write_scan(tmp_path / "a.dcm", random_pixels()).read_bytes()
    assert 1800 < len(whole) < 1900  # the cuts reach every part of the file
    (tmp_path / "cut.dcm").write_bytes(whole[:cut])

    assert refusal(tmp_path / "cut.dcm") in {
        Reason.NOT_DICOM,
        Reason.SYNTAX,
        Reason.NO_PIXELS,
        Reason.DECODE,
    }


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    content = bytearray(write_scan(tmp_path / "a.dcm", random_pixels()).read_bytes())
    random = np.random.default_rng(seed)
    for at in random.integers(132, len(content) - 1024, 4):  # before the pixels
        content[at] = random.integers(256)
    (tmp_path / "a.dcm").write_bytes(content)

    try:
        tensor = read_dicom(tmp_path / "a.dcm", study_of().scans).tensor
    except RefusedScanError:
        return
    assert np.isfinite(tensor).all()


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000])
def test_a_codestream_of_the_header_s_size_is_decoded(tmp_path: Path, syntax: UID) -> None:
    form = "JPEG" if syntax == JPEGBaseline8Bit else "JPEG2000"
    path = write_compressed(tmp_path / "a.dcm", picture(form), syntax)

    assert read_dicom(path, study_of().scans).tensor == pytest.approx(200 / 255, abs=0.01)


@pytest.mark.parametrize(("form", "syntax"), [("JPEG", JPEGBaseline8Bit), ("JPEG2000", JPEG2000)])
@pytest.mark.parametrize(("size", "mode"), [((64, 32), "L"), ((32, 33), "L"), ((32, 32), "RGB")])
def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    syntax: UID,
    size: tuple[int, int],
    mode: str,
) -> None:
    monkeypatch.setattr("medfed.client.scans.frames.pixel_array", None)  # calling it would fail
    path = write_compressed(tmp_path / "a.dcm", picture(form, size, mode), syntax)

    assert refusal(path) is Reason.CODESTREAM


@pytest.mark.parametrize("form", ["JPEG", "JPEG2000"])
def test_every_frame_is_compared_with_the_header_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    frames = [picture(form, size) for size in ((32, 32), (32, 32), (64, 64))]
    dataset = scan_object(random_pixels(), NumberOfFrames=3)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if form == "JPEG" else JPEG2000
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    write_object(dataset, tmp_path / "a.dcm")
    opened, header = open_scan(tmp_path / "a.dcm")

    assert (decoded_frame(opened, header, 1) == 200).all()
    monkeypatch.setattr("medfed.client.scans.frames.pixel_array", None)  # calling it would fail
    with pytest.raises(RefusedScanError) as caught:
        decoded_frame(opened, header, 2)
    assert caught.value.reason is Reason.CODESTREAM


@pytest.mark.parametrize("index", [-1, 1])
def test_a_frame_that_a_file_does_not_have_is_not_asked_for(tmp_path: Path, index: int) -> None:
    opened, header = open_scan(write_scan(tmp_path / "a.dcm", random_pixels()))

    with pytest.raises(IndexError, match=f"frame {index} of 1"):
        decoded_frame(opened, header, index)


def test_a_codestream_of_more_bits_than_the_header_has_room_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medfed.client.scans.frames.pixel_array", None)  # calling it would fail
    stream = io.BytesIO()
    Image.fromarray(np.full((32, 32), 4000, dtype=np.uint16)).save(stream, "JPEG2000")
    path = write_compressed(tmp_path / "a.dcm", stream.getvalue(), JPEG2000)

    assert refusal(path) is Reason.CODESTREAM  # in 8 bits 4000 would read as 160


def test_a_run_length_frame_that_would_inflate_beyond_the_header_is_refused(
    tmp_path: Path,
) -> None:
    bomb = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * 5000  # 128 zeros each
    path = write_compressed(tmp_path / "a.dcm", bomb, RLELossless)

    assert refusal(path) is Reason.CODESTREAM


@pytest.mark.parametrize(
    ("stream", "size"),
    [
        (picture("JPEG", (40, 30)), CodestreamSize(30, 40, 1, 8)),
        (picture("JPEG", (40, 30), "RGB"), CodestreamSize(30, 40, 3, 8)),
        (picture("JPEG2000", (40, 30), "RGB"), CodestreamSize(30, 40, 3, 8)),
        # JPEG-LS, T.87: SOI, SOF55 with 8 bits, 3 rows, 5 columns, 1 component.
        (bytes.fromhex("ffd8 fff7 000b 08 0003 0005 01 011100"), CodestreamSize(3, 5, 1, 8)),
        (bytes.fromhex("ffd8 ffda 0008 01 0100 003f00"), None),  # a scan before any frame header
        (b"\xff\xd8\xff\xc0\x00", None),
        # JPEG 2000, T.800 A.5.1: 7 rows, 9 columns; 2 components, of 12 bits and of 8, signed.
        (siz(9, 7, "0b 01 01 87 01 01"), CodestreamSize(7, 9, 2, 12)),
        (siz(9, 7, "0b 01 01", components=2), None),  # it ends inside its components
        (siz(9, 7, "", components=0), None),
        (b"", None),
    ],
)
def test_the_size_is_read_from_the_codestream(stream: bytes, size: CodestreamSize | None) -> None:
    assert codestream_size(stream) == size


@pytest.mark.parametrize("content", [b"", b"not a scan", b"\0" * 200, b"\0" * 128 + b"MCID"])
def test_a_file_that_is_no_dicom_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.dcm").write_bytes(content)

    assert refusal(tmp_path / "a.dcm") is Reason.NOT_DICOM


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "missing.dcm") is Reason.MISSING
    assert refusal(tmp_path) is Reason.MISSING


def test_a_file_above_the_limit_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_scan(tmp_path / "a.dcm", random_pixels())
    monkeypatch.setattr(guards, "MAX_FILE_BYTES", path.stat().st_size - 1)
    monkeypatch.setattr(Path, "open", None)  # calling it would fail

    assert refusal(path) is Reason.TOO_LARGE


def deflate(path: Path) -> Path:
    """Rewrite a file with the deflated transfer syntax, whatever its size."""
    dataset, _ = open_scan(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    write_object(dataset, path)
    return path


def test_a_deflated_file_gives_the_same_tensor(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "a.dcm", random_pixels(), PatientName="Nobody")
    plain = read_dicom(path, study_of().scans)

    deflated = read_dicom(deflate(path), study_of().scans)

    assert np.array_equal(plain.tensor, deflated.tensor)
    assert plain.patient_id == deflated.patient_id == "P1"


def test_a_deflated_file_is_inflated_up_to_the_limit_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_scan(tmp_path / "a.dcm", np.zeros((1000, 1000), dtype=np.uint8))
    assert deflate(path).stat().st_size < 10_000
    monkeypatch.setattr(guards, "MAX_FILE_BYTES", 900_000)  # below the million it inflates to

    assert refusal(path) is Reason.TOO_LARGE


def test_a_deflated_file_with_broken_data_is_refused(tmp_path: Path) -> None:
    path = deflate(write_scan(tmp_path / "a.dcm", random_pixels()))
    content = path.read_bytes()
    body = zlib.compress(b"no data set", wbits=-15)
    path.write_bytes(content[:-600] + body)

    assert refusal(path) in {Reason.NOT_DICOM, Reason.NO_PIXELS, Reason.DECODE}


def test_an_unknown_transfer_syntax_is_refused(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "a.dcm", random_pixels())
    known, unknown = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"
    path.write_bytes(path.read_bytes().replace(known, unknown))

    assert refusal(path) is Reason.SYNTAX


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Rows": 0}, Reason.HEADER),
        ({"Rows": 33}, Reason.DECODE),  # more than the pixel data holds
        ({"Columns": None}, Reason.HEADER),
        ({"BitsStored": 9}, Reason.HEADER),
        ({"BitsAllocated": 12}, Reason.HEADER),
        ({"SamplesPerPixel": 3}, Reason.HEADER),
        ({"NumberOfFrames": 0}, Reason.HEADER),
        ({"NumberOfFrames": 2}, Reason.DECODE),
        ({"Rows": 65535, "Columns": 65535}, Reason.PIXEL_LIMIT),
        ({"NumberOfFrames": 2_000_000_000}, Reason.PIXEL_LIMIT),
        ({"PhotometricInterpretation": "CMYK"}, Reason.COLOUR),
        ({"PhotometricInterpretation": None}, Reason.HEADER),
        ({"PixelData": None}, Reason.NO_PIXELS),
    ],
)
def test_a_header_that_lies_is_refused(
    tmp_path: Path, elements: dict[str, Any], reason: Reason
) -> None:
    dataset = scan_object(random_pixels())
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    write_object(dataset, tmp_path / "a.dcm")

    with pytest.raises(RefusedScanError) as caught:
        open_scan(tmp_path / "a.dcm")  # so before anything is decoded

    assert caught.value.reason is reason


def test_sequences_nested_too_deep_are_refused(tmp_path: Path) -> None:
    # Items of undefined length, one inside the other, as no writer would make them.
    path = write_scan(tmp_path / "a.dcm", random_pixels())
    opening = bytes.fromhex("4000 75a7 5351 0000 ffffffff feff 00e0 ffffffff")
    path.write_bytes(path.read_bytes() + opening * 3000)

    assert refusal(path) in {Reason.NOT_DICOM, Reason.NO_PIXELS}


def test_a_refusal_says_nothing_of_the_file(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "secret.dcm", random_pixels(), patient_id="Doe^John")
    dataset: Dataset = open_scan(path)[0]
    dataset.BitsStored = 9
    write_object(dataset, path)

    with pytest.raises(RefusedScanError) as caught:
        read_dicom(path, study_of().scans)

    assert "Doe" not in str(caught.value) and "secret" not in str(caught.value)
    assert caught.value.exit_code == 16  # the table of exit codes


def with_box(jp2: bytes, content: bytes) -> bytes:
    """A JP2 file with a ``uuid`` box in front of its header and codestream."""
    box = struct.pack(">L4s", 24 + len(content), b"uuid") + bytes(16) + content
    at = 12 + int.from_bytes(jp2[12:16], "big")  # behind the signature and ftyp boxes
    return jp2[:at] + box + jp2[at:]


def test_a_size_marker_planted_in_a_jp2_box_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medfed.client.scans.frames.pixel_array", None)  # calling it would fail
    whole = picture("JPEG2000", (32, 32))
    small = whole[whole.index(b"\xff\x4f\xff\x51") :][:60]  # says 32 × 32
    stream = with_box(picture("JPEG2000", (64, 64)), small)

    assert codestream_size(stream) == CodestreamSize(64, 64, 1, 8)
    path = write_compressed(tmp_path / "a.dcm", stream, JPEG2000)
    assert refusal(path) is Reason.CODESTREAM


@pytest.mark.parametrize(
    "box",
    [
        "00000000 75756964",  # to the end of the file
        "00000007 75756964",  # shorter than its own head
        "00000001 75756964 0000000000000008",
        "00000001 75756964 ffffffffffffffff",
        "7fffffff 75756964",  # beyond the end
        "00000008 75756964" * 65,  # more boxes than are looked at
        "00000001 6a703263",  # cut
    ],
)
def test_a_jp2_file_whose_boxes_lead_to_no_codestream_has_no_size(box: str) -> None:
    whole = picture("JPEG2000")
    at = whole.index(b"jp2h") - 4
    planted = whole[:at] + bytes.fromhex(box)
    if box.count("75756964") == 1:
        planted += whole[at:]

    assert codestream_size(planted) is None


def test_a_jp2_box_with_a_long_length_is_walked_over() -> None:
    whole = picture("JPEG2000", (40, 30))
    at = whole.index(b"jp2h") - 4
    box = struct.pack(">L4sQ", 1, b"uuid", 20) + b"abcd"

    assert codestream_size(whole[:at] + box + whole[at:]) == CodestreamSize(30, 40, 1, 8)


def test_an_extended_offset_table_cannot_send_the_decoder_to_an_unchecked_frame(
    tmp_path: Path,
) -> None:
    small, large = picture("JPEG2000", (32, 32)), picture("JPEG2000", (64, 64))
    dataset = scan_object(random_pixels(), NumberOfFrames=2)
    dataset.file_meta.TransferSyntaxUID = JPEG2000
    dataset.PixelData = encapsulate([small, large], has_bot=False)
    dataset["PixelData"].VR = "OB"
    second = len(b"".join(itemize_frame(small)))  # where the item of the large frame begins
    dataset.ExtendedOffsetTable = struct.pack("<QQ", second, second)
    dataset.ExtendedOffsetTableLengths = struct.pack("<QQ", len(large), len(large))
    write_object(dataset, tmp_path / "a.dcm")

    opened, _ = open_scan(tmp_path / "a.dcm")

    assert "ExtendedOffsetTable" not in opened
    assert "ExtendedOffsetTableLengths" not in opened
    # the first frame is what was checked, and what is decoded
    tensor = read_dicom(tmp_path / "a.dcm", study_of().scans).tensor
    assert tensor == pytest.approx(200 / 255, abs=0.01)


EMPTY = b"".join(struct.pack("<HH2sH", 0x0009, at & 0xFFFF, b"LO", 0) for at in range(200_000))
"""1.6 MB of elements without a value: 200 000 × (8 + 16) is above 4 MiB."""
IN_PIXELS = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"SQ", 0, 0xFFFFFFFF) + (
    struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + EMPTY
)
"""The same in a sequence that calls itself pixel data."""
MANY_PIXELS = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, 0) * 200_000
LONG = struct.pack("<HH2sHL", 0x0009, 0x0010, b"OB", 0, 5 << 20) + bytes(5 << 20)


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("elements", [EMPTY, IN_PIXELS, MANY_PIXELS, LONG])
def test_elements_that_are_not_pixels_are_parsed_up_to_a_limit_only(
    tmp_path: Path, syntax: UID, elements: bytes
) -> None:
    dataset, _ = open_scan(write_scan(tmp_path / "a.dcm", random_pixels()))
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    write_object(dataset, tmp_path / "a.dcm")
    content = (tmp_path / "a.dcm").read_bytes()
    start = 144 + int(dataset.file_meta.FileMetaInformationGroupLength)
    body = content[start:] + elements
    if syntax == DeflatedExplicitVRLittleEndian:
        path = deflate(tmp_path / "a.dcm")
        deflated = open_scan(path)[0]
        start = 144 + int(deflated.file_meta.FileMetaInformationGroupLength)
        content = path.read_bytes()
        body = zlib.compress(body, wbits=-15)
    (tmp_path / "b.dcm").write_bytes(content[:start] + body)

    assert refusal(tmp_path / "b.dcm") is Reason.OVERHEAD


def test_a_file_meta_group_of_many_elements_is_refused(tmp_path: Path) -> None:
    elements = struct.pack("<HH2sH", 0x0002, 0x0102, b"LO", 0) * 200_000
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + elements)

    assert refusal(tmp_path / "a.dcm") is Reason.OVERHEAD


def test_pixel_data_does_not_count_as_overhead(tmp_path: Path) -> None:
    large = random_pixels(0, (2200, 2200))  # 4.8 MB: above the limit for the rest
    path = write_scan(tmp_path / "a.dcm", large)

    assert open_scan(path)[1].rows == 2200
    assert open_scan(deflate(path))[1].rows == 2200
