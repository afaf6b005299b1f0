"""A real Orthanc for tests: fetched once, started in a network of its own, ended for certain.

An Orthanc that is installed is used. Else Debian's packages are downloaded and unpacked under
``~/.cache/medfed-tests`` (10 MB, no root, nothing is installed). Debian's Orthanc listens on
every address, so it runs in a network namespace that has nothing but loopback, and is reached
through Unix sockets; ``orthanc_relay.py`` does that inside the namespace. Where the machine
allows no namespaces Orthanc runs beside the test, told to refuse other machines.

Run this file to fetch the packages: ``python tests/support/orthanc.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

RELAY = Path(__file__).with_name("orthanc_relay.py")
PACKAGES = ("orthanc", "orthanc-dicomweb")
USER, PASSWORD = "medfed", "change-me"
CALLED_AE, CALLING_AE = "ORTHANC", "MEDFED"
_WAIT_S = 30.0


class NoOrthancError(Exception):
    """This machine has no Orthanc and cannot fetch one."""


class Program(NamedTuple):
    """Where Orthanc lies, installed (``/``) or unpacked."""

    root: Path

    @property
    def executable(self) -> Path:
        return self.root / "usr/sbin/Orthanc"

    @property
    def plugin(self) -> Path:
        return self.root / "usr/share/orthanc/plugins/libOrthancDicomWeb.so"

    def environment(self) -> dict[str, str]:
        """The program's own libraries and dictionaries where they are not the system's."""
        inherited = {"PATH": os.environ.get("PATH", os.defpath)}
        if self.root == Path("/"):
            return inherited
        libraries = [*self.root.glob("usr/lib/*-linux-gnu*"), *self.root.glob("lib/*-linux-gnu*")]
        words = sorted(self.root.glob("usr/share/libdcmtk*/*.dic"))
        return inherited | {
            "LD_LIBRARY_PATH": ":".join(str(folder) for folder in libraries),
            "DCMDICTPATH": ":".join(str(w) for w in words if w.stem in ("dicom", "private")),
        }


class Sockets(NamedTuple):
    """Where a running Orthanc is reached: two Unix sockets."""

    http: Path
    dicom: Path


def find_orthanc() -> Program:
    """The installed Orthanc, or one fetched now or before.

    Raises:
        NoOrthancError: with the reason.
    """
    system = Program(Path("/"))
    if system.executable.exists() and system.plugin.exists():
        return system
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)  # not $HOME, which tests replace
    cached = Program(home / ".cache" / "medfed-tests" / "orthanc")
    if not cached.executable.exists():
        _fetch(cached.root)
    return cached


def _fetch(root: Path) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise NoOrthancError("no Orthanc is installed, and without apt-get none can be fetched")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent) as work:
            _unpack(Path(work))
            with contextlib.suppress(OSError):  # another process was faster
                (Path(work) / "root").rename(root)
    except (OSError, subprocess.SubprocessError) as error:
        raise NoOrthancError(
            f"no Orthanc is installed, and none could be fetched: {error}"
        ) from None
    if not Program(root).executable.exists():
        raise NoOrthancError("the packages that were fetched hold no Orthanc")


def _unpack(work: Path) -> None:
    plan = _output("apt-get", "-s", "--no-install-recommends", "install", *PACKAGES)
    missing = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    _output("apt-get", "download", *missing, folder=work)
    for package in work.glob("*.deb"):
        _output("dpkg", "-x", str(package), str(work / "root"))


def _output(*command: str, folder: Path | None = None) -> str:
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=180
    ).stdout


@contextlib.contextmanager
def running_orthanc(folder: Path) -> Iterator[Sockets]:
    """Run an Orthanc until the block ends.

    Args:
        folder: An empty folder of this Orthanc's own.

    Yields:
        Its sockets, once it answers.

    Raises:
        NoOrthancError: there is none, or it does not start.
    """
    program = find_orthanc()
    with tempfile.TemporaryDirectory(prefix="medfed-") as short:  # a socket's path is short
        sockets = Sockets(Path(short) / "http", Path(short) / "dicom")
        isolated = _namespaces_work()
        ports = (18042, 14242) if isolated else (_free_port(), _free_port())
        settings = folder / "orthanc.json"
        settings.write_text(json.dumps(_settings(program, folder, ports)))
        job = {
            "command": [str(program.executable), str(settings)],
            "relays": {str(sockets.http): ports[0], str(sockets.dicom): ports[1]},
            "isolated": isolated,
        }
        with (folder / "orthanc.log").open("wb") as log:
            relay = subprocess.Popen(
                [*(["unshare", "-rn"] if isolated else []), sys.executable, "-I", str(RELAY)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=program.environment(),
            )
        assert relay.stdin is not None
        try:
            relay.stdin.write(json.dumps(job).encode() + b"\n")
            relay.stdin.flush()
            _await_answer(relay, sockets, folder / "orthanc.log")
            yield sockets
        finally:
            with contextlib.suppress(OSError):
                relay.stdin.close()  # the relay ends Orthanc, then itself
            try:
                relay.wait(20)
            finally:
                relay.kill()


def _settings(program: Program, folder: Path, ports: tuple[int, int]) -> Mapping[str, Any]:
    return {
        "Name": "medfed-test",
        "Locale": "C.UTF-8",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "Plugins": [str(program.plugin)],
        "RemoteAccessAllowed": False,
        "HttpPort": ports[0],
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomAet": CALLED_AE,
        "DicomPort": ports[1],
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False,
        "DicomAlwaysAllowFind": False,
        "DicomAlwaysAllowGet": False,
        "DicomModalities": {
            "medfed": {
                "AET": CALLING_AE,
                "Host": "127.0.0.1",
                "Port": 1,
                "AllowEcho": True,
                "AllowFind": True,
                "AllowGet": True,
            }
        },
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Ssl": False},
    }


def _await_answer(relay: subprocess.Popen[bytes], sockets: Sockets, log: Path) -> None:
    until = time.monotonic() + _WAIT_S
    while time.monotonic() < until:
        if relay.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(sockets.http))
            connection.sendall(b"GET /system HTTP/1.0\r\n\r\n")
            if connection.recv(12).startswith(b"HTTP/"):
                return
        time.sleep(0.1)
    raise NoOrthancError(f"Orthanc does not start: {log.read_text(errors='replace')[-600:]}")


def _namespaces_work() -> bool:
    try:
        return subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.stdout.write(f"{find_orthanc().executable}\n")
