"""Attacks on the site's tunnel: from the same machine, from the network, through the proxy.

The tunnel is the real one, as a process where the attack is about a process; the server that
stands for the guard demands a certificate, and ``test_real_node...`` has Flower on both ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medfed.client.tunnel_identity import local_side
from medfed.common.processes import Child, flower_environment, free_port, start_child
from tests.support.flower_hub import FlowerHub, wait_until
from tests.support.proxies import connect_proxy
from tests.support.tunnels import (
    ask,
    call,
    expired_server,
    house,
    read,
    relay,
    running,
    within,
)

pytestmark = pytest.mark.network

PASSWORD = "hunter2-canary"


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


class Process:
    """``python -I -m medfed.client.tunnel``."""

    def __init__(self, root: Path, child: Child, log: Path) -> None:
        self.root, self.child, self._log = root, child, log

    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text()

    @property
    def port(self) -> int:
        """Where it listens."""
        wait_until(lambda: "tunnel.ready port=" in self.log(), "the tunnel starts")
        found = re.search(r"tunnel\.ready port=(\d+)", self.log())
        assert found is not None
        return int(found[1])

    @property
    def pid(self) -> int:
        """Of the tunnel itself, below its keeper."""
        children = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text()
        return int(children.split()[0])

    def call(self) -> ssl.SSLSocket:
        """Connect as Flower's node does."""
        return call(self.port, self.root / "flower" / "tunnel.pem")


@contextlib.contextmanager
def process(root: Path) -> Iterator[Process]:
    log = root.parent / "tunnel.log"
    child = start_child(
        [sys.executable, "-I", "-m", "medfed.client.tunnel", "--root", str(root)],
        name="tunnel",
        environment=flower_environment(root / "flower" / "home"),
        output=log,
    )
    try:
        yield Process(root, child, log)
    finally:
        child.end()


# ---- from the same machine -----------------------------------------------------------------------
def test_another_user_of_the_machine_uses_the_tunnel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with house(tmp_path) as home, running(home.root) as tunnel:
        if os.geteuid() == 0:  # a process of nobody's calls
            port = tunnel.tunnel.port
            code = f"exec 3<>/dev/tcp/127.0.0.1/{port}; printf hello >&3; head -c 1 <&3 | wc -c"
            done = subprocess.run(
                ["/bin/bash", "-c", code],
                user=65534, group=65534, extra_groups=[], cwd="/", timeout=30,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.stdout.strip() == "0", done.stderr
        else:  # we are the other user
            me = os.geteuid()
            monkeypatch.setattr(os, "geteuid", lambda: me + 1)
            with pytest.raises(OSError):
                tunnel.call()
            monkeypatch.undo()
        assert within(lambda: bool(tunnel.said))
        with tunnel.call() as link:
            assert ask(link) == b"ping"  # its own node goes on

    assert len(tunnel.said) == 1
    assert "another user's program" in tunnel.said[0]
    assert home.server.accepted == 1


def test_somebody_takes_over_the_port_of_a_tunnel_that_ended(tmp_path: Path) -> None:
    with house(tmp_path) as home:
        with running(home.root) as tunnel:
            certificate, port = tunnel.tunnel.certificate, tunnel.tunnel.port
        forged, _ = local_side()
        with socket.create_server(("127.0.0.1", port)) as server:

            def pretend() -> None:
                taken, _ = server.accept()
                with contextlib.suppress(OSError):
                    forged.wrap_socket(taken, server_side=True).close()
                taken.close()

            thread = threading.Thread(target=pretend)
            thread.start()
            with pytest.raises(ssl.SSLCertVerificationError):
                call(port, certificate)
            thread.join()


def test_the_key_is_in_no_file_no_open_handle_and_no_argument_of_the_process(
    tmp_path: Path,
) -> None:
    with house(tmp_path) as home, process(home.root) as tunnel:
        with tunnel.call() as link:
            ask(link)
        handles = [os.readlink(path) for path in Path(f"/proc/{tunnel.pid}/fd").iterdir()]
        arguments = Path(f"/proc/{tunnel.pid}/cmdline").read_bytes()
        limits = Path(f"/proc/{tunnel.pid}/limits").read_text()
        files = [path for path in home.root.rglob("*") if path.is_file()]
        holding = [path.name for path in files if b"PRIVATE KEY" in path.read_bytes()]

    assert not [path for path in handles if "memfd" in path or path.endswith("node_key")]
    assert b"PRIVATE" not in arguments
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert holding == ["node_key"]
    assert {path.stat().st_mode & 0o077 for path in files if "tunnel" in path.name} == {0}


# ---- somewhere else than the server --------------------------------------------------------------
@pytest.mark.parametrize(
    "request_",
    [
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"\x05\x01\x00",
    ],
)
def test_caller_asks_the_tunnel_for_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_: bytes
) -> None:
    with house(tmp_path, host="hub.example") as home:
        with connect_proxy(routes={home.address: home.server.port}) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
            with running(home.root) as tunnel, tunnel.call() as link:
                assert ask(link, request_) == request_  # bytes like any others

    assert [head.split()[1] for head in proxy.asked] == [home.address]


def test_under_load_the_process_has_exactly_the_sockets_that_are_documented(
    tmp_path: Path,
) -> None:
    with house(tmp_path) as home, process(home.root) as tunnel:
        port, links = tunnel.port, [tunnel.call() for _ in range(8)]
        for link in links:
            assert ask(link, b"x" * 50_000) == b"x" * 50_000
        found = inet_sockets(tunnel.pid)
        for link in links:
            link.close()

    listening = [(near, far) for near, far, state in found if state == "0A"]
    connected = [(near, far) for near, far, state in found if state == "01"]
    assert listening == [(port, 0)]
    assert sorted(near for near, far in connected if near == port) == [port] * 8
    assert [far for near, far in connected if near != port] == [home.server.port] * 8
    assert len(found) == 17


def inet_sockets(pid: int) -> list[tuple[int, int, str]]:
    """Local port, remote port and state of each TCP or UDP socket of a process."""
    own = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6", "raw"):
        path = Path(f"/proc/{pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if f"socket:[{fields[9]}]" in own:
                near, far = (int(fields[at].split(":")[1], 16) for at in (1, 2))
                found.append((near, far, fields[3]))
    return found


# ---- on the way ----------------------------------------------------------------------------------
def test_proxy_that_opens_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with house(tmp_path / "a", host="hub.example") as home:
        with house(tmp_path / "b", host="hub.example") as opener:
            got: list[bytes] = []
            opener.server.handler = lambda link: got.append(link.recv(100))
            with connect_proxy(routes={home.address: opener.server.port}) as proxy:
                monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
                with running(home.root, connect_s=0.5) as tunnel, tunnel.call() as link:
                    link.sendall(b"secret")
                    assert link.recv(1) == b""

    assert (got, opener.server.serials) == ([], [])
    assert f"whether the proxy 127.0.0.1:{proxy.port} opens TLS" in tunnel.said[0]


def test_server_with_an_older_tls(tmp_path: Path) -> None:
    with house(tmp_path) as home, running(home.root, connect_s=0.5) as tunnel:
        assert home.server.tls is not None
        home.server.tls.maximum_version = ssl.TLSVersion.TLSv1_2
        with tunnel.call() as link:
            link.sendall(b"secret")
            assert link.recv(1) == b""

    assert "speaks an older TLS; allowed is TLS 1.3" in tunnel.said[0]
    assert home.server.serials == []


def test_server_whose_certificate_has_expired(tmp_path: Path) -> None:
    with house(tmp_path) as home, running(home.root, connect_s=0.5) as tunnel:
        home.server.tls = expired_server(home)
        for _ in range(5):
            with tunnel.call() as link:
                link.sendall(b"secret")
                assert link.recv(1) == b""

    assert len(tunnel.said) == 1
    assert "its certificate has expired by the clock of this machine" in tunnel.said[0]
    assert home.server.accepted == 1


def test_no_log_line_holds_the_proxys_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with house(tmp_path, host="hub.example") as home:
        with connect_proxy(login="user:other") as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://user:{PASSWORD}@127.0.0.1:{proxy.port}")
            with process(home.root) as tunnel:
                with tunnel.call() as link:
                    link.sendall(b"?")
                    wait_until(lambda: "407" in tunnel.log(), "the proxy's refusal is told")
                log = tunnel.log()
        files = [path for path in home.root.rglob("*") if path.is_file()]

    assert PASSWORD not in log
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]


# ---- a long body ---------------------------------------------------------------------------------
def test_memory_stays_flat_while_a_long_body_passes_in_both_directions(tmp_path: Path) -> None:
    # 100 MiB each way: held back, they would show. 700 MB were carried once by hand.
    count, piece = 100 * 2**20, b"x" * (1 << 18)

    def take_and_give(link: ssl.SSLSocket) -> None:
        left = count
        while left:
            left -= len(link.recv(1 << 18))
        link.sendall(b"taken")
        for _ in range(count // len(piece)):
            link.sendall(piece)

    with house(tmp_path, take_and_give) as home, process(home.root) as tunnel:
        with tunnel.call() as link:
            before = peak_rss(tunnel.pid)
            for _ in range(count // len(piece)):
                link.sendall(piece)
            assert read(link, 5) == b"taken"
            time.sleep(0.5)  # the server sends on; nobody reads
            left = count
            while left:
                left -= len(link.recv(1 << 18))
            after = peak_rss(tunnel.pid)

    assert after - before < 16 * 2**20


def peak_rss(pid: int) -> int:
    """The most memory that a process ever had, bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


# ---- with Flower ---------------------------------------------------------------------------------
def test_real_node_joins_a_real_superlink_that_it_reaches_only_with_the_sites_certificate(
    tmp_path: Path,
) -> None:
    with FlowerHub(tmp_path / "hub") as hub, house(tmp_path) as home, process(home.root) as tunnel:
        hub.enrol(home.root / "keys" / "node_key.pub")
        home.server.handler = lambda link: relay(link, hub)
        secret, log = tmp_path / "secret", tmp_path / "node.log"
        secret.write_text("ab" * 32)
        node = start_child(
            [
                "flower-supernode", "--superlink", f"127.0.0.1:{tunnel.port}",
                "--root-certificates", str(home.root / "flower" / "tunnel.pem"),
                "--auth-supernode-private-key", str(home.root / "keys" / "node_key"),
                "--host", "127.0.0.1", "--port", str(free_port()),
                "--isolation", "process", "--superexec-auth-secret-file", str(secret),
            ],
            name="node", environment=flower_environment(tmp_path / "home"), output=log,
        )  # fmt: skip
        try:
            wait_until(lambda: "SuperNode ID" in log.read_text(), "the node joins", 60)
            home.renew()  # while it is joined
            wait_until(lambda: home.serial in home.server.serials, "the new certificate is used")
            assert "retrying" not in log.read_text()  # no request was lost by it
            home.server.close()  # the server restarts
            wait_until(lambda: "retrying" in log.read_text(), "the node notices", 40)
            home.server.open()
            wait_until(lambda: "Connection successful after" in log.read_text(), "it is back", 60)
        finally:
            assert node.end() == 0

    said = [line for line in tunnel.log().splitlines() if "WARNING" in line]
    assert len(said) <= 2  # that the server was away, however often the node tried
    assert "Traceback" not in tunnel.log() and "defect" not in tunnel.log()
