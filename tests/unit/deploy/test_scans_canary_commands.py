"""Canaries wherever a file may hold a name: none in what a command prints, logs or leaves on disk.

But for the names of files, which stand in ``refused.csv`` for the site's admin and nowhere else.
"""

from __future__ import annotations

import io
import logging
import re
import traceback
from collections.abc import Callable
from pathlib import Path

import click
import nibabel as nib
import numpy as np
import pytest
import typer
from nibabel.nifti1 import Nifti1Extension
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from medfed.client.scans.cache import REFUSED
from medfed.client.scans.read import read_scans
from medfed.client.site_root import create_site
from medfed.common.errors import MedfedError
from medfed.common.trust.certificates import new_authority
from medfed.deploy.cli import app
from tests.support.canaries import Canaries
from tests.support.canary_files import SPOILERS, reachable, write_canary, write_folder
from tests.support.scans import HASH, random_pixels, study_of, study_text, write_list

LABELS = ("dark", "bright")


@pytest.fixture(autouse=True)
def _loud(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def site_of(folder: Path, scans: Path) -> Path:
    create_site(
        folder / "A",
        name="A",
        scans=scans,
        server="127.0.0.1:1",
        ca=new_authority(folder / "trust"),
    )
    (folder / "study.toml").write_text(study_text(LABELS, split=HASH))
    return folder / "A"


def said_by(*words: object) -> tuple[int, bytes]:
    """Exit code of a command, and all that it says, with its traceback if it has one."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    ours = isinstance(done.exception, MedfedError)
    code = done.exception.exit_code if ours else done.exit_code  # type: ignore[union-attr]  # ours
    trace = "".join(traceback.format_exception(done.exception)) if done.exception else ""
    return code, f"{done.output}{trace}".encode()


def commands_about_scans() -> list[tuple[str, ...]]:
    """Every command that reads a site's scans for a study."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    scans = group.commands["scans"]
    assert isinstance(scans, click.Group)
    there = [("scans", name) for name in scans.commands if name in ("import", "check")]
    return [*there, ("site", "check")]


def stored_in(root: Path) -> bytes:
    """All files below a site's folder, but the report that names files."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != REFUSED]
    assert files
    return b"\n".join(path.read_bytes() for path in files)


# ---- DICOM ---------------------------------------------------------------------------------------
def test_no_command_shows_or_stores_a_canary_of_a_dicom_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    canaries = Canaries()
    root = site_of(tmp_path, write_folder(tmp_path / "scans", canaries))
    said = b""

    for command in commands_about_scans():
        for form in ("text", "json"):
            code, output = said_by(
                *command, "--root", root, "--study", tmp_path / "study.toml", "--format", form
            )
            assert code in (0, 16), output
            said += output

    assert canaries.leaks(said + caplog.text.encode() + "".join(capfd.readouterr()).encode()) == []
    assert canaries.leaks(stored_in(root)) == []
    reports = list(root.rglob(REFUSED))
    assert reports and all(canaries.leaks(report.read_bytes()) == [] for report in reports)


def test_deidentify_shows_and_stores_no_canary_of_a_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    canaries, folder = Canaries(), tmp_path / "scans"
    write_folder(folder, canaries)
    sound = [path.name for path in folder.glob("good*.dcm")]
    names = canaries.text("a label")
    rows = [
        [name, "dark" if number else names, canaries.text(f"{name} note"), "train"]
        for number, name in enumerate(sound)
    ]
    named = write_canary(folder / f"{canaries.text('a file name')}.dcm", canaries)
    write_list(
        folder, [*rows, [named.name, "dark", "", "train"]], "file", "label", "patient", "split"
    )
    assert len(SPOILERS) == len(list(folder.glob("*.dcm"))) - len(sound) - 1

    outputs = [
        said_by("scans", "deidentify", folder, tmp_path / form, "--key", tmp_path / "key",
                "--dates", dates, "--format", form)
        for form, dates in (("text", "remove"), ("json", "remove"))
    ]  # fmt: skip

    assert [code for code, _ in outputs] == [0, 0]
    told = b"".join(output for _, output in outputs) + caplog.text.encode()
    assert canaries.leaks(told + "".join(capfd.readouterr()).encode()) == []
    for form in ("text", "json"):
        written = [path for path in (tmp_path / form).rglob("*") if path.is_file()]
        assert len(written) >= len(sound) + 2  # the named one, and the list
        everything = b"\n".join(path.read_bytes() + bytes(path) for path in written)
        everything = re.sub(rb"2\.25\.\d+", b"UID", everything)  # 39 digits: a date by chance
        # A label that is nobody's identifier may stay; it is counted as one of a few texts.
        assert [leak for leak in canaries.leaks(everything) if leak != "a label"] == []


def test_a_folder_of_which_nothing_can_be_used_is_refused_without_a_word_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    canaries, folder = Canaries(), tmp_path / "scans"
    folder.mkdir()
    for spoil in SPOILERS:
        write_canary(folder / f"{spoil.__name__}.dcm", canaries, spoil=spoil)
    write_list(folder, [[path.name, "dark"] for path in folder.glob("*.dcm")], "file", "label")
    root, study = site_of(tmp_path, folder), tmp_path / "study.toml"

    for command in commands_about_scans():
        code, output = said_by(*command, "--root", root, "--study", study)
        assert code == 16, output
        assert canaries.leaks(output) == []

    assert canaries.leaks(caplog.text.encode() + "".join(capfd.readouterr()).encode()) == []


# ---- pictures and volumes ------------------------------------------------------------------------
def write_png(path: Path, canaries: Canaries, seed: int) -> None:
    texts = PngInfo()
    texts.add_text("Author", canaries.text(f"{path.name} tEXt"))
    texts.add_itxt("Title", canaries.text(f"{path.name} iTXt"), "de", "Titel")
    texts.add(b"prVt", canaries.text(f"{path.name} private chunk").encode())
    Image.fromarray(random_pixels(seed)).save(path, pnginfo=texts, exif=exif_of(path, canaries))


def exif_of(path: Path, canaries: Canaries) -> Image.Exif:
    """EXIF with who, when and where: TIFF 6.0 and EXIF 2.32 tags."""
    exif = Image.Exif()
    for tag in (0x010E, 0x013B, 0x8298, 0x0132):  # description, artist, copyright, date
        exif[tag] = canaries.text(f"{path.name} EXIF {tag:04X}")
    exif.get_ifd(0x8825)[0x001B] = canaries.text(f"{path.name} GPS method").encode()
    exif.get_ifd(0x8825)[0x001D] = canaries.text(f"{path.name} GPS date")
    exif.get_ifd(0x8769)[0x9286] = canaries.text(f"{path.name} user comment").encode()
    return exif


def write_jpeg(path: Path, canaries: Canaries, seed: int) -> None:
    Image.fromarray(random_pixels(seed)).save(
        path,
        exif=exif_of(path, canaries),
        comment=canaries.text(f"{path.name} comment"),
        xmp=f"<x>{canaries.text(f'{path.name} XMP')}</x>".encode(),
    )


def write_nifti(path: Path, canaries: Canaries, seed: int) -> None:
    volume = nib.Nifti1Image(random_pixels(seed, (32, 32, 3)), np.eye(4))
    for name, length in (("descrip", 80), ("aux_file", 24), ("db_name", 18), ("intent_name", 16)):
        volume.header[name] = canaries.text(f"{path.name} {name}").encode()[:length]
    volume.header["data_type"] = canaries.text(f"{path.name} data_type").encode()[:10]
    words = canaries.text(f"{path.name} extension").encode()
    volume.header.extensions.append(Nifti1Extension("comment", words))
    path.write_bytes(volume.to_bytes())


WRITERS: dict[str, Callable[[Path, Canaries, int], None]] = {
    ".png": write_png,
    ".jpg": write_jpeg,
    ".nii": write_nifti,
}


def pictures_in(folder: Path, canaries: Canaries) -> Path:
    """Six of each kind, and one of each cut off in its middle; all are named in a worklist."""
    folder.mkdir()
    rows = []
    for ending, write in WRITERS.items():
        for number in range(6):
            path = folder / f"{number}{ending}"
            write(path, canaries, number)
            rows.append([path.name, LABELS[number % 2], f"patient {number}"])
        cut = folder / f"cut{ending}"
        cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        rows.append([cut.name, "dark", "patient 9"])
    write_list(folder, rows, "file", "label", "patient")
    return folder


def test_what_is_kept_of_pictures_and_volumes_holds_no_canary(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    canaries = Canaries()
    folder = pictures_in(tmp_path / "scans", canaries)
    source = io.BytesIO(b"\n".join(path.read_bytes() for path in folder.iterdir())).getvalue()
    assert sorted(canaries.leaks(source)) == sorted(canaries.texts)  # they sing, before

    scans = read_scans(folder, study_of(labels=LABELS, split=HASH))

    assert len(scans) == 18 and sum(scans.refused.values()) == len(WRITERS)
    assert canaries.leaks(reachable(scans) + repr(scans).encode()) == []
    assert canaries.leaks(caplog.text.encode() + "".join(capfd.readouterr()).encode()) == []


def test_no_command_shows_or_stores_a_canary_of_a_picture_or_a_file_s_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    canaries = Canaries()
    folder = pictures_in(tmp_path / "scans", canaries)
    name = canaries.text("a file's name")
    write_png(folder / f"{name}.png", canaries, 20)
    (folder / f"broken {name}.png").write_bytes(b"nothing")
    rows = [
        [path.name, "dark", canaries.text(f"{path.name} id")]
        for path in sorted(folder.glob("*.*g"))
    ]
    write_list(folder, rows, "file", "label", "patient")
    root, study, said = site_of(tmp_path, folder), tmp_path / "study.toml", b""

    for command in commands_about_scans():
        code, output = said_by(*command, "--root", root, "--study", study)
        assert code in (0, 16), output
        said += output

    assert canaries.leaks(said + caplog.text.encode() + "".join(capfd.readouterr()).encode()) == []
    assert canaries.leaks(stored_in(root)) == []
    (report,) = root.rglob(REFUSED)
    assert canaries.leaks(report.read_bytes()) == ["a file's name"]
    assert report.stat().st_mode & 0o077 == 0
