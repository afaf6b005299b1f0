"""How a site is let in: its request, the coordinator's approval, and the renewal of both.

In the site's folder:

    <SITE>.request.pem    what goes to the coordinator
    trust/ca.pem          the authorities that are accepted for the server's certificate
    trust/study.pub       the keys that are accepted for studies
    trust/site.pem        the site's own certificate, over ``keys/node_key``
    trust/approval.json   the approval that the three were taken from

The first approval is believed because its fingerprint was compared by phone. Every later one is
believed because the root that is trusted here signed it, or handed over to one that did. An
approval with a lower number than the one that was taken up is refused, whoever signed it.

Each file is replaced in one step and read anew by whoever opens the next connection, so a renewal
needs no restart. ``approval.json`` is written last: a kill before leaves files that work together
(the new authorities include the old one during a rotation), and doing it again completes it.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)

from medfed.client.site_settings import SiteSettings, read_settings
from medfed.common.errors import ConfigError, TrustError
from medfed.common.files import alone
from medfed.common.trust.enrolment_files import (
    LARGEST_APPROVAL_BYTES,
    Approval,
    check_approval,
    open_approval,
    unverified_approval,
)
from medfed.common.trust.fingerprints import check_fingerprint, site_fingerprint
from medfed.common.trust.private_files import private_folder, write_private
from medfed.common.trust.received_files import read_received, read_secret
from medfed.common.trust.site_requests import write_site_request
from medfed.common.trust.succession import Root, RootText, newest_root

_WHAT = "a site's approval"

Clock = Callable[[], datetime.datetime]


class Requested(NamedTuple):
    """A request that was written.

    Attributes:
        file: To be sent to the coordinator. Not secret.
        fingerprint: Of the site's key; the admin reads it out by phone.
    """

    file: Path
    fingerprint: str


class TakenUp(NamedTuple):
    """An approval that was taken up.

    Attributes:
        site: The site.
        server: ``host:port`` of the server.
        fingerprint: Of the root that is trusted from now on.
        expires: When the site's certificate does.
    """

    site: str
    server: str
    fingerprint: str
    expires: datetime.datetime


def now() -> datetime.datetime:
    """The time in UTC."""
    return datetime.datetime.now(datetime.UTC)


def read_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read the site's private key. It never leaves the site.

    Raises:
        ConfigError: it cannot be read, or other users of the machine may read it.
        TrustError: it is another kind of key, or has a password.
    """
    data = read_secret(path, what="the site's private key")
    try:
        key = load_ssh_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_node_key(path) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _no_node_key(path)
    return key


def write_request(root: Path) -> Requested:
    """Write the request that goes to the coordinator; it may be written again at any time.

    Args:
        root: The site's folder.

    Raises:
        ConfigError: it is no site's folder, or others may read its key.
        TrustError: its key is none.
    """
    settings = read_settings(root)
    key = read_node_key(_node_key(root))
    file = root.absolute() / f"{settings.site}.request.pem"
    write_private(file, write_site_request(key, settings.site), replace=True)
    return Requested(file, site_fingerprint(_public(key)))


def take_up(
    root: Path, approval: Path, fingerprint: str | None = None, *, clock: Clock = now
) -> TakenUp:
    """Check an approval, and trust what it says.

    Args:
        root: The site's folder.
        approval: The file that the coordinator sent.
        fingerprint: What the coordinator read out by phone. Needed the first time, and where a
            coordinator begins anew after the loss or theft of the keys; then it overrules the
            root that is trusted here. None: the file must lead back to that root.
        clock: For tests.

    Raises:
        ConfigError: a file cannot be read or written, others may read the site's key, or
            ``site.toml`` names another server.
        TrustError: the fingerprint is missing or another one; the signature, the root, the site,
            the key, the authority or the dates are not right; a newer approval was taken up
            before.

    Guarantee:
        When this raises a ``TrustError``, nothing was changed. The same approval may be taken up
        again.
    """
    source = str(approval)
    data = read_received(approval, LARGEST_APPROVAL_BYTES, what=_WHAT)
    settings, key = read_settings(root), _public(read_node_key(_node_key(root)))
    trust = private_folder(root / "trust")
    with alone(trust / ".lock"):
        known = taken_up(root)
        found = _believed(data, fingerprint, known, source=source)
        _check_is_ours(found, settings, key, at=clock(), source=source)
        if known is not None and found != known and found.number <= known.number:
            raise TrustError(
                f"{source}: is approval {found.number}; approval {known.number} was taken up "
                "before, and only a newer one may follow.",
                advice="use the newest file that the coordinator sent.",
            )
        _write(trust, found, clock(), source=source)
        write_private(trust / "approval.json", data, replace=True)
    mark = found.newest(source=source).fingerprint
    return TakenUp(found.site, found.server, mark, found.expires)


def taken_up(root: Path) -> Approval | None:
    """The approval that this site took up last; None: none yet.

    Raises:
        ConfigError: it cannot be read.
        TrustError: it was damaged.
    """
    path = root / "trust" / "approval.json"
    if not path.exists():
        return None
    data = read_received(path, LARGEST_APPROVAL_BYTES, what=_WHAT)
    own = unverified_approval(data, source=str(path)).newest(source=str(path))
    return open_approval(data, [own.study_key], source=str(path))


def settle(root: Path, *, clock: Clock = now) -> None:
    """Write the files of trust anew from the approval that was taken up; for the start, and daily.

    After a rotation this is how the old root is forgotten when its time is over. A site without
    an approval is left as it is.

    Raises:
        ConfigError: a file cannot be read or written.
        TrustError: the approval was damaged.
    """
    path = root / "trust" / "approval.json"
    if not path.exists():
        return
    with alone(root / "trust" / ".lock"):
        approval = taken_up(root)
        if approval is not None:
            _write(root / "trust", approval, clock(), source=str(path))


def certificate_expiry(root: Path) -> datetime.datetime:
    """When the site's certificate expires, UTC.

    Raises:
        ConfigError: the site has not taken up an approval.
        TrustError: its approval was damaged.
    """
    approval = taken_up(root)
    if approval is None:
        raise ConfigError(
            f"{root}: the site has no certificate; no approval was taken up.",
            advice="send the coordinator what `medfed enrol request` writes, and take up the "
            "approval that comes back with `medfed enrol accept`.",
        )
    return approval.expires


def _believed(
    data: bytes, fingerprint: str | None, known: Approval | None, *, source: str
) -> Approval:
    """The approval, if its root was compared by phone or follows from the one trusted here."""
    claimed = unverified_approval(data, source=source)
    root = claimed.newest(source=source)
    if fingerprint is not None:
        check_fingerprint(fingerprint, root.fingerprint, source=source)
    elif known is None:
        raise TrustError(
            f"{source}: nothing here says yet whom to trust.",
            advice="ask the coordinator by phone for the fingerprint, and give it with "
            "--fingerprint.",
        )
    elif not _is_same(root, _led_to(known, claimed, source=source)):
        raise TrustError(
            f"{source}: is from another root of trust ({root.fingerprint}) than the one that this "
            "site trusts, which did not hand over to it.",
            advice="ask the coordinator by phone, at a number that you knew before. If they began "
            "anew, give the fingerprint that they read out with --fingerprint.",
        )
    return open_approval(data, [root.study_key], source=source)


def _led_to(known: Approval, claimed: Approval, *, source: str) -> Root:
    return newest_root(known.newest(source="trust/approval.json"), claimed.handovers, source=source)


def _is_same(one: Root, other: Root) -> bool:
    return RootText.of(one, None) == RootText.of(other, None)


def _check_is_ours(
    approval: Approval,
    settings: SiteSettings,
    public_key: bytes,
    *,
    at: datetime.datetime,
    source: str,
) -> None:
    if approval.site != settings.site:
        raise TrustError(
            f"{source}: is for site {approval.site!r}; this is site {settings.site!r}.",
            advice="ask the coordinator for the approval of this site.",
        )
    who = check_approval(approval, at=at, source=source)
    if who.public_key != public_key:
        raise TrustError(
            f"{source}: is for another key ({site_fingerprint(who.public_key)}) than this site's "
            f"({site_fingerprint(public_key)}).",
            advice="send the coordinator the request that `medfed enrol request` writes now.",
        )
    if approval.server != settings.server.address:
        raise ConfigError(
            f"{source}: is for the server {approval.server}; site.toml says "
            f"{settings.server.address}.",
            advice="ask the coordinator which is right; site.toml names it under [server].",
        )


def _write(trust: Path, approval: Approval, at: datetime.datetime, *, source: str) -> None:
    roots = [RootText.of(root, None) for root in approval.accepted(at, source=source)]
    for name, text in (
        ("ca.pem", "".join(root.authority for root in roots)),
        ("study.pub", "".join(root.study_key for root in roots)),
        ("site.pem", approval.certificate),
    ):
        path, data = trust / name, text.encode()
        if not path.exists() or path.read_bytes() != data:
            write_private(path, data, replace=True)


def _node_key(root: Path) -> Path:
    return root / "keys" / "node_key"


def _public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"


def _no_node_key(path: Path) -> TrustError:
    return TrustError(
        f"{path}: is no node key; allowed is an ECDSA P-384 key without a password (OpenSSH).",
        advice="restore the file keys/node_key from a backup of the site's folder.",
    )
