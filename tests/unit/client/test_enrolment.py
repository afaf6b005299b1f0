"""A site's side of enrolment: what it sends, what it believes, and what a renewal changes."""

from __future__ import annotations

import datetime
import os
import stat
from pathlib import Path

import pytest

from medfed.client.enrolment import (
    certificate_expiry,
    settle,
    take_up,
    taken_up,
    write_request,
)
from medfed.common.errors import ConfigError, TrustError
from medfed.common.trust.identities import SITE_DAYS
from medfed.deploy.coordinator_root import Coordinator
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


def trust_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "trust").iterdir()}


def test_a_request_holds_nothing_private_and_may_be_written_again(tmp_path: Path) -> None:
    root = bare_site(tmp_path)

    first, again = write_request(root), write_request(root)

    assert first == again
    assert first.file.name == "A.request.pem"
    assert b"PRIVATE" not in first.file.read_bytes()
    assert stat.S_IMODE((root / "keys" / "node_key").stat().st_mode) == 0o600


def test_the_coordinator_sees_the_fingerprint_that_the_site_reads_out(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    requested = write_request(bare_site(tmp_path))

    done = coordinator.approve_request(requested.file.read_bytes(), "A")

    assert done.key_fingerprint == requested.fingerprint


def test_a_first_approval_is_believed_by_its_fingerprint(
    tmp_path: Path, coordinator: Coordinator, clock: Clock
) -> None:
    root = bare_site(tmp_path)
    done = coordinator.approve_request(write_request(root).file.read_bytes(), "A")

    taken = take_up(root, done.file, coordinator.fingerprint.lower(), clock=clock)

    assert (taken.site, taken.server, taken.fingerprint) == ("A", SERVER, coordinator.fingerprint)
    assert taken.expires == certificate_expiry(root) == clock.at + datetime.timedelta(SITE_DAYS)
    for name in ("ca.pem", "study.pub"):
        assert (root / "trust" / name).read_bytes() == (coordinator.folder / name).read_bytes()
    for path in (root / "trust", *(root / "trust").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_a_renewal_needs_no_fingerprint_and_no_new_key(
    tmp_path: Path, coordinator: Coordinator, clock: Clock
) -> None:
    clock.turn(days=-80)
    coordinator = make_coordinator(tmp_path / "early", clock)
    root = enrolled_site(tmp_path, coordinator, clock)
    before, key = trust_of(root), (root / "keys" / "node_key").read_bytes()
    clock.turn(days=80)

    taken = take_up(root, coordinator.renew("A").file, clock=clock)

    assert taken.expires == clock.at + datetime.timedelta(SITE_DAYS)
    assert (root / "keys" / "node_key").read_bytes() == key
    changed = {name for name, data in trust_of(root).items() if before[name] != data}
    assert changed == {"site.pem", "approval.json"}
    assert shake_hands(bring_bundle(coordinator, tmp_path / "trust"), root) == "CN=A"


def test_the_same_approval_may_be_taken_up_again(
    tmp_path: Path, coordinator: Coordinator, clock: Clock
) -> None:
    root = enrolled_site(tmp_path, coordinator, clock)
    before = trust_of(root)
    (root / "trust" / "site.pem").unlink()

    take_up(root, coordinator.folder / "approvals" / "A.approval.json", clock=clock)

    assert trust_of(root) == before


def test_a_coordinator_who_began_anew_is_believed_by_their_new_fingerprint_only(
    tmp_path: Path, coordinator: Coordinator, clock: Clock
) -> None:
    root = enrolled_site(tmp_path, coordinator, clock)
    clock.turn(hours=1)
    anew = make_coordinator(tmp_path / "anew", clock)
    done = anew.approve_request(write_request(root).file.read_bytes(), "A")
    before = trust_of(root)

    with pytest.raises(TrustError, match="did not hand over to it"):
        take_up(root, done.file, clock=clock)
    with pytest.raises(TrustError, match="its fingerprint is"):
        take_up(root, done.file, coordinator.fingerprint, clock=clock)
    assert trust_of(root) == before

    assert take_up(root, done.file, anew.fingerprint, clock=clock).fingerprint == anew.fingerprint


def test_settling_forgets_a_root_whose_time_is_over_and_nothing_before(
    tmp_path: Path, coordinator: Coordinator, clock: Clock
) -> None:
    root = enrolled_site(tmp_path, coordinator, clock)
    coordinator.rotate_root(overlap_days=5)
    take_up(root, coordinator.folder / "approvals" / "A.approval.json", clock=clock)
    both = trust_of(root)

    clock.turn(days=4.9)
    settle(root, clock=clock)
    assert trust_of(root) == both
    clock.turn(days=0.1)
    settle(root, clock=clock)

    for name in ("ca.pem", "study.pub"):
        assert (root / "trust" / name).read_bytes() == (coordinator.folder / name).read_bytes()


def test_a_site_without_an_approval_is_left_as_it_is(tmp_path: Path) -> None:
    root = bare_site(tmp_path)

    settle(root)

    assert taken_up(root) is None and not (root / "trust").exists()
    with pytest.raises(ConfigError, match="no approval was taken up"):
        certificate_expiry(root)


def test_an_approval_for_another_server_is_refused(
    tmp_path: Path, coordinator: Coordinator, clock: Clock
) -> None:
    root = bare_site(tmp_path, server="other.example:8443")
    done = coordinator.approve_request(write_request(root).file.read_bytes(), "A")

    with pytest.raises(ConfigError, match=r"hub\.example:8443; site\.toml says other\.example"):
        take_up(root, done.file, coordinator.fingerprint, clock=clock)


@pytest.mark.parametrize("moment", range(1, 5))  # four files are written
def test_a_kill_while_an_approval_is_taken_up_leaves_a_site_that_connects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    clock = Clock(days_ago=1)
    coordinator = make_coordinator(tmp_path, clock)
    root = enrolled_site(tmp_path, coordinator, clock)
    (file,) = [done.file for done in coordinator.rotate_root()]
    trust = bring_bundle(coordinator, tmp_path / "trust")
    left, real = [moment], os.replace

    class Killed(BaseException):
        pass

    def replace(source: str, target: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed):
        take_up(root, file, clock=clock)
    monkeypatch.undo()

    assert shake_hands(trust, root) == "CN=A"
    assert take_up(root, file, clock=clock).fingerprint == coordinator.fingerprint
    assert shake_hands(trust, root) == "CN=A"


def test_a_damaged_approval_is_told(tmp_path: Path, coordinator: Coordinator, clock: Clock) -> None:
    root = enrolled_site(tmp_path, coordinator, clock)
    path = root / "trust" / "approval.json"
    path.write_bytes(path.read_bytes().replace(b'"A"', b'"B"'))

    with pytest.raises(TrustError, match=r"approval\.json"):
        certificate_expiry(root)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_node_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    root = bare_site(tmp_path)
    (root / "keys" / "node_key").chmod(mode)

    with pytest.raises(ConfigError, match=f"mode {mode:04o}, allowed: 0600"):
        write_request(root)
