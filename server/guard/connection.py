"""One connection of a site: its requests, one after another, and who answers them.

Everything is checked before it moves: the certificate's state, the head, the path, the key that
the request names, that its signature is new, the size. What fails closes the connection.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final, Protocol

import h11

from medfed.server.guard import routes, site_messages
from medfed.server.guard.admission import Buckets
from medfed.server.guard.audit import Told, shown
from medfed.server.guard.forwarding import Answer, BrokenLinkError, Link, SuperLinkPool
from medfed.server.guard.heads import Head
from medfed.server.guard.peers import Peer
from medfed.server.guard.refusal import RefusedRequest
from medfed.server.guard.replays import LATEST_S, Replays
from medfed.server.guard.settings import Limits
from medfed.server.guard.site_link import SiteLink, pieces_of

_HOLD_MARGIN_S: Final = 10.0
_HELD_BYTES: Final = 4096

Fields = list[tuple[str, str]]


class Revoked(Protocol):
    """The list of revoked certificates. Asked at every request: quick, and never blocking."""

    def is_revoked(self, serial: int) -> bool:
        """Whether a certificate is revoked."""
        ...


@dataclass(frozen=True)
class House:
    """What all connections share."""

    limits: Limits
    revoked: Revoked
    desk: site_messages.SiteDesk
    told: Told
    superlink: SuperLinkPool
    replays: Replays
    paces: Buckets


class Connection:
    """One connection of a site.

    Attributes:
        peer: The site.
        link: The way to it.
        idle_since: When its last answer ended, monotonic seconds; None: a request is under way.

    Args:
        house: What it shares with others.
        peer: Who is at the other end.
        link: The way to it.
    """

    def __init__(self, house: House, peer: Peer, link: SiteLink) -> None:
        self.peer, self.link = peer, link
        self.idle_since: float | None = time.monotonic()
        self._house = house

    def barred(self) -> str:
        """Why its certificate is no longer good: ``revoked``, ``expired``, or nothing."""
        if self._house.revoked.is_revoked(self.peer.serial):
            return "revoked"
        return "expired" if time.time() >= self.peer.expires else ""

    async def serve(self) -> None:
        """Answer requests until the connection ends; raises nothing but a cancellation."""
        head: Head | None = None
        try:
            while data := await self.link.wait():
                self.end_if_barred()
                head = await self.link.head(data)
                if head is None:
                    break
                self.idle_since = None
                await self._answer(head)
                self.idle_since, head = time.monotonic(), None
                if not self.link.next_request():
                    break
        except RefusedRequest as refusal:
            path = refusal.path or (head.target if head else "")
            self._tell(
                "guard.refused", status=refusal.status, reason=refusal.reason, path=shown(path)
            )
            await self.link.refuse(refusal.status)
        except TimeoutError:
            self._tell("guard.too-slow", path=shown(head.target if head else ""))
        except BrokenLinkError as error:
            path = shown(head.target if head else "")
            self._tell("guard.superlink-lost", reason=str(error), path=path)
            await self.link.refuse(503)
        except (OSError, h11.ProtocolError):
            pass  # the site is gone
        finally:
            await self.link.close()

    def end_if_barred(self) -> None:
        """End the connection at once if its certificate is revoked or expired.

        Raises:
            ConnectionAbortedError: it is ended.
        """
        why = self.barred()
        if why:
            self._tell(f"guard.{why}", serial=f"{self.peer.serial:x}")
            self.link.abort()
            raise ConnectionAbortedError

    async def _answer(self, head: Head) -> None:
        kind = routes.route(head)
        await asyncio.sleep(self._house.paces.of(self.peer.site).wait_s())
        limit = site_messages.LARGEST_BYTES if kind is routes.Kind.SITE else None
        if head.length > (limit or self._house.limits.body_bytes):
            raise RefusedRequest(413, "too-large")
        if kind is routes.Kind.FLEET:
            await self._answer_fleet(head)
        elif kind is routes.Kind.SITE:
            await self._answer_site(await self.link.whole_body())
        else:
            await self.link.whole_body()  # it has none, and nothing may follow it
            await self._answer_health()

    async def _answer_health(self) -> None:
        try:
            async with self._house.superlink.link() as superlink:
                await superlink.ask("GET", routes.HEALTH, routes.OURS, pieces_of(b""))
                answer = await self.link.while_here(superlink.answer())
                await superlink.rest()
            healthy = answer.status == 200
        except BrokenLinkError:
            healthy = False
        await self.link.say(200 if healthy else 503)

    async def _answer_site(self, body: bytes) -> None:
        message = site_messages.read_message(body)
        self._tell("guard.site-message", kind=message.kind, study=message.study)
        reply = await asyncio.to_thread(self._house.desk.hear, self.peer.site, message)
        await self.link.say(200, reply.model_dump_json().encode(), "application/json")

    async def _answer_fleet(self, head: Head) -> None:
        signed = routes.node_signature(head, self.peer)
        age_s = self._house.replays.admit(self.peer, signed, time.time())
        fields = routes.fields_for_superlink(self.peer, signed, head.length)
        hold_s = min(self._house.limits.hold_s, LATEST_S - _HOLD_MARGIN_S - age_s)
        if head.target == routes.PULL and head.length <= _HELD_BYTES:
            await self._hold(fields, await self.link.whole_body(), time.monotonic() + hold_s)
            return
        async with self._house.superlink.link() as superlink:
            await superlink.ask("POST", head.target, fields, self.link.body())
            await self._pass_on(await self.link.while_here(superlink.answer()), superlink)

    async def _hold(self, fields: Fields, body: bytes, until: float) -> None:
        """Ask the SuperLink for a message until there is one, or it is time to say there is none.

        What it has given is gone from there. So it is not asked once the site has closed the
        connection, or its certificate is no longer good; and where a later question goes wrong,
        the answer to the first stands, and the site hears of it at its next request.
        """
        look_s = self._house.limits.look_s
        if await self._look(fields, body, first=True):
            return
        while not self.link.last and time.monotonic() + look_s < until:
            await self.link.while_here(asyncio.sleep(look_s))
            self.end_if_barred()
            try:
                if await self._look(fields, body, first=False):
                    return
            except BrokenLinkError as error:
                self._tell("guard.superlink-lost", reason=str(error), path=routes.PULL)
                break
        await self.link.say(200, kind=routes.PROTOBUF)

    async def _look(self, fields: Fields, body: bytes, *, first: bool) -> bool:
        """Ask the SuperLink for a message once; whether the site was answered."""
        async with self._house.superlink.link() as superlink:
            await superlink.ask("POST", routes.PULL, fields, pieces_of(body))
            answer = await self.link.while_here(superlink.answer())
            good = answer.status == 200
            if (first and not good) or (good and answer.length != 0):
                await self._pass_on(answer, superlink)
                return True
            await superlink.rest()
        if not good:
            raise BrokenLinkError("refused")
        return False

    async def _pass_on(self, answer: Answer, superlink: Link) -> None:
        """Hand on the SuperLink's answer: its status, its kind, its length, its body."""
        fields = [("content-type", answer.kind)]
        if answer.length is not None:
            fields.append(("content-length", str(answer.length)))
        await self.link.answer(answer.status, fields, superlink.pieces())

    def _tell(self, event: str, **fields: int | str) -> None:
        self._house.told.tell(event, self.peer.site, **fields)
