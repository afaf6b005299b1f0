"""The coordinator's approval of a site: one signed file that tells the site all that it needs.

It holds the site's certificate, the address of the server, the roots to trust, and the handovers
by which a site that knows an earlier root gets to the newest. Nothing in it is secret.

Its number only grows, over everything that one coordinator signs: a site keeps the highest that
it took up and refuses a lower one.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, Field

from medfed.common.errors import ConfigError, TrustError
from medfed.common.strict_toml import StrictTable
from medfed.common.study import SiteName
from medfed.common.trust.certificates import CLOCK_SLACK
from medfed.common.trust.identities import Identity, check_identity
from medfed.common.trust.received_files import shown
from medfed.common.trust.signatures import (
    SigningKey,
    VerifyingKey,
    open_document,
    sign_document,
    unverified,
)
from medfed.common.trust.succession import Number, Pem, Root, RootText

APPROVAL = "medfed-approval-1"
"""Kind of the signed document."""

LARGEST_APPROVAL_BYTES = 128 * 1024
MOST_HANDOVERS = 16
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):(\d{1,5})")


def _check_address(value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if match is None or not 1 <= int(match.group(1)) <= 65535:
        raise ValueError('must be "host:port" with a port from 1 to 65535')
    return value


class Approval(StrictTable):
    """What an approval says. Public."""

    site: SiteName
    server: Annotated[str, AfterValidator(_check_address)]
    """``host:port`` of the server, the only one that the site connects to."""
    number: Number
    issued: AwareDatetime
    expires: AwareDatetime
    """When its certificate expires."""
    certificate: Pem
    roots: Annotated[tuple[RootText, ...], Field(min_length=1, max_length=2)]
    """The root in use; after a rotation, for a time, then the one before it."""
    handovers: Annotated[
        tuple[Annotated[str, Field(max_length=8192)], ...], Field(max_length=MOST_HANDOVERS)
    ]
    """Oldest first."""

    def newest(self, *, source: str) -> Root:
        """The root in use.

        Raises:
            TrustError: it is none, or on its way out.
        """
        if self.roots[0].until is not None or any(root.until is None for root in self.roots[1:]):
            raise TrustError(
                f"{source}: found its roots of trust in another order; the one in use is first.",
                advice="ask the coordinator for the file again.",
            )
        return self.roots[0].parsed(source=source)

    def accepted(self, at: datetime.datetime, *, source: str) -> list[Root]:
        """The roots that are accepted at a moment, the one in use first.

        Raises:
            TrustError: one of them is no root.
        """
        return [
            text.parsed(source=source)
            for text in self.roots
            if text.until is None or at < text.until
        ]


def check_address(value: str) -> str:
    """Check the address of a server.

    Raises:
        ConfigError: it is not ``host:port``.
    """
    try:
        return _check_address(value)
    except ValueError as error:
        raise ConfigError(
            f"server address {shown(value)}: {error}.",
            advice="give the address by which the hospitals reach the server.",
        ) from error


def sign_approval(key: SigningKey, approval: Approval) -> bytes:
    """Write an approval with its signature."""
    return sign_document(key, APPROVAL, approval)


def open_approval(data: bytes, keys: Sequence[VerifyingKey], *, source: str) -> Approval:
    """Check an approval's signature and read it; ``check_approval`` checks the rest.

    Raises:
        TrustError: it is none, or by none of ``keys``.
    """
    return open_document(_short(data, source), APPROVAL, Approval, keys, source=source)


def unverified_approval(data: bytes, *, source: str) -> Approval:
    """Read an approval without its signature: only to learn by which root it says it is.

    Raises:
        TrustError: it is none.
    """
    return unverified(_short(data, source), APPROVAL, Approval, source=source)


def check_approval(approval: Approval, *, at: datetime.datetime, source: str) -> Identity:
    """Check that an approval is of today and its certificate says what it says.

    Args:
        approval: Its signature was checked.
        at: Now.
        source: What to call it in messages.

    Returns:
        Whom its certificate names: the approval's site.

    Raises:
        TrustError: it expired, comes from the future, or holds a certificate that is not of the
            root in use, is not valid, or is another site's.
    """
    if approval.issued > at + CLOCK_SLACK:
        raise TrustError(
            f"{source}: was issued at {approval.issued:%Y-%m-%d %H:%M} UTC; the clock of this "
            f"machine says {at:%Y-%m-%d %H:%M} UTC.",
            advice="set the clock of this machine (NTP); if it is right, tell the coordinator.",
        )
    root = approval.newest(source=source)
    who = check_identity(approval.certificate.encode(), [root.authority], source=source, at=at)
    if who.role is not None or who.name != approval.site or who.expires != approval.expires:
        raise TrustError(
            f"{source}: its certificate is not that of site {approval.site!r} until "
            f"{approval.expires:%Y-%m-%d}.",
            advice="ask the coordinator for the file again.",
        )
    return who


def _short(data: bytes, source: str) -> bytes:
    if len(data) > LARGEST_APPROVAL_BYTES:
        raise TrustError(
            f"{source}: found {len(data)} bytes; an approval has at most {LARGEST_APPROVAL_BYTES}.",
            advice="ask the coordinator for the file again.",
        )
    return data
