"""Which proxy is used, and what it is asked; how each of its refusals reads."""

from __future__ import annotations

import asyncio
import base64
import socket

import pytest

from medfed.client.tunnel_proxy import Proxy, ask_through, proxy_for
from medfed.common.errors import ConfigError, TransportError
from tests.support.proxies import connect_proxy

LOGIN = "Basic " + base64.b64encode(b"us er:pa:ss").decode()


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


# ---- which ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("http://proxy.hospital:3128", Proxy("proxy.hospital", 3128, "")),
        ("http://proxy.hospital:3128/", Proxy("proxy.hospital", 3128, "")),
        ("proxy.hospital:3128", Proxy("proxy.hospital", 3128, "")),
        ("http://proxy.hospital", Proxy("proxy.hospital", 80, "")),
        ("http://[fd00::1]:3128", Proxy("fd00::1", 3128, "")),
        ("http://us%20er:pa%3Ass@proxy:3128", Proxy("proxy", 3128, LOGIN)),
        ("http://user@proxy:3128", Proxy("proxy", 3128, "Basic dXNlcjo=")),  # "user:" in base64
    ],
)
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_proxy_is_the_one_that_the_variable_names(
    monkeypatch: pytest.MonkeyPatch, name: str, written: str, expected: Proxy
) -> None:
    monkeypatch.setenv(name, written)

    assert proxy_for("hub.example", 443) == expected


@pytest.mark.parametrize(
    ("no_proxy", "host", "is_used"),
    [
        ("", "hub.example", True),
        ("hub.example", "hub.example", False),
        (".example", "hub.example", False),
        ("hub.example:443", "hub.example", False),
        ("hub.example:8443", "hub.example", True),
        ("other.example, hub.example", "hub.example", False),
        ("*", "hub.example", False),
        ("other.example", "hub.example", True),
        ("", "127.0.0.1", False),
        ("", "127.3.2.1", False),
        ("", "::1", False),
        ("", "localhost", False),
        ("", "LOCALHOST.", False),
        ("", "localhost.example", True),
    ],
)
def test_proxy_is_bypassed_where_no_proxy_says_and_for_loopback(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, host: str, is_used: bool
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)

    assert (proxy_for(host, 443) is not None) == is_used


def test_without_a_variable_and_for_other_protocols_there_is_no_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")

    assert proxy_for("hub.example", 443) is None


@pytest.mark.parametrize(
    "written",
    [
        "https://us:secret@proxy:3128",
        "socks5://us:secret@proxy:1080",
        "http://us:secret@proxy:port",
        "http://us:secret@proxy:99999",
        "http://us:secret@",
        "http://us:secret@proxy:3128/path",
        "http://us:secret@[fd00::1",
    ],
)
def test_proxy_that_cannot_be_used_is_refused_without_showing_its_password(
    monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", written)

    with pytest.raises(ConfigError, match="allowed is http://host:port") as refused:
        proxy_for("hub.example", 443)

    assert "secret" not in str(refused.value)


def test_login_is_not_shown() -> None:
    proxy = Proxy("fd00::1", 3128, LOGIN)

    assert f"{proxy} {proxy!r}" == "[fd00::1]:3128 Proxy([fd00::1]:3128)"


# ---- asked ---------------------------------------------------------------------------------------
def asked(port: int, login: str = "") -> socket.socket:
    """Ask the proxy on a port for hub.example; connected through it."""

    async def ask() -> socket.socket:
        link = socket.socket()
        link.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(link, ("127.0.0.1", port))
            await ask_through(link, Proxy("127.0.0.1", port, login), "hub.example:8443")
        except BaseException:
            link.close()
            raise
        return link

    return asyncio.run(ask())


@pytest.mark.network
def test_proxy_is_told_the_address_and_its_login_and_nothing_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as echo:
        routes = {"hub.example:8443": echo.getsockname()[1]}
        with connect_proxy(routes=routes, login="us er:pa:ss") as proxy:
            with asked(proxy.port, LOGIN) as link, echo.accept()[0] as far:
                link.setblocking(True)
                link.sendall(b"through")
                assert far.recv(7) == b"through"

    assert proxy.asked == [
        "CONNECT hub.example:8443 HTTP/1.1\r\nHost: hub.example:8443\r\n"
        f"Proxy-Authorization: {LOGIN}\r\n\r\n"
    ]


@pytest.mark.network
@pytest.mark.parametrize(
    ("answer", "found", "next_step"),
    [
        (b"HTTP/1.1 407 Login\r\n\r\n", "wants a login", "into HTTPS_PROXY"),
        (b"HTTP/1.1 403 No\r\n\r\n<html>", "does not let this site through", "allow CONNECT"),
        (b"HTTP/1.0 502 Bad\r\n\r\n", "cannot reach it", "whether the server runs"),
        (b"HTTP/1.1 504 Late\r\n\r\n", "cannot reach it", "whether the server runs"),
        (b"HTTP/1.1 302 Log in\r\nlocation: /\r\n\r\n", "not let this site", "allow CONNECT"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not answer as an HTTP proxy", "check HTTPS_PROXY"),
        (b"HTTP/1.1 200 OK\r\n\r\n\x16\x03", "not answer as an HTTP proxy", "check HTTPS_PROXY"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 40_000, "not answer as", "check HTTPS_PROXY"),
        (b"HTTP/1.1 200", "not answer as an HTTP proxy", "check HTTPS_PROXY"),
        (b"", "not answer as an HTTP proxy", "check HTTPS_PROXY"),
    ],
)
def test_proxy_that_does_not_let_through_is_told_with_the_next_step(
    answer: bytes, found: str, next_step: str
) -> None:
    with connect_proxy(answer=answer) as proxy:
        with pytest.raises(TransportError) as refused:
            asked(proxy.port)

    text = str(refused.value)
    assert f"server hub.example:8443: the proxy 127.0.0.1:{proxy.port} " in text
    assert found in text and next_step in text


@pytest.mark.network
def test_login_that_the_proxy_does_not_accept_is_not_shown() -> None:
    with connect_proxy(login="us er:other") as proxy:
        with pytest.raises(TransportError, match="does not accept this login") as refused:
            asked(proxy.port, LOGIN)

    assert LOGIN not in str(refused.value) and "pa:ss" not in str(refused.value)


@pytest.mark.network
def test_proxy_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medfed.client.tunnel_proxy._ANSWER_S", 0.3)

    with connect_proxy(hangs=True) as proxy:
        with pytest.raises(TransportError, match="did not answer within 0 s"):
            asked(proxy.port)


@pytest.mark.network
def test_answer_in_pieces_and_after_a_provisional_one_is_understood() -> None:
    with socket.create_server(("127.0.0.1", 0)) as slow:

        async def ask() -> None:
            link, loop = socket.socket(), asyncio.get_running_loop()
            with link:
                link.setblocking(False)
                port = slow.getsockname()[1]
                await loop.sock_connect(link, ("127.0.0.1", port))
                asking = asyncio.create_task(ask_through(link, Proxy("p", 1, ""), "hub:1"))
                far, _ = slow.accept()
                with far:
                    for byte in b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n":
                        await asyncio.sleep(0)
                        far.send(bytes([byte]))
                    await asking

        asyncio.run(ask())
