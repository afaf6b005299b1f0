"""Who may ask what of the control service, by the client certificate of the call.

A server with an authority of its own admits the one coordinator that it made. A guarded server
admits persons: the coordinator signed a certificate for each, with a role, and may revoke it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, cast

import grpc

from medfed.common.errors import ConfigError, TrustError
from medfed.common.trust.certificates import parse_authorities, read_authority
from medfed.common.trust.identities import Identity, Role, check_identity
from medfed.server.brought_trust import check_server_pair
from medfed.server.data_root import COORDINATOR

log = logging.getLogger(__name__)


class Access(Protocol):
    """Who may ask, and the TLS by which they show who they are."""

    def credentials(self) -> grpc.ServerCredentials:
        """TLS of the control service."""

    def admit(self, context: grpc.ServicerContext, *, looks_only: bool) -> None:
        """Check that a caller may ask.

        Args:
            context: The call.
            looks_only: Whether it only asks where runs stand.

        Raises:
            TrustError: it may not.
        """


class ByName:
    """One coordinator, whom the server's own authority named so.

    Args:
        trust: Folder of the authority and the server's certificate.
    """

    def __init__(self, trust: Path) -> None:
        self._trust = trust

    def credentials(self) -> grpc.ServerCredentials:
        """As ``Access``."""
        key, certificate, authority = _files(self._trust)
        return grpc.ssl_server_credentials(
            [(key, certificate)], root_certificates=authority, require_client_auth=True
        )

    def admit(self, context: grpc.ServicerContext, *, looks_only: bool) -> None:
        """As ``Access``: the coordinator may ask everything, nobody else anything."""
        if _shown(context, "x509_common_name") != [COORDINATOR.encode()]:
            raise TrustError(
                "the control service was asked with a certificate that is no coordinator's.",
                advice="use the coordinator folder of this server.",
            )


class ByRole:
    """Persons with a role: a coordinator asks everything, an observer only where runs stand.

    Args:
        trust: Folder of the coordinator's bundle. Its files are read anew when they change.
        is_revoked: Tells of a certificate's serial number.
    """

    def __init__(self, trust: Path, is_revoked: Callable[[int], bool]) -> None:
        self._trust, self._is_revoked = trust, is_revoked
        self._used: tuple[bytes, bytes, bytes] | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """As ``Access``.

        Raises:
            ConfigError: a file cannot be read.
            TrustError: the files do not belong together.
        """
        check_server_pair(self._trust)
        self._used = _files(self._trust)
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._used),
            self._changed,  # type: ignore[arg-type]  # the stubs leave out None: unchanged
            require_client_authentication=True,
        )

    def admit(self, context: grpc.ServicerContext, *, looks_only: bool) -> None:
        """As ``Access``: by role, and by the revocation list as it is now."""
        person = self._person(context)
        if person.role is not Role.COORDINATOR and not looks_only:
            raise TrustError(
                "the control service was asked by an observer to change something; an observer "
                "may ask for `medfed status` and `medfed watch`.",
                advice="ask the coordinator to do it.",
            )
        if not looks_only:
            log.info("control.asked person=%r serial=%x", person.name, person.serial)

    def _person(self, context: grpc.ServicerContext) -> Identity:
        (pem,) = _shown(context, "x509_pem_cert") or [b""]
        source = self._trust / "ca.pem"
        authorities = parse_authorities(read_authority(source), source=source.name)
        found = check_identity(pem, authorities, source="the certificate of this call")
        if found.role is None:
            raise TrustError(
                "the control service was asked with a site's certificate; allowed is a person's.",
                advice="use the folder that `medfed enrol role` wrote.",
            )
        if self._is_revoked(found.serial):
            raise TrustError(
                "the certificate of this call is revoked.",
                advice="ask the coordinator for a new one (`medfed enrol role`).",
            )
        return found

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The files for the next connection, if they changed and can be used."""
        try:
            found = _files(self._trust)
            if found == self._used:
                return None
            check_server_pair(self._trust)
        except (OSError, ConfigError, TrustError) as error:
            log.warning("control.files-not-taken-up %s", error.args[0])
            return None
        self._used = found
        return _configuration(found)


def _files(trust: Path) -> tuple[bytes, bytes, bytes]:
    key, certificate, authority = (
        (trust / name).read_bytes() for name in ("server.key", "server.pem", "ca.pem")
    )
    return key, certificate, authority


def _configuration(files: tuple[bytes, bytes, bytes]) -> grpc.ServerCertificateConfiguration:
    key, certificate, authority = files
    return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)


def _shown(context: grpc.ServicerContext, what: str) -> list[bytes]:
    return list(cast(Iterable[bytes], context.auth_context().get(what, ())))
