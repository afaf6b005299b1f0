"""One connection to the server: dialled, through the proxy where there is one, then TLS.

Each way to fail has its own message, so that an admin reads whether it is the server, the
network, the proxy, the clock or a certificate.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from typing import Final, NamedTuple

from medfed.client.tunnel_identity import Outward
from medfed.client.tunnel_proxy import Proxy, ask_through, proxy_for
from medfed.common.errors import MedfedError, TransportError, TrustError

PIECE_BYTES: Final = 1 << 16
"""Read at once, and held back per direction before the sender is made to wait."""

CLOSE_S: Final = 5.0
"""For the last bytes to go out, and for the other side to say that it heard the end."""

_DIAL_S: Final = 10.0
_HANDSHAKE_S: Final = 10.0
_ALIVE_EVERY_S: Final = 15
_DEAD_AFTER_MS: Final = 60_000

_OTHER_NAME: Final = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_NOT_YET_VALID: Final = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED


class Streams(NamedTuple):
    """Both directions of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def open_outbound(outward: Outward) -> Streams:
    """Connect to the server and shake hands.

    Raises:
        ConfigError: the proxy's variable cannot be used.
        TransportError: the server or the proxy does not answer, or not with TLS 1.3.
        TrustError: what answers is not the coordinator's server, or a clock is wrong.

    Guarantee:
        Nothing but the name or address of the server, and the proxy's own login, is sent before
        the other end has proved that it is the server. Whether the server accepts this site's
        certificate shows only in what it says next (TLS 1.3): see ``refusal``.
    """
    proxy = proxy_for(outward.host, outward.port)
    if proxy is None:
        link = await _dial(outward.host, outward.port, f"server {outward.address}")
    else:
        link = await _dial(proxy.host, proxy.port, f"server {outward.address}: the proxy {proxy}")
    try:
        if proxy is not None:
            await ask_through(link, proxy, outward.address)
        return await _shake_hands(link, outward, proxy)
    except BaseException:
        link.close()
        raise


async def take_inbound(link: socket.socket, tls: ssl.SSLContext, limit_s: float) -> Streams:
    """Shake hands with whoever called.

    Raises:
        OSError: it did not come to that within ``limit_s`` seconds.
    """
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reader, protocol = _stream()
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
        lambda: protocol,
        link,
        ssl=tls,
        ssl_handshake_timeout=limit_s,
        ssl_shutdown_timeout=CLOSE_S,
    )
    loop = asyncio.get_running_loop()
    return Streams(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


def refusal(error: ssl.SSLError, address: str) -> MedfedError:
    """What it means that the server ended TLS after the handshake."""
    reason = (error.reason or "").upper()
    if "CERTIFICATE" in reason or "UNKNOWN_CA" in reason or "ACCESS_DENIED" in reason:
        said = reason.rpartition("ALERT_")[2].replace("_", " ").lower()
        return TrustError(
            f"server {address} refuses this site's certificate ({said}).",
            advice="ask the coordinator whether it was revoked; a new one comes as an approval, "
            "for `medfed enrol accept`.",
        )
    return TransportError(
        f"server {address}: the connection was damaged on its way ({error.reason or 'TLS'}).",
        advice="if it goes on, ask the hospital's IT what stands between.",
    )


def unanswered(address: str) -> TransportError:
    """What it means that the server closed without a word."""
    return TransportError(
        f"server {address} ends this site's connections without an answer; it does so when the "
        "site's certificate was revoked, or when it is being restarted.",
        advice="if it goes on, ask the coordinator whether this site's certificate is revoked.",
    )


async def _dial(host: str, port: int, whom: str) -> socket.socket:
    """Try each address of a host in turn, within one limit for all of them."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_DIAL_S):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            for family, kind, protocol, _, address in found[:-1]:
                try:
                    async with asyncio.timeout(_DIAL_S / len(found)):
                        return await _connected(family, kind, protocol, address)
                except OSError:
                    continue
            family, kind, protocol, _, address = found[-1]
            return await _connected(family, kind, protocol, address)
    except OSError as error:  # TimeoutError and gaierror are some
        why = f"no reply within {_DIAL_S:.0f} s" if isinstance(error, TimeoutError) else _why(error)
        raise TransportError(
            f"{whom} cannot be reached ({why}).",
            advice="ask the coordinator whether the server runs; check the hospital's firewall, "
            "and HTTPS_PROXY where one must be used.",
        ) from error


async def _connected(
    family: int, kind: int, protocol: int, address: tuple[str | int | bytes, ...]
) -> socket.socket:
    link = socket.socket(family, kind, protocol)
    try:
        link.setblocking(False)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A firewall forgets what is silent; Flower's node is silent while it waits for a message.
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _ALIVE_EVERY_S)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ALIVE_EVERY_S)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_AFTER_MS)
        await asyncio.get_running_loop().sock_connect(link, address)
        return link
    except BaseException:
        link.close()
        raise


async def _shake_hands(link: socket.socket, outward: Outward, proxy: Proxy | None) -> Streams:
    reader, protocol = _stream()
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.create_connection(
            lambda: protocol,
            sock=link,
            ssl=outward.tls,
            server_hostname=outward.host,
            ssl_handshake_timeout=_HANDSHAKE_S,
            ssl_shutdown_timeout=CLOSE_S,
        )
    except ssl.SSLCertVerificationError as error:
        raise _not_trusted(outward, error, proxy) from error
    except OSError as error:
        raise TransportError(
            f"server {outward.address} {_no_handshake(error)}.",
            advice="ask the coordinator whether the server runs at this address; if it does, ask "
            "the hospital's IT what stands between.",
        ) from error
    return Streams(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


def _stream() -> tuple[asyncio.StreamReader, asyncio.StreamReaderProtocol]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=PIECE_BYTES, loop=loop)
    return reader, asyncio.StreamReaderProtocol(reader, loop=loop)


def _no_handshake(error: OSError) -> str:
    if isinstance(error, ssl.SSLEOFError | ConnectionResetError):
        return "ended the connection during the TLS handshake"
    if isinstance(error, ConnectionAbortedError):
        return f"did not finish the TLS handshake within {_HANDSHAKE_S:.0f} s"
    if "PROTOCOL_VERSION" in (getattr(error, "reason", None) or "").upper():
        return "speaks an older TLS; allowed is TLS 1.3"
    return "does not speak TLS"


def _not_trusted(
    outward: Outward, error: ssl.SSLCertVerificationError, proxy: Proxy | None
) -> TrustError:
    who = f"server {outward.address}"
    if error.verify_code in _OTHER_NAME:
        return TrustError(
            f"{who}: its certificate is not for {outward.host!r}, the host that the approval "
            "names.",
            advice="ask the coordinator for a certificate of the server with this name.",
        )
    if error.verify_code == _NOT_YET_VALID:
        return TrustError(
            f"{who}: its certificate is not valid yet by the clock of this machine.",
            advice="set the clock of this machine (NTP).",
        )
    if error.verify_code == _EXPIRED:
        return TrustError(
            f"{who}: its certificate has expired by the clock of this machine.",
            advice="check the clock of this machine, then tell the coordinator.",
        )
    advice = "tell the coordinator by phone; somebody else may be answering there."
    if proxy is not None:
        advice = (
            f"ask the hospital's IT whether the proxy {proxy} opens TLS; it must pass "
            f"{outward.address} through. If it does not, {advice}"
        )
    return TrustError(
        f"{who}: its certificate is not signed by an authority that this site trusts "
        "(trust/ca.pem).",
        advice=advice,
    )


def _why(error: OSError) -> str:
    number = error.errno or 0  # below 0: of the name service, with a text of its own
    return (os.strerror(number) if number > 0 else error.strerror or type(error).__name__).lower()
