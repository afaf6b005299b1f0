"""A guarded server and those around it: a coordinator's folder, sites, people with roles."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from medfed.client.enrolment import read_node_key, take_up, write_request
from medfed.common.processes import free_port
from medfed.common.trust.identities import Role
from medfed.deploy.coordinator_root import Coordinator
from medfed.server.control_client import ControlClient
from medfed.server.data_root import DataRoot
from tests.support.enrolling import Clock, bare_site, bring_bundle, make_coordinator
from tests.support.flower_hub import wait_until
from tests.support.guard_callers import Caller


@dataclass
class House:
    """A coordinator's folder, a data root with its bundle, and the server as a process.

    Attributes:
        folder: Where all of it lies.
        clock: The coordinator's.
        coordinator: Who issues.
        root: The server's data root.
    """

    folder: Path
    clock: Clock
    coordinator: Coordinator
    root: DataRoot
    port: int = field(default_factory=free_port)
    control_port: int = field(default_factory=free_port)

    def bring_bundle(self) -> None:
        """Copy a new bundle to the server."""
        self.root.trust.mkdir(mode=0o700, parents=True, exist_ok=True)
        bring_bundle(self.coordinator, self.root.trust)

    def bring_list(self) -> None:
        """Copy the newest revocation list, and nothing else, to the server."""
        shutil.copy(self.coordinator.folder / "revocations.json", self.root.trust)

    def site(self, name: str) -> Caller:
        """Enrol a site by files; who calls the guard as this site. The server has no bundle yet."""
        root = bare_site(self.folder, name)
        done = self.coordinator.approve_request(write_request(root).file.read_bytes(), name)
        take_up(root, done.file, self.coordinator.fingerprint, clock=self.clock)
        key = read_node_key(root / "keys" / "node_key")
        secret = root / "key.pem"
        secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        trust = root / "trust"
        return Caller(name, key, (trust / "site.pem", secret), trust / "ca.pem", self.port)

    def person(self, name: str, role: Role) -> Path:
        """Give a person access; the folder that they keep."""
        return self.coordinator.role_certificate(name, role, self.folder / f"access-{name}")

    def asking(self, access: Path) -> ControlClient:
        """A person at the control service."""
        return ControlClient(access, f"127.0.0.1:{self.control_port}")

    def start(self, host: str = "0.0.0.0") -> subprocess.Popen[bytes]:
        """Start ``medfed server``; returns when it answers. Its output: ``server.log``."""
        log = self.folder / "server.log"
        log.unlink(missing_ok=True)
        with log.open("wb") as output:
            server = subprocess.Popen(
                [sys.executable, "-m", "medfed.deploy.cli", "server", "--host", host,
                 "--root", str(self.root.path), "--port", str(self.port),
                 "--control-port", str(self.control_port)],
                stdout=output, stderr=output,
            )  # fmt: skip
        wait_until(
            lambda: b"Ctrl-C stops it" in log.read_bytes() or server.poll() is not None,
            "the server answers",
            limit_s=120.0,
        )
        assert server.poll() is None, log.read_text()
        return server

    def processes(self) -> dict[int, bytes]:
        """Every process of this server with its command line; zombies are none."""
        marker, found = str(self.root.path).encode(), {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    command = (entry / "cmdline").read_bytes()
                    about = (entry / "environ").read_bytes() + command
                except OSError:
                    continue
                if marker in about:
                    found[int(entry.name)] = command
        return found

    def listeners(self) -> set[tuple[str, int]]:
        """Address and port of every listening socket of these processes."""
        return {found for pid in self.processes() for found in _listening(pid)}


def new_house(folder: Path) -> House:
    """A coordinator, and a data root that nothing was brought to yet."""
    clock = Clock()
    return House(folder, clock, make_coordinator(folder, clock), DataRoot(folder / "server"))


def _listening(pid: int) -> set[tuple[str, int]]:
    inodes = set()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            inodes.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
    except OSError:
        return set()
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # 0A: LISTEN
                address, _, port = fields[1].partition(":")
                found.add((_address(address), int(port, 16)))
    return found


def _address(text: str) -> str:
    """An address of /proc/net: the last 32 bits, which are all of an IPv4 one, mapped or not."""
    head, last = text[:-8], ".".join(map(str, bytes.fromhex(text[-8:])[::-1]))
    return last if head in ("", "0000000000000000FFFF0000") else text
