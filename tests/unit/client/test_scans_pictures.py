from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medfed.client.scans import pictures
from medfed.client.scans.pictures import read_picture
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


def png(rows: int, columns: int, *chunks: bytes, depth: int = 8) -> bytes:
    header = struct.pack(">IIBBBBB", columns, rows, depth, 0, 0, 0, 0)
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


def test_a_text_that_inflates_without_end_is_refused(tmp_path: Path) -> None:
    text = b"Comment\0\0" + zlib.compress(bytes(100 << 20))
    content = png(32, 32, chunk(b"zTXt", text), chunk(b"IDAT", zlib.compress(bytes(33 * 32))))
    (tmp_path / "a.png").write_bytes(content)

    assert refusal(tmp_path / "a.png") in (Reason.NOT_PICTURE, Reason.DECODE)


def test_a_study_with_a_spacing_cannot_have_pictures(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", random_pixels())

    with pytest.raises(RefusedScanError, match="spacing"):
        read_picture(path, study_of(scans="spacing_mm = 1.0").scans)
