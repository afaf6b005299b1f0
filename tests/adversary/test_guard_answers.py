"""What the guard does with the SuperLink's answers, and while it waits for one.

Real sockets against the real guard. The SuperLink behind it is a double that notes what it is
asked: what it was not asked did not get through. ``test_guard_and_flower.py`` has a real one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guard_callers import Caller, TestAuthority, ended
from tests.support.guard_house import GuardHouse

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardHouse]:
    with GuardHouse(tmp_path_factory.mktemp("guard")) as house:
        yield house


@pytest.fixture
def site(house: GuardHouse) -> Caller:
    return house.fresh_site()


# ---- holding an empty answer ---------------------------------------------------------------------
def test_message_that_comes_while_the_answer_is_held_is_given_at_once(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, hold_s=20, look_s=0.05) as house:
        site = house.site()
        house.superlink.answer = lambda seen: (
            200,
            b"" if len(house.superlink.seen) < 5 else b"message",
        )
        reply = site.ask(site.request())

        assert (reply.status, reply.body) == (200, b"message")
        assert len(house.superlink.seen) == 5
        assert len({str(seen.fields) for seen in house.superlink.seen}) == 1


def test_empty_answer_is_given_when_the_hold_is_over(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, hold_s=0.5, look_s=0.1) as house:
        house.superlink.answer = lambda seen: (200, b"")
        site = house.site()
        began = time.monotonic()

        assert site.ask(site.request()).body == b""
        assert time.monotonic() - began > 0.35
        assert len(house.superlink.seen) >= 3


def test_superlink_is_not_asked_for_a_site_that_has_gone(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, hold_s=20, look_s=0.1) as house:
        house.superlink.answer = lambda seen: (200, b"")
        site = house.site()
        with site.connect() as link:
            link.sendall(site.request())
            time.sleep(0.3)
        time.sleep(0.2)
        asked = len(house.superlink.seen)
        time.sleep(0.5)

        assert len(house.superlink.seen) == asked  # what it gives is gone from there


def test_superlink_is_not_asked_for_a_site_that_is_revoked_meanwhile(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, hold_s=20, look_s=0.1) as house:
        house.superlink.answer = lambda seen: (200, b"")
        site = house.site()
        with site.connect() as link:
            link.sendall(site.request())
            time.sleep(0.3)
            house.revoked.add(site.serial)

            assert ended(link, within_s=2)  # before the next sweep, after 5 s
        asked = len(house.superlink.seen)
        time.sleep(0.3)
        assert len(house.superlink.seen) == asked


@pytest.mark.parametrize("then", [401, 500])
def test_later_look_that_goes_wrong_does_not_end_the_node(tmp_path: Path, then: int) -> None:
    with GuardHouse(tmp_path, hold_s=5, look_s=0.05) as house:
        house.superlink.answer = lambda seen: (200 if len(house.superlink.seen) < 3 else then, b"")
        site = house.site()

        assert site.ask(site.request()).status == 200  # to 401 Flower's node would end itself
        assert len(house.superlink.seen) == 3  # and it is not asked again


# ---- the SuperLink's side ------------------------------------------------------------------------
def test_superlink_that_breaks_off_is_a_code_that_flowers_node_tries_again(
    house: GuardHouse, site: Caller
) -> None:
    house.superlink.answer = lambda seen: None

    assert site.ask(site.request()).status == 503
    house.superlink.answer = lambda seen: (200, b"back")
    assert site.ask(site.request()).body == b"back"


@pytest.mark.parametrize("status", [401, 403, 412, 500, 503])
def test_refusal_of_flowers_own_reaches_its_node(
    house: GuardHouse, site: Caller, status: int
) -> None:
    house.superlink.answer = lambda seen: (status, b'{"detail":"why"}')
    reply = site.ask(site.request("/v1/fleet/activate-node"))

    assert (reply.status, reply.body) == (status, b'{"detail":"why"}')


def test_redirection_is_not_handed_on(house: GuardHouse, site: Caller) -> None:
    house.superlink.answer = lambda seen: (307, b"elsewhere")

    assert site.ask(site.request()).status == 503


def test_something_else_on_the_superlinks_port(tmp_path: Path) -> None:
    other = TestAuthority(tmp_path / "other")
    with GuardHouse(tmp_path / "inner") as inner:
        with GuardHouse(tmp_path / "outer", superlink=(inner.superlink.port, other.pem)) as house:
            site = house.site()

            assert site.ask(site.request()).status == 503
        assert inner.superlink.seen == []
