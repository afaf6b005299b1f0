"""``medfed server`` behind its guard, with a coordinator's bundle: real processes on loopback.

The tests of this file go through one server's life, in the order in which they stand.
"""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medfed.common.errors import ConfigError, TrustError
from medfed.common.trust.identities import Role
from medfed.common.trust.keys import read_public_key
from medfed.deploy.cli import app
from tests.support.flower_hub import wait_until
from tests.support.guard_callers import Caller, ended
from tests.support.guarded import House, new_house

pytestmark = [pytest.mark.slow, pytest.mark.network]


class Life:
    """A guarded server with one site, two people, and what the tests leave for each other."""

    def __init__(self, folder: Path) -> None:
        self.house: House = new_house(folder)
        self.site: Caller = self.house.site("A")
        self.coordinator = self.house.person("Ada", Role.COORDINATOR)
        self.observer = self.house.person("Olga", Role.OBSERVER)
        self.house.bring_bundle()
        self.brought = {path.name for path in self.house.root.trust.iterdir()}
        self.server: subprocess.Popen[bytes] = self.house.start()


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    life = Life(tmp_path_factory.mktemp("guarded"))
    yield life
    life.server.terminate()
    life.server.wait()


def test_only_the_guard_faces_the_network(life: Life) -> None:
    found = life.house.listeners()

    public = {where for where in found if not where[0].startswith("127.")}
    assert public == {("0.0.0.0", life.house.port)}
    assert ("127.0.0.1", life.house.control_port) in found
    # Guard, control service and SuperLink; Flower opens nothing more before a run.
    assert len(found) == 3


def test_nothing_is_made_in_the_trust_folder_but_the_list_that_was_taken(life: Life) -> None:
    now = {path.name for path in life.house.root.trust.iterdir()}
    assert now == life.brought | {"revocations.accepted.json"}
    assert not life.house.root.coordinator.exists()


def test_a_site_with_its_certificate_reaches_flower_and_not_its_control_interface(
    life: Life,
) -> None:
    site = life.site
    assert (
        site.ask(site.request("/health", method="GET", length=0, body=b"", signed={})).status == 200
    )
    assert site.ask(site.request("/v1/control/list-runs")).status == 404


def test_who_shows_no_certificate_is_refused_in_the_handshake(life: Life) -> None:
    stranger = Caller("X", life.site.key, None, life.site.authority, life.house.port)
    older = stranger.tls()
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError):
        stranger.connect(older)
    # TLS 1.3: the caller's side is through before the server has seen that nothing was shown.
    assert stranger.ask(stranger.request("/v1/control/list-runs")).status == 0


def test_the_sites_of_the_bundle_are_enrolled_without_a_command(life: Life) -> None:
    assert list(life.house.root.nodes()) == ["A"]
    key = read_public_key(life.house.folder / "medfed-A" / "keys" / "node_key.pub")
    assert life.house.root.enrolled() == {"A": key}


def test_a_coordinator_may_ask_everything_and_an_observer_only_where_runs_stand(
    life: Life,
) -> None:
    with life.house.asking(life.coordinator) as ada:
        with pytest.raises(ConfigError, match="no run was launched"):
            ada.status()
        with pytest.raises(ConfigError, match="canonical"):
            ada.launch(b"nonsense")
        with pytest.raises(ConfigError, match="its coordinator's bundle, and no others"):
            ada.enrol("B", b"key")
    with life.house.asking(life.observer) as olga:
        with pytest.raises(ConfigError, match="no run was launched"):
            olga.status()
        with pytest.raises(TrustError, match="by an observer"):
            olga.launch(b"nonsense")
        with pytest.raises(TrustError, match="by an observer"):
            olga.stop()


def test_the_folder_of_a_person_is_what_the_commands_take(life: Life) -> None:
    words = ["status", "--access", str(life.observer)]
    words += ["--control", f"127.0.0.1:{life.house.control_port}"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ConfigError)
    assert "no run was launched" in str(done.exception)


def test_a_new_bundle_lets_a_site_in_without_a_restart(life: Life) -> None:
    life.house.site("B")
    life.house.bring_bundle()
    wait_until(lambda: sorted(life.house.root.nodes()) == ["A", "B"], "B is enrolled", 60.0)


def test_a_revocation_list_closes_a_site_and_a_person_out(life: Life) -> None:
    house = life.house
    with life.site.connect() as idle:
        house.coordinator.revoke("A")
        person = next(c for c in house.coordinator.list_certificates() if c.name == "Olga")
        house.coordinator.revoke(person.serial)
        house.bring_list()
        assert ended(idle, 60.0)  # the guard sweeps every 5 s
    with life.site.connect() as again:
        assert ended(again, 60.0)
    with house.asking(life.observer) as olga, pytest.raises(TrustError, match="is revoked"):
        olga.status()
    wait_until(lambda: list(house.root.enrolled()) == ["B"], "A is thrown out", 60.0)


def test_a_guard_that_dies_ends_the_server_and_leaves_nothing_running(life: Life) -> None:
    house = life.house
    (guard,) = [
        pid
        for pid, command in house.processes().items()
        if b"medfed.server.guard" in command and b"process_keeper" not in command
    ]
    os.kill(guard, signal.SIGKILL)

    assert life.server.wait(60) == 14
    assert (
        f"read the end of {house.root.guard / 'guard.log'}"
        in (house.folder / "server.log").read_text()
    )
    assert house.processes() == {}


def test_after_a_restart_the_roll_is_as_before_and_ctrl_c_ends_everything(life: Life) -> None:
    house = life.house
    life.server = house.start()

    assert list(house.root.enrolled()) == ["B"]
    life.server.send_signal(signal.SIGINT)
    assert life.server.wait(60) == 130
    assert house.processes() == {}
