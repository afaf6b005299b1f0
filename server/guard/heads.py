"""The head of a request, read so strictly that two readers cannot differ about it.

Smuggling lives from a front and a back that read the same bytes differently. Three things
prevent it here. The head must match a narrow grammar, is then read by ``h11`` and by this module,
and both must have read the same: what ``h11`` would forgive (a bare line feed, a length said
twice) is refused. A body has one
length, written once, in digits: no chunks, no trailers. And nothing is passed on as it came: the
request that the SuperLink gets is written anew (``routes.py``, ``forwarding.py``).

Source:
    RFC 9112, sections 2.2 (message parsing), 3 (request line), 5 (field syntax), 6 (message
    body) and 11.2 (request smuggling). https://www.rfc-editor.org/rfc/rfc9112
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import h11

from medfed.server.guard.refusal import RefusedRequest

END: Final = b"\r\n\r\n"

_LINE = rb"([A-Z]{1,20}) ([!-~]+) HTTP/1\.1\r\n"
_FIELD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*\r\n"
_HEAD = re.compile(_LINE + rb"(?:" + _FIELD + rb")*\r\n")
_LOOSE = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|\0")
"""A line feed or a carriage return on its own: an end of a line for some readers only."""

_FORBIDDEN: Final = frozenset(
    "transfer-encoding te trailer upgrade expect http2-settings content-encoding "
    "proxy-connection keep-alive".split()
)
"""What Flower's node and our own client never send, and what makes requests ambiguous."""

_LENGTH = re.compile(r"0|[1-9][0-9]{0,17}")
_MOST_FIELDS = 64


@dataclass(frozen=True)
class Head:
    """The head of a request that is in order.

    Attributes:
        method: Such as ``POST``.
        target: As it was sent; not yet looked at.
        fields: Headers by lower-case name; each was there once.
        length: Of the body, bytes.
    """

    method: str
    target: str
    fields: Mapping[str, str]
    length: int


def check_unfinished(data: bytes) -> None:
    """Refuse a head that can no longer become one, before it has arrived whole.

    Raises:
        RefusedRequest: it has an end of line that is none.
    """
    if _LOOSE.search(data):
        raise RefusedRequest(400, "line-ending")


def read_head(raw: bytes, wire: h11.Connection) -> Head:
    """Read the head of a request.

    Args:
        raw: All of the head, with the empty line that ends it, and no byte more.
        wire: What reads the request; it is given the head.

    Raises:
        RefusedRequest: it is no HTTP/1.1, or could be read in more than one way.
    """
    match = _HEAD.fullmatch(raw)
    if match is None:
        raise RefusedRequest(400, "malformed-head")
    target = match[2].decode("ascii")
    try:
        wire.receive_data(raw)
        request = wire.next_event()
    except h11.RemoteProtocolError as error:
        raise RefusedRequest(400, "malformed-head", target) from error
    if not isinstance(request, h11.Request):
        raise RefusedRequest(400, "malformed-head", target)
    fields = _fields(raw, target)
    as_h11_reads = [(name.decode(), value.decode()) for name, value in request.headers]
    if as_h11_reads != list(fields.items()):
        raise RefusedRequest(400, "read-in-two-ways", target)
    return Head(match[1].decode("ascii"), target, fields, _length(fields, match[1], target))


def _fields(raw: bytes, target: str) -> dict[str, str]:
    """The headers of a head that matched the grammar."""
    fields: dict[str, str] = {}
    for line in raw.decode("ascii").split("\r\n")[1:-2]:
        name, _, value = line.partition(":")
        if name.lower() in fields:
            raise RefusedRequest(400, "header-twice", target)
        fields[name.lower()] = value.strip(" \t")
    if len(fields) > _MOST_FIELDS or not _FORBIDDEN.isdisjoint(fields):
        raise RefusedRequest(400, "header-not-allowed", target)
    if fields.get("connection", "keep-alive").lower() not in ("keep-alive", "close"):
        raise RefusedRequest(400, "connection-header", target)
    return fields


def _length(fields: Mapping[str, str], method: bytes, target: str) -> int:
    length = fields.get("content-length", "0")
    if not _LENGTH.fullmatch(length):
        raise RefusedRequest(400, "length", target)
    if method == b"POST" and "content-length" not in fields:
        raise RefusedRequest(400, "no-length", target)
    return int(length)
