"""The guard as a process of its own, started as the hub starts it."""

from __future__ import annotations

import datetime
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medfed.common.processes import Child, start_child
from medfed.common.trust.private_files import private_folder
from medfed.common.trust.revocation import RevocationList, serial_text, sign_revocations
from medfed.common.trust.signatures import SigningKey, new_signing_key
from medfed.server.revocations import LIST
from tests.support.flower_hub import wait_until
from tests.support.guard_callers import ended, read_reply
from tests.support.guard_house import GuardHouse

pytestmark = pytest.mark.network

DIGEST = "cd" * 32


class Process:
    """A guard's process and what is around it."""

    def __init__(self, folder: Path) -> None:
        self.house = GuardHouse(folder / "house", sweep_s=0.2)  # not started: only its parts
        self.trust = private_folder(folder / "trust")
        self.key: SigningKey = new_signing_key(self.trust)
        self.log = folder / "guard.log"
        self.config = folder / "guard.json"
        settings = self.house.settings.model_copy(update={"revocations": self.trust})
        self.config.write_text(settings.model_dump_json())

    def revoke(self, sequence: int, *serials: int) -> None:
        """Put a signed list in place."""
        revoked = RevocationList(
            sequence=sequence,
            issued=datetime.datetime.now(datetime.UTC),
            serials=tuple(serial_text(serial) for serial in serials),
        )
        (self.trust / LIST).write_bytes(sign_revocations(self.key, revoked))

    def start(self) -> Child:
        """Start the guard."""
        command = [sys.executable, "-I", "-m", "medfed.server.guard", "--config", str(self.config)]
        return start_child(command, name="guard", output=self.log)

    def port(self) -> int:
        """Where it listens."""
        found = re.search(r"guard\.listening host=127\.0\.0\.1 port=(\d+)", self.log.read_text())
        return int(found[1]) if found else 0


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    yield process
    process.house.superlink.close()


def test_process_serves_hears_sites_and_ends_connections_of_a_certificate_revoked_meanwhile(
    process: Process,
) -> None:
    process.revoke(1)
    guard = process.start()
    try:
        wait_until(lambda: process.log.exists() and process.port(), "the guard listens")
        site = process.house.authority.site("A", port=process.port())
        said = f'{{"kind":"withdraw","study":"{DIGEST}"}}'.encode()
        with site.connect() as link, site.connect() as idle:
            link.sendall(site.request())
            assert read_reply(link).body == b"answer"
            link.sendall(site.request("/v1/site", said))
            reply = read_reply(link)
            assert (reply.status, reply.body) == (200, b'{"run":"unknown"}')
            process.revoke(2, site.serial)
            assert ended(idle)
    finally:
        guard.signal(signal.SIGTERM)
        code = guard.wait(10.0)
        guard.end()

    text = process.log.read_text()
    assert code == 0
    assert f"guard.site-message caller=A missing=0 kind=withdraw study={DIGEST}" in text
    assert f"guard.revoked caller=A missing=0 serial={site.serial:x}" in text


def test_process_without_a_revocation_list_does_not_start(process: Process) -> None:
    guard = process.start()
    try:
        assert guard.wait(20.0) in (10, 15)  # ConfigError or TrustError
    finally:
        guard.end()
    assert "guard.ended" in process.log.read_text()
    assert "Traceback" not in process.log.read_text()
