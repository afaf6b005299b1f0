"""The site's tunnel over real sockets: what it carries, when it connects, what it tells."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medfed.client import tunnel_outbound
from medfed.client.tunnel import Tunnel
from medfed.common.errors import ConfigError, TransportError
from tests.support.enrolling import bare_site
from tests.support.proxies import connect_proxy
from tests.support.tunnels import House, ask, house, read, running, within

pytestmark = pytest.mark.network


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path) as made:
        yield made


# ---- carrying ------------------------------------------------------------------------------------
def test_bytes_pass_both_ways_unchanged_and_the_server_sees_the_sites_certificate(
    place: House,
) -> None:
    data = bytes(range(256)) * 4096  # 1 MiB: more than all buffers on the way

    with running(place.root) as tunnel, tunnel.call() as link:
        assert ask(link, data[:1000]) == data[:1000]
        for at in range(0, len(data), 1 << 15):
            piece = data[at : at + (1 << 15)]
            assert ask(link, piece) == piece

    assert place.server.serials == [place.serial]


def test_nothing_is_connected_to_before_the_node_sends_something(place: House) -> None:
    with running(place.root) as tunnel, tunnel.call() as link:
        time.sleep(0.3)
        assert place.server.accepted == 0
        assert ask(link) == b"ping"
        assert place.server.accepted == 1


def test_each_connection_of_the_node_has_one_of_its_own(place: House) -> None:
    with running(place.root) as tunnel:
        links = [tunnel.call() for _ in range(5)]
        for number, link in enumerate(links):
            assert ask(link, b"%d" % number) == b"%d" % number
        for number, link in reversed(list(enumerate(links))):
            assert ask(link, b"again %d" % number) == b"again %d" % number
            link.close()

    assert place.server.accepted == 5


def test_all_that_the_server_sent_before_it_closed_is_delivered(tmp_path: Path) -> None:
    count = 3_000_000

    def answer_and_close(link: ssl.SSLSocket) -> None:
        link.recv(100)
        link.sendall(b"x" * count)
        link.unwrap()

    with house(tmp_path, answer_and_close) as home, running(home.root) as tunnel:
        with tunnel.call() as link:
            link.sendall(b"?")
            time.sleep(0.5)  # the server has long closed when the node begins to read
            assert len(read(link, count + 1)) == count
        assert tunnel.said == []


def test_all_that_the_node_sent_before_it_closed_is_delivered(tmp_path: Path) -> None:
    count, got = 3_000_000, []

    def take(link: ssl.SSLSocket) -> None:
        time.sleep(0.5)  # the node has long closed when the server begins to read
        got.append(len(read(link, count + 1)))

    with house(tmp_path, take) as home, running(home.root) as tunnel:
        with tunnel.call() as link:
            link.sendall(b"x" * count)
        assert within(lambda: bool(got))

    assert got == [count]


def test_a_side_that_does_not_read_makes_the_other_wait(tmp_path: Path) -> None:
    def read_nothing(link: ssl.SSLSocket) -> None:
        time.sleep(1.5)

    with house(tmp_path, read_nothing) as home, running(home.root) as tunnel, tunnel.call() as link:
        link.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):
            while True:
                sent += link.send(b"x" * 65536)

    # Two pairs of loopback sockets hold up to about 6 MB each (net.ipv4.tcp_rmem, tcp_wmem).
    assert sent < 30_000_000


def test_when_a_side_ends_the_other_is_ended(tmp_path: Path) -> None:
    ended: list[bytes] = []

    def watch(link: ssl.SSLSocket) -> None:
        link.sendall(link.recv(10))
        ended.append(link.recv(10))

    with house(tmp_path, watch) as home, running(home.root) as tunnel:
        link = tunnel.call()
        ask(link)
        link.close()
        assert within(lambda: bool(ended))

    assert ended == [b""]


# ---- certificates --------------------------------------------------------------------------------
def test_new_certificate_is_used_for_the_next_connection_and_the_old_one_is_ended_when_idle(
    place: House,
) -> None:
    with running(place.root, drain_s=0.3) as tunnel, tunnel.call() as old:
        ask(old)
        before = place.serial
        place.renew()
        assert place.serial != before
        with tunnel.call() as new:
            assert ask(new) == b"ping"
        assert place.server.serials == [before, place.serial]
        old.settimeout(5)
        assert old.recv(1) == b""  # in order, so that the node opens another


def test_connection_of_the_old_certificate_stays_while_a_request_is_under_way(
    tmp_path: Path,
) -> None:
    def answer_late(link: ssl.SSLSocket) -> None:
        for wait_s in (0.0, 1.0):
            asked = link.recv(100)
            time.sleep(wait_s)
            link.sendall(asked)
        link.recv(1)

    with house(tmp_path, answer_late) as home, running(home.root, drain_s=0.2) as tunnel:
        with tunnel.call() as link:
            assert ask(link) == b"ping"
            link.sendall(b"long")
            home.renew()
            assert read(link, 4) == b"long"  # a second later: five times drain_s
            link.settimeout(5)
            assert link.recv(1) == b""


def test_files_that_cannot_be_used_are_told_once_and_the_old_ones_go_on(place: House) -> None:
    with running(place.root) as tunnel:
        (place.root / "trust" / "site.pem").write_text("nothing")
        assert within(lambda: bool(tunnel.said))
        time.sleep(0.3)  # six more looks
        with tunnel.call() as link:
            assert ask(link) == b"ping"

    assert len(tunnel.said) == 1
    assert "site.pem" in tunnel.said[0]


@pytest.mark.parametrize(
    ("age_days", "is_told"),
    [(75, False), (77, True)],  # of 90: 15 and 13 are left; told are fewer than 14
)
def test_certificate_that_expires_soon_is_told(
    tmp_path: Path, age_days: int, is_told: bool
) -> None:
    with house(tmp_path, age_days=age_days) as home, running(home.root) as tunnel:
        assert within(lambda: bool(tunnel.said), 0.5) == is_told
        time.sleep(0.2)

    assert len(tunnel.said) == is_told
    assert all("this site's certificate expires on" in said for said in tunnel.said)


# ---- limits --------------------------------------------------------------------------------------
def test_one_connection_too_many_waits_until_another_ends(place: House) -> None:
    with running(place.root, connections=2) as tunnel:
        first, second = tunnel.call(), tunnel.call()
        ask(first), ask(second)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.load_verify_locations(tunnel.tunnel.certificate)
        plain = socket.create_connection(("127.0.0.1", tunnel.tunnel.port), 10)
        with tls.wrap_socket(
            plain, server_hostname="localhost", do_handshake_on_connect=False
        ) as third:
            third.settimeout(0.5)
            with pytest.raises(TimeoutError):
                third.do_handshake()
            first.close()
            third.settimeout(10)
            third.do_handshake()
            assert ask(third) == b"ping"
        second.close()


def test_connection_on_which_nothing_moves_is_ended(place: House) -> None:
    with running(place.root, idle_s=0.4) as tunnel, tunnel.call() as link:
        ask(link)
        link.settimeout(5)
        assert link.recv(1) == b""
    assert tunnel.said == []


def test_caller_that_says_nothing_is_ended(place: House) -> None:
    with running(place.root, handshake_s=0.3) as tunnel:
        with socket.create_connection(("127.0.0.1", tunnel.tunnel.port), 5) as silent:
            assert silent.recv(1) == b""
        with tunnel.call() as link:
            link.settimeout(5)
            assert link.recv(1) == b""

    assert place.server.accepted == 0


# ---- trouble -------------------------------------------------------------------------------------
def test_server_that_is_away_is_told_once_and_found_again(place: House) -> None:
    place.server.close()
    with running(place.root, connect_s=1.0) as tunnel:
        for _ in range(3):
            with tunnel.call() as link:
                link.settimeout(10)
                link.sendall(b"?")
                # An orderly end: Flower's node gives up for good on any error that says "ssl".
                assert link.recv(1) == b""
        assert len(tunnel.said) == 1
        assert f"server {place.address} cannot be reached (connection refused)" in tunnel.said[0]

        place.server.open()
        answers = [b""]
        while not answers[-1]:  # its next try is at most 4 s away after three that failed
            with tunnel.call() as link:
                answers.append(ask(link))
            time.sleep(0.1)
        assert answers[-1] == b"ping"


def test_node_that_waits_is_served_as_soon_as_the_server_is_there(tmp_path: Path) -> None:
    with house(tmp_path) as home, connect_proxy(answer=b"HTTP/1.1 502 Bad\r\n\r\n") as proxy:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("medfed.client.tunnel_proxy.is_loopback", lambda host: False)
            patch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
            with running(home.root) as tunnel, tunnel.call() as link:
                link.sendall(b"ping")
                assert within(lambda: len(proxy.asked) == 2)
                proxy._answer = None
                assert read(link, 4) == b"ping"  # the bytes were kept meanwhile
        assert len(tunnel.said) == 1
        assert "502" in tunnel.said[0]


def test_server_of_another_authority_is_called_at_a_slow_pace_and_told_once(
    tmp_path: Path,
) -> None:
    with house(tmp_path / "a") as home, house(tmp_path / "b") as other:
        home.server.trust(other.trust)
        with running(home.root, connect_s=0.5) as tunnel:
            for _ in range(10):
                with tunnel.call() as link:
                    link.sendall(b"?")
                    assert link.recv(1) == b""
            assert home.server.accepted == 1  # the next try is 15 to 30 s away
            assert len(tunnel.said) == 1
            assert "not signed by an authority that this site trusts" in tunnel.said[0]


def test_new_files_end_the_pause(tmp_path: Path) -> None:
    with house(tmp_path) as home, running(home.root, connect_s=0.5) as tunnel:
        home.server.revoked.add(home.serial)
        for _ in range(2):
            with tunnel.call() as link:
                link.sendall(b"?")
                link.recv(1)
        assert within(lambda: bool(tunnel.said))
        home.renew()
        assert within(lambda: tunnel.tunnel._identity.generation > 0)
        with tunnel.call() as link:
            assert ask(link) == b"ping"


def test_revoked_certificate_is_told_once(place: House) -> None:
    place.server.revoked.add(place.serial)
    with running(place.root, connect_s=0.2) as tunnel:
        for _ in range(4):
            with tunnel.call() as link:
                link.sendall(b"?")
                assert link.recv(1) == b""
            time.sleep(0.1)

    assert len(tunnel.said) == 1
    assert "when the site's certificate was revoked" in tunnel.said[0]
    assert place.server.accepted <= 2


def test_certificate_that_the_server_does_not_know_is_told(
    tmp_path: Path,
) -> None:
    with house(tmp_path / "a") as home, house(tmp_path / "b") as other:
        assert home.server.tls is not None
        strict = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        strict.load_cert_chain(home.trust / "server.pem", home.trust / "server.key")
        strict.load_verify_locations(other.trust / "ca.pem")
        strict.verify_mode = ssl.CERT_REQUIRED
        home.server.tls = strict
        with running(home.root) as tunnel, tunnel.call() as link:
            link.sendall(b"?")
            assert link.recv(1) == b""
            assert within(lambda: bool(tunnel.said))

    # The server's word is lost where its end of the connection overtakes it.
    said = tunnel.said[0]
    assert "certificate (unknown ca)" in said or "ends this site's connections" in said


def test_proxy_that_drops_silent_connections_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medfed.client.tunnel._CUT_OFF_S", 0.2)
    monkeypatch.setattr("medfed.client.tunnel_proxy.is_loopback", lambda host: False)

    def answer_late(link: ssl.SSLSocket) -> None:
        link.sendall(link.recv(10))
        link.recv(10)
        time.sleep(2)

    with house(tmp_path, answer_late) as home, connect_proxy(idle_s=0.4) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        with running(home.root) as tunnel:
            for _ in range(3):
                with tunnel.call() as link:
                    ask(link)
                    link.sendall(b"long")
                    assert link.recv(1) == b""  # the node asks again on another
            assert within(lambda: bool(tunnel.said))

    assert len(tunnel.said) == 1
    assert "was ended 3 times while the site waited for an answer" in tunnel.said[0]


def test_firewalls_see_a_sign_of_life_while_the_node_waits(place: House) -> None:
    seen: list[tuple[int, int, int]] = []
    connected = tunnel_outbound._connected

    async def watched(*how: object) -> socket.socket:
        link = await connected(*how)  # type: ignore[arg-type]  # handed through
        seen.append(
            (
                link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                link.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                link.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
            )
        )
        return link

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tunnel_outbound, "_connected", watched)
        with running(place.root) as tunnel, tunnel.call() as link:
            ask(link)

    assert seen[-1] == (1, 15, 15)  # below the 30 s of the strictest firewalls


# ---- refusals ------------------------------------------------------------------------------------
def test_site_without_an_approval_has_no_tunnel(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no approval was taken up"):
        Tunnel(bare_site(tmp_path), print)


def test_port_in_use_is_told(place: House) -> None:
    with running(place.root) as first:
        second = running(place.root)
        second._start = lambda: _start_on(place.root, first.tunnel.port)  # type: ignore[method-assign]  # a port of its own
        with pytest.raises(TransportError, match="cannot be used"), second:
            pass


async def _start_on(root: Path, port: int) -> Tunnel:
    tunnel = Tunnel(root, print, port=port)
    await tunnel.start()
    return tunnel


@pytest.mark.parametrize(
    ("spoil", "code", "found"),
    [
        # Exit codes: common/errors.py.
        (lambda root: (root / "trust" / "approval.json").unlink(), 10, "no approval"),
        (lambda root: (root / "keys" / "node_key").chmod(0o644), 10, "mode 0644"),
        (lambda root: (root / "trust" / "site.pem").write_text("x"), 15, "site.pem"),
    ],
)
def test_process_that_cannot_start_ends_with_the_code_of_its_reason(
    place: House, spoil: Callable[[Path], object], code: int, found: str
) -> None:
    spoil(place.root)

    done = _process(place.root)
    said, _ = done.communicate(timeout=30)

    assert done.returncode == code
    assert found in said and "Next step: " in said and "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_ends_in_order_when_told_to(place: House, number: signal.Signals) -> None:
    process = _process(place.root)
    assert process.stdout is not None
    assert "tunnel.ready port=" in process.stdout.readline()

    process.send_signal(number)
    said, _ = process.communicate(timeout=30)

    assert (process.returncode, said) == (0, "")


def _process(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", "-m", "medfed.client.tunnel", "--root", str(root)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
