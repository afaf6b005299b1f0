"""Files that want to crash, hang or fill the machine, among sound ones that must be imported."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import jpeg_ls
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from medfed.client.scans.cache import REFUSED
from medfed.client.scans.cached import index_of, open_cache
from medfed.client.scans.decoding import DecodingFailure, DecodingLimits
from medfed.client.scans.importing import Tally, import_scans
from medfed.client.scans.refusals import Reason
from medfed.client.site_root import SiteRoot
from medfed.common.errors import ScanError
from tests.support.hostile_readers import hostile_read
from tests.support.misbehaving import let_children_import_tests
from tests.support.scans import HASH, random_pixels, scan_object, study_of, write_list, write_scan
from tests.support.sites import make_site

STUDY = study_of(split=HASH)
ROOT = str(Path(__file__).parents[2])
GIB = 1 << 30
SOUND = 4

BIG = 20_000
"""Side of a picture in pixels: 400 megapixels, where 100 are allowed."""


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    let_children_import_tests(monkeypatch)


# ---- the corpus ----------------------------------------------------------------------------------
def small(form: str, **how: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(random_pixels()).save(stream, form, **how)
    return stream.getvalue()


def wrapped(stream: bytes, syntax: UID, **elements: object) -> bytes:
    """A codestream as a DICOM file whose header says 32 x 32."""
    dataset = scan_object(random_pixels(), **elements)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    return written(dataset)


def written(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def jpeg_2000_bomb() -> bytes:
    """Two kilobytes that ask for 400 megapixels: size and tile size are overwritten."""
    stream = bytearray(small("JPEG2000", no_jp2=True))
    siz = stream.index(b"\xff\x51")
    struct.pack_into(">2L", stream, siz + 6, BIG, BIG)
    struct.pack_into(">2L", stream, siz + 22, BIG, BIG)
    return bytes(stream)


def jpeg_bomb() -> bytes:
    stream = bytearray(small("JPEG"))
    struct.pack_into(">2H", stream, stream.index(b"\xff\xc0") + 5, 60_000, 60_000)
    return bytes(stream)


def rle_bomb() -> bytes:
    """Runs of 128 bytes, each from two, for 200 megabytes of a picture of one kilobyte."""
    return struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * (200 * 2**20 // 128)


@functools.cache
def deflate_bomb() -> bytes:
    """Three megabytes that inflate to 640, where 512 are allowed."""
    dataset = scan_object(random_pixels())
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = written(dataset)
    (length,) = struct.unpack_from("<L", whole, 140)  # of the file meta information behind it
    plain = zlib.decompress(whole[144 + length :], -zlib.MAX_WBITS)
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    pieces = [packer.compress(plain), *(packer.compress(bytes(2**20)) for _ in range(640))]
    return whole[: 144 + length] + b"".join(pieces) + packer.flush()


def png_bomb() -> bytes:
    """A PNG of 400 megapixels, all black."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = struct.pack(">L", zlib.crc32(kind + content))
        return struct.pack(">L", len(content)) + kind + content + checked

    packer = zlib.compressobj(9)
    rows = [packer.compress(bytes(BIG + 1)) for _ in range(2_000)]
    header = struct.pack(">2L5B", BIG, BIG, 8, 0, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", b"".join(rows) + packer.flush()),
            chunk(b"IEND", b""),
        )
    )


def nested(depth: int) -> bytes:
    """Sequences in sequences, none of which ends."""
    plain = written(scan_object(random_pixels()))
    start = plain.index(b"\x08\x00\x16\x00UI")  # SOP Class UID
    undefined = 2**32 - 1
    opening = struct.pack("<2H2s2xL", 0x0008, 0x9215, b"SQ", undefined)
    item = struct.pack("<2HL", 0xFFFE, 0xE000, undefined)
    return plain[:start] + (opening + item) * depth


def absurd(**elements: object) -> bytes:
    return written(scan_object(random_pixels(), **elements))


HOSTILE: dict[str, tuple[Callable[[], bytes], set[Reason]]] = {
    "jpeg2000.dcm": (lambda: wrapped(jpeg_2000_bomb(), JPEG2000), {Reason.CODESTREAM}),
    "honest2000.dcm": (
        lambda: wrapped(jpeg_2000_bomb(), JPEG2000, Rows=BIG, Columns=BIG),
        {Reason.PIXEL_LIMIT},
    ),
    "jpeg.dcm": (lambda: wrapped(jpeg_bomb(), JPEGBaseline8Bit), {Reason.CODESTREAM}),
    "rle.dcm": (lambda: wrapped(rle_bomb(), RLELossless), {Reason.CODESTREAM}),
    "deflate.dcm": (deflate_bomb, {Reason.TOO_LARGE}),
    "rows.dcm": (lambda: absurd(Rows=65535, Columns=65535), {Reason.PIXEL_LIMIT}),
    "frames.dcm": (lambda: absurd(NumberOfFrames=2**31 - 1), {Reason.PIXEL_LIMIT}),
    "none.dcm": (lambda: absurd(Rows=0), {Reason.HEADER}),
    "nested.dcm": (lambda: nested(20_000), {Reason.NOT_DICOM, Reason.OVERHEAD}),
    "cut.dcm": (lambda: absurd()[:1500], {Reason.DECODE, Reason.NO_PIXELS}),
    "empty.dcm": (lambda: b"", {Reason.NOT_DICOM}),
    "random.dcm": (lambda: random_pixels(1, (4096,)).tobytes(), {Reason.NOT_DICOM}),
    "bomb.png": (png_bomb, {Reason.PIXEL_LIMIT}),
    "cut.png": (lambda: small("PNG")[:300], {Reason.DECODE}),
    "bomb.jpg": (jpeg_bomb, {Reason.PIXEL_LIMIT}),
    "other.png": (lambda: small("GIF"), {Reason.NOT_PICTURE}),
}
"""File -> its content, and why it may be refused."""


def hostile_site(folder: Path) -> SiteRoot:
    """A site whose worklist names every hostile file, and a sound one before each few."""
    scans = folder / "scans"
    scans.mkdir()
    names = list(HOSTILE)
    for name, (make, _) in HOSTILE.items():
        (scans / name).write_bytes(make())
    for number in range(SOUND):
        write_scan(scans / f"sound{number}.dcm", random_pixels(number), patient_id=f"P{number}")
        names.insert(5 * number, f"sound{number}.dcm")
    os.mkfifo(scans / "pipe.dcm")
    (scans / "folder.dcm").mkdir()
    names += ["pipe.dcm", "folder.dcm", "gone.dcm"]
    write_list(scans, [(name, "opacity") for name in names], "file", "label")
    return make_site(folder, scans=scans, patient_array=None)


def imported(site: SiteRoot, **how: object) -> tuple[Tally, dict[str, str]]:
    """Import; give what was done, and the reasons by file."""
    with open_cache(site, STUDY.scans) as cache:
        tally = import_scans(index_of(site, STUDY), STUDY.scans, cache, **how)  # type: ignore[arg-type]  # passed on
        with (cache.folder / REFUSED).open(newline="") as file:
            lines = list(csv.DictReader(file))
    return tally, {line["file"]: line["reason"] for line in lines}


# ---- bombs ---------------------------------------------------------------------------------------
def test_every_bomb_is_refused_for_what_it_is_and_the_sound_files_are_imported(
    tmp_path: Path,
) -> None:
    tally, reasons = imported(hostile_site(tmp_path))

    assert tally.imported == SOUND
    for name, (_, allowed) in HOSTILE.items():
        assert reasons[name] in {reason.value for reason in allowed}, name
    for name in ("pipe.dcm", "folder.dcm", "gone.dcm"):
        assert reasons[name] == Reason.MISSING.value
    assert len(reasons) == len(HOSTILE) + 3


_MEASURED = """
    import json, sys
    sys.path.append({root!r})
    from pathlib import Path
    from medfed.client.site_root import open_site
    from tests.adversary.test_hostile_scans import imported

    tally, _ = imported(open_site(Path({site!r})))
    status = Path("/proc/self/status").read_text()
    (peak,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
    print(json.dumps([tally.imported, 1024 * peak]))
"""


def test_the_parent_stays_small_whatever_the_files_ask_for(tmp_path: Path) -> None:
    code = _MEASURED.format(root=ROOT, site=str(hostile_site(tmp_path).folder))

    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    ).stdout

    count, peak = json.loads(output.splitlines()[-1])
    assert count == SOUND
    assert peak < GIB // 2  # of 1 GiB; it is about 200 MiB, the libraries


@pytest.mark.parametrize("what", ["images", "labels"])
def test_an_npz_that_inflates_to_more_than_is_allowed_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("images", "labels"):
            shape = (200_000, 224, 224) if name == what else (4, 8, 8)  # 10 GB, or 80 TB as int64
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                head, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(head.getvalue())
                member.write(bytes(64 << 20))
    site = make_site(tmp_path, scans=path, patient_array=None)

    with pytest.raises(ScanError, match=r"bomb\.npz") as caught:
        imported(site)
    assert "Next step" in str(caught.value)


# ---- decoders ------------------------------------------------------------------------------------
def test_decoders_that_hang_or_crash_cost_their_own_file_only(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    expected = {
        "07-hang.dcm": DecodingFailure.HUNG,
        "11-abort.dcm": DecodingFailure.DIED,
        "12-segfault.dcm": DecodingFailure.DIED,
        "19-greedy.dcm": DecodingFailure.MEMORY,
        "23-defect.dcm": DecodingFailure.UNFORESEEN,
    }
    bad = {int(name[:2]): name for name in expected}
    names = [bad.get(number, f"{number:02}-fine.dcm") for number in range(30)]
    for number, name in enumerate(names):
        write_scan(scans / name, random_pixels(number), patient_id=name)
        os.utime(scans / name, (1e9, 1e9))
    write_list(scans, [(name, "opacity") for name in names], "file", "label")
    site = make_site(tmp_path, scans=scans, patient_array=None)
    limits = DecodingLimits(children=2, time_s=1.5, memory_bytes=GIB)

    tally, reasons = imported(site, make_read=hostile_read, limits=limits)
    assert tally.imported == 25
    assert reasons == {name: reason.value for name, reason in expected.items()}

    again, reasons = imported(site, make_read=hostile_read, limits=limits)
    assert (again.unchanged, len(reasons)) == (25, 5)  # remembered: nothing hangs a second time


# ---- mutations -----------------------------------------------------------------------------------
def sound_files() -> dict[str, bytes]:
    """One of each kind that a decoder reads."""
    grey = random_pixels(3, (24, 24))
    rle = scan_object(grey)
    rle.compress(RLELossless)
    deflated = scan_object(grey)
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return {
        "native.dcm": written(scan_object(grey)),
        "rle.dcm": written(rle),
        "deflated.dcm": written(deflated),
        "jpeg.dcm": wrapped(small("JPEG"), JPEGBaseline8Bit),
        "j2k.dcm": wrapped(small("JPEG2000", no_jp2=True), JPEG2000Lossless),
        "jls.dcm": wrapped(bytes(jpeg_ls.encode_array(random_pixels())), JPEGLSLossless),
        "png.png": small("PNG"),
        "jpeg.jpg": small("JPEG"),
    }


def mutated(content: bytes, random: np.random.Generator) -> bytes:
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
def test_5000_mutations_are_read_or_refused_with_a_reason(tmp_path: Path) -> None:
    random, scans = np.random.default_rng(4), tmp_path / "scans"
    scans.mkdir()
    sound = sound_files()
    names = list(sound)
    for name, content in sound.items():
        (scans / name).write_bytes(content)
    for number in range(5_000):
        kind = list(sound)[number % len(sound)]
        names.append(f"{number:04}{kind}")
        (scans / names[-1]).write_bytes(mutated(sound[kind], random))
    write_list(scans, [(name, "opacity") for name in names], "file", "label")
    site = make_site(tmp_path, scans=scans, patient_array=None)

    tally, reasons = imported(site, limits=DecodingLimits(children=2, time_s=10.0))

    assert set(sound).isdisjoint(reasons)
    assert tally.imported + tally.same + tally.refused.total() == len(names)
    assert tally.imported > 500  # a changed pixel is a picture still
    known = {reason.value for reason in (*Reason, *DecodingFailure)}
    assert tally.refused.keys() <= known - {DecodingFailure.UNFORESEEN.value}
