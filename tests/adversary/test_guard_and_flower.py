"""The guard in front of a real SuperLink, with a real node at the other end of a tunnel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from medfed.common.processes import flower_environment, free_port, start_child
from medfed.server.guard.routes import FLEET
from tests.support.flower_hub import FlowerHub, wait_until
from tests.support.guard_callers import Caller
from tests.support.guard_house import GuardHouse
from tests.support.guard_tunnel import Tunnel

pytestmark = [pytest.mark.network, pytest.mark.slow]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowerHub]:
    with FlowerHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def house(hub: FlowerHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardHouse]:
    folder = tmp_path_factory.mktemp("guard")
    with GuardHouse(folder, superlink=(hub.port, hub.ca), hold_s=20.0, look_s=0.2) as house:
        yield house


@pytest.fixture(scope="module")
def site(hub: FlowerHub, house: GuardHouse, tmp_path_factory: pytest.TempPathFactory) -> Caller:
    site = house.site()
    public = tmp_path_factory.mktemp("keys") / "a.pub"
    line = site.key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    public.write_bytes(line + b"\n")
    hub.enrol(public)
    return site


@pytest.mark.parametrize(
    "path",
    ["/v1/control/list-nodes", "/v1/control/register-node", "/v1/runtime/acquire-task", "/docs"],
)
def test_what_flower_answers_on_its_own_port_does_not_answer_here(
    hub: FlowerHub, house: GuardHouse, site: Caller, path: str
) -> None:
    inner = Caller("A", site.key, None, hub.ca, hub.port)
    method = "GET" if path == "/docs" else "POST"

    assert inner.ask(inner.request(path, b"", method=method)).status != 404  # Flower has it
    assert site.ask(site.request(path, b"", method=method)).status == 404


def test_key_that_is_not_registered(hub: FlowerHub, house: GuardHouse, site: Caller) -> None:
    stranger = house.site("B")  # with a certificate, but unknown to Flower
    node = b"\x0a\x02\x08\x01"  # PullMessagesRequest(node=Node(node_id=1))

    assert stranger.ask(stranger.request(body=node)).status == 401


def test_health_tells_whether_the_superlink_answers(
    house: GuardHouse, site: Caller, tmp_path: Path
) -> None:
    ask = site.request("/health", b"", method="GET")

    assert site.ask(ask).status == 200
    with GuardHouse(tmp_path, superlink=(free_port(), house.authority.pem)) as broken:
        other = broken.site()
        assert other.ask(ask).status == 503


def test_real_node_joins_waits_and_leaves_through_the_guard(
    hub: FlowerHub, house: GuardHouse, site: Caller, tmp_path: Path
) -> None:
    tunnel = Tunnel(site, house.authority.server("tunnel"))
    house.do(tunnel.start())
    key, secret, log = tmp_path / "a", tmp_path / "secret", tmp_path / "node.log"
    key.write_bytes(site.key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    secret.write_text("ab" * 32)
    node = start_child(
        [
            "flower-supernode", "--superlink", f"127.0.0.1:{tunnel.port}",
            "--root-certificates", str(house.authority.pem),
            "--auth-supernode-private-key", str(key),
            "--host", "127.0.0.1", "--port", str(free_port()),
            "--isolation", "process", "--superexec-auth-secret-file", str(secret),
        ],
        name="node", environment=flower_environment(tmp_path / "home"), output=log,
    )  # fmt: skip
    try:
        wait_until(lambda: "SuperNode ID" in log.read_text(), "the node joins")
        wait_until(lambda: "/v1/fleet/pull-messages" in tunnel.requests, "the node asks")
        time.sleep(5.0)  # Flower's own node asks again after 3 s: here its answer is held back
        asked = tunnel.requests.count("/v1/fleet/pull-messages")
        hub.start_run({}, marker=tmp_path / "marker")
        wait_until(lambda: "/v1/fleet/get-fab" in tunnel.requests, "the message arrives", 40)
    finally:
        node.end()
        house.do(tunnel.close())

    assert asked == 1, house.lines
    assert tunnel.requests[-1] == "/v1/fleet/deactivate-node"
    assert set(tunnel.requests) <= FLEET
    refused = {line["path"] for event, line in house.lines if event == "guard.refused"}
    assert refused.isdisjoint(FLEET)
