"""The hospital's proxy: which one, and how it is asked to let the tunnel through.

Named by the variables ``HTTPS_PROXY`` and ``NO_PROXY`` (or in small letters), as ``http://host``
with a port, and a user and password where it wants them. What passes through it afterwards is TLS
between the site and the server: a proxy that opens TLS is noticed, and refused, there.

Source:
    RFC 9110, sections 9.3.6 (CONNECT) and 11.7 (Proxy-Authorization). RFC 7617 (Basic).
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
import urllib.parse
from typing import Final, NamedTuple
from urllib.request import getproxies_environment, proxy_bypass

import h11

from medfed.common.errors import ConfigError, MedfedError, TransportError

_ANSWER_S: Final = 10.0
_LARGEST_ANSWER_BYTES: Final = 16 * 1024


class Proxy(NamedTuple):
    """A proxy that speaks HTTP.

    Attributes:
        host: Its name or address.
        port: Its port.
        login: ``Proxy-Authorization``; empty: none. Secret: never shown.
    """

    host: str
    port: int
    login: str

    def __repr__(self) -> str:
        return f"Proxy({self})"

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def proxy_for(host: str, port: int) -> Proxy | None:
    """The proxy by which a server is to be reached; None: none.

    Args:
        host: The server's name or address, without brackets.
        port: Its port.

    Returns:
        What this process's variables say. Never one for loopback.

    Raises:
        ConfigError: the variable names none that medfed can use. Its value is not shown: it may
            hold a password.
    """
    written = getproxies_environment().get("https", "")
    if not written or is_loopback(host) or proxy_bypass(f"{host}:{port}"):
        return None
    try:
        parts = urllib.parse.urlsplit(written if "://" in written else f"http://{written}")
        name, number = parts.hostname or "", parts.port or 80
    except ValueError as error:
        raise _unusable("an address that is none") from error
    if parts.scheme != "http":
        raise _unusable(f"a proxy for {parts.scheme[:10]!r}")
    if not name or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _unusable("an address that is none")
    return Proxy(name, number, _login(parts.username, parts.password))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


async def ask_through(link: socket.socket, proxy: Proxy, address: str) -> None:
    """Have the proxy connect to the server.

    Args:
        link: Connected to the proxy, not blocking. Afterwards its other end is the server.
        proxy: The proxy.
        address: ``host:port`` of the server.

    Raises:
        TransportError: the proxy refuses, says nothing, or is none.
    """
    try:
        async with asyncio.timeout(_ANSWER_S):
            status = await _asked(link, proxy, address)
    except TimeoutError as error:
        raise _failed(proxy, address, f"did not answer within {_ANSWER_S:.0f} s") from error
    except OSError as error:
        raise _failed(proxy, address, f"broke off ({error.strerror})") from error
    except h11.RemoteProtocolError as error:
        raise _failed(proxy, address, "does not answer as an HTTP proxy does") from error
    if not 200 <= status <= 299:
        raise _refused(proxy, address, status)


async def _asked(link: socket.socket, proxy: Proxy, address: str) -> int:
    loop = asyncio.get_running_loop()
    wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LARGEST_ANSWER_BYTES)
    headers = [("Host", address)] + ([("Proxy-Authorization", proxy.login)] if proxy.login else [])
    request = wire.send(h11.Request(method="CONNECT", target=address, headers=headers)) or b""
    wire.send(h11.EndOfMessage())
    await loop.sock_sendall(link, request)
    while True:
        event = wire.next_event()
        if isinstance(event, h11.Response):
            if event.status_code < 300 and wire.trailing_data[0]:
                raise h11.RemoteProtocolError("bytes before the server was asked for any")
            return event.status_code
        if event is h11.NEED_DATA:
            wire.receive_data(await loop.sock_recv(link, 4096))


def _login(user: str | None, password: str | None) -> str:
    if user is None:
        return ""
    pair = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode("ascii")


def _unusable(found: str) -> ConfigError:
    return ConfigError(
        f"the variable HTTPS_PROXY names {found}; allowed is http://host:port, with user:password@ "
        "before the host where the proxy wants them.",
        advice="correct the variable, or name the server in NO_PROXY if it is reached directly.",
    )


def _refused(proxy: Proxy, address: str, status: int) -> MedfedError:
    match status:
        case 407:
            found, advice = (
                "wants a login" if not proxy.login else "does not accept this login",
                "write http://user:password@host:port into HTTPS_PROXY, or have the hospital's IT "
                "let this machine through.",
            )
        case 502 | 503 | 504:
            found, advice = (
                "cannot reach it",
                "ask the coordinator whether the server runs, and the hospital's IT whether the "
                "proxy may reach it.",
            )
        case _:
            found, advice = (
                "does not let this site through",
                f"have the hospital's IT allow CONNECT to {address}, without opening TLS.",
            )
    return TransportError(
        f"server {address}: the proxy {proxy} {found} (HTTP status {status}).", advice=advice
    )


def _failed(proxy: Proxy, address: str, found: str) -> TransportError:
    return TransportError(
        f"server {address}: the proxy {proxy} {found}.",
        advice="check HTTPS_PROXY, and ask the hospital's IT whether the proxy works.",
    )
