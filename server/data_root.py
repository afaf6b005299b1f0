"""The server's data root: one folder that holds all that a server must not lose.

::

    trust/         ca.pem ca.key server.pem server.key
    coordinator/   what a coordinator copies: ca.pem client.pem client.key server.toml
    sites/         <SITE>.pub, nodes.json {site: Flower's node id}, <SITE>.head.json (the highest
                   head of its ledger)
    flower/        what Flower keeps: state.db, its homes, logs
    runs/<RUN>/    study.json and what the rounds write
    journal.db     what happened in every run

Folders have mode 0700, files 0600.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
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

COORDINATOR = "coordinator"
"""The name in the certificate of whoever may use the control service."""
_SITE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


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
            ConfigError: the folder cannot be written, or a host is no host.
        """
        for folder in (self.path, self.trust, self.coordinator, self.sites, self.flower):
            private_folder(folder)
        private_folder(self.path / "runs")
        if not (self.trust / "ca.pem").exists():
            new_authority(self.trust)
        if not server_certificate_serves(self.trust, hosts):
            issue_server_certificate(self.trust, hosts)
        if not (self.coordinator / "client.pem").exists():
            issue_client_certificate(self.trust, self.coordinator, COORDINATOR)
        self.write_nodes(self.nodes())
        text = (
            "# How to reach the server's control service. Over a network, forward the port:\n"
            f"# ssh -L {control_port}:127.0.0.1:{control_port} SERVER\n"
            f'control = "127.0.0.1:{control_port}"\n'
        )
        write_private(self.coordinator / "server.toml", text.encode(), replace=True)

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
        """Read the public key of every enrolled site, by name."""
        return {path.stem: read_public_key(path) for path in sorted(self.sites.glob("*.pub"))}

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


def check_site_name(site: str) -> str:
    """Check a site's name, which becomes part of a file name.

    Raises:
        ConfigError: it is not a letter followed by at most 31 letters, digits, _ or -.
    """
    if _SITE_NAME.fullmatch(site) is None:
        raise ConfigError(
            f"site name {site[:40]!r} is not allowed: a letter, then at most 31 letters, digits, "
            "'_' or '-'.",
            advice="use the name that stands in the study file.",
        )
    return site
