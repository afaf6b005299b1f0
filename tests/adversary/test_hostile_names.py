"""Files whose names, kinds and places want to mislead: who follows them, lists them, shows them."""

from __future__ import annotations

import contextlib
import csv
import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from medfed.client.scans.refusals import Reason
from medfed.client.site_root import SiteRoot
from medfed.common.errors import ScanError
from tests.support.hostile_sites import imported
from tests.support.misbehaving import let_children_import_tests
from tests.support.scans import random_pixels, write_list, write_scan
from tests.support.sites import make_site

NAMES = [
    b"new\nline",
    b"carriage\rreturn",
    b"bell\x07 and \x1b[2J screen",
    b"\xff\xfe no text",
    "right\u202eto left".encode(),
    b"=HYPERLINK(1)",
    b"+1",
    b"-rf",
    b"@here",
    b'quote",comma;tab\t',
    b" ",
    b"back\\slash",
    b"$(reboot)`reboot`",
    b"%s%n{}",
    b"n" * 251,
]
"""With an ending of four characters the last is as long as a name can be: 255 bytes."""


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    let_children_import_tests(monkeypatch)


def picture(path: bytes | Path, seed: int) -> None:
    with open(path, "wb") as file:
        Image.fromarray(random_pixels(seed)).save(file, "PNG")


def class_folders(folder: Path) -> Path:
    """Sound pictures of hostile names in one class, damaged ones in the other."""
    for label in ("normal", "opacity"):
        (folder / "scans" / label).mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        picture(os.fsencode(folder) + b"/scans/normal/" + name + b".png", seed)
        with open(os.fsencode(folder) + b"/scans/opacity/" + name + b".png", "wb") as file:
            file.write(b"no picture")
    return folder / "scans"


def site_of(folder: Path, scans: Path) -> SiteRoot:
    return make_site(folder, scans=scans, patient_array=None)


def plant_what_is_no_file(folder: Path, outside: Path, ending: str) -> contextlib.ExitStack:
    """Pipes, sockets, devices and links in a folder of scans; close what is given afterwards."""
    os.mkfifo(folder / f"pipe{ending}")
    (folder / f"loop{ending}").symlink_to(f"loop{ending}")
    (folder / f"zero{ending}").symlink_to("/dev/zero")
    (folder / f"out{ending}").symlink_to(outside)
    (folder / f"nowhere{ending}").symlink_to("gone")
    (folder / "round").symlink_to(folder)
    (folder / "up").symlink_to(folder.parent.parent)
    (folder / f"folder{ending}").mkdir()
    with contextlib.suppress(PermissionError):
        os.mknod(folder / f"device{ending}", 0o20666, os.makedev(1, 5))  # /dev/zero
    stack = contextlib.ExitStack()
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    stack.enter_context(contextlib.chdir(folder))  # the path of a socket is short
    listener.bind(f"socket{ending}")
    return stack


def test_hostile_names_are_imported_and_stand_whole_in_the_report(tmp_path: Path) -> None:
    site = site_of(tmp_path, class_folders(tmp_path))

    tally, reasons = imported(site)
    again, _ = imported(site)

    assert tally.imported == len(NAMES) == again.unchanged + again.same
    assert {os.fsencode(name) for name in reasons} == {b"opacity/" + n + b".png" for n in NAMES}
    assert set(reasons.values()) == {Reason.NOT_PICTURE.value}


def test_what_is_no_file_or_leads_elsewhere_is_not_listed(tmp_path: Path) -> None:
    scans = class_folders(tmp_path)
    picture(tmp_path / "outside.png", 99)
    site = site_of(tmp_path, scans)
    before, _ = imported(site)

    with plant_what_is_no_file(scans / "normal", tmp_path / "outside.png", ".png"):
        after, _ = imported(site)

    assert (after.listed, after.imported) == (before.listed, 0)


def test_a_folder_searched_by_headers_opens_no_pipe_and_follows_no_link(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    outside = write_scan(tmp_path / "outside.dcm", random_pixels(1), patient_id="P9")
    for number in range(3):
        write_scan(scans / f"{number}.dcm", random_pixels(number), patient_id=f"P{number}")
    rows = [(f"P{number}", "opacity") for number in (0, 1, 2, 9)]
    write_list(scans, rows, "patient_id", "label")
    site = site_of(tmp_path, scans)

    with plant_what_is_no_file(scans, outside, ".dcm"):
        tally, reasons = imported(site)

    assert (tally.imported, reasons) == (3, {})


@pytest.mark.parametrize(
    "name", ["out.dcm", "zero.dcm", "up/outside.dcm", "../outside.dcm", "loop.dcm"]
)
def test_a_worklist_that_names_what_lies_outside_is_refused(tmp_path: Path, name: str) -> None:
    scans = tmp_path / "a" / "scans"
    scans.mkdir(parents=True)
    outside = write_scan(tmp_path / "outside.dcm", random_pixels(1))
    write_list(scans, [(name, "opacity")], "file", "label")
    site = site_of(tmp_path, scans)

    with plant_what_is_no_file(scans, outside, ".dcm"), pytest.raises(ScanError, match="line 2"):
        imported(site)


@pytest.mark.parametrize("name", ["pipe.dcm", "device.dcm", "folder.dcm", "socket.dcm"])
def test_a_worklist_that_names_no_file_costs_that_line_only(tmp_path: Path, name: str) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    write_scan(scans / "0.dcm", random_pixels())
    write_list(scans, [("0.dcm", "opacity"), (name, "opacity")], "file", "label")
    site = site_of(tmp_path, scans)

    with plant_what_is_no_file(scans, tmp_path, ".dcm"):
        tally, reasons = imported(site)

    assert (tally.imported, reasons) == (1, {name: Reason.MISSING.value})


def test_no_file_s_name_begins_a_formula_in_the_report(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    write_scan(scans / "0.dcm", random_pixels())
    names = ["=HYPERLINK(1).dcm", "+1.dcm", "-rf.dcm", "@here.dcm"]
    for name in names:
        (scans / name).write_bytes(b"nothing")
    write_list(scans, [(name, "opacity") for name in ("0.dcm", *names)], "file", "label")

    _, reasons = imported(site_of(tmp_path, scans))

    assert list(reasons) == [f"./{name}" for name in names]
    assert all((scans / name).is_file() for name in reasons)  # they name the file still


@pytest.mark.parametrize(
    "name", ["n" * 10_000, "a/" * 3_000, "\0", ".", "/", "", "\n", "C:\\x.dcm"]
)
def test_a_name_that_no_system_takes_costs_its_line_or_is_refused(
    tmp_path: Path, name: str
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    write_scan(scans / "0.dcm", random_pixels())
    with (scans / "worklist.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "label"], ["0.dcm", "opacity"], [name, "opacity"]])
    site = site_of(tmp_path, scans)

    try:
        tally, reasons = imported(site)
    except ScanError as error:
        assert "worklist.csv: line " in str(error) and len(str(error)) < 500
    else:
        assert (tally.imported, list(reasons.values())) == (1, [Reason.MISSING.value])


def test_a_very_deep_tree_is_walked_as_far_as_the_system_goes(tmp_path: Path) -> None:
    scans = class_folders(tmp_path)
    place = os.open(scans / "normal", os.O_RDONLY)
    try:
        for _ in range(50):  # of 100 bytes each: longer than a path can be
            os.mkdir("n" * 100, dir_fd=place)
            below = os.open("n" * 100, os.O_RDONLY, dir_fd=place)
            os.close(place)
            place = below
    finally:
        os.close(place)

    tally, _ = imported(site_of(tmp_path, scans))

    assert tally.imported == len(NAMES)


def test_names_differ_where_their_bytes_do(tmp_path: Path) -> None:
    (tmp_path / "scans" / "normal").mkdir(parents=True)
    names = ["é.png", "e\u0301.png", "É.PNG", " é.png"]  # composed, combined, large, with a blank
    for seed, name in enumerate(names):
        picture(tmp_path / "scans" / "normal" / name, seed)
    there = len(list((tmp_path / "scans" / "normal").iterdir()))  # a file system may join two

    tally, _ = imported(site_of(tmp_path, tmp_path / "scans"))

    assert tally.imported == there
