"""A request that was seen is not served again.

Flower's node signs the time of a request, not its path or body, and the SuperLink takes a
signature for 305 s. Who reads one request could send others with its headers. Flower's node never
uses a signature twice: it signs anew for each attempt, also when it tries again.

Of a signature (r, s) anybody can make a second one that verifies too, (r, n - s). So what is
remembered is the signed time and r.

The memory is this process's: a guard that was started again knows none from before. A caller
still needs the site's key to get through TLS.

Source:
    FIPS 186-5, section 6.4 (ECDSA); `flwr.superlink.routers.fleet.node_auth` of Flower 1.41 (the
    window).
"""

from __future__ import annotations

import datetime
import hashlib
from collections import deque
from typing import Final

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from medfed.server.guard.peers import Peer
from medfed.server.guard.refusal import RefusedRequest
from medfed.server.guard.routes import NodeSignature

EARLIEST_S: Final = -5.0
LATEST_S: Final = 305.0
"""A signature is this old, in seconds, or the SuperLink refuses it: 401."""


class Replays:
    """The signatures that were seen and could still be used. One thread only."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._by_age: deque[tuple[float, bytes]] = deque()

    def admit(self, peer: Peer, signed: NodeSignature, now: float) -> float:
        """Take a signature once.

        Args:
            peer: Whose certificate the request came with.
            signed: Its signature.
            now: Seconds since 1970.

        Returns:
            Its age in seconds.

        Raises:
            RefusedRequest: 401 where its time is outside the SuperLink's window, 409 where it was
                seen before.
        """
        self._forget(now)
        age = now - _seconds(signed.time)
        if not EARLIEST_S < age < LATEST_S:
            raise RefusedRequest(401, "clock")
        try:
            r, _ = decode_dss_signature(signed.signature)
        except ValueError:
            raise RefusedRequest(401, "signature") from None
        what = b"|%d|%s" % (r, signed.time.encode("ascii"))
        mark = hashlib.sha256(peer.public_key + what).digest()[:16]
        if mark in self._seen:
            raise RefusedRequest(409, "replay")
        self._seen.add(mark)
        self._by_age.append((now + LATEST_S - EARLIEST_S, mark))
        return age

    def __len__(self) -> int:
        return len(self._seen)

    def _forget(self, now: float) -> None:
        while self._by_age and self._by_age[0][0] < now:
            self._seen.discard(self._by_age.popleft()[1])


def _seconds(time: str) -> float:
    try:
        at = datetime.datetime.fromisoformat(time)
    except ValueError:
        raise RefusedRequest(400, "node-headers") from None
    if at.tzinfo is None:
        raise RefusedRequest(400, "node-headers")
    return at.timestamp()
