"""Attacks on the guard by size, slowness and number.

Real sockets against the real guard. The SuperLink behind it is a double that notes what it is
asked: what it was not asked did not get through. ``test_guard_and_flower.py`` has a real one.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guard_callers import Caller, ended, many, read_reply
from tests.support.guard_house import GuardHouse

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardHouse]:
    with GuardHouse(tmp_path_factory.mktemp("guard")) as house:
        yield house


@pytest.fixture
def site(house: GuardHouse) -> Caller:
    return house.fresh_site()


# ---- sizes and times -----------------------------------------------------------------------------
def test_declared_body_of_ten_gibibytes(house: GuardHouse, site: Caller) -> None:
    reply = site.ask(site.request("/v1/fleet/push-object", b"", length=10 * 2**30))

    assert (reply.status, reply.closed) == (413, True)
    assert house.superlink.seen == []
    assert house.superlink.taken_bytes < 1000


def test_endless_chunks(house: GuardHouse, site: Caller) -> None:
    head = b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n"
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    with site.connect() as link:
        link.sendall(head + b"\r\n")
        sent = 0
        with pytest.raises(OSError):
            while sent < 64 * 2**20:
                sent += link.send(chunk)
    assert sent < 8 * 2**20  # what socket buffers take while the connection is being closed
    assert house.superlink.taken_bytes < 1000


def test_long_body_is_streamed_and_not_held(tmp_path: Path) -> None:
    size = 96 * 2**20
    with GuardHouse(tmp_path, body_bytes=size) as house:
        site, piece = house.site(), bytes(2**20)
        before = resident_bytes()
        with site.connect() as link:
            link.sendall(site.request("/v1/fleet/push-object", b"", length=size))
            for _ in range(size // len(piece)):
                link.sendall(piece)
            assert read_reply(link).status == 200
        # Caller, guard and double are one process here: buffers of sockets and TLS, no body.
        assert resident_bytes() - before < 24 * 2**20
        assert house.superlink.taken_bytes == size


def test_slow_body(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, grace_s=0.3, bytes_per_s=1000) as house:
        site = house.site()
        with site.connect() as link:
            link.sendall(site.request("/v1/fleet/push-object", b"", length=1000))
            began = time.monotonic()
            with pytest.raises(OSError):
                for _ in range(100):  # 20 bytes per second
                    link.sendall(b"a")
                    time.sleep(0.05)
                    if time.monotonic() - began > 1 and ended(link, within_s=0.01):
                        raise ConnectionResetError
        assert house.wait_for("guard.too-slow")["path"] == "/v1/fleet/push-object"


def test_slow_head_and_silence(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, head_s=0.3, idle_s=0.3) as house:
        site = house.site()
        with site.connect() as slow, site.connect() as silent:
            slow.sendall(b"POST /v1/fl")

            assert ended(slow)
            assert ended(silent)


def test_answer_that_is_not_taken(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, grace_s=0.5, bytes_per_s=100_000_000) as house:
        site = house.site()
        house.superlink.answer = lambda seen: (200, bytes(32 * 2**20))
        with site.connect() as link:
            link.sendall(site.request("/v1/fleet/pull-object"))

            house.wait_for("guard.too-slow")


def test_more_connections_than_one_certificate_may_have(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, connections_per_certificate=3, connections=100) as house:
        site, other = house.site(), house.site("B")
        with many(site.connect, 3) as open_:
            with site.connect() as fourth:
                fourth.sendall(site.request())
                assert read_reply(fourth).status == 200
                assert sum(ended(link, within_s=0.3) for link in open_) == 1  # the oldest idle one
            assert other.ask(other.request()).status == 200


def test_busy_connections_are_not_ended_for_new_ones(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, connections_per_certificate=2) as house:
        site = house.site()
        with many(site.connect, 2) as busy:
            for link in busy:
                link.sendall(site.request("/v1/fleet/push-object", b"a", length=2))
            time.sleep(0.3)
            assert house.shut_out(site)
            assert house.wait_for("guard.too-many-connections")
            for link in busy:
                link.sendall(b"b")
                assert read_reply(link).status == 200


def test_three_hundred_half_open_handshakes_do_not_keep_a_site_out(tmp_path: Path) -> None:
    def half_open() -> socket.socket:
        link = socket.create_connection(("127.0.0.1", house.port), 5, ("127.0.0.2", 0))
        link.sendall(b"\x16\x03\x01\x02\x00\x01")  # the first bytes of a ClientHello
        return link

    with GuardHouse(tmp_path, half_open=64, half_open_per_address=32) as house:
        site = house.site()
        with many(half_open, 300):
            began = time.monotonic()
            assert site.ask(site.request()).status == 200
            assert time.monotonic() - began < house.settings.limits.handshake_s
            assert house.open_handshakes() <= 32


def test_half_open_handshakes_of_many_addresses_do_not_keep_a_site_out(tmp_path: Path) -> None:
    addresses = iter(f"127.0.{i // 200 + 1}.{i % 200 + 1}" for i in range(10_000))

    def half_open() -> socket.socket:
        return socket.create_connection(("127.0.0.1", house.port), 5, (next(addresses), 0))

    with GuardHouse(tmp_path, half_open=64, half_open_per_address=32) as house:
        site = house.site()
        with many(half_open, 300):
            assert site.ask(site.request()).status == 200
            assert house.open_handshakes() <= 64


def test_handshake_that_is_never_finished(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, handshake_s=0.3) as house:
        with socket.create_connection(("127.0.0.1", house.port), 5) as link:
            assert ended(link)
        house.wait_for("guard.handshake-failed")
        assert house.open_handshakes() == 0


def test_connections_faster_than_an_address_may_make_them(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, handshakes_per_s=2) as house:  # and five seconds' worth at once
        site = house.site()
        refused = 0
        for _ in range(15):
            try:
                with site.connect(source="127.0.0.3"):
                    pass
            except OSError:
                refused += 1
        assert 1 <= refused <= 5
        assert site.ask(site.request()).status == 200  # from another address


def test_slow_connections_of_a_site_gone_bad_do_not_keep_another_out(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, connections_per_certificate=8, half_open=64) as house:
        bad, site = house.site("B"), house.site()

        def slow() -> socket.socket:
            link = bad.connect(source="127.0.0.4")
            link.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\nho")
            return link

        with many(slow, 60):
            assert site.ask(site.request()).status == 200


def test_requests_faster_than_a_certificate_may_send_them(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, requests_per_s=20) as house:  # twice as many at once
        site = house.site()
        began = time.monotonic()
        with site.connect() as link:
            for _ in range(60):
                link.sendall(site.request())
                assert read_reply(link).status == 200

        assert time.monotonic() - began > 0.9  # (60 - 40) / 20 s


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
