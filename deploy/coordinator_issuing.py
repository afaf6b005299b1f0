"""Issue and revoke, while a coordinator's folder is held.

Whatever is issued is written to the state first and handed out after; whatever is revoked is
written to the state first and listed after.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from medfed.common.errors import TrustError
from medfed.common.trust.certificates import load_authority
from medfed.common.trust.enrolment_files import MOST_HANDOVERS, Approval, sign_approval
from medfed.common.trust.fingerprints import site_fingerprint
from medfed.common.trust.identities import site_certificate
from medfed.common.trust.private_files import private_folder, write_private
from medfed.common.trust.revocation import RevocationList, serial_text, sign_revocations
from medfed.common.trust.signatures import SigningKey, read_signing_key
from medfed.common.trust.succession import Root, RootText
from medfed.deploy.coordinator_rotation import handovers, past_folder, root_in
from medfed.deploy.coordinator_state import Issued, Standing, State, write_state

REVOCATIONS = "revocations.json"
_KEEP_REVOKED = datetime.timedelta(days=30)
"""How long a revoked certificate stays on the list after it expired: clocks may be wrong."""


class Approved(NamedTuple):
    """An approval that was signed.

    Attributes:
        site: Whom it is for.
        file: Where it lies; to be sent to the site. Not secret.
        key_fingerprint: Of the site's key: the site's admin must read out the same.
        expires: When its certificate does.
    """

    site: str
    file: Path
    key_fingerprint: str
    expires: datetime.datetime


class Listed(NamedTuple):
    """A certificate as the list shows it.

    Attributes:
        kind: ``site``, ``coordinator``, ``observer`` or ``server``.
        name: Of the site or person.
        serial: Hexadecimal.
        fingerprint: SHA-256 of the certificate, hexadecimal.
        expires: When.
        standing: Where it stands now.
    """

    kind: str
    name: str
    serial: str
    fingerprint: str
    expires: datetime.datetime
    standing: Standing


class Revoked(NamedTuple):
    """What a revocation did.

    Attributes:
        file: The signed list; to be brought to the server.
        serials: Of the certificates that it newly names.
        sequence: Of the list.
    """

    file: Path
    serials: list[str]
    sequence: int


@dataclass(frozen=True)
class Desk:
    """The folder while it is held: what issuing needs.

    Attributes:
        folder: The coordinator's.
        at: Now, in whole seconds.
        state: As written.
    """

    folder: Path
    at: datetime.datetime
    state: State

    @property
    def root(self) -> Root:
        """The root in use."""
        return root_in(self.folder)

    @property
    def roots(self) -> list[RootText]:
        """The roots that are accepted now, the one in use first."""
        until = self.state.overlap_until
        found = [RootText.of(self.root, None)]
        if until is not None and self.at < until:
            found.append(RootText.of(root_in(past_folder(self.folder, self.state)), until))
        return found

    @property
    def signer(self) -> SigningKey:
        """The study key. Private."""
        return read_signing_key(self.folder / "study.key")

    @property
    def overlaps(self) -> bool:
        """Whether the root before is accepted too."""
        return self.state.overlap_until is not None and self.at < self.state.overlap_until

    def writing(self, state: State) -> Desk:
        """Write a state; the desk with it."""
        write_state(self.folder, state)
        return replace(self, state=state)


def record(
    desk: Desk,
    certificate: x509.Certificate,
    kind: Literal["site", "coordinator", "observer", "server"],
    name: str,
    public_key: bytes | None = None,
) -> Desk:
    """Write down that a certificate was issued, before anyone gets it."""
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # nothing else is issued
    text = public_key or key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    issued = Issued(
        serial=serial_text(certificate.serial_number),
        kind=kind,
        name=name,
        public_key=text.decode(),
        issued=desk.at,
        expires=certificate.not_valid_after_utc,
        certificate=pem(certificate).decode(),
    )
    return desk.writing(desk.state.with_issued(issued))


def approve(desk: Desk, site: str, public_key: bytes) -> Approved:
    """Certify a site's key and sign the approval that tells the site of it."""
    certificate = site_certificate(load_authority(desk.folder), public_key, site, at=desk.at)
    desk = replace(desk, state=desk.state.numbered(desk.at))
    desk = record(desk, certificate, "site", site, public_key)
    approval = Approval(
        site=site,
        server=desk.state.server,
        number=desk.state.number,
        issued=desk.at,
        expires=certificate.not_valid_after_utc,
        certificate=pem(certificate).decode(),
        roots=tuple(desk.roots),
        handovers=tuple(handovers(desk.folder, desk.state)[-MOST_HANDOVERS:]),
    )
    file = private_folder(desk.folder / "approvals") / f"{site}.approval.json"
    write_private(file, sign_approval(desk.signer, approval), replace=True)
    return Approved(site, file, site_fingerprint(public_key), approval.expires)


def check_key(desk: Desk, site: str, public_key: bytes, *, replace_key: bool) -> list[str]:
    """Check that a key may be certified for a site.

    Returns:
        Serials of the site's certificates over another key, which it replaces; expired ones too,
        since a new key may mean a new ledger.

    Raises:
        TrustError: the key is another site's, or was thrown out; or the site has another key and
            ``replace_key`` is false.
    """
    mark = site_fingerprint(public_key)
    same = [c for c in desk.state.issued if c.public_key.encode() == public_key]
    others = {c.name for c in same} - {site}
    if others:
        raise TrustError(
            f"site {site!r}: the key {mark} is already certified for site {min(others)!r}; a key "
            "belongs to one site.",
            advice="ask the site for the request that `medfed enrol request` wrote in its own "
            "folder.",
        )
    if any(c.key_refused for c in same):
        raise TrustError(
            f"site {site!r}: the key {mark} was revoked; it is not certified again.",
            advice="have the site make a new key, and compare its fingerprint by phone.",
        )
    replaced = [
        c.serial
        for c in desk.state.issued
        if c.kind == "site" and c.name == site and not c.key_refused
        if c.public_key.encode() != public_key
    ]
    if replaced and not replace_key:
        raise TrustError(
            f"site {site!r} has a certificate over another key; the new one is {mark}.",
            advice="ask the site by phone which is right, and whether a new key means a new ledger "
            "for the same patients; `--replace` revokes the old one.",
        )
    return replaced


def revoke(desk: Desk, serials: Sequence[str], *, key_refused: bool) -> Desk:
    """Revoke certificates and write the list that names them.

    Args:
        desk: The folder.
        serials: Which; one that is revoked already keeps its time.
        key_refused: Whether their keys are not certified again either.
    """
    issued = tuple(
        c
        if c.serial not in serials
        else c.model_copy(
            update={
                "revoked": c.revoked or desk.at,
                "key_refused": c.key_refused or key_refused,
            }
        )
        for c in desk.state.issued
    )
    return write_list(desk.writing(desk.state.model_copy(update={"issued": issued})))


def write_list(desk: Desk) -> Desk:
    """Sign the revocation list as it stands, with the next number."""
    desk = desk.writing(desk.state.numbered(desk.at))
    serials = [
        c.serial
        for c in desk.state.issued
        if c.revoked is not None and desk.at < c.expires + _KEEP_REVOKED
    ]
    signed = sign_revocations(
        desk.signer,
        RevocationList(sequence=desk.state.number, issued=desk.at, serials=tuple(sorted(serials))),
    )
    write_private(desk.folder / REVOCATIONS, signed, replace=True)
    return desk


def listed(issued: Issued, at: datetime.datetime) -> Listed:
    """Tell a certificate as the list shows it."""
    certificate = x509.load_pem_x509_certificate(issued.certificate.encode())
    return Listed(
        issued.kind,
        issued.name,
        issued.serial,
        certificate.fingerprint(SHA256()).hex(),
        issued.expires,
        issued.standing(at),
    )


def authorities_pem(desk: Desk) -> bytes:
    """The authorities that are accepted now, the one in use first."""
    return "".join(root.authority for root in desk.roots).encode()


def study_keys_pem(desk: Desk) -> bytes:
    """The study keys that are accepted now, the one in use first."""
    return "".join(root.study_key for root in desk.roots).encode()


def pem(certificate: x509.Certificate) -> bytes:
    """Write a certificate."""
    return certificate.public_bytes(Encoding.PEM)
