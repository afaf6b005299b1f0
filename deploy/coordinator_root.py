"""The coordinator's own folder: it says who may take part, and lies on no server.

::

    ca.key ca.pem           who signs certificates
    study.key study.pub     who signs studies, approvals and revocation lists
    state.json              every certificate that was issued, and the address of the server
    approvals/              <SITE>.approval.json, the newest of each site
    revocations.json        the newest revocation list
    past/<N>/ handovers/    earlier roots and how each handed over to the next

Folders have mode 0700, files 0600. The two private keys never leave the folder; no network is
used. Programs that use one folder at the same time take turns.
"""

from __future__ import annotations

import datetime
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from medfed.common.errors import ConfigError, TrustError
from medfed.common.files import alone
from medfed.common.trust.certificates import host_names, key_bytes, load_authority, new_authority
from medfed.common.trust.enrolment_files import check_address
from medfed.common.trust.identities import Role, check_site_name, role_certificate
from medfed.common.trust.private_files import private_folder, write_private
from medfed.common.trust.received_files import shown
from medfed.common.trust.signatures import new_signing_key, read_signing_key
from medfed.common.trust.site_requests import read_site_request
from medfed.deploy.coordinator_issuing import (
    REVOCATIONS,
    Approved,
    Desk,
    Listed,
    Revoked,
    approve,
    authorities_pem,
    check_key,
    listed,
    pem,
    record,
    revoke,
    write_list,
)
from medfed.deploy.coordinator_rotation import rotate, settled
from medfed.deploy.coordinator_state import Issued, State, read_state, write_state

OVERLAP_DAYS = 30

Clock = Callable[[], datetime.datetime]


def now() -> datetime.datetime:
    """The time in UTC."""
    return datetime.datetime.now(datetime.UTC)


def new_coordinator(
    folder: Path, server_address: str, hosts: tuple[str, ...] = (), *, clock: Clock = now
) -> Coordinator:
    """Make a coordinator's folder with new keys.

    Args:
        folder: Must not exist or be empty.
        server_address: ``host:port`` by which sites reach the server.
        hosts: Other names and addresses of the server.
        clock: For tests.

    Raises:
        ConfigError: the folder is not empty or cannot be written, or an address is none.

    Guarantee:
        The folder appears complete or not at all; one that exists is never touched.
    """
    folder = folder.absolute()
    host_names((check_address(server_address).rpartition(":")[0].strip("[]"), *hosts))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder}: exists already; a coordinator's keys are never overwritten: every site "
            "would be shut out.",
            advice="use that folder, or give another one for another server.",
        )
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        private_folder(part)
        new_authority(part, clock())
        new_signing_key(part)
        state = State(server=server_address, hosts=hosts, number=0, generation=1)
        write_state(part, state)
        private_folder(part / "approvals")
        part.rename(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written ({error.strerror}).",
            advice="choose a folder on a disk that you may write to.",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Coordinator(folder, clock=clock)


class Coordinator:
    """A coordinator's folder, to issue and revoke with.

    Args:
        folder: As ``new_coordinator`` made it.
        clock: For tests.

    Raises:
        ConfigError: it is no coordinator's folder, or others may read a key.
        TrustError: its keys do not belong together.
    """

    def __init__(self, folder: Path, *, clock: Clock = now) -> None:
        self.folder, self._clock = folder.absolute(), clock
        with self.held() as desk:
            load_authority(desk.folder)
            read_signing_key(self.study_key)

    @property
    def study_key(self) -> Path:
        """The private key that signs studies."""
        return self.folder / "study.key"

    @property
    def fingerprint(self) -> str:
        """What is read out to the sites."""
        with self.held() as desk:
            return desk.root.fingerprint

    @contextmanager
    def held(self) -> Iterator[Desk]:
        """Hold the folder alone, with what a kill left undone done.

        Raises:
            ConfigError: it is no coordinator's folder.
        """
        read_state(self.folder)  # before a lock is left in a folder that is not ours
        with alone(self.folder / ".lock"):
            state = settled(self.folder, read_state(self.folder))
            yield Desk(self.folder, self._clock().replace(microsecond=0), state)

    def approve_request(
        self, request: bytes, site: str, *, replace: bool = False, source: str = "the request"
    ) -> Approved:
        """Let a site in by the request that it sent.

        Args:
            request: Its bytes.
            site: Whom it must be from.
            replace: Whether another key of this site, expired or not, is thrown out; then a
                new revocation list must go to the server.
            source: What to call the request in messages.

        Raises:
            ConfigError: ``site`` is no site's name.
            TrustError: as ``read_site_request``; or the key is another site's, was thrown out,
                or the site has another key and ``replace`` is false.
        """
        asked = read_site_request(request, site=site, source=source)
        with self.held() as desk:
            replaced = check_key(desk, site, asked.public_key, replace_key=replace)
            if replaced:
                desk = revoke(desk, replaced, key_refused=True)
            return approve(desk, site, asked.public_key)

    def renew(self, site: str) -> Approved:
        """Sign a new certificate over the key that a site has, before the old one expires.

        Raises:
            ConfigError: ``site`` is no site's name.
            TrustError: it was never approved, or was thrown out.
        """
        check_site_name(site)
        with self.held() as desk:
            known = [c for c in desk.state.issued if c.kind == "site" and c.name == site]
            if not known:
                raise TrustError(
                    f"site {site!r} has no certificate to renew.",
                    advice="approve the request that the site sent (`medfed enrol approve`).",
                )
            key = known[-1].public_key.encode()
            check_key(desk, site, key, replace_key=False)
            return approve(desk, site, key)

    def revoke(self, who: str) -> Revoked:
        """Throw a site out, or revoke one certificate.

        Args:
            who: A site's name: all its certificates, and its key is not certified again. Or a
                serial number in hexadecimal digits: that certificate alone, whoever has it.

        Returns:
            The new list, also if everything was revoked before.

        Raises:
            TrustError: there is no such site or certificate.
        """
        with self.held() as desk:
            serials = [c.serial for c in desk.state.issued if _is_meant(c, who)]
            if not serials:
                raise TrustError(
                    f"{shown(who)} is neither a site with a certificate nor the serial number of "
                    "one.",
                    advice="`medfed enrol list` shows both.",
                )
            is_site = any(c.kind == "site" and c.name == who for c in desk.state.issued)
            before = {c.serial for c in desk.state.issued if c.revoked is not None}
            desk = revoke(desk, serials, key_refused=is_site)
            fresh = [serial for serial in serials if serial not in before]
            return Revoked(self.folder / REVOCATIONS, fresh, desk.state.number)

    def revocation_list(self) -> bytes:
        """Sign the list anew, as it stands."""
        with self.held() as desk:
            write_list(desk)
            return (self.folder / REVOCATIONS).read_bytes()

    def rotate_root(self, *, overlap_days: int = OVERLAP_DAYS) -> list[Approved]:
        """Make the next root, signed by the old one; ``common.trust.succession`` has the steps.

        Args:
            overlap_days: How long both are accepted: the time in which every site must take up
                its new approval. 1 to 90.

        Returns:
            A new approval for every site with a good certificate.

        Raises:
            ConfigError: another overlap has not ended, or ``overlap_days`` is not allowed.
        """
        if not 1 <= overlap_days <= 90:
            raise ConfigError(
                f"an overlap of {overlap_days} days is not allowed: 1 to 90.",
                advice="give the sites enough time; 30 days are usual.",
            )
        with self.held() as desk:
            rotate(self.folder, desk.state, at=desk.at, days=overlap_days)
        return [self.renew(site) for site in self.sites()]

    def sites(self) -> list[str]:
        """Names of the sites that have a good certificate."""
        with self.held() as desk:
            return sorted(desk.state.sites(desk.at))

    def role_certificate(self, name: str, role: Role, target: Path) -> Path:
        """Make a person's access to the control service: ``client.pem``, its key, ``ca.pem``.

        Args:
            name: Of the person, for the audit log.
            role: What they may ask.
            target: Folder to write to; made if missing.

        Returns:
            ``target``.

        Raises:
            ConfigError: the name is not allowed, or the folder cannot be written.
        """
        with self.held() as desk:
            key = ec.generate_private_key(ec.SECP384R1())
            certificate = role_certificate(
                load_authority(self.folder), key.public_key(), name, role, at=desk.at
            )
            record(desk, certificate, role.value, name)
            target = private_folder(target)
            write_private(target / "client.key", key_bytes(key), replace=True)
            write_private(target / "client.pem", pem(certificate), replace=True)
            write_private(target / "ca.pem", authorities_pem(desk), replace=True)
        return target

    def list_certificates(self) -> list[Listed]:
        """Tell every certificate that was issued, oldest first."""
        with self.held() as desk:
            return [listed(found, desk.at) for found in desk.state.issued]


def _is_meant(issued: Issued, who: str) -> bool:
    """Whether a certificate is of the site, or has the serial number, that someone named."""
    if issued.kind == "site" and issued.name == who:
        return True
    return issued.serial == who.strip().lower().replace(":", "").lstrip("0")
