"""The server's data root: made once, kept, private."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from medfed.common.errors import ConfigError
from medfed.common.study import parse_study, study_from_canonical
from medfed.common.trust.certificates import read_authority, server_certificate_serves
from medfed.common.trust.identities import check_site_name
from medfed.server.data_root import DataRoot

STUDY = parse_study(
    (Path(__file__).parents[2] / "support" / "tiny_study.toml")
    .read_text()
    .replace("{name}", "demo")
    .replace("{rounds}", "3")
)


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    made = DataRoot(tmp_path / "root")
    made.prepare(["hub.example"], 8444)
    return made


def test_everything_in_a_new_root_is_for_its_owner_only(root: DataRoot) -> None:
    for path in [root.path, *root.path.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_a_second_start_keeps_the_authority_and_the_coordinator(root: DataRoot) -> None:
    before = {path: path.read_bytes() for path in root.path.rglob("*") if path.is_file()}

    root.prepare(["hub.example"], 8444)

    assert {path: path.read_bytes() for path in before} == before


def test_a_new_host_gets_a_new_server_certificate_of_the_same_authority(root: DataRoot) -> None:
    authority = read_authority(root.trust / "ca.pem")

    root.prepare(["hub.example", "new.example"], 8444)

    assert read_authority(root.trust / "ca.pem") == authority
    assert server_certificate_serves(root.trust, ["new.example", "hub.example"])


def test_coordinator_folder_says_where_the_control_service_is(root: DataRoot) -> None:
    root.prepare(["hub.example"], 9999)

    assert 'control = "127.0.0.1:9999"' in (root.coordinator / "server.toml").read_text()
    assert (root.coordinator / "ca.pem").read_bytes() == (root.trust / "ca.pem").read_bytes()


def test_the_authority_key_stays_out_of_the_coordinator_folder(root: DataRoot) -> None:
    names = {path.name for path in root.coordinator.iterdir()}
    assert names == {"ca.pem", "client.pem", "client.key", "server.toml"}


def test_runs_of_one_study_are_numbered(root: DataRoot) -> None:
    first, second = root.new_run(STUDY), root.new_run(STUDY)

    assert first == f"demo-{STUDY.digest[:8]}-1"
    assert second == f"demo-{STUDY.digest[:8]}-2"
    kept = (root.run_folder(first) / "study.json").read_bytes()
    assert study_from_canonical(kept) == STUDY


def test_a_run_folder_that_was_removed_by_hand_is_not_overwritten(root: DataRoot) -> None:
    runs = [root.new_run(STUDY) for _ in range(3)]
    (root.run_folder(runs[0]) / "study.json").unlink()
    root.run_folder(runs[0]).rmdir()

    assert root.new_run(STUDY) == f"demo-{STUDY.digest[:8]}-4"


def test_nodes_are_read_as_written(root: DataRoot) -> None:
    assert root.nodes() == {}
    root.write_nodes({"A": 2**63 + 5})  # Flower's ids fill 64 bits
    assert root.nodes() == {"A": 2**63 + 5}


def test_a_root_is_held_by_one_server_only(root: DataRoot) -> None:
    with (
        root.held(),
        pytest.raises(ConfigError, match="another medfed server is running"),
        DataRoot(root.path).held(),
    ):
        pass
    with root.held():
        pass


@pytest.mark.parametrize("name", ["", "../A", "a/b", "1A", "A.pub", "A" * 33, "Ä"])
def test_a_site_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not allowed"):
        check_site_name(name)


@pytest.mark.parametrize("name", ["A", "st-mary_2", "A" * 32])
def test_a_site_name_of_the_study_file_is_allowed(name: str) -> None:
    assert check_site_name(name) == name
