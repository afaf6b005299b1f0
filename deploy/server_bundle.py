"""What a server gets from its coordinator: one folder to copy into the server's ``trust``.

::

    ca.pem study.pub          the roots that are accepted now, the one in use first
    server.pem server.key     the server's own certificate
    revocations.json          the newest revocation list
    sites/<SITE>.pem          the certificate of every site that may take part

While a rotation's two roots are accepted, the server's certificate is of the old authority: sites
that have not followed yet know no other. A bundle made after that shows one of the new. So a
rotation needs two bundles: one at its beginning, one when the overlap has ended.
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from medfed.common.errors import ConfigError
from medfed.common.trust.certificates import (
    Authority,
    host_names,
    issue,
    key_bytes,
    load_authority,
    server_certificate_serves,
)
from medfed.common.trust.private_files import private_folder, write_private
from medfed.common.trust.revocation import serial_text
from medfed.deploy.coordinator_issuing import (
    REVOCATIONS,
    Desk,
    authorities_pem,
    pem,
    record,
    study_keys_pem,
    write_list,
)
from medfed.deploy.coordinator_root import Coordinator
from medfed.deploy.coordinator_rotation import forget_past, past_folder

SERVER_DAYS = 365
_PAIR = ("server.pem", "server.key")
_OURS = {"ca.pem", "study.pub", *_PAIR, REVOCATIONS, "sites"}


def issue_server_bundle(coordinator: Coordinator, target: Path) -> Path:
    """Write what the server needs now.

    Args:
        coordinator: Who issues it.
        target: A folder that does not exist, is empty or holds an earlier bundle, whose server
            certificate is kept if it is good for 30 more days.

    Returns:
        ``target``, absolute. It holds the server's private key: copy it by a private way.

    Raises:
        ConfigError: the folder holds something else, or cannot be written.
    """
    target = target.absolute()
    strange = {path.name for path in target.iterdir()} - _OURS if target.is_dir() else set()
    if strange or (target.exists() and not target.is_dir()):
        raise ConfigError(
            f"{target}: holds something else than a server's bundle, and is not replaced.",
            advice="give another folder with --to.",
        )
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with coordinator.held() as desk:
            private_folder(private_folder(part) / "sites")
            desk = _server_pair(desk, target, part)
            desk = write_list(desk)
            write_private(part / "ca.pem", authorities_pem(desk))
            write_private(part / "study.pub", study_keys_pem(desk))
            shutil.copy2(desk.folder / REVOCATIONS, part / REVOCATIONS)
            for site, issued in desk.state.sites(desk.at).items():
                write_private(part / "sites" / f"{site}.pem", issued.certificate.encode())
            _replace(target, part)
            forget_past(desk.folder, desk.state, desk.at)
    except OSError as error:
        raise ConfigError(
            f"{target}: the bundle cannot be written ({error.strerror}).",
            advice="give a folder on a disk that you may write to.",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _server_pair(desk: Desk, earlier: Path, part: Path) -> Desk:
    """The server's certificate and key: the earlier ones while they are good, else new ones."""
    signer = load_authority(past_folder(desk.folder, desk.state) if desk.overlaps else desk.folder)
    hosts = [desk.state.server.rpartition(":")[0].strip("[]"), *desk.state.hosts]
    if _is_usable(desk, earlier, signer) and server_certificate_serves(earlier, hosts):
        for name in _PAIR:
            shutil.copy2(earlier / name, part / name)
        return desk
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = issue(
        signer,
        key.public_key(),
        name="medfed server",
        usage=ExtendedKeyUsageOID.SERVER_AUTH,
        names=host_names(hosts),
        days=SERVER_DAYS,
        at=desk.at,
    )
    desk = record(desk, certificate, "server", "server")
    write_private(part / "server.key", key_bytes(key))
    write_private(part / "server.pem", pem(certificate))
    return desk


def _is_usable(desk: Desk, bundle: Path, signer: Authority) -> bool:
    """Whether a bundle's server certificate is of this authority and was not revoked."""
    try:
        found = x509.load_pem_x509_certificate((bundle / "server.pem").read_bytes())
        found.verify_directly_issued_by(signer.certificate)
    except (OSError, ValueError, TypeError, InvalidSignature):
        return False
    serial = serial_text(found.serial_number)
    return any(c.serial == serial and c.revoked is None for c in desk.state.issued)


def _replace(target: Path, part: Path) -> None:
    """Put a bundle in place of an earlier one; a kill in between leaves none, not a mixture."""
    if target.exists():
        aside = part.with_suffix(".old")
        target.rename(aside)
        shutil.rmtree(aside)
    part.rename(target)
