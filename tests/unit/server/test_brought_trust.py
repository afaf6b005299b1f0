"""A coordinator's bundle in a server's data root: what is used, and what is refused."""

from __future__ import annotations

import logging
import shutil
import stat
import threading
from pathlib import Path

import pytest

from medfed.common.errors import ConfigError, TrustError
from medfed.common.processes import free_port
from medfed.common.trust.certificates import (
    issue_client_certificate,
    new_authority,
    server_certificate_serves,
)
from medfed.server.hub import serve
from tests.support.guarded import House, new_house

pytestmark = pytest.mark.network  # serve() looks whether its ports are free


@pytest.fixture
def house(tmp_path: Path) -> House:
    made = new_house(tmp_path)
    made.bring_bundle()
    return made


def start(house: House) -> None:
    """Start a server in this process; it is expected to refuse."""
    serve(
        house.root,
        host="127.0.0.1",
        port=free_port(),
        control_port=free_port(),
        names=[],
        stop=threading.Event(),
        ready=lambda: None,
    )


def test_preparing_leaves_the_trust_folder_alone_and_is_private(house: House) -> None:
    before = {path: path.read_bytes() for path in house.root.trust.rglob("*") if path.is_file()}

    house.root.prepare(["hub.example"], 8444)

    after = {path: path.read_bytes() for path in house.root.trust.rglob("*") if path.is_file()}
    assert after == before
    assert not house.root.coordinator.exists()
    for path in [house.root.path, *house.root.path.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_the_superlink_gets_an_authority_of_its_own_that_is_kept(house: House) -> None:
    house.root.prepare([], 8444)
    authority = (house.root.superlink_trust / "ca.pem").read_bytes()
    house.root.prepare([], 8444)

    assert house.root.superlink_trust == house.root.flower / "loopback"
    assert (house.root.superlink_trust / "ca.pem").read_bytes() == authority
    assert authority != (house.root.trust / "ca.pem").read_bytes()
    assert server_certificate_serves(house.root.superlink_trust, ["127.0.0.1"])


def test_a_root_without_a_bundle_is_as_it_always_was(tmp_path: Path) -> None:
    root = new_house(tmp_path).root
    root.prepare([], 8444)

    assert not root.guarded
    assert root.superlink_trust == root.trust
    assert (root.trust / "ca.key").exists() and (root.coordinator / "client.pem").exists()


def test_a_guarded_root_does_not_become_an_unguarded_one_when_its_bundle_is_gone(
    house: House,
) -> None:
    house.root.prepare([], 8444)
    shutil.rmtree(house.root.trust)

    with pytest.raises(ConfigError, match="not a complete bundle"):
        house.root.prepare([], 8444)
    assert not house.root.trust.exists()


def test_hosts_that_the_certificate_does_not_name_are_told(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        house.root.prepare(["hub.example", "127.0.0.1"], 8444)
        assert caplog.text == ""
        house.root.prepare(["hub.example", "10.1.2.3"], 8444)
    assert (
        "certificate-names-not hosts=10.1.2.3 names=127.0.0.1,hub.example,localhost" in caplog.text
    )


@pytest.mark.parametrize(
    "name", ["ca.pem", "study.pub", "server.pem", "server.key", "revocations.json"]
)
def test_a_bundle_that_is_not_complete_is_refused_by_name(house: House, name: str) -> None:
    (house.root.trust / name).unlink()
    with pytest.raises(ConfigError, match=f"missing: {name}"):
        house.root.prepare([], 8444)


@pytest.mark.parametrize("name", ["ca.key", "study.key"])
def test_a_key_of_the_coordinator_on_the_server_is_refused(house: House, name: str) -> None:
    shutil.copy(house.coordinator.folder / name, house.root.trust)
    with pytest.raises(TrustError, match=f"holds {name}"):
        house.root.prepare([], 8444)


@pytest.mark.parametrize("name", ["", "ca.pem", "study.pub", "sites"])
def test_trust_that_others_may_change_is_refused(house: House, name: str) -> None:
    path = house.root.trust / name
    path.chmod(path.stat().st_mode | 0o020)
    with pytest.raises(ConfigError, match="other users of this machine may change"):
        house.root.prepare([], 8444)


def test_a_server_key_that_others_may_read_is_refused(house: House) -> None:
    (house.root.trust / "server.key").chmod(0o640)
    with pytest.raises(ConfigError, match="may read the server's private key"):
        house.root.prepare([], 8444)


def test_a_certificate_of_another_authority_is_refused(house: House, tmp_path: Path) -> None:
    other = new_authority(tmp_path / "other")
    shutil.copy(other, house.root.trust / "ca.pem")
    with pytest.raises(TrustError, match="of an authority that is not in ca.pem"):
        house.root.prepare([], 8444)


def test_a_certificate_with_the_key_of_another_is_refused(house: House, tmp_path: Path) -> None:
    new_authority(tmp_path / "other")
    issue_client_certificate(tmp_path / "other", tmp_path / "pair", "x")
    shutil.copy(tmp_path / "pair" / "client.key", house.root.trust / "server.key")
    with pytest.raises(TrustError, match="whose key is not in server.key"):
        house.root.prepare([], 8444)


def test_a_revocation_list_that_was_changed_stops_the_server_before_flower_starts(
    house: House,
) -> None:
    path = house.root.trust / "revocations.json"
    path.write_bytes(path.read_bytes().replace(b'"sequence":1', b'"sequence":7'))

    with pytest.raises(TrustError):
        start(house)
    assert not (house.root.flower / "superlink.log").exists()


def test_a_bundle_that_is_not_complete_stops_the_server_before_flower_starts(house: House) -> None:
    (house.root.trust / "revocations.json").unlink()

    with pytest.raises(ConfigError, match="missing: revocations.json"):
        start(house)
    assert not house.root.flower.exists()
