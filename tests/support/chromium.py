"""A real headless Chromium for tests of pages: fetched once, and never let near the network.

A headless shell that is installed is used. Else Debian's packages are downloaded and unpacked
under ``~/.cache/medfed-tests`` (70 MB, no root, nothing is installed). What a page asks of the
network is read from Chromium's own network log, so a request that is refused is seen as well.

Run this file to fetch the packages: ``python tests/support/chromium.py``. With a page and a PNG
as arguments it takes a picture: ``... chromium.py PAGE PICTURE [WIDTH HEIGHT [dark]]``.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("chromium-headless-shell",)
"""The headless shell: unlike the browser it asks nothing of the network by itself."""
_WAIT_S = 60.0
_CALM = (
    "--no-sandbox",  # in a container, and as root, it has none; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--enable-logging=stderr",
)


class NoChromiumError(Exception):
    """This machine has no Chromium and cannot fetch one."""


class Program(NamedTuple):
    """A Chromium, and where its own libraries are; none where it is installed."""

    executable: Path
    root: Path | None = None

    def environment(self) -> dict[str, str]:
        """As inherited, with its libraries; without a session bus, which it would ask for."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        if self.root is None:
            return kept
        found = [*self.root.glob("usr/lib/*-linux-gnu*"), *self.root.glob("lib/*-linux-gnu*")]
        folders = [*found, *(folder / "pulseaudio" for folder in found)]
        return kept | {"LD_LIBRARY_PATH": ":".join(str(folder) for folder in folders)}


class Loaded(NamedTuple):
    """What became of a page: its document as the browser has it, and what it did."""

    document: str
    console: list[str]
    requests: list[str]


def find_chromium() -> Program:
    """The installed Chromium, or one fetched now or before.

    Raises:
        NoChromiumError: with the reason.
    """
    if found := shutil.which("chromium-headless-shell"):
        return Program(Path(found))
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)  # not $HOME, which tests replace
    root = home / ".cache" / "medfed-tests" / "chromium"
    program = Program(root / "usr/lib/chromium/chromium-headless-shell", root)
    if not program.executable.exists():
        _fetch(program)
    return program


def load(page: Path, *, width: int = 1100, dark: bool = False) -> Loaded:
    """Open a page as a person would, and tell what it did.

    Raises:
        NoChromiumError: there is none.
    """
    with tempfile.TemporaryDirectory(prefix="medfed-") as work:
        log = Path(work) / "net.json"
        options = ("--dump-dom", f"--window-size={width},1400", f"--log-net-log={log}")
        done = _run(page, Path(work), dark, *options)
        console = re.findall(r"CONSOLE.*", done.stderr)
        return Loaded(done.stdout, console, _requests(log))


def take_picture(
    page: Path, picture: Path, *, width: int = 1100, height: int = 1400, dark: bool = False
) -> None:
    """Draw a page into a PNG. Raises NoChromiumError where there is no Chromium."""
    size = f"--window-size={width},{height}"
    with tempfile.TemporaryDirectory(prefix="medfed-") as work:
        _run(page, Path(work), dark, size, f"--screenshot={picture}")


def _run(page: Path, work: Path, dark: bool, *options: str) -> subprocess.CompletedProcess[str]:
    program = find_chromium()
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    profile = f"--user-data-dir={work / 'profile'}"
    command = [str(program.executable), *_CALM, scheme, profile, *options, page.as_uri()]
    environment = program.environment() | {"HOME": str(work)}
    try:
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True, timeout=_WAIT_S
        )
    except subprocess.CalledProcessError as error:
        raise NoChromiumError(f"Chromium does not run: {error.stderr[-500:]}") from None


def _requests(log: Path) -> list[str]:
    """Every address that anything asked the network for."""
    content = json.loads(log.read_text())
    names = {number: name for name, number in content["constants"]["logEventTypes"].items()}
    asked = []
    for event in content["events"]:
        url = event.get("params", {}).get("url", "")
        if names[event["type"]] == "URL_REQUEST_START_JOB" and url:
            asked.append(url)
    return asked


def _fetch(program: Program) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise NoChromiumError("no Chromium is installed, and without apt-get none can be fetched")
    assert program.root is not None
    try:
        program.root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.root.parent) as work:
            _unpack(Path(work))
            with contextlib.suppress(OSError):  # another process was faster
                (Path(work) / "root").rename(program.root)
    except (OSError, subprocess.SubprocessError) as error:
        raise NoChromiumError(
            f"no Chromium is installed, and none could be fetched: {error}"
        ) from None
    if not program.executable.exists():
        raise NoChromiumError("the packages that were fetched hold no Chromium")


def _unpack(work: Path) -> None:
    plan = _output("apt-get", "-s", "--no-install-recommends", "install", *PACKAGES)
    missing = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    _output("apt-get", "download", *missing, folder=work)
    for package in work.glob("*.deb"):
        _output("dpkg", "-x", str(package), str(work / "root"))


def _output(*command: str, folder: Path | None = None) -> str:
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=300
    ).stdout


if __name__ == "__main__":
    if len(sys.argv) < 3:
        print(find_chromium().executable)  # noqa: T201  # a command of its own
    else:
        sides = [int(side) for side in sys.argv[3:5]] or [1100, 1400]
        take_picture(
            Path(sys.argv[1]).absolute(),
            Path(sys.argv[2]).absolute(),
            width=sides[0],
            height=sides[1],
            dark="dark" in sys.argv,
        )
