"""The server's data root: one folder that holds all that a server must not lose.

::

    trust/         ca.pem ca.key server.pem server.key; or what the coordinator brought
    coordinator/   what a coordinator copies: ca.pem client.pem client.key server.toml
    sites/         <SITE>.pub, nodes.json {site: Flower's node id}, <SITE>.head.json (the highest
                   head of its ledger), <SITE>.pem (its certificate), <SITE>.out (a key thrown out)
    flower/        what Flower keeps: state.db, its homes, logs
    guard/         settings and log of the guard
    runs/<RUN>/    study.json and what the rounds write
    journal.db     what happened in every run

Folders have mode 0700, files 0600.

A root with a coordinator's bundle in ``trust/`` is guarded, and stays so. It has no
``coordinator/``. Nothing is written to ``trust/`` but the list that ``revocations.py`` keeps; the
SuperLink, which then listens on loopback, has an authority of its own in ``flower/loopback/``.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medfed.common.errors import ConfigError
from medfed.common.study import Study
from medfed.common.trust.certificates import (
    issue_client_certificate,
    issue_server_certificate,
    new_authority,
    server_certificate_serves,
)
from medfed.common.trust.keys import read_public_key
from medfed.common.trust.private_files import private_folder, write_private
from medfed.server.brought_trust import REVOCATIONS, STUDY_KEYS, check_brought_trust

COORDINATOR = "coordinator"
"""The name in the certificate of whoever may use the control service."""


@dataclass(frozen=True)
class DataRoot:
    """Names of everything in a server's data root.

    Attributes:
        path: The folder, absolute.
    """

    path: Path

    @property
    def trust(self) -> Path:
        """Folder of the authority and the server's certificate."""
        return self.path / "trust"

    @property
    def coordinator(self) -> Path:
        """Folder that a coordinator copies to their own machine."""
        return self.path / "coordinator"

    @property
    def sites(self) -> Path:
        """Folder of the enrolled public keys."""
        return self.path / "sites"

    @property
    def flower(self) -> Path:
        """Folder that Flower's programs write to."""
        return self.path / "flower"

    @property
    def guard(self) -> Path:
        """Folder of the guard's settings and log."""
        return self.path / "guard"

    @property
    def guarded(self) -> bool:
        """Whether only the guard may face the sites: a bundle is there, or was once."""
        marks = (self.trust / STUDY_KEYS, self.trust / REVOCATIONS, self.guard)
        return any(mark.exists() for mark in marks)

    @property
    def superlink_trust(self) -> Path:
        """Folder of the SuperLink's own certificate and the authority that signed it."""
        return self.flower / "loopback" if self.guarded else self.trust

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.path / "journal.db"

    def run_folder(self, run: str) -> Path:
        """Folder of a run: ``study.json`` and what the rounds write."""
        return self.path / "runs" / run

    def prepare(self, hosts: Sequence[str], control_port: int) -> None:
        """Make what is missing, keep what is there.

        Args:
            hosts: Names and addresses by which hospitals reach the server.
            control_port: Port of the control service on loopback.

        Raises:
            ConfigError: the folder cannot be written, a host is no host, or the coordinator's
                bundle is not complete.
            TrustError: the bundle's files do not belong together.
        """
        if self.guarded:
            check_brought_trust(self.trust, hosts)
            self._prepare_folders(self.guard)
            _prepare_authority(private_folder(self.superlink_trust), [])
            return
        self._prepare_folders(self.trust, self.coordinator)
        _prepare_authority(self.trust, hosts)
        if not (self.coordinator / "client.pem").exists():
            issue_client_certificate(self.trust, self.coordinator, COORDINATOR)
        text = (
            "# How to reach the server's control service. Over a network, forward the port:\n"
            f"# ssh -L {control_port}:127.0.0.1:{control_port} SERVER\n"
            f'control = "127.0.0.1:{control_port}"\n'
        )
        write_private(self.coordinator / "server.toml", text.encode(), replace=True)

    def _prepare_folders(self, *more: Path) -> None:
        for folder in (self.path, *more, self.sites, self.flower, self.path / "runs"):
            private_folder(folder)
        self.write_nodes(self.nodes())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the root, made if missing, for this process alone.

        Raises:
            ConfigError: another server holds it, or it cannot be made.
        """
        private_folder(self.path)
        handle = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise ConfigError(
                f"{self.path}: another medfed server is running on this data root.",
                advice="stop that one, or give this one a root of its own.",
            ) from None
        finally:
            os.close(handle)

    def enrolled(self) -> dict[str, bytes]:
        """Read the public key of every enrolled site, by name; not those thrown out."""
        found = {path.stem: read_public_key(path) for path in sorted(self.sites.glob("*.pub"))}
        return {site: key for site, key in found.items() if key != self.thrown_out(site)}

    def thrown_out(self, site: str) -> bytes | None:
        """Read the public key with which a site was last thrown out, if it was.

        Its other files stay, so that rounds that are going on can finish with what it sent.
        """
        path = self.sites / f"{site}.out"
        return read_public_key(path) if path.exists() else None

    def throw_out(self, site: str, public_key: bytes) -> None:
        """Write down that a site is not enrolled with this key any more."""
        write_private(self.sites / f"{site}.out", public_key, replace=True)

    def key_file(self, site: str) -> Path:
        """File of an enrolled site's public key."""
        return self.sites / f"{site}.pub"

    def pending_key_file(self, site: str) -> Path:
        """File of a key while Flower is told of it; it stays only if the server was killed."""
        return self.sites / f"{site}.pub.new"

    def pending(self) -> list[str]:
        """Names of the sites whose enrolment was cut off by a kill; at most one."""
        return [path.name.removesuffix(".pub.new") for path in self.sites.glob("*.pub.new")]

    def nodes(self) -> dict[str, int]:
        """Read Flower's node id of every enrolled site, by name."""
        try:
            found: dict[str, int] = json.loads((self.sites / "nodes.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def write_nodes(self, nodes: Mapping[str, int]) -> None:
        """Keep Flower's node ids, by site name."""
        data = json.dumps(dict(nodes), indent=1, sort_keys=True).encode()
        write_private(self.sites / "nodes.json", data, replace=True)

    def new_run(self, study: Study) -> str:
        """Make the folder of a new run with the study in it; returns the run's name."""
        stem = f"{study.name}-{study.digest[:8]}"
        number = 1 + sum(1 for _ in (self.path / "runs").glob(f"{stem}-*"))
        while self.run_folder(f"{stem}-{number}").exists():
            number += 1
        run = f"{stem}-{number}"
        write_private(private_folder(self.run_folder(run)) / "study.json", study.canonical())
        return run


def _prepare_authority(trust: Path, hosts: Sequence[str]) -> None:
    """Make an authority if there is none, and a server's certificate that names the hosts."""
    if not (trust / "ca.pem").exists():
        new_authority(trust)
    if not server_certificate_serves(trust, hosts):
        issue_server_certificate(trust, hosts)
