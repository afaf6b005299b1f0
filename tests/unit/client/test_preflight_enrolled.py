"""The checks before joining, for a site that goes through its tunnel."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from medfed.client.preflight import Notice, preflight, reach_server
from medfed.client.site_root import SiteRoot, check_may_join, create_site, open_site
from medfed.client.site_settings import read_settings
from medfed.common.errors import ConfigError, TransportError, TrustError
from tests.support.proxies import connect_proxy
from tests.support.sites import write_scans
from tests.support.tunnels import House, house

pytestmark = pytest.mark.network


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def answers_at(offset_s: float = 0.0) -> object:
    """A healthy server whose clock is off by so much."""

    def answer(link: ssl.SSLSocket) -> None:
        link.recv(1 << 16)
        date = formatdate(time.time() + offset_s, usegmt=True)
        link.sendall(f"HTTP/1.1 200 OK\r\ndate: {date}\r\n\r\n".encode())

    return answer


@pytest.fixture
def place(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path, answers_at()) as made:  # type: ignore[arg-type]  # a handler
        yield made


def ask(place: House, *, retry_for_s: float = 0.0) -> list[Notice]:
    told = list[Notice]()
    site = SiteRoot(place.root, read_settings(place.root))  # `house` makes no ledger
    reach_server(site, told.append, retry_for_s=retry_for_s, sleep=lambda _: time.sleep(0.2))
    return told


def test_the_server_is_asked_with_the_sites_certificate(place: House) -> None:
    told = ask(place)

    assert told == [Notice("state", f"server {place.address} answers and is the coordinator's")]
    assert place.server.serials == [place.serial]


def test_a_revoked_certificate_is_no_way_in(place: House) -> None:
    place.server.revoked.add(place.serial)

    with pytest.raises(TransportError, match="certificate was revoked") as caught:
        ask(place)
    assert caught.value.exit_code == 14
    assert "Tried 1 times" in str(caught.value) and "ask the coordinator" in caught.value.advice


def test_a_server_that_is_away_is_tried_again(place: House) -> None:
    place.server.close()

    with pytest.raises(TransportError, match="cannot be reached.*Tried [2-9] times"):
        ask(place, retry_for_s=0.3)
    place.server.open()


def test_a_proxy_that_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = connect_proxy(answer=b"HTTP/1.1 403 Forbidden\r\n\r\n")
    with house(tmp_path, host="hub.example") as place, refuses as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(TransportError, match="proxy"):
            ask(place)


@pytest.mark.parametrize(("offset_s", "says"), [(-60.0, "s ahead of"), (600.0, "s behind")])
def test_a_clock_that_is_off_is_told(tmp_path: Path, offset_s: float, says: str) -> None:
    with house(tmp_path, answers_at(offset_s)) as place:  # type: ignore[arg-type]  # a handler
        with pytest.raises(TrustError, match=says):
            ask(place)


def test_a_certificate_that_expires_soon_is_a_warning(tmp_path: Path) -> None:
    with house(tmp_path, answers_at(), age_days=80) as place:  # type: ignore[arg-type]  # a handler
        told = ask(place)  # of 90 days 10 are left

    assert [notice.kind for notice in told] == ["warning", "state"]
    assert "medfed enrol accept" in told[0].text


def test_another_authority_is_refused_at_once(place: House, tmp_path: Path) -> None:
    with house(tmp_path / "other") as other:
        place.server.tls = other.server.tls

        with pytest.raises(TrustError, match="not signed by an authority"):
            ask(place, retry_for_s=60.0)


def test_a_site_that_is_not_enrolled_yet_opens_but_does_not_join(tmp_path: Path) -> None:
    made = create_site(
        tmp_path / "A",
        name="A",
        scans=write_scans(tmp_path / "scans.npz"),
        server="hub.example:8443",
        ca=None,
        limits={"epsilon_limit": 8.0, "delta_limit": 1e-4},
    )
    site = open_site(made.folder)

    assert not site.is_enrolled
    assert (site.settings.policy.epsilon_limit, site.settings.policy.delta_limit) == (8.0, 1e-4)
    with pytest.raises(ConfigError, match=r"is not enrolled(.|\n)*enrol request") as caught:
        check_may_join(site)
    assert caught.value.exit_code == 10
    with pytest.raises(ConfigError, match="is not enrolled"):
        preflight(site, lambda notice: None, retry_for_s=0.0)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_is_none_makes_no_site(tmp_path: Path, limit: float) -> None:
    with pytest.raises(ConfigError, match="epsilon_limit"):
        create_site(
            tmp_path / "A", name="A", scans=tmp_path, server="hub:1", ca=None,
            limits={"epsilon_limit": limit},
        )  # fmt: skip
    assert not (tmp_path / "A").exists()
