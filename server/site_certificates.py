"""Which sites the coordinator's bundle lets in, and which the revocation list throws out.

``trust/sites/<SITE>.pem`` says who is in. A file that is missing throws nobody out: it may be on
its way. A site is out when every certificate that is known of it is revoked: the one in the
bundle and the one that was there before, which is kept in the server's own ``sites`` folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from medfed.common.errors import MedfedError, TrustError
from medfed.common.trust.certificates import parse_authorities, read_authority
from medfed.common.trust.identities import Identity, check_identity
from medfed.common.trust.private_files import write_private
from medfed.common.trust.received_files import read_received

log = logging.getLogger(__name__)

_LARGEST_BYTES = 16 * 1024
_WHAT = "a site's certificate"


class Found(NamedTuple):
    """What lies in the bundle now.

    Attributes:
        good: Public key of each site that may take part, as ``keys.parse_public_key`` returns it.
        revoked: Sites of which no certificate is good any more.
    """

    good: dict[str, bytes]
    revoked: frozenset[str]


class SiteCertificates:
    """The certificates of the sites, read anew at each look.

    Args:
        trust: The folder that the coordinator's bundle is in.
        kept: The server's own folder, for the certificates that it saw.
        is_revoked: Tells of a serial number.
    """

    def __init__(self, trust: Path, kept: Path, is_revoked: Callable[[int], bool]) -> None:
        self._trust, self._kept, self._is_revoked = trust, kept, is_revoked
        self._told: dict[str, str] = {}

    def look(self) -> Found:
        """Read the bundle.

        A file that is no good certificate is told once, and counts for nothing.

        Raises:
            ConfigError: the authorities cannot be read, or the disk is full.
            TrustError: they are none.
        """
        source = self._trust / "ca.pem"
        authorities = parse_authorities(read_authority(source), source=str(source))
        good: dict[str, bytes] = {}
        for path in sorted((self._trust / "sites").glob("*.pem")):
            try:
                pem = read_received(path, _LARGEST_BYTES, what=_WHAT)
                identity = _site(pem, authorities, path)
                if not self._is_revoked(identity.serial):
                    self._keep(identity, pem)
                    good[identity.name] = identity.public_key
                self._told.pop(path.name, None)
            except MedfedError as error:
                self._tell(path.name, error)
        return Found(good, frozenset(self._revoked()) - good.keys())

    def _keep(self, identity: Identity, pem: bytes) -> None:
        path = self._kept / f"{identity.name}.pem"
        if not path.exists() or path.read_bytes() != pem:
            write_private(path, pem, replace=True)

    def _revoked(self) -> list[str]:
        names = {p.stem for folder in (self._trust / "sites", self._kept) for p in _files(folder)}
        return [name for name in sorted(names) if self._all_revoked(name)]

    def _all_revoked(self, site: str) -> bool:
        """Whether all that is known of a site is revoked; half a file decides nothing."""
        paths = [folder / f"{site}.pem" for folder in (self._trust / "sites", self._kept)]
        serials = [_serial(path) for path in paths if path.exists()]
        return bool(serials) and all(
            serial is not None and self._is_revoked(serial) for serial in serials
        )

    def _tell(self, name: str, error: MedfedError) -> None:
        if self._told.get(name) != str(error):
            self._told[name] = str(error)
            log.warning("sites.certificate-refused file=%s %s", name, error.args[0])


def _site(pem: bytes, authorities: list[x509.Certificate], path: Path) -> Identity:
    identity = check_identity(pem, authorities, source=str(path))
    if identity.role is not None or identity.name != path.stem:
        raise TrustError(
            f"{path}: found a certificate of somebody else than site {path.stem!r}.",
            advice="copy the bundle anew, as `medfed enrol server-bundle` wrote it.",
        )
    return identity


def _files(folder: Path) -> list[Path]:
    return list(folder.glob("*.pem"))


def _serial(path: Path) -> int | None:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).serial_number
    except (OSError, ValueError, TypeError):
        return None
