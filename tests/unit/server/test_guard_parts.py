"""The parts of the guard that need no socket: what is a head, a path, a replay, a message."""

from __future__ import annotations

import base64
import datetime
import json
from pathlib import Path
from typing import Any

import h11
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common import constant as flower_common
from flwr.supercore import constant as flower
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supernode import fleet_http_client, node_auth_http_interceptor
from hypothesis import given
from hypothesis import strategies as st

from medfed.common.errors import ConfigError
from medfed.common.refusals import REFUSALS
from medfed.server.guard import routes
from medfed.server.guard.admission import Buckets, TokenBucket, address_key
from medfed.server.guard.audit import Told, shown
from medfed.server.guard.heads import Head, read_head
from medfed.server.guard.peers import Peer
from medfed.server.guard.refusal import RefusedRequest
from medfed.server.guard.replays import EARLIEST_S, LATEST_S, Replays
from medfed.server.guard.settings import GuardSettings, Limits, read_settings
from medfed.server.guard.site_messages import (
    Progress,
    Refused,
    Stop,
    Withdraw,
    read_message,
)

KEY = ec.generate_private_key(ec.SECP384R1())
PEER = Peer(
    "A", 1, 0.0, KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
)


# ---- heads ---------------------------------------------------------------------------------------
def head_of(raw: bytes) -> Head:
    return read_head(raw, h11.Connection(h11.SERVER))


@given(
    target=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40),
    fields=st.dictionaries(
        st.from_regex(r"x-[a-z0-9]{1,10}", fullmatch=True),
        st.from_regex(r"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True),
        max_size=8,
    ),
    length=st.integers(0, 10**17),
)
def test_head_in_order_is_read_as_it_was_written(
    target: str, fields: dict[str, str], length: int
) -> None:
    fields |= {"host": "a", "content-length": str(length)}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())

    head = head_of(f"POST {target} HTTP/1.1\r\n{lines}\r\n".encode())

    assert head == Head("POST", target, fields, length)


@given(st.binary(max_size=200), st.integers(0, 60))
def test_any_byte_put_anywhere_is_refused_or_changes_nothing_else(junk: bytes, at: int) -> None:
    good = b"POST /v1/site HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n"
    raw = good[:at] + junk + good[at:]
    try:
        head = head_of(raw)
    except RefusedRequest as refusal:
        assert refusal.status == 400
        return
    # Whatever is accepted has these lines in this form, and lines end in one way only.
    assert raw.count(b"\n") == raw.count(b"\r") == raw.count(b"\r\n")
    assert raw.lower().count(b"content-length:") == 1 or b"content-length" in junk.lower()
    assert f"{head.method} {head.target} HTTP/1.1\r\n".encode() == raw[: raw.index(b"\n") + 1]


# ---- routes --------------------------------------------------------------------------------------
def test_list_is_what_the_installed_flowers_node_uses() -> None:
    source = Path(fleet_http_client.__file__).read_text()
    paths = {line.split('"')[1] for line in source.splitlines() if 'path="' in line}

    # A node that has a key of its own neither registers nor unregisters itself.
    assert paths - routes.FLEET == {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert routes.FLEET < paths


def test_headers_are_those_of_the_installed_flower() -> None:
    names = [name for name, _ in routes.fields_for_superlink(PEER, SIGNED, 4)]

    assert names[-3:] == [
        flower.FLEET_HTTP_PUBLIC_KEY_HEADER,
        flower_common.TIMESTAMP_HEADER,
        flower.FLEET_HTTP_SIGNATURE_HEADER,
    ]
    assert routes.PROTOBUF == PROTOBUF_MEDIA_TYPE
    assert LATEST_S == flower_common.TIMESTAMP_TOLERANCE + flower_common.SYSTEM_TIME_TOLERANCE
    assert EARLIEST_S == -flower_common.SYSTEM_TIME_TOLERANCE


def test_what_flowers_own_interceptor_writes_is_accepted() -> None:
    request = httpx.Request("POST", "https://a/v1/fleet/get-run")
    context: Any = type("Context", (), {"request": request})
    node_auth_http_interceptor.NodeAuthHttpInterceptor(KEY, KEY.public_key()).intercept(
        context, lambda _: httpx.Response(200)
    )
    fields = dict(request.headers) | {"content-type": routes.PROTOBUF}

    signed = routes.node_signature(Head("POST", "/v1/fleet/get-run", fields, 0), PEER)

    assert 0 <= Replays().admit(PEER, signed, _now()) < 5


def _now() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()


def signed_at(at: float, key: ec.EllipticCurvePrivateKey = KEY) -> routes.NodeSignature:
    time = datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat()
    return routes.NodeSignature(time, key.sign(time.encode(), ec.ECDSA(SHA256())))


SIGNED = signed_at(1000.0)


# ---- replays -------------------------------------------------------------------------------------
def test_signature_is_taken_once_and_forgotten_when_it_is_too_old_to_use() -> None:
    replays = Replays()
    replays.admit(PEER, SIGNED, 1000.0)
    with pytest.raises(RefusedRequest, match="409"):
        replays.admit(PEER, SIGNED, 1304.0)
    with pytest.raises(RefusedRequest, match="401"):
        replays.admit(PEER, SIGNED, 1305.0)  # Flower's limit

    replays.admit(PEER, signed_at(2000.0), 2000.0)
    assert len(replays) == 1


def test_signature_from_the_near_future_is_remembered_as_long_as_it_can_be_used() -> None:
    replays = Replays()
    replays.admit(PEER, SIGNED, 995.5)  # 4.5 s early: a site's clock ahead
    with pytest.raises(RefusedRequest, match="409"):
        replays.admit(PEER, SIGNED, 1304.9)


def test_two_requests_signed_in_one_microsecond_both_pass() -> None:
    replays = Replays()
    replays.admit(PEER, SIGNED, 1000.0)

    replays.admit(PEER, signed_at(1000.0), 1000.0)  # another nonce, so another signature


@pytest.mark.parametrize("time", ["", "now", "2026-11-20T10:00:00", "2026-13-01T00:00:00+00:00"])
def test_time_that_is_none_is_refused(time: str) -> None:
    with pytest.raises(RefusedRequest, match="400"):
        Replays().admit(PEER, routes.NodeSignature(time, SIGNED.signature), 1000.0)


# ---- admission -----------------------------------------------------------------------------------
def test_bucket_gives_so_many_at_once_and_then_so_many_per_second() -> None:
    now = [0.0]
    bucket = TokenBucket(10, 5, lambda: now[0])

    assert [bucket.wait_s() for _ in range(7)] == pytest.approx([0, 0, 0, 0, 0, 0.1, 0.2])
    now[0] = 1.0  # 10 earned, 2 owed, at most 5 kept
    assert bucket.full()
    assert [bucket.take() for _ in range(6)] == [True] * 5 + [False]


def test_buckets_of_many_callers_do_not_grow_for_ever() -> None:
    now = [0.0]
    buckets = Buckets(1, 1, lambda: now[0])
    for number in range(30_000):
        now[0] += 0.001
        buckets.of(str(number)).take()

    assert len(buckets._of) <= 10_001


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8:0:0:ffff::1", True),  # one /64
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("fe80::1%eth0", "fe80::1", True),
    ],
)
def test_addresses_that_count_as_one(one: str, other: str, same: bool) -> None:
    assert (address_key(one) == address_key(other)) is same


# ---- audit ---------------------------------------------------------------------------------------
def test_flood_of_refusals_is_counted_and_not_written() -> None:
    lines: list[dict[str, int | str]] = []
    told = Told(lambda event, **fields: lines.append(fields))
    for _ in range(1000):
        told.tell("guard.refused", "A", path="/x")
    told.tell("guard.refused", "B", path="/x")

    assert [line["caller"] for line in lines].count("A") == 20
    assert lines[-1]["caller"] == "B"


def test_audit_log_that_fails_does_not_stop_the_guard() -> None:
    def fails(event: str, **fields: int | str) -> None:
        raise OSError("disk full")

    Told(fails).tell("guard.refused", "A")


def test_path_is_shown_without_what_a_terminal_would_obey() -> None:
    assert shown("/a\x1b[2J\r\n/\u202e" + "b" * 100) == "/a?[2J??/?" + "b" * 70


# ---- what a site says ----------------------------------------------------------------------------
DIGEST = "ab" * 32
PROGRESS = {
    "kind": "progress", "study": DIGEST, "run": "S-abababab-1", "round": 3, "purpose": "train",
    "step": 5, "steps": 40,
}  # fmt: skip


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (PROGRESS, Progress),
        ({"kind": "stop", "study": DIGEST, "run": "r"}, Stop),
        ({"kind": "withdraw", "study": DIGEST}, Withdraw),
        (
            {"kind": "refusal", "study": DIGEST, "run": "r", "round": 1, "code": "not-approved"},
            Refused,
        ),
    ],
)
def test_message_of_the_schema_is_read(message: dict[str, Any], kind: type) -> None:
    assert isinstance(read_message(json.dumps(message).encode()), kind)


@pytest.mark.parametrize(
    "change",
    [
        {"patients": 12},
        {"note": "Mrs Miller"},
        {"step": 5.5},
        {"step": "5"},
        {"step": True},
        {"step": -1},
        {"step": 10**30},
        {"purpose": "other"},
        {"study": DIGEST.upper()},
        {"study": DIGEST + "\n"},
        {"run": "../other"},
        {"run": ""},
        {"kind": "launch"},
        {"kind": None},
    ],
)
def test_message_outside_the_schema_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RefusedRequest, match="400 site-message") as caught:
        read_message(json.dumps(PROGRESS | change).encode())
    assert "Miller" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"[" * 4000,
        b'{"kind":' * 400,
        b"\xff\xfe",
        json.dumps(PROGRESS).encode()[:-1] + b',"step":6}',
    ],
)
def test_body_that_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(RefusedRequest, match="400 site-message"):
        read_message(body)


def test_refusal_codes_are_those_that_a_site_releases() -> None:
    for code in REFUSALS:
        refusal = {"kind": "refusal", "study": DIGEST, "run": "r", "round": 1, "code": code}
        assert isinstance(read_message(json.dumps(refusal).encode()), Refused)
    with pytest.raises(RefusedRequest):
        read_message(json.dumps(refusal | {"code": "ill"}).encode())


# ---- settings ------------------------------------------------------------------------------------
SETTINGS = GuardSettings(
    host="127.0.0.1", port=8443, authority=Path("ca.pem"), certificate=Path("server.pem"),
    key=Path("server.key"), revocations=Path("trust"), superlink_port=8000,
    superlink_authority=Path("ca.pem"), limits=Limits(hold_s=0),
)  # fmt: skip


def test_settings_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "guard.json"
    path.write_text(SETTINGS.model_dump_json())

    assert read_settings(path) == SETTINGS


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"limit": {}}, "limit"),
        ({"port": -1}, "port"),
        ({"limits": {"hold_s": 29}}, "limits.hold_s"),  # Flower's node waits 30 s
        ({"limits": {"sweep_s": 60}}, "limits.sweep_s"),  # revoked ones end within 10 s
        ({"limits": {"idle_s": float("nan")}}, "limits.idle_s"),
    ],
)
def test_settings_that_cannot_be_used_name_the_field(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    path = tmp_path / "guard.json"
    path.write_text(json.dumps(json.loads(SETTINGS.model_dump_json()) | change))

    with pytest.raises(ConfigError, match=rf"{path}.*\({named}: "):
        read_settings(path)


def test_settings_that_are_missing_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_settings(tmp_path / "none.json")


def test_signature_header_is_base64_of_what_is_passed_on() -> None:
    fields = dict(routes.fields_for_superlink(PEER, SIGNED, 4))

    assert base64.b64decode(fields["flwr-signature"]) == SIGNED.signature
