"""Try the way to the server once, as the tunnel will go it: for the checks before joining."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import ssl
from pathlib import Path
from typing import Final, NamedTuple

import h11

from medfed.client.enrolment import Clock, now
from medfed.client.tunnel_identity import EXPIRES_SOON, Outward, read_outward
from medfed.client.tunnel_outbound import Streams, open_outbound, refusal, unanswered
from medfed.client.tunnel_proxy import proxy_for
from medfed.common.errors import TransportError

_ANSWER_S: Final = 10.0
_REFUSAL_S: Final = 0.5
"""A server that refuses the certificate says so unasked, after the handshake. Were something sent
before, its word could be lost in the end of the connection."""
_LARGEST_ANSWER_BYTES: Final = 16 * 1024


class Reached(NamedTuple):
    """The server answered.

    Attributes:
        server: ``host:port``.
        proxy: ``host:port`` of the proxy on the way; None: none.
        expires: When the site's certificate does, UTC.
        expires_soon: Whether that is within 14 days; a warning.
        server_clock_s: The server's clock when it answered, seconds since 1970, in whole
            seconds; None: it did not say.
    """

    server: str
    proxy: str | None
    expires: datetime.datetime
    expires_soon: bool
    server_clock_s: float | None


def reach(root: Path, *, clock: Clock = now) -> Reached:
    """Connect to the server once with the site's certificate, and ask for its health.

    Args:
        root: The site's folder.
        clock: For tests.

    Raises:
        ConfigError: a file of the site cannot be read or is missing, others may read the key, or
            the proxy's variable cannot be used.
        TransportError: the server or the proxy does not answer, the proxy refuses, or the server
            ends the connection (it was revoked, or the server is being restarted).
        TrustError: a certificate has expired or is not valid yet (a wrong clock), what answers
            has another authority's or another host's, or the server refuses the site's.
    """
    outward = read_outward(root, clock=clock)
    said = asyncio.run(_asked(outward))
    if said.status_code != 200:
        raise TransportError(
            f"server {outward.address} answers with HTTP status {said.status_code}; a medfed "
            "server that is ready says 200.",
            advice="ask the coordinator whether the server is running well.",
        )
    proxy = proxy_for(outward.host, outward.port)
    return Reached(
        server=outward.address,
        proxy=None if proxy is None else str(proxy),
        expires=outward.expires,
        expires_soon=outward.expires - clock() < EXPIRES_SOON,
        server_clock_s=_date(dict(said.headers).get(b"date", b"")),
    )


async def _asked(outward: Outward) -> h11.Response:
    link = await open_outbound(outward)
    try:
        async with asyncio.timeout(_ANSWER_S):
            return await _answer(link, outward.address)
    except TimeoutError as error:
        raise TransportError(
            f"server {outward.address} did not answer within {_ANSWER_S:.0f} s.",
            advice="ask the coordinator whether the server is running well.",
        ) from error
    except ssl.SSLError as error:
        raise refusal(error, outward.address) from error
    except (OSError, h11.RemoteProtocolError) as error:
        raise unanswered(outward.address) from error
    finally:
        link.writer.transport.abort()
        with contextlib.suppress(OSError):
            await link.writer.wait_closed()


async def _answer(link: Streams, address: str) -> h11.Response:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REFUSAL_S):
            await link.reader.read(1)
            raise ConnectionResetError  # its end, or bytes that nobody asked for
    wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LARGEST_ANSWER_BYTES)
    headers = [("Host", address), ("Connection", "close")]
    asked = wire.send(h11.Request(method="GET", target="/health", headers=headers)) or b""
    link.writer.write(asked)
    while True:
        event = wire.next_event()
        if isinstance(event, h11.Response):
            return event
        if event is h11.NEED_DATA:
            wire.receive_data(await link.reader.read(4096))


def _date(header: bytes) -> float | None:
    try:
        said = email.utils.parsedate_tz(header.decode("ascii", "replace"))
        return None if said is None else float(email.utils.mktime_tz(said))
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
