"""What may pass the guard: a closed list of methods and paths, and the headers of each.

Flower's SuperLink serves hospitals, coordinators and its own programs on one port, and asks only
the first for a signature. What is not on this list does not reach it.

The names of paths and headers are Flower's, as its node uses them
(``flwr.supernode.fleet_http_client``); a test holds them against the installed version. A node
with a key of its own neither registers nor unregisters itself, so these two are not listed.
"""

from __future__ import annotations

import base64
import binascii
import re
from enum import Enum, auto
from typing import Final, NamedTuple

from medfed.server.guard.heads import Head
from medfed.server.guard.peers import Peer
from medfed.server.guard.refusal import RefusedRequest

_FLEET = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
FLEET: Final = frozenset(f"/v1/fleet/{name}" for name in _FLEET)
PULL: Final = "/v1/fleet/pull-messages"
SITE: Final = "/v1/site"
HEALTH: Final = "/health"

_PLAIN = re.compile(r"(?:/[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)+")
"""A path with one spelling only: no empty or dotted parts, nothing encoded, no query."""

PROTOBUF: Final = "application/protobuf"
OURS: Final = (("host", "superlink"),)
"""The headers of a request of the guard's own."""

_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{1,200}={0,2}")
_TIME = re.compile(r"[0-9T:.+-]{1,40}")


class Kind(Enum):
    """Who answers."""

    FLEET = auto()
    SITE = auto()
    HEALTH = auto()


class NodeSignature(NamedTuple):
    """What Flower's node puts in front of each request.

    Attributes:
        time: When it signed, as it wrote it.
        signature: Over ``time``, by the site's key; DER. The SuperLink verifies it.
    """

    time: str
    signature: bytes


def route(head: Head) -> Kind:
    """Say who answers a request.

    Raises:
        RefusedRequest: 400 where the path has another spelling, 404 where it is not on the list.
    """
    if _PLAIN.fullmatch(head.target) is None:
        raise RefusedRequest(400, "path", head.target)
    if head.method == "POST" and head.target in FLEET:
        return Kind.FLEET
    if head.method == "POST" and head.target == SITE:
        return Kind.SITE
    if head.method == "GET" and head.target == HEALTH and head.length == 0:
        return Kind.HEALTH
    raise RefusedRequest(404, "not-on-the-list", head.target)


def node_signature(head: Head, peer: Peer) -> NodeSignature:
    """Check that a request to Flower names the key of the caller's certificate.

    Raises:
        RefusedRequest: 403 where it names another key, 400 where the headers are missing or
            misshapen.
    """
    named, time, signature = (
        head.fields.get(name, "")
        for name in ("flwr-public-key", "flwr-timestamp", "flwr-signature")
    )
    if not (_TIME.fullmatch(time) and _SIGNATURE.fullmatch(signature)):
        raise RefusedRequest(400, "node-headers", head.target)
    if head.fields.get("content-type") != PROTOBUF:
        raise RefusedRequest(400, "content-type", head.target)
    if named != base64.b64encode(peer.public_key).decode("ascii"):
        raise RefusedRequest(403, "key-of-another", head.target)
    try:
        return NodeSignature(time, base64.b64decode(signature, validate=True))
    except binascii.Error:
        raise RefusedRequest(400, "node-headers", head.target) from None


def fields_for_superlink(peer: Peer, signed: NodeSignature, length: int) -> list[tuple[str, str]]:
    """Write the headers of the request that the SuperLink gets: these and no other."""
    return [
        *OURS,
        ("content-type", PROTOBUF),
        ("accept", PROTOBUF),
        ("content-length", str(length)),
        ("flwr-public-key", base64.b64encode(peer.public_key).decode("ascii")),
        ("flwr-timestamp", signed.time),
        ("flwr-signature", base64.b64encode(signed.signature).decode("ascii")),
    ]
