from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import imagecodecs
import jpeg_ls
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder, pixel_array
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import (
    UID,
    HTJ2KLossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from medfed.client.scans.decoders import DECODERS, plugin_for
from medfed.client.scans.frames import decoded_frame
from medfed.client.scans.guards import COMPRESSED, open_scan
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.simulations.dicom_objects import write_object
from tests.support.dicom_files import SHIPPED, outcome, outcomes, outcomes_without
from tests.support.scans import random_pixels, scan_object

SHAPE = (33, 17)


def values_of(bits: int, *, signed: bool = False, shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    """Noise over the whole range that so many bits hold."""
    unsigned = np.random.default_rng(bits).integers(0, 1 << bits, shape)
    values = unsigned - (1 << bits - 1) * signed
    return values.astype(("i" if signed else "u") + ("1" if bits <= 8 else "2"))


def first_frame(
    path: Path, stream: bytes, pixels: NDArray[Any], syntax: UID, **elements: Any
) -> NDArray[np.integer]:
    """Wrap a codestream of ``pixels`` in a DICOM file, and read it."""
    dataset = scan_object(pixels.view(f"u{pixels.dtype.itemsize}"), **elements)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    write_object(dataset, path)
    return decoded_frame(*open_scan(path), 0)


def numbered(stream: bytes, marker: bytes = b"") -> bytes:
    """An RGB stream with another marker for Adobe's, and components named 1, 2, 3 for R, G, B.

    A viewer would take these for YCbCr; in DICOM the header says what they are.
    """
    assert stream[2:4] == b"\xff\xee"
    body = bytes(stream[18:])
    for letter, number in zip(b"RGB", (1, 2, 3), strict=True):
        for follows in (0x11, 0x00):  # in the frame header, in the scan header
            body = body.replace(bytes([letter, follows]), bytes([number, follows]), 1)
    return bytes(stream[:2]) + marker + body


# ---- lossless ------------------------------------------------------------------------------------
@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_jpeg_gives_the_very_values(tmp_path: Path, bits: int, signed: bool) -> None:
    values = values_of(bits, signed=signed)
    unsigned = values.view(f"u{values.dtype.itemsize}") & ((1 << bits) - 1)
    stream = imagecodecs.jpeg8_encode(
        unsigned, lossless=True, bitspersample=bits, predictor=1 + bits % 7
    )

    read = first_frame(
        tmp_path / "a.dcm",
        stream,
        values,
        JPEGLossless,
        bits_stored=bits,
        PixelRepresentation=int(signed),
    )

    assert read.dtype == values.dtype
    assert np.array_equal(read, values)


def test_bits_above_those_stored_are_cut_off_lossless_jpeg(tmp_path: Path) -> None:
    values = values_of(12)
    stream = imagecodecs.jpeg8_encode(values | 0x5000, lossless=True, bitspersample=16)

    read = first_frame(tmp_path / "a.dcm", stream, values, JPEGLosslessSV1, bits_stored=12)

    assert np.array_equal(read, values)  # PS3.5 8.1.1: they may hold an overlay


@pytest.mark.parametrize("planes", [0, 1])
@pytest.mark.parametrize("named", [True, False])
def test_lossless_jpeg_keeps_colours_as_they_are(tmp_path: Path, planes: int, named: bool) -> None:
    colours = values_of(8, shape=(*SHAPE, 3))
    stream = imagecodecs.jpeg8_encode(colours, lossless=True, colorspace="RGB", outcolorspace="RGB")
    if not named:
        stream = numbered(stream)

    read = first_frame(
        tmp_path / "a.dcm",
        stream,
        colours,
        JPEGLosslessSV1,
        colour_model="RGB",
        PlanarConfiguration=planes,  # PS3.5 8.2.1: of no meaning for a codestream
    )

    assert np.array_equal(read, colours)


def test_lossless_jpeg_that_calls_itself_ycbcr_is_converted_once(tmp_path: Path) -> None:
    colours = values_of(8, shape=(*SHAPE, 3))
    stream = imagecodecs.jpeg8_encode(colours, lossless=True, colorspace="RGB", outcolorspace="RGB")
    jfif = bytes.fromhex("ffe0 0010 4a46494600 0101 00 00010001 0000")

    read = first_frame(
        tmp_path / "a.dcm",
        numbered(stream, jfif),
        colours,
        JPEGLosslessSV1,
        colour_model="YBR_FULL",
    )

    assert np.array_equal(read, convert_color_space(colours, "YBR_FULL", "RGB"))


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless])
def test_8_bits_in_a_header_with_room_for_16_are_read(tmp_path: Path, syntax: UID) -> None:
    values = values_of(8)
    encode = jpeg_ls.encode_array if syntax == JPEGLSLossless else imagecodecs.jpeg8_encode
    how = {} if syntax == JPEGLSLossless else {"lossless": True}

    read = first_frame(
        tmp_path / "a.dcm",
        bytes(encode(values, **how)),
        values.astype(np.uint16),
        syntax,
        bits_stored=8,
    )

    assert read.dtype == np.uint16
    assert np.array_equal(read, values)


@pytest.mark.parametrize("interleave_mode", [0, 1, 2])
def test_jpeg_ls_keeps_colours_by_plane_by_line_and_by_pixel(
    tmp_path: Path, interleave_mode: int
) -> None:
    colours = values_of(8, shape=(*SHAPE, 3))
    given = colours if interleave_mode else np.ascontiguousarray(colours.transpose(2, 0, 1))
    stream = bytes(jpeg_ls.encode_array(given, interleave_mode=interleave_mode))

    read = first_frame(
        tmp_path / "a.dcm",
        stream,
        colours,
        JPEGLSLossless,
        colour_model="RGB",
        PlanarConfiguration=int(interleave_mode != 0),  # the wrong one
    )

    assert np.array_equal(read, colours)


@pytest.mark.parametrize("bits", [8, 16])
def test_high_throughput_jpeg_2000_gives_the_very_values(tmp_path: Path, bits: int) -> None:
    values = values_of(bits)
    stream = imagecodecs.htj2k_encode(values, reversible=True)

    read = first_frame(tmp_path / "a.dcm", stream, values, HTJ2KLossless, bits_stored=bits)

    assert np.array_equal(read, values)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_fill_byte_before_the_end_of_jpeg_ls_is_no_fault(tmp_path: Path, bits: int) -> None:
    values = values_of(bits)
    stream = bytes(jpeg_ls.encode_array(values))
    assert stream.endswith(b"\xff\xd9")
    filled = stream[:-2] + b"\0\xff\xd9"
    with pytest.raises(RuntimeError):  # CharLS alone stumbles
        jpeg_ls.decode_pixel_data(filled)

    for given in (stream, filled):
        read = first_frame(tmp_path / "a.dcm", given, values, JPEGLSLossless)
        assert np.array_equal(read, values)


# ---- lossy ---------------------------------------------------------------------------------------
def test_white_that_overshoots_its_bits_does_not_turn_black(tmp_path: Path) -> None:
    # 10 bits in a 12-bit stream, as WG04's RG3_JPLY: a hard edge overshoots 1023.
    values = np.where(values_of(1) == 1, 1023, 0).astype(np.uint16)
    stream = imagecodecs.jpeg8_encode(values, level=90, bitspersample=12)
    assert imagecodecs.jpeg8_decode(stream).max() > 1023

    read = first_frame(tmp_path / "a.dcm", stream, values, JPEGExtended12Bit, bits_stored=10)

    assert np.abs(read.astype(int) - values).max() < 100  # 1024 cut to 10 bits would be 0


def test_12_bit_colours_are_not_converted_unasked(tmp_path: Path) -> None:
    colours = np.full((*SHAPE, 3), (4000, 2000, 100), dtype=np.uint16)
    stream = imagecodecs.jpeg8_encode(
        colours, level=98, bitspersample=12, colorspace="RGB", outcolorspace="RGB"
    )

    stream = numbered(stream)

    read = first_frame(
        tmp_path / "a.dcm", stream, colours, JPEGExtended12Bit, bits_stored=12, colour_model="RGB"
    )

    assert np.abs(read.astype(int) - colours).max() < 10


def test_extended_jpeg_of_8_bits_reads_as_baseline_does(tmp_path: Path) -> None:
    pixels = random_pixels(0, SHAPE)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    stream = (tmp_path / "a.jpg").read_bytes()

    extended, baseline = (
        first_frame(tmp_path / "a.dcm", stream, pixels, syntax)
        for syntax in (JPEGExtended12Bit, JPEGBaseline8Bit)
    )

    assert np.array_equal(extended, baseline)
    assert plugin_for(JPEGExtended12Bit, 8) == plugin_for(JPEGBaseline8Bit, 8) == "pillow"


# ---- one decoder each ----------------------------------------------------------------------------
def test_every_compressed_transfer_syntax_has_one_decoder() -> None:
    assert DECODERS.keys() == COMPRESSED
    assert {decoder.plugin for decoder in DECODERS.values()}.isdisjoint({"gdcm"})


@pytest.mark.parametrize(
    ("name", "unwanted"),
    [
        ("SC_rgb_jpeg_dcmtk", ("gdcm", "pylibjpeg")),
        ("JPGExtended", ("gdcm", "pylibjpeg", "pillow")),
        ("SC_rgb_jpeg_gdcm", ("gdcm", "pylibjpeg")),
        ("MR_small_jpeg_ls_lossless", ("gdcm", "pylibjpeg", "pyjpegls")),
        ("MR_small_jp2klossless", ("gdcm", "pillow")),
        ("MR_small_RLE", ("gdcm", "pylibjpeg")),
    ],
)
def test_a_decoder_that_happens_to_be_installed_is_not_used(
    monkeypatch: pytest.MonkeyPatch, name: str, unwanted: tuple[str, ...]
) -> None:
    path = SHIPPED / f"{name}.dcm"
    before = outcome(path)
    assert len(before) == 64  # a digest
    decoder = get_decoder(open_scan(path)[0].file_meta.TransferSyntaxUID)

    def use(*_: object) -> bytes:
        raise SystemExit("a decoder was used that was not chosen")

    rest = {name: f for name, f in decoder._available.items() if name not in unwanted}
    monkeypatch.setattr(decoder, "_available", dict.fromkeys(unwanted, use) | rest)

    with pytest.raises(SystemExit):  # pydicom itself takes what comes first
        pixel_array(pydicom.dcmread(path))
    assert outcome(path) == before


def test_a_decoder_that_is_not_installed_is_named_with_its_pip_line() -> None:
    found = outcomes(SHIPPED)
    neither = outcomes_without(SHIPPED, ["imagecodecs", "pylibjpeg", "openjpeg", "jpeg_ls"])
    changed = {name: neither[name] for name in found if neither[name] != found[name]}

    assert set(changed.values()) == {
        "no decoder for JPEG 2000: pip install 'medfed[dicom]'",
        "no decoder for JPEG-LS: pip install 'medfed[dicom]'",
        "no decoder for JPEG lossless: pip install 'medfed[codecs]'",
        "no decoder for 12-bit JPEG: pip install 'medfed[codecs]'",
    }
    with pytest.raises(RefusedScanError, match="install what is missing"):
        raise RefusedScanError(Reason.NO_JPEG_2000)


# ---- what comes with pydicom ---------------------------------------------------------------------
ONLY_HERE = {
    "JPEG-lossy.dcm",  # 12-bit JPEG
    "JPGExtended.dcm",
    "SC_rgb_jpeg_gdcm.dcm",  # JPEG lossless
}
"""Files that pydicom does not read with the decoders installed here, and this reader does."""
ONLY_THERE: dict[str, Reason] = {}
"""Files that pydicom reads and this reader refuses."""


def by_pydicom(path: Path) -> str | None:
    """Digest as of ``outcome`` with the first of pydicom's own plugins; None where it fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(path)
            there = get_decoder(dataset.file_meta.TransferSyntaxUID).available_plugins
            own = [name for name in ("pylibjpeg", "pillow", "pyjpegls", "pydicom") if name in there]
            frames = pixel_array(dataset, decoding_plugin=own[0] if own else "native")
        except Exception:  # no DICOM, without pixels, broken: whatever pydicom runs into
            return None
    return hashlib.sha256(frames.astype(frames.dtype.newbyteorder("<")).tobytes()).hexdigest()


def test_all_files_that_come_with_pydicom_read_as_pydicom_reads_them() -> None:
    found = outcomes(SHIPPED)
    theirs = {name: by_pydicom(SHIPPED / name) for name in found}
    read = {name for name, result in found.items() if len(result) == 64}
    assert len(read) == 90  # reference: 90 of the 95 with pixel data

    assert {name for name in read if theirs[name] is None} == ONLY_HERE
    assert {n: found[n] for n in found if n not in read and theirs[n] is not None} == ONLY_THERE
    both = read - ONLY_HERE
    assert {name: found[name] for name in both} == {name: theirs[name] for name in both}
