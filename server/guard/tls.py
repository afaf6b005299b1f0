"""TLS at both ends of the guard, and the change of certificates while it runs.

Towards hospitals: 1.2 or 1.3, a certificate from the caller before a byte of a request is read,
forward secrecy and AEAD only, no compression, no renegotiation, and no session that could be
resumed later without its certificate being looked at.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509

from medfed.common.errors import ConfigError
from medfed.server.guard.settings import GuardSettings

_SUITES = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-GCM-SHA256"
)
"""For TLS 1.2; all three suites of 1.3 are as good. Our keys are ECDSA."""


def hospital_side(settings: GuardSettings) -> ssl.SSLContext:
    """TLS for the port that hospitals reach.

    Raises:
        ConfigError: a file is missing, or no certificate with its key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_ciphers(_SUITES)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= (
        ssl.OP_NO_COMPRESSION
        | ssl.OP_NO_RENEGOTIATION
        | ssl.OP_NO_TICKET
        | ssl.OP_CIPHER_SERVER_PREFERENCE
        | ssl.OP_SINGLE_ECDH_USE
    )
    context.num_tickets = 0
    with _reading(settings.certificate):
        context.load_cert_chain(settings.certificate, settings.key, password=_no_password)
    with _reading(settings.authority):
        context.load_verify_locations(settings.authority)
    return context


def superlink_side(settings: GuardSettings) -> ssl.SSLContext:
    """TLS towards the SuperLink, which takes keys of nodes over TLS only.

    Raises:
        ConfigError: the authority's file is missing or none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with _reading(settings.superlink_authority):
        context.load_verify_locations(settings.superlink_authority)
    return context


class HospitalTls:
    """The TLS of the hospitals' side, made anew when its files change.

    Attributes:
        context: For new connections.
        authorities: Those that may have signed a caller's certificate.
        generation: Goes up when ``context`` changes. A connection of an older one ends after
            its request, so that an authority that was taken out is not trusted on.

    Args:
        settings: Names the files.

    Raises:
        ConfigError: as ``hospital_side``.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._files = self._stamp()
        self.context, self.authorities = hospital_side(settings), _authorities(settings)
        self.generation = 0

    def refresh(self, refused: Callable[[ConfigError], None]) -> None:
        """Take up changed files; what cannot be used is told once, and the old goes on."""
        found = self._stamp()
        if found == self._files:
            return
        self._files = found
        try:
            new = hospital_side(self._settings), _authorities(self._settings)
            self.context, self.authorities = new
            self.generation += 1
        except ConfigError as error:
            refused(error)

    def _stamp(self) -> list[tuple[int, int, int] | None]:
        paths = (self._settings.certificate, self._settings.key, self._settings.authority)
        return [_file_stamp(path) for path in paths]


def _authorities(settings: GuardSettings) -> list[x509.Certificate]:
    with _reading(settings.authority):
        try:
            return x509.load_pem_x509_certificates(settings.authority.read_bytes())
        except ValueError as error:
            raise OSError("no certificates") from error


def _file_stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell which file is at fault."""
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"{path}: the guard cannot use it for TLS ({error.strerror or 'not readable'}).",
            advice="put the server's files back in place, as the coordinator issued them.",
        ) from error


def _no_password() -> str:
    raise OSError("the key has a password")
