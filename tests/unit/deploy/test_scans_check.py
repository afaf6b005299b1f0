"""`medfed scans check`, from files on disk to the page: with real imports."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from medfed.client.scans.check import site_check
from medfed.client.site_root import SiteRoot
from medfed.common.errors import ConfigError, ScanError
from medfed.deploy.cli import scans_check, site_patients
from tests.support.scans import random_pixels, write_list, write_scan
from tests.support.sites import STUDY, WITHOUT_PRIVACY, make_site

app = typer.Typer()
scans_check.register(app)


@app.callback()
def scans() -> None:
    """With one command more than one level is not collapsed."""


def make_folder(
    folder: Path, *, copies: bool = False, ids: bool = True, patients: int = 40
) -> list[tuple[str, str]]:
    """DICOM files of noise, one per patient, half of each label; the lines of their worklist."""
    folder.mkdir()
    lines = []
    for number in range(patients):
        name, label = f"{number:03d}.dcm", ("dark", "bright")[number % 2]
        seed = number - number % 2 * copies  # with copies: each picture under two patients
        write_scan(
            folder / name,
            random_pixels(seed),
            patient_id=f"Mustermann-{number}" if ids else "",
            Modality="CR",
            Manufacturer="Radiant Medical",
            ViewPosition="PA",
            ImageType=["ORIGINAL", "PRIMARY"],
        )
        os.utime(folder / name, (1e9, 1e9))
        lines.append((name, label))
    return lines


def make(tmp_path: Path, **how: bool) -> SiteRoot:
    lines = make_folder(tmp_path / "scans", **how)
    (tmp_path / "scans" / "broken.dcm").write_bytes(b"nothing")
    lines += [("broken.dcm", "bright"), ("missing.dcm", "dark")]
    write_list(tmp_path / "scans", lines, "file", "label")
    study = STUDY.replace('group_key = "patient"\n', "").replace(
        "test_fraction = 0.2", "test_fraction = 0.4"
    )
    (tmp_path / "study.toml").write_text(study)
    return make_site(tmp_path, scans=tmp_path / "scans", patient_array=None)


def run(site: SiteRoot, *arguments: str) -> Result:
    study = str(site.folder.parent / "study.toml")
    command = ["check", "--root", str(site.folder), "--study", study, *arguments]
    return CliRunner().invoke(app, command, catch_exceptions=False)


def told(site: SiteRoot, *arguments: str) -> dict[str, object]:
    answer: dict[str, object] = json.loads(run(site, "--format", "json", *arguments).output)
    return answer


def test_it_says_whether_the_folder_is_ready_and_where_the_page_lies(tmp_path: Path) -> None:
    site = make(tmp_path)
    done = run(site)

    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    head = next(line for line in lines if line.strip())
    assert head.startswith("40 scans of 40 patients are ready for study two_labels once somebody")
    assert "LOOK 2 of 42 listed scans (5 %) cannot be used" in " ".join(done.stdout.split())
    assert "These numbers are for you; none of them leaves the site." in done.stdout
    page = Path(lines[-1].removeprefix("Page:  "))
    assert page.parent.parent == site.folder / "check"
    assert page.parent.name.startswith("two_labels-20")
    assert "40 scans of 40 patients" in page.read_text()


def test_page_and_folders_are_for_their_owner_only(tmp_path: Path) -> None:
    site = make(tmp_path, copies=True)
    answer = told(site)

    for name in ("page", "files"):
        path = Path(str(answer[name]))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_pictures_under_two_patients_end_it_with_the_exit_code_of_scans(tmp_path: Path) -> None:
    site = make(tmp_path, copies=True)
    done = run(site)

    assert done.exit_code == ScanError.exit_code == 16
    assert "STOP" in done.stdout
    answer = told(site)
    assert answer["severity"] == "stop"
    # 20 pictures, each in two files with different headers, hence with different contents
    remarks = {r["kind"]: r["text"] for r in answer["remarks"]}  # type: ignore[attr-defined]
    numbers = [int(text.split()[0]) for kind, text in remarks.items() if "across" in kind]
    assert sum(numbers) == 20
    assert remarks["copies-with-two-labels"].startswith("20 pictures")
    named = Path(str(answer["files"])).read_text()
    assert named.count("same picture with two labels,1,") == 2


def test_no_patient_is_named_anywhere(tmp_path: Path) -> None:
    site = make(tmp_path, copies=True)
    shown = run(site).output + run(site, "--format", "json").output

    written = [path.read_text() for path in (site.folder / "check").rglob("*") if path.is_file()]
    assert len(written) == 2
    assert not any("Mustermann" in text for text in [shown, *written])
    assert "000.dcm" not in shown
    page = next(text for text in written if text.startswith("<!doctype"))
    assert "000.dcm" not in page


def test_the_numbers_are_given_to_programs(tmp_path: Path) -> None:
    answer = told(make(tmp_path))

    assert (answer["scans"], answer["patients"], answer["unit"]) == (40, 40, "patient")
    assert answer["refused"] == {"not a DICOM file": 1, "file missing or unreadable": 1}
    assert answer["left_out"] == {}
    labels = answer["labels"]
    assert sum(part["scans"] for part in labels["dark"].values()) == 20  # type: ignore[index]
    assert answer["attributes"]["view"] == {"PA": 40}  # type: ignore[index]
    assert answer["files"] is None


def test_the_page_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    site, place = make(tmp_path, copies=True), tmp_path / "elsewhere"
    place.mkdir(mode=0o755)
    answer = told(site, "--page", str(place / "look.html"))

    assert answer["page"] == str(place / "look.html")
    assert answer["files"] == str(place / "look.files.csv")
    assert stat.S_IMODE(place.stat().st_mode) == 0o755
    assert not (site.folder / "check").exists()


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"look\.html: cannot be written"):
        run(make(tmp_path), "--page", str(tmp_path / "nowhere" / "look.html"))


def test_scans_of_nobody_stop_a_private_study(tmp_path: Path) -> None:
    site = make(tmp_path, ids=False)
    answer = told(site)

    assert (answer["unit"], answer["severity"]) == ("image", "stop")
    assert "patient-ids" in {r["kind"] for r in answer["remarks"] if r["severity"] == "stop"}  # type: ignore[attr-defined]


def test_scans_of_nobody_that_the_site_leaves_out_are_counted(tmp_path: Path) -> None:
    lines = make_folder(tmp_path / "scans")
    write_scan(tmp_path / "scans" / "nobody.dcm", random_pixels(99), patient_id="")
    write_list(tmp_path / "scans", [*lines, ("nobody.dcm", "dark")], "file", "label")
    text = STUDY.replace('group_key = "patient"\n', "").replace(*WITHOUT_PRIVACY)
    (tmp_path / "study.toml").write_text(text)
    site = make_site(tmp_path, scans=tmp_path / "scans", patient_array=None)
    settings = site.folder / "site.toml"
    settings.write_text(
        settings.read_text().replace("[scans]\n", '[scans]\nwithout_patient = "leave-out"\n')
    )

    answer = told(site)
    assert (answer["scans"], answer["unit"]) == (40, "patient")
    assert answer["left_out"] == {"no patient id, left out as site.toml says": 1}


def test_a_damaged_record_of_the_cache_is_read_anew(tmp_path: Path) -> None:
    site = make(tmp_path)
    before = told(site)
    (tensors,) = (site.folder / "cache").glob("*/tensors.bin")
    content = bytearray(tensors.read_bytes())
    content[:100] = bytes(100)
    tensors.write_bytes(content)

    after = told(site)
    assert {**after, "page": ""} == {**before, "page": ""}


def test_without_a_usable_scan_it_ends_with_the_error_of_scans(tmp_path: Path) -> None:
    site = make(tmp_path)
    for path in site.scans.glob("0*.dcm"):
        path.unlink()

    with pytest.raises(ScanError, match="is a usable scan"):
        run(site)


def test_the_pictures_of_an_npz_are_told_apart_by_their_number(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 28, 28)).astype(np.uint8)
    images[7] = images[3]
    np.savez(tmp_path / "A.npz", images=images, labels=np.arange(40) % 2, patient=np.arange(40))
    (tmp_path / "study.toml").write_text(STUDY)
    site = make_site(tmp_path, scans=tmp_path / "A.npz")

    answer = told(site)
    assert answer["severity"] == "stop"
    named = Path(str(answer["files"])).read_text()
    assert ",A.npz,3" in named and ",A.npz,7" in named


def test_record_numbers_that_were_merged_are_one_patient(tmp_path: Path) -> None:
    site = make(tmp_path, copies=True)
    assert told(site)["severity"] == "stop"
    merged = tmp_path / "merged.csv"
    pairs = [f"Mustermann-{number},Mustermann-{number + 1}" for number in range(0, 40, 2)]
    merged.write_text("\n".join(["patient_id,same_as", *pairs, ""]))
    site_patients.merge(site.folder, file=merged, unknown=True)

    answer = told(site)
    kinds = {r["kind"] for r in answer["remarks"] if r["severity"] != "fine"}  # type: ignore[attr-defined]
    assert answer["patients"] == 20
    assert "copies-of-a-patient" in kinds  # each picture lies there twice still
    assert not kinds & {
        "copies-across-patients",
        "copies-across-parts",
        "patients-in-several-parts",
    }


def test_help_has_an_example() -> None:
    shown = CliRunner().invoke(app, ["check", "--help"]).output

    assert "Example: medfed scans check --root" in shown


def test_pages_of_one_day_replace_each_other(tmp_path: Path) -> None:
    site = make(tmp_path)
    assert told(site)["page"] == told(site)["page"]
    assert len(list((site.folder / site_check.FOLDER).iterdir())) == 1
