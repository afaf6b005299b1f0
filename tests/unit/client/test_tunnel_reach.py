"""``reach`` finds each thing that can stand between a site and its server, and names it."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from medfed.client.enrolment import now
from medfed.client.tunnel_reach import reach
from medfed.common.errors import ConfigError, TransportError, TrustError
from tests.support.proxies import connect_proxy
from tests.support.tunnels import House, healthy, house

pytestmark = pytest.mark.network


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path, healthy) as made:
        yield made


def test_server_that_answers_is_reported_with_its_clock(place: House) -> None:
    found = reach(place.root)

    assert (found.server, found.proxy, found.expires_soon) == (place.address, None, False)
    # 2026-01-01 00:00 UTC is day 20454 of Unix time: 56 years, 14 of them leap years.
    assert found.server_clock_s == (56 * 365 + 14) * 86400
    assert place.server.accepted == 1


def test_server_behind_a_proxy_is_reported_with_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with house(tmp_path, healthy, host="hub.example") as place:
        # This name is known to the proxy only: the site does not look it up.
        with connect_proxy(routes={place.address: place.server.port}) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
            assert reach(place.root).proxy == f"127.0.0.1:{proxy.port}"

    assert proxy.passed == 1


@pytest.mark.parametrize(
    ("age_days", "is_soon"),
    [(75, False), (77, True)],  # of 90
)
def test_certificate_that_expires_within_two_weeks_is_a_warning(
    tmp_path: Path, age_days: int, is_soon: bool
) -> None:
    with house(tmp_path, healthy, age_days=age_days) as place:
        assert reach(place.root).expires_soon == is_soon


def test_server_unreachable(place: House) -> None:
    place.server.close()

    with pytest.raises(TransportError, match="cannot be reached .connection refused"):
        reach(place.root)


def test_server_with_an_unknown_name(tmp_path: Path) -> None:
    with house(tmp_path, host="hub.invalid") as place:  # RFC 6761: never resolves
        with pytest.raises(TransportError, match=r"hub\.invalid:\d+ cannot be reached"):
            reach(place.root)


def test_proxy_that_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with house(tmp_path, healthy, host="hub.example") as place:
        with connect_proxy(answer=b"HTTP/1.1 403 Forbidden\r\n\r\n") as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
            with pytest.raises(TransportError, match="does not let this site through"):
                reach(place.root)
        with pytest.raises(TransportError, match="the proxy 127.* cannot be reached"):
            reach(place.root)


@pytest.mark.parametrize("days", [-1, 91])
def test_clock_that_is_off(place: House, days: int) -> None:
    with pytest.raises(TrustError, match="the clock of this machine says"):
        reach(place.root, clock=lambda: now() + datetime.timedelta(days=days))

    assert place.server.accepted == 0


def test_wrong_authority(tmp_path: Path, place: House) -> None:
    with house(tmp_path / "other") as other:
        place.server.trust(other.trust)
        with pytest.raises(TrustError, match="not signed by an authority that this site trusts"):
            reach(place.root)

    assert place.server.serials == []


def test_certificate_for_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with house(tmp_path / "a", host="hub.example") as place, house(tmp_path / "b") as other:
        # Of an authority that the site trusts, but for localhost.
        other.root.joinpath("trust/ca.pem").replace(place.root / "trust" / "extra.pem")
        both = (place.root / "trust" / "ca.pem").read_text()
        both += (place.root / "trust" / "extra.pem").read_text()
        (place.root / "trust" / "ca.pem").write_text(both)
        place.server.trust(other.trust)
        with connect_proxy(routes={place.address: place.server.port}) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
            with pytest.raises(TrustError, match="its certificate is not for 'hub.example'"):
                reach(place.root)


def test_revoked(place: House) -> None:
    place.server.revoked.add(place.serial)

    with pytest.raises(TransportError, match="when the site's certificate was revoked"):
        reach(place.root)


def test_certificate_that_the_server_refuses_in_tls(tmp_path: Path, place: House) -> None:
    with house(tmp_path / "other") as other:
        strict = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        strict.load_cert_chain(place.trust / "server.pem", place.trust / "server.key")
        strict.load_verify_locations(other.trust / "ca.pem")
        strict.verify_mode = ssl.CERT_REQUIRED
        place.server.tls = strict
        with pytest.raises(TrustError, match="refuses this site's certificate .unknown ca"):
            reach(place.root)


def test_key_that_others_may_read(place: House) -> None:
    (place.root / "keys" / "node_key").chmod(0o644)

    with pytest.raises(ConfigError, match="mode 0644"):
        reach(place.root)


def test_server_that_is_not_ready(place: House) -> None:
    def away(link: ssl.SSLSocket) -> None:
        link.recv(1000)
        link.sendall(b"HTTP/1.1 503 Away\r\n\r\n")

    place.server.handler = away

    with pytest.raises(TransportError, match="answers with HTTP status 503"):
        reach(place.root)


def test_server_that_says_nothing(place: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medfed.client.tunnel_reach._ANSWER_S", 0.3)
    place.server.handler = lambda link: (link.recv(1000), link.recv(1))  # type: ignore[assignment,return-value]  # of no interest

    with pytest.raises(TransportError, match="did not answer within"):
        reach(place.root)
