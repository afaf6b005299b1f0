"""A real ``medfed scans import`` on a terminal of its own, ended at a chosen moment."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.cache_index import INDEX, TENSORS
from medfed.client.scans.cached import cached_scans
from medfed.client.site_root import SiteRoot
from medfed.common.study import Study
from tests.support.flower_hub import wait_until
from tests.support.scans import random_pixels, write_list, write_scan
from tests.support.sites import make_site

BETWEEN_S = 0.03
"""Between two signals: the second comes while the command clears up after the first."""
_DONE = re.compile(rb"\] (\d+)/\d+")
_BAR = re.compile(rb"\r\033\[K[^\r]*\] \d+/\d+")


def site_of_files(folder: Path, *, good: int, broken: int) -> SiteRoot:
    """A site with so many scans, and files that are none, all long settled."""
    scans = folder / "scans"
    scans.mkdir(parents=True)
    names = [f"{number}.dcm" for number in range(good + broken)]
    for number, name in enumerate(names):
        if number % ((good + broken) // broken) == 0:
            (scans / name).write_bytes(b"nothing %d" % number)
        else:
            pixels = random_pixels(number, (256, 256))
            write_scan(scans / name, pixels, patient_id=f"P{number // 2}")
        os.utime(scans / name, (1_500_000_000, 1_500_000_000))
    write_list(scans, [(name, "opacity") for name in names], "file", "label")
    return make_site(folder, scans=scans, patient_array=None)


def command(site: SiteRoot, study_file: Path, *more: str) -> list[str]:
    """The command's words."""
    words = ["scans", "import", "--root", str(site.folder), "--study", str(study_file), *more]
    return [sys.executable, "-m", "medfed.deploy.cli", *words]


def import_to_the_end(site: SiteRoot, study_file: Path) -> dict[str, Any]:
    """Run the command; give what it says as JSON."""
    done = subprocess.run(
        command(site, study_file, "--format", "json"), capture_output=True, text=True, check=True
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


class Interrupted:
    """What became of a command that was ended.

    Attributes:
        code: Its exit status.
        said: What it wrote on its terminal, without the bars of its progress.
        done: The last number of entries that it said were done; 0: none.
    """

    def __init__(self, code: int, said: bytes) -> None:
        self.code, self.said = code, _BAR.sub(b"", said).decode(errors="replace")
        self.done = int(found[-1]) if (found := _DONE.findall(said)) else 0


def end_import(
    site: SiteRoot, study_file: Path, after: int, *numbers: signal.Signals
) -> Interrupted:
    """Start the command, and send it signals once it says that so many entries are done.

    A command that is at its end before is let go. Its processes are waited for: the command's,
    and all that it started.
    """
    with _terminal() as (terminal, its_end):
        process = subprocess.Popen(
            command(site, study_file), stdin=its_end, stdout=its_end, stderr=its_end,
            start_new_session=True,
        )  # fmt: skip
        os.close(its_end)
        said = b""
        for piece in _pieces(terminal):
            said += piece
            if numbers and Interrupted(0, said).done >= after:
                for number in numbers:
                    _send(process, number)
                    time.sleep(BETWEEN_S)
                numbers = ()
        code = process.wait(60.0)
    wait_until(lambda: not processes_of_session(process.pid), "every process ended")
    return Interrupted(code, said)


def _send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None and number == signal.SIGKILL:
        process.kill()  # one process, as the system does it that is out of memory
    elif process.poll() is None:
        os.killpg(process.pid, number)  # what a terminal does


@contextmanager
def _terminal() -> Iterator[tuple[int, int]]:
    terminal, its_end = os.openpty()
    try:
        yield terminal, its_end
    finally:
        os.close(terminal)


def _pieces(terminal: int) -> Iterator[bytes]:
    """What is written, until nobody has the terminal open any more."""
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # how Linux says that
            return
        if not piece:
            return
        yield piece


def processes_of_session(session: int) -> list[int]:
    """Processes that are still there of all that a session's leader started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def caches(site: SiteRoot) -> list[Path]:
    """The folders of its caches."""
    return [path.parent for path in (site.folder / "cache").glob(f"*/{INDEX}")]


def rows_of(site: SiteRoot) -> list[int]:
    """The records that its cache names, as they are on the disk."""
    found = []
    for folder in caches(site):
        index = sqlite3.connect(folder / INDEX)
        try:
            asked = "SELECT row FROM scans WHERE row IS NOT NULL ORDER BY row"
            found += [row for (row,) in index.execute(asked)]
        except sqlite3.OperationalError:  # ended before it had made its tables
            pass
        finally:
            index.close()
    return found


def records_bytes(site: SiteRoot) -> int:
    """Length of its records."""
    return sum((folder / TENSORS).stat().st_size for folder in caches(site))


def images_of(site: SiteRoot, study: Study) -> NDArray[np.float32]:
    """All of its tensors, from the cache."""
    scans = cached_scans(site, study)
    return scans.images[np.arange(len(scans))]
