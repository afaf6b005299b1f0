"""Attacks on the guard by requests that two readers could read differently.

Real sockets against the real guard. The SuperLink behind it is a double that notes what it is
asked: what it was not asked did not get through. ``test_guard_and_flower.py`` has a real one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.guard_callers import Caller, read_reply
from tests.support.guard_house import GuardHouse

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardHouse]:
    with GuardHouse(tmp_path_factory.mktemp("guard")) as house:
        yield house


@pytest.fixture
def site(house: GuardHouse) -> Caller:
    return house.fresh_site()


# ---- smuggling -----------------------------------------------------------------------------------
INNER = b"POST /v1/control/list-nodes HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"
START = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: a\r\n<node>"


@pytest.mark.parametrize(
    ("attack", "data"),
    [
        ("two lengths", START + b"content-length: 0\r\ncontent-length: 71\r\n\r\n" + INNER),
        ("two equal lengths", START + b"content-length: 4\r\ncontent-length: 4\r\n\r\nnode"),
        ("length list", START + b"content-length: 4, 4\r\n\r\nnode"),
        ("signed length", START + b"content-length: +4\r\n\r\nnode"),
        ("hexadecimal length", START + b"content-length: 0x4\r\n\r\nnode"),
        ("length with a zero before it", START + b"content-length: 04\r\n\r\nnode"),
        ("negative length", START + b"content-length: -1\r\n\r\n"),
        ("no length", START + b"\r\n" + INNER),
        (
            "length and chunks",
            START + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
        ),
        ("chunks", START + b"transfer-encoding: chunked\r\n\r\n4\r\nnode\r\n0\r\n\r\n"),
        (
            "chunk extension",
            START + b"transfer-encoding: chunked\r\n\r\n4;x=\ny\r\nnode\r\n0\r\n\r\n",
        ),
        ("chunks, hidden", START + b"content-length: 4\r\ntransfer-encoding: xchunked\r\n\r\nnode"),
        ("chunks, by a tab", START + b"transfer-encoding:\tchunked\r\n\r\n0\r\n\r\n" + INNER),
        ("chunks, by a blank", START + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n" + INNER),
        ("folded line", START + b"content-length: 0\r\nx: a\r\n  b\r\n\r\n"),
        ("bare line feeds", START.replace(b"\r\n", b"\n") + b"content-length: 0\n\n"),
        ("one bare line feed", START + b"x: a\ncontent-length: 0\r\n\r\n"),
        ("bare carriage return", START + b"x: a\rcontent-length: 0\r\n\r\n"),
        ("null in a header", START + b"x: a\0b\r\ncontent-length: 0\r\n\r\n"),
        ("letter beyond ASCII", START + "x: \u0130\r\ncontent-length: 0\r\n\r\n".encode()),
        ("empty line first", b"\r\n" + START + b"content-length: 0\r\n\r\n"),
        ("two hosts", START + b"host: b\r\ncontent-length: 0\r\n\r\n"),
        ("no host", b"POST /v1/fleet/pull-messages HTTP/1.1\r\ncontent-length: 0\r\n\r\n"),
        ("expect", START + b"expect: 100-continue\r\ncontent-length: 4\r\n\r\nnode"),
        ("upgrade", START + b"upgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 0\r\n\r\n"),
        (
            "header dropped on the way",
            START + b"connection: flwr-signature\r\ncontent-length: 0\r\n\r\n",
        ),
        ("trailer", START + b"trailer: x\r\ncontent-length: 0\r\n\r\n"),
        ("packed body", START + b"content-encoding: gzip\r\ncontent-length: 4\r\n\r\nnode"),
        ("HTTP/1.0", START.replace(b"1.1", b"1.0") + b"content-length: 0\r\n\r\n"),
        ("HTTP/0.9", b"GET /health\r\n\r\n"),
        ("HTTP/1.10", START.replace(b"1.1", b"1.10") + b"content-length: 0\r\n\r\n"),
        ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("two blanks", START.replace(b" /v1", b"  /v1") + b"content-length: 0\r\n\r\n"),
        ("tab for a blank", START.replace(b" /v1", b"\t/v1") + b"content-length: 0\r\n\r\n"),
        ("lower-case method", START.replace(b"POST", b"post") + b"content-length: 0\r\n\r\n"),
        ("17 KiB of one header", START + b"x: " + b"a" * 17_000 + b"\r\n\r\n"),
        ("17 KiB without a line's end", b"POST " + b"/a" * 8_500),
        ("1000 headers", START + b"".join(b"x%d: 1\r\n" % i for i in range(1000)) + b"\r\n"),
        ("TLS in TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_smuggling(house: GuardHouse, site: Caller, attack: str, data: bytes) -> None:
    reply = site.ask(signed(data, site))

    assert (reply.status, reply.body, reply.closed) == (400, b"", True), attack
    assert house.superlink.seen == []
    reason = house.wait_for("guard.refused")["reason"]
    assert reason not in ("node-headers", "content-type"), "refused for something else"


def signed(data: bytes, site: Caller) -> bytes:
    """A request with all that the node puts in, so that nothing else is wrong with it."""
    fields = {"content-type": "application/protobuf", **site.node_headers()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return data.replace(b"<node>", lines.encode(), 1)


def test_request_without_an_attack_in_it_is_served(house: GuardHouse, site: Caller) -> None:
    assert site.ask(signed(START + b"content-length: 4\r\n\r\nnode", site)).status == 200


def test_second_request_behind_the_first(house: GuardHouse, site: Caller) -> None:
    reply = site.ask(site.request() + INNER)

    assert (reply.status, reply.closed) == (400, True)
    assert house.superlink.seen == []


def test_second_request_while_the_first_is_answered(house: GuardHouse, site: Caller) -> None:
    house.superlink.answer = lambda seen: (time.sleep(0.5), (200, b""))[1]
    with site.connect() as link:
        link.sendall(site.request())
        time.sleep(0.1)
        link.sendall(INNER)

        assert read_reply(link).status == 400
    assert [seen.path for seen in house.superlink.seen] == ["/v1/fleet/pull-messages"]


def test_header_smuggled_into_a_value_that_is_passed_on(house: GuardHouse, site: Caller) -> None:
    for name in ("flwr-timestamp", "flwr-signature", "content-type"):
        fields = {name: "2026-11-20T10:00:00+00:00\tx-real: 1"}
        assert site.ask(site.request(fields=fields)).status == 400
    assert house.superlink.seen == []
