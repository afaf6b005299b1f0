"""Who may ask what of a guarded server's control service, over real gRPC on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from medfed.common.errors import ConfigError, TrustError
from medfed.common.trust.certificates import issue_client_certificate, new_authority
from medfed.common.trust.identities import Role
from medfed.server.control import ControlService
from medfed.server.control_access import ByRole
from medfed.server.control_client import CONTROL, ControlClient
from medfed.server.journal import RunStatus
from medfed.server.revocations import Revocations
from tests.support.guarded import House, new_house

pytestmark = pytest.mark.network

STATUS = RunStatus(
    run="r", study="s", digest="1" * 64, state="running", round=1, rounds=3, sites={},
    headline="", exit_code=None, updated_at=1.0, pid=None,
)  # fmt: skip


class Desk:
    """Does nothing, and counts; a run's round goes up at each look."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def enrol(self, site: str, public_key: bytes, *, replace: bool) -> tuple[str, bool]:
        self.asked.append("enrol")
        return "", False

    def launch(self, study: bytes) -> tuple[str, bool]:
        self.asked.append("launch")
        return "r", False

    def status(self, run: str) -> RunStatus:
        self.asked.append("status")
        return RunStatus(**{**STATUS.__dict__, "round": len(self.asked)})

    def stop(self, run: str) -> RunStatus:
        self.asked.append("stop")
        return STATUS


@dataclass
class Running:
    house: House
    desk: Desk

    def person(self, role: Role) -> ControlClient:
        """Somebody with a role, asking."""
        return self.house.asking(self.house.person(role.value, role))

    def revoke(self, name: str) -> None:
        """Revoke a person's certificate and bring the list."""
        listed = self.house.coordinator.list_certificates()
        (serial,) = [one.serial for one in listed if one.name == name]
        self.house.coordinator.revoke(serial)
        self.house.bring_list()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    house, desk = new_house(tmp_path), Desk()
    house.site("A")
    house.bring_bundle()
    revoked = Revocations(house.root.trust, lambda error: None)
    access = ByRole(house.root.trust, revoked.is_revoked)
    service = ControlService(desk, house.root, house.control_port, access)
    yield Running(house, desk)
    service.close()


def test_a_coordinator_may_ask_everything(running: Running) -> None:
    with running.person(Role.COORDINATOR) as ada:
        ada.enrol("A", b"")
        ada.launch(b"")
        ada.stop()
        ada.status()
        next(ada.watch())
    assert running.desk.asked[:5] == ["enrol", "launch", "stop", "status", "status"]


def test_an_observer_may_look_and_change_nothing(running: Running) -> None:
    with running.person(Role.OBSERVER) as olga:
        olga.status()
        next(olga.watch())
        for change in (lambda: olga.enrol("A", b""), lambda: olga.launch(b""), olga.stop):
            with pytest.raises(TrustError, match="by an observer to change something"):
                change()
    assert set(running.desk.asked) == {"status"}


def test_a_revoked_person_is_refused_and_an_open_watch_ends(running: Running) -> None:
    with running.person(Role.OBSERVER) as olga:
        updates = olga.watch()
        next(updates)
        running.revoke("observer")

        with pytest.raises(TrustError, match="is revoked"):
            list(updates)
        with pytest.raises(TrustError, match="is revoked"):
            olga.status()


def test_a_sites_certificate_opens_nothing(running: Running) -> None:
    site, access = running.house.folder / "medfed-A", running.house.folder / "as-site"
    access.mkdir()
    shutil.copy(site / "trust" / "site.pem", access / "client.pem")
    shutil.copy(site / "key.pem", access / "client.key")
    shutil.copy(site / "trust" / "ca.pem", access)
    (access / "server.toml").write_text(f'control = "127.0.0.1:{running.house.control_port}"\n')

    with ControlClient(access) as client, pytest.raises(TrustError, match="a site's certificate"):
        client.status()
    assert running.desk.asked == []


def test_the_name_coordinator_alone_opens_nothing(running: Running) -> None:
    # As the authority of a plain root names its coordinator: a common name and no role.
    access = running.house.folder / "by-name"
    issue_client_certificate(running.house.coordinator.folder, access, "coordinator")
    where = f"127.0.0.1:{running.house.control_port}"
    with (
        ControlClient(access, where) as client,
        pytest.raises(TrustError, match="found one"),
    ):
        client.status()
    assert running.desk.asked == []


def test_a_person_of_another_coordinator_is_refused_with_the_way_to_access(
    running: Running, tmp_path: Path
) -> None:
    other = new_house(tmp_path / "other")
    access = other.person("Eve", Role.COORDINATOR)
    shutil.copy(running.house.root.trust / "ca.pem", access)
    where = f"127.0.0.1:{running.house.control_port}"
    with ControlClient(access, where) as client, pytest.raises(TrustError, match="enrol role"):
        client.status()
    assert running.desk.asked == []


def test_changed_keys_of_the_coordinator_are_taken_up_by_the_next_connection(
    running: Running,
) -> None:
    running.house.coordinator.rotate_root(overlap_days=30)
    running.house.bring_bundle()

    with running.person(Role.OBSERVER) as olga:  # by the new authority
        olga.status()


def test_files_that_cannot_be_used_are_told_and_change_nothing_for_those_who_ask(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    new_authority(running.house.folder / "other")
    issue_client_certificate(running.house.folder / "other", running.house.folder / "x", "x")
    shutil.copy(running.house.folder / "x" / "client.key", running.house.root.trust / "server.key")

    with running.person(Role.OBSERVER) as olga:
        olga.status()
    assert "control.files-not-taken-up" in caplog.text


def test_a_persons_folder_is_asked_at_the_default_address(running: Running) -> None:
    access = running.house.person("Olga", Role.OBSERVER)
    with ControlClient(access) as client:
        assert client.address == CONTROL
    (access / "server.toml").write_text('control = "127.0.0.1:9"\n')
    with ControlClient(access) as client:
        assert client.address == "127.0.0.1:9"


def test_an_address_that_is_none_is_refused(running: Running) -> None:
    access = running.house.person("Olga", Role.OBSERVER)
    with pytest.raises(ConfigError, match="'hub.example' is no address"):
        ControlClient(access, "hub.example")
