"""The coordinator's folder: what it issues, what it revokes, and that no kill loses either."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from cryptography import x509

from medfed.client.enrolment import settle, take_up, taken_up, write_request
from medfed.common.errors import ConfigError, TrustError
from medfed.common.trust.enrolment_files import open_approval
from medfed.common.trust.identities import Role, check_identity
from medfed.common.trust.revocation import open_revocations
from medfed.common.trust.signatures import read_verifying_keys
from medfed.deploy.coordinator_root import Coordinator, new_coordinator
from medfed.deploy.coordinator_state import Standing
from medfed.deploy.server_bundle import issue_server_bundle
from tests.support.enrolling import (
    SERVER,
    Clock,
    bare_site,
    bring_bundle,
    enrolled_site,
    make_coordinator,
    shake_hands,
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def coordinator(tmp_path: Path, clock: Clock) -> Coordinator:
    return make_coordinator(tmp_path, clock)


def request_of(folder: Path, name: str = "A") -> bytes:
    return write_request(bare_site(folder, name)).file.read_bytes()


def standings(coordinator: Coordinator) -> list[tuple[str, str]]:
    return [(one.name, one.standing.value) for one in coordinator.list_certificates()]


def test_everything_in_the_folder_is_for_its_owner_only(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    coordinator.approve_request(request_of(tmp_path), "A")
    coordinator.revoke("A")
    coordinator.rotate_root()
    bundle = issue_server_bundle(coordinator, coordinator.folder / "server-bundle")
    access = coordinator.role_certificate("Ada", Role.OBSERVER, tmp_path / "access")

    for top in (coordinator.folder, bundle, access):
        for path in (top, *top.rglob("*")):
            allowed = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == allowed, path


def test_neither_signing_key_is_in_what_the_server_gets(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    secrets = [(coordinator.folder / name).read_bytes() for name in ("ca.key", "study.key")]

    bundle = issue_server_bundle(coordinator, tmp_path / "bundle")

    held = [path.read_bytes() for path in bundle.rglob("*") if path.is_file()]
    assert {p.name for p in bundle.iterdir()} == {
        *("ca.pem", "study.pub", "server.pem", "server.key", "revocations.json", "sites")
    }
    assert not set(secrets) & set(held)


def test_a_site_and_a_server_that_were_enrolled_recognise_each_other(
    tmp_path: Path, coordinator: Coordinator, clock: Clock
) -> None:
    root = enrolled_site(tmp_path, coordinator, clock)
    trust = bring_bundle(coordinator, tmp_path / "trust")

    assert shake_hands(trust, root) == "CN=A"
    assert (trust / "sites" / "A.pem").read_text() == (root / "trust" / "site.pem").read_text()


def test_an_approval_says_what_the_coordinator_said(
    tmp_path: Path, coordinator: Coordinator, clock: Clock
) -> None:
    done = coordinator.approve_request(request_of(tmp_path), "A")

    keys = read_verifying_keys(coordinator.folder / "study.pub")
    approval = open_approval(done.file.read_bytes(), keys, source="A")
    assert (approval.site, approval.server, approval.issued) == ("A", SERVER, clock.at)
    assert approval.newest(source="A").fingerprint == coordinator.fingerprint


def test_numbers_grow_also_after_the_folder_came_back_from_a_backup(
    tmp_path: Path, coordinator: Coordinator, clock: Clock
) -> None:
    keys = read_verifying_keys(coordinator.folder / "study.pub")
    backup = (coordinator.folder / "state.json").read_bytes()
    before = open_revocations(coordinator.revocation_list(), keys, source="list").sequence
    again = open_revocations(coordinator.revocation_list(), keys, source="list").sequence
    assert again == before + 1  # in the same second

    (coordinator.folder / "state.json").write_bytes(backup)
    clock.turn(seconds=2)

    after = open_revocations(coordinator.revocation_list(), keys, source="list").sequence
    assert after > again


def test_the_list_tells_where_each_certificate_stands(
    tmp_path: Path, coordinator: Coordinator, clock: Clock
) -> None:
    for name in ("A", "B"):
        coordinator.approve_request(request_of(tmp_path, name), name)
    coordinator.revoke("B")
    assert standings(coordinator) == [("A", "good"), ("B", "revoked")]

    clock.turn(days=77)  # 13 of 90 are left; 14 is the margin
    assert standings(coordinator)[0] == ("A", "expiring")
    coordinator.renew("A")
    clock.turn(days=14)

    assert standings(coordinator) == [("A", "expired"), ("B", "revoked"), ("A", "good")]
    first = coordinator.list_certificates()[0]
    assert (first.kind, len(first.fingerprint)) == ("site", 64)  # SHA-256


def test_a_site_that_is_revoked_is_on_the_list_and_in_no_bundle(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    for name in ("A", "B"):
        coordinator.approve_request(request_of(tmp_path, name), name)
    bundle = issue_server_bundle(coordinator, tmp_path / "bundle")
    assert {path.stem for path in (bundle / "sites").iterdir()} == {"A", "B"}

    done = coordinator.revoke("B")
    issue_server_bundle(coordinator, tmp_path / "bundle")

    assert {path.stem for path in (bundle / "sites").iterdir()} == {"A"}
    keys = read_verifying_keys(bundle / "study.pub")
    listed = open_revocations((bundle / "revocations.json").read_bytes(), keys, source="list")
    assert listed.serials == tuple(done.serials)
    assert done.serials == [c.serial for c in coordinator.list_certificates() if c.name == "B"]


def test_a_certificate_is_revoked_by_its_number_and_its_key_certified_again(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    coordinator.approve_request(request_of(tmp_path), "A")
    serial = coordinator.list_certificates()[0].serial

    pairs = ":".join(serial.zfill(40)[i : i + 2] for i in range(0, 40, 2))  # as openssl shows it
    assert coordinator.revoke(pairs.upper()).serials == [serial]
    coordinator.renew("A")

    assert standings(coordinator) == [("A", "revoked"), ("A", "good")]


def test_a_key_that_was_thrown_out_is_not_certified_again(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    request = request_of(tmp_path)
    coordinator.approve_request(request, "A")
    coordinator.revoke("A")

    for again in (
        lambda: coordinator.approve_request(request, "A"),
        lambda: coordinator.approve_request(request, "A", replace=True),
        lambda: coordinator.renew("A"),
    ):
        with pytest.raises(TrustError, match="was revoked; it is not certified again"):
            again()


@pytest.mark.parametrize(("days", "first"), [(0, "good"), (91, "expired")])
def test_another_key_of_a_site_needs_a_word_and_revokes_the_first(
    tmp_path: Path, coordinator: Coordinator, clock: Clock, days: int, first: str
) -> None:
    coordinator.approve_request(request_of(tmp_path), "A")
    other = request_of(tmp_path / "again")
    clock.turn(days=days)

    with pytest.raises(TrustError, match="has a certificate over another key"):
        coordinator.approve_request(other, "A")
    assert standings(coordinator) == [("A", first)]

    coordinator.approve_request(other, "A", replace=True)
    assert standings(coordinator) == [("A", "revoked"), ("A", "good")]


def test_a_site_that_was_thrown_out_comes_back_with_a_new_key(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    coordinator.approve_request(request_of(tmp_path), "A")
    coordinator.revoke("A")

    coordinator.approve_request(request_of(tmp_path / "again"), "A")

    assert standings(coordinator) == [("A", "revoked"), ("A", "good")]


def test_revoking_what_is_not_there_is_refused(coordinator: Coordinator) -> None:
    for who in ("A", "", "0", "ffff", "\x1b[2J"):
        with pytest.raises(TrustError, match="neither a site") as caught:
            coordinator.revoke(who)
        assert "\x1b" not in str(caught.value)
    with pytest.raises(TrustError, match="no certificate to renew"):
        coordinator.renew("A")


def test_a_persons_access_says_their_role_and_can_be_revoked(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    access = coordinator.role_certificate("Ada", Role.COORDINATOR, tmp_path / "access")

    authority = x509.load_pem_x509_certificate((access / "ca.pem").read_bytes())
    who = check_identity((access / "client.pem").read_bytes(), [authority], source="client.pem")
    assert (who.name, who.role) == ("Ada", Role.COORDINATOR)
    coordinator.revoke(format(who.serial, "x"))
    assert coordinator.list_certificates()[0].standing is Standing.REVOKED


def test_a_server_keeps_its_certificate_until_its_hosts_or_time_ask_for_another(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    first = (issue_server_bundle(coordinator, tmp_path / "b") / "server.pem").read_bytes()
    assert (issue_server_bundle(coordinator, tmp_path / "b") / "server.pem").read_bytes() == first

    serial = coordinator.list_certificates()[-1].serial
    coordinator.revoke(serial)

    assert (issue_server_bundle(coordinator, tmp_path / "b") / "server.pem").read_bytes() != first


def test_a_folder_with_something_else_is_not_replaced_by_a_bundle(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()

    with pytest.raises(ConfigError, match="holds something else"):
        issue_server_bundle(coordinator, tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").exists()


@pytest.mark.parametrize("server", ["hub", "hub:0", "hub:70000", "a b:1", "hub:8443\n", "\x1b:1"])
def test_an_address_that_is_none_makes_no_folder(tmp_path: Path, server: str) -> None:
    with pytest.raises(ConfigError, match="server address"):
        new_coordinator(tmp_path / "c", server)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_never_touched(tmp_path: Path, coordinator: Coordinator) -> None:
    with pytest.raises(ConfigError, match="never overwritten"):
        new_coordinator(coordinator.folder, SERVER)
    with pytest.raises(ConfigError, match="is no coordinator's folder"):
        Coordinator(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["ca.key", "study.key"])
def test_a_key_that_others_may_read_is_refused(coordinator: Coordinator, name: str) -> None:
    (coordinator.folder / name).chmod(0o640)

    with pytest.raises(ConfigError, match="mode 0640, allowed: 0600"):
        Coordinator(coordinator.folder)


# ---- rotation ------------------------------------------------------------------------------------
def test_a_rotation_keeps_every_site_connected_at_every_step(tmp_path: Path) -> None:
    clock = Clock(days_ago=30)
    coordinator = make_coordinator(tmp_path, clock)
    quick, slow = (enrolled_site(tmp_path, coordinator, clock, name) for name in ("A", "B"))
    trust = bring_bundle(coordinator, tmp_path / "trust")

    def connected() -> list[str]:
        return [shake_hands(trust, root) for root in (quick, slow)]

    assert connected() == ["CN=A", "CN=B"]
    renewed = {done.site: done.file for done in coordinator.rotate_root(overlap_days=30)}
    assert connected() == ["CN=A", "CN=B"]
    bring_bundle(coordinator, trust)
    assert connected() == ["CN=A", "CN=B"]

    take_up(quick, renewed["A"], clock=clock)
    assert connected() == ["CN=A", "CN=B"]
    clock.turn(days=29)
    take_up(slow, renewed["B"], clock=clock)
    assert connected() == ["CN=A", "CN=B"]
    assert (slow / "trust" / "study.pub").read_text().count("BEGIN") == 2

    clock.turn(days=1)
    bring_bundle(coordinator, trust)
    assert connected() == ["CN=A", "CN=B"]
    for root in (quick, slow):
        settle(root, clock=clock)
    assert connected() == ["CN=A", "CN=B"]
    for path in (trust / "ca.pem", trust / "study.pub", quick / "trust" / "ca.pem"):
        assert path.read_text().count("BEGIN") == 1


def test_after_the_overlap_the_old_root_opens_nothing(tmp_path: Path) -> None:
    clock = Clock(days_ago=30)
    coordinator = make_coordinator(tmp_path, clock)
    late = enrolled_site(tmp_path, coordinator, clock)
    trust = bring_bundle(coordinator, tmp_path / "trust")
    coordinator.rotate_root(overlap_days=30)
    clock.turn(days=30)
    bring_bundle(coordinator, trust)

    with pytest.raises(OSError, match="certificate"):
        shake_hands(trust, late)
    assert not list(coordinator.folder.glob("past/*/ca.key"))


def test_a_site_that_slept_through_two_rotations_follows_without_a_phone_call(
    tmp_path: Path,
) -> None:
    clock = Clock(days_ago=20)
    coordinator = make_coordinator(tmp_path, clock)

    root = enrolled_site(tmp_path, coordinator, clock)
    for _ in range(2):
        coordinator.rotate_root(overlap_days=10)
        clock.turn(days=10)

    done = take_up(root, coordinator.renew("A").file, clock=clock)

    assert done.fingerprint == coordinator.fingerprint
    assert shake_hands(bring_bundle(coordinator, tmp_path / "trust"), root) == "CN=A"


def test_a_second_rotation_waits_for_the_end_of_the_first(
    coordinator: Coordinator, clock: Clock
) -> None:
    coordinator.rotate_root(overlap_days=10)

    with pytest.raises(ConfigError, match="the last rotation's overlap goes on"):
        coordinator.rotate_root()
    with pytest.raises(ConfigError, match="overlap of 0 days"):
        coordinator.rotate_root(overlap_days=0)
    clock.turn(days=10)
    coordinator.rotate_root()


# ---- kills ---------------------------------------------------------------------------------------
class Killed(BaseException):
    """Ends what runs, at a moment that the test chooses."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """``{"replace": n}``: end just before the n-th file takes its place; 0: never."""
    left = {"replace": 0}
    real = os.replace

    def replace(source: str | Path, target: str | Path) -> None:
        left["replace"] -= 1
        if left["replace"] == 0:
            raise Killed
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power fails here; it takes most time
    return left


def test_a_rotation_that_is_killed_anywhere_is_finished_or_never_began(
    tmp_path: Path, clock: Clock, kill_at: dict[str, int]
) -> None:

    (tmp_path / "0").mkdir()
    first = make_coordinator(tmp_path / "0", clock)
    enrolled_site(tmp_path / "0", first, clock)
    before, finished = first.fingerprint, 0
    for moment in range(1, 40):
        place = shutil.copytree(tmp_path / "0", tmp_path / str(moment))
        coordinator = Coordinator(place / first.folder.name, clock=clock)
        root = place / "medfed-A"
        kill_at["replace"] = moment
        try:
            coordinator.rotate_root()
        except Killed:
            pass
        else:
            finished = moment
        kill_at["replace"] = 0

        again = Coordinator(coordinator.folder, clock=clock)  # its keys belong together
        if again.fingerprint == before:
            again.rotate_root()
        done = take_up(root, again.renew("A").file, clock=clock)
        trust = bring_bundle(again, place / "trust")

        assert done.fingerprint == again.fingerprint != before
        assert shake_hands(trust, root) == "CN=A"
        if finished:
            break
    assert finished > 15  # files that a rotation writes: fewer would mean that nothing was killed


def test_an_approval_that_is_killed_anywhere_leaves_no_certificate_unlisted(
    tmp_path: Path, clock: Clock, kill_at: dict[str, int]
) -> None:
    coordinator = make_coordinator(tmp_path, clock)
    request = request_of(tmp_path)
    for moment in (1, 2, 3):
        kill_at["replace"] = moment
        try:
            coordinator.approve_request(request, "A")
        except Killed:
            pass
        kill_at["replace"] = 0
        files = list(coordinator.folder.glob("approvals/*.json"))
        keys = read_verifying_keys(coordinator.folder / "study.pub")
        out = {
            x509.load_pem_x509_certificate(
                open_approval(path.read_bytes(), keys, source="A").certificate.encode()
            ).serial_number
            for path in files
        }
        assert out <= {int(one.serial, 16) for one in coordinator.list_certificates()}
    assert out  # the third was not killed


def test_a_revocation_that_is_killed_is_on_the_next_list(
    tmp_path: Path, clock: Clock, kill_at: dict[str, int]
) -> None:
    coordinator = make_coordinator(tmp_path, clock)
    coordinator.approve_request(request_of(tmp_path), "A")
    kill_at["replace"] = 2  # the state is written, the list is not

    with pytest.raises(Killed):
        coordinator.revoke("A")
    kill_at["replace"] = 0

    keys = read_verifying_keys(coordinator.folder / "study.pub")
    listed = open_revocations(coordinator.revocation_list(), keys, source="list")
    assert listed.serials == (coordinator.list_certificates()[0].serial,)


def test_an_enrolled_site_knows_what_it_took_up(
    tmp_path: Path, coordinator: Coordinator, clock: Clock
) -> None:
    root = enrolled_site(tmp_path, coordinator, clock)

    approval = taken_up(root)

    assert approval is not None and approval.site == "A"
