from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from medfed.client.scans import pictures
from medfed.client.scans.pictures import read_picture, stored_size
from medfed.client.scans.png_rows import ADAM7, holds_every_row
from medfed.client.scans.refusals import Reason, RefusedScanError
from tests.support.scans import random_pixels, study_of

GREY = study_of().scans
COLOUR = study_of(channels=3).scans


def saved(path: Path, pixels: Any, mode: str | None = None, **how: Any) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **how)
    return path


def refusal(path: Path) -> Reason:
    with pytest.raises(RefusedScanError) as caught:
        read_picture(path, GREY)
    return caught.value.reason


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    rows: int, columns: int, *chunks: bytes, depth: int = 8, colour: int = 0, interlaced: int = 0
) -> bytes:
    header = struct.pack(">IIBBBBB", columns, rows, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def test_eight_bits_become_value_over_255(tmp_path: Path) -> None:
    grey, colour = random_pixels(0), random_pixels(1, (32, 32, 3))

    one = read_picture(saved(tmp_path / "g.png", grey), GREY)
    three = read_picture(saved(tmp_path / "c.png", colour), COLOUR)

    assert np.array_equal(one[0], (grey / 255.0).astype(np.float32))
    assert np.array_equal(three, (colour / 255.0).astype(np.float32).transpose(2, 0, 1))


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (32, 32), dtype=np.uint16)

    tensor = read_picture(saved(tmp_path / "a.png", pixels), GREY)

    assert np.array_equal(tensor[0], (pixels / 65535.0).astype(np.float32))


# EXIF 2.32, tag Orientation: where the first row and column of what is stored belong.
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_a_photograph_is_turned_as_it_says(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = random_pixels()

    tensor = read_picture(saved(tmp_path / "a.png", pixels, exif=exif), GREY)

    assert np.array_equal(tensor[0], (TURNED[orientation](pixels) / 255.0).astype(np.float32))


def test_what_is_transparent_is_black_and_hides_its_colour(tmp_path: Path) -> None:
    pixels = np.full((32, 32, 4), 200, dtype=np.uint8)
    pixels[:, :16, 3] = 0
    pixels[:, 16:, 3] = 255

    tensor = read_picture(saved(tmp_path / "a.png", pixels), COLOUR)

    assert np.all(tensor[:, :, :16] == 0)
    assert np.allclose(tensor[:, :, 16:], 200 / 255)


@pytest.mark.parametrize("mode", ["1", "P", "LA"])
def test_other_kinds_of_grey_give_the_same_picture(tmp_path: Path, mode: str) -> None:
    pixels = np.where(random_pixels() > 127, np.uint8(255), np.uint8(0))

    tensor = read_picture(saved(tmp_path / "a.png", pixels, mode), GREY)

    assert np.allclose(tensor[0], pixels / 255.0, atol=1e-6)


def test_a_jpeg_is_read(tmp_path: Path) -> None:
    tensor = read_picture(saved(tmp_path / "a.jpg", np.full((32, 32), 77, np.uint8)), GREY)

    assert np.allclose(tensor, 77 / 255, atol=2 / 255)  # flat: JPEG keeps it, but for rounding


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_are_refused_whatever_their_name(tmp_path: Path, kind: str) -> None:
    saved(tmp_path / "a.png", random_pixels(), format=kind)

    assert refusal(tmp_path / "a.png") is Reason.NOT_PICTURE


def test_a_picture_of_printing_colours_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a.jpg", random_pixels(0, (32, 32, 3)), "CMYK")

    assert refusal(tmp_path / "a.jpg") is Reason.COLOUR


@pytest.mark.parametrize("side", [10_001, 20_000, 65_535, 1 << 30])
def test_a_bomb_is_refused_before_it_is_inflated(tmp_path: Path, side: int) -> None:
    data = zlib.compress(bytes(100_000))
    (tmp_path / "a.png").write_bytes(png(side, side, chunk(b"IDAT", data)))

    assert refusal(tmp_path / "a.png") is Reason.PIXEL_LIMIT


@pytest.mark.parametrize("limit", [1024, 1023])
def test_the_limit_counts_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    path = saved(tmp_path / "a.png", random_pixels())  # 32 · 32 = 1024
    monkeypatch.setattr(pictures, "MAX_PIXELS", limit)

    if limit < 1024:
        assert refusal(path) is Reason.PIXEL_LIMIT
    else:
        assert read_picture(path, GREY).shape == (1, 32, 32)


@pytest.mark.parametrize("seed", range(300))
def test_a_damaged_picture_is_read_or_refused_and_nothing_else(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(random_pixels()).save(stream, "PNG" if seed % 2 else "JPEG", exif=exif)
    content = bytearray(stream.getvalue())
    for place in random.integers(0, len(content), 4):
        content[place] = random.integers(0, 256)
    (tmp_path / "a.png").write_bytes(content[: random.integers(1, len(content) + 1)])

    try:
        tensor = read_picture(tmp_path / "a.png", GREY)
    except RefusedScanError:
        return
    assert tensor.shape == (1, 32, 32)
    assert np.isfinite(tensor).all()


# ---- a PNG holds all that it promises ------------------------------------------------------------
def image_data(raw: bytes, pieces: int = 1) -> list[bytes]:
    """Rows as image data chunks of a compressed stream that is whole, whatever it holds."""
    packed = zlib.compress(raw)
    ends = [len(packed) * n // pieces for n in range(pieces + 1)]
    return [chunk(b"IDAT", packed[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def scanlines(pixels: Any) -> bytes:
    """Rows of 8 bits, each behind filter 0 (as they are)."""
    return b"".join(b"\0" + bytes(row) for row in pixels)


def interlaced(pixels: Any) -> bytes:
    return b"".join(scanlines(pixels[top::down, left::across]) for left, top, across, down in ADAM7)


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("missing", [1, 16 * 33, 32 * 33 - 1])
def test_a_png_whose_data_ends_early_but_properly_is_refused(
    tmp_path: Path, missing: int, pieces: int
) -> None:
    raw = scanlines(random_pixels())
    (tmp_path / "a.png").write_bytes(png(32, 32, *image_data(raw[:-missing], pieces)))

    assert refusal(tmp_path / "a.png") is Reason.DECODE


def test_one_byte_too_little_or_a_chunk_between_two_of_the_data_is_not_every_row() -> None:
    raw = scanlines(random_pixels())
    first, second = image_data(raw, 2)

    assert holds_every_row(png(32, 32, first, second), 32, 32)
    assert not holds_every_row(png(32, 32, *image_data(raw[:-1])), 32, 32)
    assert not holds_every_row(png(32, 32, first, chunk(b"tEXt", b"a\0b"), second), 32, 32)


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_png_in_pieces_with_more_data_than_it_needs_is_read(tmp_path: Path, pieces: int) -> None:
    pixels = random_pixels()
    raw = scanlines(pixels) + bytes(100_000)
    (tmp_path / "a.png").write_bytes(png(32, 32, *image_data(raw, pieces)))

    tensor = read_picture(tmp_path / "a.png", GREY)

    assert np.array_equal(tensor[0], (pixels / 255.0).astype(np.float32))


def test_an_interlaced_png_is_read_whole_and_refused_short(tmp_path: Path) -> None:
    pixels = random_pixels()
    for missing, name in ((0, "whole.png"), (1, "short.png")):
        raw = interlaced(pixels)[: -missing or None]
        (tmp_path / name).write_bytes(png(32, 32, *image_data(raw), interlaced=1))

    tensor = read_picture(tmp_path / "whole.png", GREY)

    assert np.array_equal(tensor[0], (pixels / 255.0).astype(np.float32))
    assert refusal(tmp_path / "short.png") is Reason.DECODE


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("columns", [1, 3, 8, 33])
def test_every_png_that_pillow_writes_holds_every_row(columns: int, mode: str) -> None:
    stream, pixels = io.BytesIO(), random_pixels(columns, (5, columns))
    image = Image.fromarray(pixels.astype(np.uint16)) if mode == "I;16" else Image.fromarray(pixels)
    (image if mode == "I;16" else image.convert(mode)).save(stream, "PNG")

    assert holds_every_row(stream.getvalue(), columns, 5)
    assert not holds_every_row(stream.getvalue(), columns, 4)


# ---- several pictures, other kinds ---------------------------------------------------------------
@pytest.mark.parametrize("form", ["PNG", "MPO"])
def test_of_several_pictures_in_a_file_the_first_is_the_scan(tmp_path: Path, form: str) -> None:
    first = np.full((32, 32, 3), 40, np.uint8)  # flat: JPEG keeps it, but for rounding
    others = [Image.fromarray(np.full((32, 32, 3), 200, np.uint8))]
    path = tmp_path / ("a.png" if form == "PNG" else "a.jpg")
    saved(path, first, format=form, save_all=True, append_images=others)

    tensor = read_picture(path, COLOUR)

    assert np.allclose(tensor, 40 / 255, atol=2 / 255)


def test_of_sixteen_bits_in_colour_the_upper_eight_are_taken(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (32, 32, 3), dtype=np.uint16)
    rows = scanlines(pixels.astype(">u2").view(np.uint8).reshape(32, -1))
    (tmp_path / "a.png").write_bytes(png(32, 32, *image_data(rows), depth=16, colour=2))

    tensor = read_picture(tmp_path / "a.png", COLOUR)

    assert np.array_equal(tensor, ((pixels >> 8) / 255.0).astype(np.float32).transpose(2, 0, 1))


def test_a_colour_profile_changes_nothing(tmp_path: Path) -> None:
    pixels, profile = random_pixels(0, (32, 32, 3)), ImageCms.createProfile("LAB")
    icc = ImageCms.ImageCmsProfile(profile).tobytes()

    with_it = read_picture(saved(tmp_path / "a.png", pixels, icc_profile=icc), COLOUR)

    assert np.array_equal(with_it, read_picture(saved(tmp_path / "b.png", pixels), COLOUR))


def test_a_text_that_inflates_without_end_is_refused(tmp_path: Path) -> None:
    text = b"Comment\0\0" + zlib.compress(bytes(100 << 20))
    content = png(32, 32, chunk(b"zTXt", text), chunk(b"IDAT", zlib.compress(bytes(33 * 32))))
    (tmp_path / "a.png").write_bytes(content)

    assert refusal(tmp_path / "a.png") in (Reason.NOT_PICTURE, Reason.DECODE)


def test_a_study_with_a_spacing_cannot_have_pictures(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", random_pixels())

    with pytest.raises(RefusedScanError, match="spacing"):
        read_picture(path, study_of(scans="spacing_mm = 1.0").scans)


def test_the_stored_size_is_told_for_the_admins_page(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((20, 30), np.uint16)).save(tmp_path / "b.png")

    assert stored_size(tmp_path / "a.png") == (20, 30, 8)
    assert stored_size(tmp_path / "b.png") == (20, 30, 16)
