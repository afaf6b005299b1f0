"""Files that want to crash, hang or fill the machine, among sound ones that must be imported."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest

from medfed.client.scans.decoding import DecodingFailure, DecodingLimits
from medfed.client.scans.refusals import Reason
from medfed.client.site_root import SiteRoot
from medfed.common.errors import ScanError
from tests.support.hostile_files import HOSTILE
from tests.support.hostile_readers import hostile_read
from tests.support.hostile_sites import imported, reasons_in
from tests.support.misbehaving import let_children_import_tests
from tests.support.scans import HASH, random_pixels, study_text, write_list, write_scan
from tests.support.sites import make_site

GIB = 1 << 30
SOUND = 4
NO_FILES = ("pipe.dcm", "folder.dcm", "gone.dcm")


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    let_children_import_tests(monkeypatch)


def hostile_site(folder: Path) -> SiteRoot:
    """A site whose worklist names every hostile file, and a sound one before each few."""
    scans = folder / "scans"
    scans.mkdir()
    names = list(HOSTILE)
    for name, (make, _) in HOSTILE.items():
        (scans / name).write_bytes(make())
    for number in range(SOUND):
        write_scan(scans / f"sound{number}.dcm", random_pixels(number), patient_id=f"P{number}")
        names.insert(12 * number, f"sound{number}.dcm")
    os.mkfifo(scans / "pipe.dcm")
    (scans / "folder.dcm").mkdir()
    write_list(scans, [(name, "opacity") for name in (*names, *NO_FILES)], "file", "label")
    return make_site(folder, scans=scans, patient_array=None)


# ---- bombs and absurd headers --------------------------------------------------------------------
_COMMAND = """
    import atexit, sys
    from pathlib import Path
    from medfed.deploy.cli import main

    def tell(file):  # not ru_maxrss, which begins with what the process that started this one has
        status = Path("/proc/self/status").read_text()
        (peak,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
        Path(file).write_text(str(1024 * peak))

    atexit.register(tell, sys.argv.pop(1))
    main()
"""


def command(folder: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run `medfed` as its own process; give what it said, and its peak memory in bytes."""
    peak = folder / "peak"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_COMMAND), str(peak), *words],
        capture_output=True,
        text=True,
    )
    return done, int(peak.read_text())


def test_an_import_refuses_every_hostile_file_stays_small_and_takes_the_sound_ones(
    tmp_path: Path,
) -> None:
    site, study = hostile_site(tmp_path), tmp_path / "study.toml"
    study.write_text(study_text(split=HASH))

    done, peak = command(
        *(tmp_path, "scans", "import", "--root", str(site.folder)),
        *("--study", str(study), "--format", "json"),
    )

    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["imported"] == SOUND
    reasons = reasons_in(Path(told["report"]))
    for name, (_, allowed) in HOSTILE.items():
        assert reasons[name] in {reason.value for reason in allowed}, name
    for name in NO_FILES:
        assert reasons[name] == Reason.MISSING.value
    assert len(reasons) == len(HOSTILE) + len(NO_FILES)
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
