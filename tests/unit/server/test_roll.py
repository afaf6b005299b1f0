"""Which sites a guarded server enrols at Flower, and when it throws one out."""

from __future__ import annotations

import logging
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from medfed.client.enrolment import write_request
from medfed.common.trust.identities import Role
from medfed.common.trust.keys import read_public_key
from medfed.server.data_root import DataRoot
from medfed.server.enrolment import Enrolment
from medfed.server.revocations import Revocations
from medfed.server.roll import SETTLED_S, Roll
from medfed.server.superlink import SuperLink
from tests.support.enrolling import bare_site
from tests.support.guarded import House, new_house


class Flower(SuperLink):
    """Remembers which keys are registered, and takes none twice, as the real one."""

    def __init__(self, root: DataRoot) -> None:
        super().__init__(root, "127.0.0.1", 1, threading.Event())
        self.registered: dict[int, bytes] = {}
        self.seen: list[bytes] = []

    def register(self, site: str, key_file: Path) -> int:
        key = key_file.read_bytes()
        assert key not in self.seen, "Flower was asked to take a key twice"
        self.seen.append(key)
        self.registered[100 + len(self.seen)] = key
        return 100 + len(self.seen)

    def unregister(self, node: int) -> None:
        del self.registered[node]

    def nodes(self) -> dict[int, str]:
        return dict.fromkeys(self.registered, "registered")


@dataclass
class Set:
    house: House
    flower: Flower
    enrolment: Enrolment
    roll: Roll
    now: list[float] = field(default_factory=lambda: [0.0])

    @property
    def enrolled(self) -> list[str]:
        """Sites whose key Flower knows, by the data root."""
        enrolled = self.house.root.enrolled()
        assert sorted(enrolled.values()) == sorted(self.flower.registered.values())
        return list(enrolled)

    def later(self, seconds: float) -> None:
        """Look again after a time."""
        self.now[0] += seconds
        self.roll.follow()


@pytest.fixture
def at(tmp_path: Path) -> Set:
    house = new_house(tmp_path)
    house.site("A")
    house.site("B")
    house.bring_bundle()
    house.root.prepare([], 8444)
    revoked = Revocations(house.root.trust, lambda error: None)
    flower, now = Flower(house.root), [0.0]
    enrolment = Enrolment(house.root, flower)
    roll = Roll(house.root, enrolment, revoked.is_revoked, clock=lambda: now[0])
    roll.follow()
    return Set(house, flower, enrolment, roll, now)


def test_every_site_of_the_bundle_is_enrolled_with_the_key_of_its_certificate(at: Set) -> None:
    assert at.enrolled == ["A", "B"]
    key = read_public_key(at.house.folder / "medfed-A" / "keys" / "node_key.pub")
    assert at.house.root.enrolled()["A"] == key


def test_a_bundle_that_did_not_change_asks_flower_nothing(at: Set) -> None:
    at.later(60)
    assert len(at.flower.seen) == 2


def test_a_revoked_site_is_thrown_out_once_the_list_has_stood(at: Set) -> None:
    at.house.coordinator.revoke("A")
    at.house.bring_list()

    at.later(0)
    assert at.enrolled == ["A", "B"]
    at.later(SETTLED_S)
    assert at.enrolled == ["B"]


def test_a_revoked_site_is_thrown_out_also_when_its_file_is_gone(at: Set) -> None:
    at.house.coordinator.revoke("A")
    at.house.bring_bundle()
    (at.house.root.trust / "sites" / "A.pem").unlink()  # not in the new bundle: a full copy

    at.later(0)
    at.later(SETTLED_S)
    assert at.enrolled == ["B"]


def test_a_file_that_is_missing_throws_nobody_out(at: Set) -> None:
    shutil.rmtree(at.house.root.trust / "sites")
    at.later(0)
    at.later(SETTLED_S * 9)
    assert at.enrolled == ["A", "B"]


def test_a_renewed_certificate_that_comes_after_the_list_keeps_the_site(at: Set) -> None:
    (old,) = [c.serial for c in at.house.coordinator.list_certificates() if c.name == "A"]
    at.house.coordinator.renew("A")
    at.house.coordinator.revoke(old)
    at.house.bring_list()
    at.later(SETTLED_S / 2)  # a copy that is slow
    at.house.bring_bundle()
    at.later(0)
    at.later(SETTLED_S * 9)
    assert at.enrolled == ["A", "B"]


def test_half_a_certificate_throws_nobody_out(at: Set, caplog: pytest.LogCaptureFixture) -> None:
    at.house.coordinator.revoke("A")
    at.house.bring_list()
    path = at.house.root.trust / "sites" / "A.pem"
    path.write_bytes(path.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        at.later(0)
        at.later(SETTLED_S)
    assert at.enrolled == ["A", "B"]
    assert caplog.text.count("sites.certificate-refused file=A.pem") == 1


def test_another_key_of_a_site_takes_the_place_of_the_first(at: Set) -> None:
    site = at.house.folder / "medfed-A"
    shutil.rmtree(site)
    root = bare_site(at.house.folder, "A")
    request = write_request(root).file.read_bytes()
    at.house.coordinator.approve_request(request, "A", replace=True)
    at.house.bring_bundle()

    at.later(0)

    key = read_public_key(root / "keys" / "node_key.pub")
    assert at.house.root.enrolled()["A"] == key
    assert at.enrolled == ["A", "B"]


def test_a_key_that_was_thrown_out_is_not_offered_to_flower_again(
    at: Set, caplog: pytest.LogCaptureFixture
) -> None:
    (old,) = [c.serial for c in at.house.coordinator.list_certificates() if c.name == "A"]
    at.house.coordinator.revoke(old)
    at.house.bring_list()
    at.later(0)
    at.later(SETTLED_S)
    at.house.coordinator.renew("A")
    at.house.bring_bundle()

    with caplog.at_level(logging.WARNING):
        at.later(0)
        at.later(0)
    assert at.enrolled == ["B"]
    assert caplog.text.count("enrol.refused site=A its key was thrown out") == 1


def test_a_throwing_out_that_was_cut_off_is_finished_at_the_next_start(at: Set) -> None:
    root = at.house.root
    root.throw_out("A", root.enrolled()["A"])  # killed before Flower was told

    at.enrolment.take_up()

    assert at.enrolled == ["B"]


def test_a_site_thrown_out_stays_out_when_flower_lost_its_memory(at: Set) -> None:
    at.enrolment.throw_out("A")
    at.flower.registered.clear()
    at.flower.seen.clear()
    at.enrolment.take_up()
    assert at.enrolled == ["B"]


@pytest.mark.parametrize("wrong", ["another site's", "a person's", "no certificate"])
def test_a_file_that_is_not_that_sites_certificate_enrols_nobody(at: Set, wrong: str) -> None:
    sites = at.house.root.trust / "sites"
    data = {
        "another site's": (sites / "A.pem").read_bytes(),
        "a person's": at.house.coordinator.role_certificate(
            "C", Role.OBSERVER, at.house.folder / "c"
        )
        .joinpath("client.pem")
        .read_bytes(),
        "no certificate": b"nothing",
    }[wrong]
    (sites / "C.pem").write_bytes(data)
    at.later(0)
    assert at.enrolled == ["A", "B"]
