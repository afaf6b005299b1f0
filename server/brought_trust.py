"""What the coordinator brought into the server's ``trust`` folder, checked before it is used.

A server with such a folder is *guarded*: it signs nothing itself, and the keys that say who may
take part are on another machine. Written by ``medfed enrol server-bundle``::

    ca.pem study.pub          whom the server trusts
    server.pem server.key     its own certificate
    revocations.json          who was thrown out
    sites/<SITE>.pem          who may take part
"""

from __future__ import annotations

import datetime
import logging
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from medfed.common.errors import ConfigError, TrustError
from medfed.common.trust.certificates import parse_authorities, read_authority
from medfed.common.trust.received_files import read_received, read_secret
from medfed.common.trust.signatures import read_verifying_keys

log = logging.getLogger(__name__)

STUDY_KEYS = "study.pub"
REVOCATIONS = "revocations.json"
_NEEDED = ("ca.pem", STUDY_KEYS, "server.pem", "server.key", REVOCATIONS)
_ELSEWHERE = ("ca.key", "study.key")
_LARGEST_BYTES = 64 * 1024
_EXPIRES_SOON = datetime.timedelta(days=30)


def check_brought_trust(trust: Path, hosts: Sequence[str]) -> None:
    """Check a coordinator's bundle; warn of hosts that its certificate does not name.

    Args:
        trust: The server's ``trust`` folder.
        hosts: Names and addresses by which hospitals may reach the server.

    Raises:
        ConfigError: a file is missing or cannot be read, or another user of the machine may
            change what is trusted or read the server's key.
        TrustError: the files do not belong together, the certificate is not valid now, or a key
            is there that must not be on a server.
    """
    missing = [name for name in _NEEDED if not (trust / name).is_file()]
    if missing:
        raise ConfigError(
            f"{trust}: is not a complete bundle of the coordinator; missing: {', '.join(missing)}.",
            advice="copy all files of the bundle there (`medfed enrol server-bundle`).",
        )
    for name in _ELSEWHERE:
        if (trust / name).exists():
            raise TrustError(
                f"{trust}: holds {name} beside a coordinator's bundle; that key is never on a "
                "server.",
                advice="give the bundle a data root of its own, and keep the coordinator's folder "
                "on another machine.",
            )
    _check_nobody_else_writes(trust)
    read_verifying_keys(trust / STUDY_KEYS)
    _tell_of(check_server_pair(trust), hosts)


def check_server_pair(trust: Path) -> x509.Certificate:
    """Check the server's certificate against its key and the authorities, and return it.

    Raises:
        ConfigError: a file cannot be read, or other users may read the key.
        TrustError: they do not belong together, or the certificate is not valid now.
    """
    read_secret(trust / "server.key", what="the server's private key")
    authorities = parse_authorities(read_authority(trust / "ca.pem"), source=str(trust / "ca.pem"))
    path = trust / "server.pem"
    try:
        found = x509.load_pem_x509_certificate(
            read_received(path, _LARGEST_BYTES, what="the server's certificate")
        )
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, trust / "server.key", _none)
    except (ValueError, OSError) as error:  # ssl.SSLError is one
        raise _refused(path, "no certificate, or one whose key is not in server.key") from error
    if not any(_signed_by(found, authority) for authority in authorities):
        raise _refused(path, "a certificate of an authority that is not in ca.pem")
    now = datetime.datetime.now(datetime.UTC)
    if not found.not_valid_before_utc <= now <= found.not_valid_after_utc:
        raise _refused(
            path,
            f"a certificate for {found.not_valid_before_utc:%Y-%m-%d} to "
            f"{found.not_valid_after_utc:%Y-%m-%d}; the clock says {now:%Y-%m-%d}",
        )
    return found


def _check_nobody_else_writes(trust: Path) -> None:
    sites = trust / "sites"
    paths = [trust, *(trust / name for name in _NEEDED), *([sites] if sites.exists() else [])]
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o022:
            raise ConfigError(
                f"{path}: other users of this machine may change whom the server trusts (mode "
                f"{mode:04o}).",
                advice=f"chmod -R go-rwx {trust}",
            )


def _tell_of(certificate: x509.Certificate, hosts: Sequence[str]) -> None:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    named = {str(name.value) for name in names}
    unnamed = [host for host in hosts if host.lower() not in named]
    if unnamed:
        log.warning(
            "trust.certificate-names-not hosts=%s names=%s",
            ",".join(unnamed),
            ",".join(sorted(named)),
        )
    ends = certificate.not_valid_after_utc
    if ends < datetime.datetime.now(datetime.UTC) + _EXPIRES_SOON:
        log.warning("trust.certificate-expires on=%s", f"{ends:%Y-%m-%d}")


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _none() -> str:
    raise OSError("the key has a password")


def _refused(path: Path, found: str) -> TrustError:
    return TrustError(
        f"{path}: found {found}.",
        advice="make a bundle anew (`medfed enrol server-bundle`) and copy all its files.",
    )
