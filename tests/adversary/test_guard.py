"""Attacks on the only port that hospitals reach: who gets in, with which key, to which path.

Real sockets against the real guard. The SuperLink behind it is a double that notes what it is
asked: what it was not asked did not get through. ``test_guard_and_flower.py`` has a real one.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from medfed.server.guard.routes import FLEET
from tests.support.guard_callers import Caller, TestAuthority, ended, read_reply
from tests.support.guard_house import GuardHouse

pytestmark = pytest.mark.network


P384_ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)
"""n of P-384: FIPS 186-5 and SP 800-186, section 3.2.1.4."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardHouse]:
    with GuardHouse(tmp_path_factory.mktemp("guard")) as house:
        yield house


@pytest.fixture
def site(house: GuardHouse) -> Caller:
    return house.fresh_site()


# ---- who gets in ---------------------------------------------------------------------------------
def test_a_site_with_a_certificate_gets_in_and_what_goes_on_is_written_anew(
    house: GuardHouse, site: Caller
) -> None:
    extra = {"x-forwarded-for": "127.0.0.1", "flwr-task-token": "t", "cookie": "c"}
    reply = site.ask(site.request(body=b"from the node", fields=extra))

    assert (reply.status, reply.body) == (200, b"answer")
    assert set(reply.fields) == {"date", "content-type", "content-length"}
    (seen,) = house.superlink.seen
    assert (seen.path, seen.body) == ("/v1/fleet/pull-messages", b"from the node")
    # What `authenticate_node` and the translation of flwr 1.41 read, and what HTTP needs.
    assert [name for name, _ in seen.fields] == [
        "host",
        "content-type",
        "accept",
        "content-length",
        "flwr-public-key",
        "flwr-timestamp",
        "flwr-signature",
    ]


def test_no_certificate(house: GuardHouse, site: Caller) -> None:
    assert house.shut_out(Caller("A", site.key, None, site.authority, house.port))
    house.wait_for("guard.handshake-failed")


def test_certificate_of_a_self_signed_authority(
    house: GuardHouse, site: Caller, tmp_path: Path
) -> None:
    other = TestAuthority(tmp_path)  # of the same name as ours
    impostor = other.site("A", key=site.key, port=house.port)
    impostor.authority = site.authority

    assert house.shut_out(impostor)
    house.wait_for("guard.handshake-failed")


def test_expired_certificate(house: GuardHouse, site: Caller) -> None:
    assert house.shut_out(house.site("A", lasts=-datetime.timedelta(minutes=1)))
    house.wait_for("guard.handshake-failed")


def test_servers_certificate_used_by_a_caller(house: GuardHouse, site: Caller) -> None:
    assert house.shut_out(house.site("A", usage=ExtendedKeyUsageOID.SERVER_AUTH))
    house.wait_for("guard.handshake-failed")


@pytest.mark.parametrize(
    "uri",
    [
        "urn:medfed:role:coordinator",
        "urn:medfed:site:B",  # another name than the subject's
        "urn:medfed:site:A/../B",
        "urn:medfed:site:",
        "URN:MEDFED:SITE:A",
        "https://medfed/site/A",
    ],
)
def test_certificate_of_ours_that_is_no_sites(house: GuardHouse, site: Caller, uri: str) -> None:
    assert house.shut_out(house.site("A", uri=uri))
    house.wait_for("guard.no-site")


def test_certificate_over_a_key_that_flowers_node_cannot_have(
    house: GuardHouse, site: Caller
) -> None:
    assert house.shut_out(house.site("A", key=ec.generate_private_key(ec.SECP256R1())))
    house.wait_for("guard.no-site")


def test_revoked_certificate(house: GuardHouse, site: Caller) -> None:
    house.revoked.add(site.serial)

    assert house.shut_out(site)
    with site.connect() as silent:
        assert ended(silent, within_s=2)  # before the next sweep, after 5 s
    assert house.wait_for("guard.revoked")["serial"] == f"{site.serial:x}"


def test_certificate_revoked_on_an_open_connection(house: GuardHouse, site: Caller) -> None:
    with site.connect() as link:
        link.sendall(site.request())
        assert read_reply(link).status == 200
        house.revoked.add(site.serial)
        link.sendall(site.request())

        assert ended(link)
    assert len(house.superlink.seen) == 1


def test_certificate_revoked_on_an_idle_connection_and_during_an_upload(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, sweep_s=0.2) as house:
        site = house.site()
        with site.connect() as idle, site.connect() as busy, house.site("B").connect() as other:
            busy.sendall(site.request("/v1/fleet/push-object", b"begin", length=1000))
            house.revoked.add(site.serial)

            assert ended(idle)
            assert ended(busy)
            assert not ended(other, within_s=0.5)


def test_certificate_that_expires_on_an_open_connection(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, sweep_s=0.2) as house:
        site = house.site(lasts=datetime.timedelta(seconds=2))
        with site.connect() as link:
            assert ended(link)
        house.wait_for("guard.expired")


def test_authority_taken_out_while_the_guard_runs(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, sweep_s=0.1) as house:
        old = house.site()
        new_authority = TestAuthority(tmp_path / "new")
        certificate, key = new_authority.server()
        with old.connect() as link:
            house.settings.certificate.write_bytes(certificate.read_bytes())
            house.settings.key.write_bytes(key.read_bytes())
            house.settings.authority.write_bytes(new_authority.pem.read_bytes())

            assert ended(link)
        new = new_authority.site("A", port=house.port)
        assert new.ask(new.request("/health", method="GET", body=b"")).status in (200, 503)
        old.authority = new_authority.pem
        house.superlink.seen.clear()
        assert house.shut_out(old)


def test_files_that_cannot_be_used_leave_the_guard_as_it_was(tmp_path: Path) -> None:
    with GuardHouse(tmp_path, sweep_s=0.1) as house:
        site = house.site()
        house.settings.certificate.write_bytes(b"half a file")

        house.wait_for("guard.files-not-taken-up")
        assert site.ask(site.request()).status == 200


# ---- whose key the request names -----------------------------------------------------------------
def test_registered_key_with_another_sites_certificate(house: GuardHouse, site: Caller) -> None:
    b = house.site("B")

    reply = site.ask(site.request(signed=b.node_headers()))  # B's key, by whatever way, as A

    assert (reply.status, reply.body, reply.closed) == (403, b"", True)
    assert house.superlink.seen == []
    assert house.wait_for("guard.refused")["reason"] == "key-of-another"


@pytest.mark.parametrize("missing", ["flwr-public-key", "flwr-timestamp", "flwr-signature"])
def test_node_header_left_out(house: GuardHouse, site: Caller, missing: str) -> None:
    signed = site.node_headers()
    del signed[missing]

    assert site.ask(site.request(signed=signed)).status in (400, 403)
    assert house.superlink.seen == []


def test_key_header_in_another_spelling(house: GuardHouse, site: Caller) -> None:
    signed = site.node_headers()
    signed["flwr-public-key"] += "=="

    assert site.ask(site.request(signed=signed)).status == 403
    assert house.superlink.seen == []


def test_replayed_request(house: GuardHouse, site: Caller) -> None:
    signed = site.node_headers()

    assert site.ask(site.request(signed=signed)).status == 200
    other = site.request("/v1/fleet/push-messages", b"another body", signed=signed)
    assert site.ask(other).status == 409
    assert len(house.superlink.seen) == 1


def test_replayed_request_with_the_signatures_twin(house: GuardHouse, site: Caller) -> None:
    signed = site.node_headers()
    r, s = decode_dss_signature(base64.b64decode(signed["flwr-signature"]))
    twin = base64.b64encode(
        encode_dss_signature(r, P384_ORDER - s)
    ).decode()  # verifies as well as the first

    assert site.ask(site.request(signed=signed)).status == 200
    assert site.ask(site.request(signed=signed | {"flwr-signature": twin})).status == 409
    assert len(house.superlink.seen) == 1


@pytest.mark.parametrize("away_s", [-400, 60])
def test_request_signed_at_another_time(house: GuardHouse, site: Caller, away_s: int) -> None:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=away_s)

    assert site.ask(site.request(signed=site.node_headers(at=at.isoformat()))).status == 401
    assert house.superlink.seen == []


# ---- paths ---------------------------------------------------------------------------------------
OTHER_PATHS = [
    "/v1/control/start-run",
    "/v1/control/register-node",
    "/v1/control/list-nodes",
    "/v1/control/stop-run",
    "/v1/runtime/acquire-task",
    "/v1/runtime/pull-messages",
    "/v1/runtime/push-object",
    "/v1/fleet/register-node",
    "/v1/fleet/unregister-node",
    "/docs",
    "/openapi.json",
    "/v1",
    "/v1/fleet",
]


@pytest.mark.parametrize("path", OTHER_PATHS)
def test_path_that_is_not_for_hospitals(house: GuardHouse, site: Caller, path: str) -> None:
    reply = site.ask(site.request(path))

    assert (reply.status, reply.body, reply.closed) == (404, b"", True)
    assert house.superlink.seen == []
    assert house.wait_for("guard.refused")["path"] == path


@pytest.mark.parametrize(
    "path",
    [
        "//v1/control/list-nodes",
        "/v1//control/list-nodes",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/./pull-messages",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet%2fpull-messages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages.",
        "/v1/fleet/pull-messages?x=/v1/control/list-nodes",
        "/v1/fleet/pull-messages#/v1/control/list-nodes",
        "/v1/fleet/pull-messages;/../../control/list-nodes",
        "/v1/fleet/pull-messages%00",
        "/V1/FLEET/PULL-MESSAGES",
        "/v1/fleet\\..\\control\\list-nodes",
        "http://127.0.0.1/v1/control/list-nodes",
        "https://superlink/v1/fleet/pull-messages",
        "superlink:443",
        "*",
        "v1/fleet/pull-messages",
        "/",
        "/" + "a/" * 4000,
    ],
)
def test_path_trick(house: GuardHouse, site: Caller, path: str) -> None:
    reply = site.ask(site.request(path))

    assert (reply.status, reply.body, reply.closed) == (400, b"", True)
    assert house.superlink.seen == []
    assert len(str(house.wait_for("guard.refused")["path"])) <= 80


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "POSTS"])
def test_other_method_on_a_path_of_the_list(house: GuardHouse, site: Caller, method: str) -> None:
    assert site.ask(site.request(method=method)).status == 404
    assert house.superlink.seen == []


def test_every_path_of_the_list_passes(house: GuardHouse, site: Caller) -> None:
    with site.connect() as link:
        for path in sorted(FLEET):
            link.sendall(site.request(path))
            assert read_reply(link).status == 200

    assert [seen.path for seen in house.superlink.seen] == sorted(FLEET)


# ---- what a site says ----------------------------------------------------------------------------
WITHDRAW = b'{"kind":"withdraw","study":"%s"}' % (b"ab" * 32)


def test_sites_message_reaches_the_desk_under_the_name_in_the_certificate(
    house: GuardHouse, site: Caller
) -> None:
    reply = site.ask(site.request("/v1/site", WITHDRAW, signed={}))

    assert (reply.status, reply.body) == (200, b'{"run":"going"}')
    name, message = house.heard[-1]
    assert (name, message.kind) == (site.name, "withdraw")
    assert house.superlink.seen == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (WITHDRAW[:-1] + b',"site":"B"}', 400),  # in another's name
        (WITHDRAW[:-1] + b',"patients":7}', 400),
        (WITHDRAW + WITHDRAW, 400),
        (WITHDRAW + b" " * 4096, 413),
    ],
)
def test_sites_message_outside_the_schema(
    house: GuardHouse, site: Caller, body: bytes, status: int
) -> None:
    heard = len(house.heard)

    assert site.ask(site.request("/v1/site", body, signed={})).status == status
    assert len(house.heard) == heard


def test_body_never_stands_in_the_audit_log(house: GuardHouse, site: Caller) -> None:
    canary = b"PATIENT-4711"
    for path in ("/v1/site", "/v1/fleet/push-object", "/v1/control/start-run"):
        site.ask(site.request(path, b'{"kind":"' + canary + b'"}', fields={"x-note": "4711"}))
    site.ask(b"POST /" + b"x" * 100 + canary + b" HTTP/1.1\r\n\r\n")  # behind the 80th character

    assert house.lines
    assert "4711" not in str(house.lines)


def test_listeners_are_one(house: GuardHouse, site: Caller) -> None:
    assert house.guard.listeners() == [("127.0.0.1", house.port)]
