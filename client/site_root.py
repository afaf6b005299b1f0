"""A site's data root: the one folder that holds everything a site is, but for two files.

    site.toml       the site's settings and its own limits
    keys/           node_key (private), node_key.pub
    trust/          whom the site trusts (``ca.pem``); an enrolled site's own certificate
    approved/       the studies the site's admin approved, one file per digest
    ledger.db       what the patients' privacy has been spent on, and was promised
    log/            audit.jsonl: every use of the pseudonym key; what the site's programs wrote
    flower/         the node's own files

Elsewhere, because they must not come back or leak with a backup of it, lie the ledger's witness
and the pseudonym key. Folders are 0700 and files 0600.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from medfed.client.exposure import Ceiling
from medfed.client.ledger import Ledger
from medfed.client.ledger_file import LedgerFile
from medfed.client.scans.patients import PatientNames, PseudonymKey
from medfed.client.site_keys import (
    check_key_place,
    check_secret,
    default_pseudonym_key,
    is_within,
    make_pseudonym_key,
)
from medfed.client.site_settings import SiteSettings, parse_site, read_settings, site_toml
from medfed.client.witness import Witness, default_witness
from medfed.common.errors import ConfigError, MedfedError
from medfed.common.trust.audit_log import KEY_MADE, KEY_USED, AuditLog
from medfed.common.trust.certificates import read_authority
from medfed.common.trust.keys import new_node_key
from medfed.common.trust.ledger_head import Head, HeadSigner
from medfed.common.trust.private_files import private_folder, write_private

_NEXT_TO_NOTHING = 1e-9


class KeyUse(StrEnum):
    """What the pseudonym key is needed for; the value stands in the audit log."""

    OPEN_LEDGER = "open the ledger"
    NAME_PATIENTS = "name the patients of the scans"
    EXCLUDE = "find patients to exclude"
    MERGE = "find patients to merge"


@dataclass(frozen=True)
class SiteRoot:
    """A site's data root, opened: its settings, and where everything lies."""

    folder: Path
    settings: SiteSettings

    @property
    def name(self) -> str:
        """The site's name, as studies list it."""
        return self.settings.site

    @property
    def scans(self) -> Path:
        """Where the scans are; the path stays at the site."""
        return Path(self.settings.scans.folder)

    @property
    def node_key(self) -> Path:
        """The private key by which the server knows the site."""
        return self.folder / "keys" / "node_key"

    @property
    def public_key(self) -> Path:
        """What the coordinator enrols."""
        return self.folder / "keys" / "node_key.pub"

    @property
    def pseudonym_key(self) -> Path:
        """32 secret bytes that patient ids are hashed with."""
        named = self.settings.ledger.pseudonym_key
        return Path(named) if named else self.folder / "keys" / "pseudonym.key"

    @property
    def key_is_backed_up(self) -> bool:
        """Whether the pseudonym key lies in the site's folder, and so in its backups."""
        return is_within(self.pseudonym_key, self.folder)

    @property
    def ca(self) -> Path:
        """The authority that must have signed the server's certificate."""
        return self.folder / "trust" / "ca.pem"

    @property
    def is_enrolled(self) -> bool:
        """Whether an approval was taken up: such a site reaches the server by its tunnel."""
        return (self.folder / "trust" / "site.pem").exists()

    @property
    def approved(self) -> Path:
        """Folder of approved studies."""
        return self.folder / "approved"

    @property
    def ledger(self) -> Path:
        """The privacy ledger."""
        return self.folder / "ledger.db"

    @property
    def witness(self) -> Path:
        """The second place that remembers how far the ledger has come."""
        return Path(self.settings.ledger.witness)

    @property
    def flower(self) -> Path:
        """Home folder of the Flower node."""
        return self.folder / "flower"

    @property
    def log(self) -> Path:
        """Folder of the site's logs."""
        return self.folder / "log"

    @property
    def audit(self) -> AuditLog:
        """The audit log, to write to."""
        return AuditLog(self.audit_file)

    @property
    def audit_file(self) -> Path:
        """Where the audit log lies."""
        return self.log / "audit.jsonl"


def create_site(
    root: Path,
    *,
    name: str,
    scans: Path,
    server: str,
    ca: Path | None,
    patient_array: str | None = None,
    witness: Path | None = None,
    pseudonym_key: Path | None = None,
    limits: Mapping[str, float] | None = None,
) -> SiteRoot:
    """Write a new data root with new keys and a new ledger.

    Args:
        root: Folder to make; must not exist or be empty.
        name: The site's name, as studies will list it.
        scans: The site's scans.
        server: ``host:port`` of the coordinator's server.
        ca: The coordinator's ``ca.pem``; None: it comes with the approval of a site that enrols.
        patient_array: For an ``.npz``: the array that says whose each scan is.
        witness: Where the ledger's second memory lies; None: as ``default_witness``, one for
            all sites over the same scans.
        pseudonym_key: Where the key by which the ledger names patients lies; None: beside the
            witness. One that is there is used, so that patients keep their names.
        limits: The data board's ceilings, by their name in ``Policy``. None has a default.

    Raises:
        ConfigError: the root exists, or one of the values is not allowed, or these scans have
            a ledger already, or the pseudonym key would lie in the root or with the scans.
        TrustError: ``ca`` is no certificate authority.

    Guarantee:
        The root appears complete or not at all; an existing one is never touched.
    """
    root = root.absolute()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(
            f"{root}: exists already; a site's keys and ledger are never overwritten.",
            advice="choose another --root, or use the site that is there.",
        )
    witness = (witness or default_witness(scans)).absolute()
    key = (pseudonym_key or default_pseudonym_key(witness)).absolute()
    _check_no_other_ledger(scans, witness)
    check_key_place(key, root, scans)
    text = site_toml(name, server, scans.absolute(), patient_array, witness, key, limits)
    parse_site(text, source="site init")
    authority = None if ca is None else read_authority(ca)

    part = root.with_name(f".{root.name}.{secrets.token_hex(4)}.part")
    ours = not key.exists()  # to be taken away again if the site cannot be made
    try:
        for folder in ("keys", "trust", "approved", "flower", "log"):
            private_folder(private_folder(part) / folder)
        write_private(part / "site.toml", text.encode())
        if authority is not None:
            write_private(part / "trust" / "ca.pem", authority)
        new_node_key(part / "keys")
        if ours:
            make_pseudonym_key(key)
        check_secret(key)
        AuditLog(part / "log" / "audit.jsonl").write(KEY_MADE)
        Ledger.create(
            part / "ledger.db",
            HeadSigner(part / "keys" / "node_key"),
            site=name,
            pseudonym_check=PseudonymKey(key).check,
        )
        part.rename(root)
    except BaseException as error:
        if ours:
            key.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise ConfigError(
            f"{root}: the site's folder cannot be written ({error.strerror}).",
            advice="choose a --root on a disk that you may write to.",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    site = open_site(root)
    _witness_as_it_is(site)
    return site


def pseudonym_key(site: SiteRoot, use: KeyUse) -> PseudonymKey:
    """Load the key that patients are named with; the audit log tells of it first.

    Args:
        site: The site.
        use: What for.

    Raises:
        ConfigError: the key cannot be read, or the audit log cannot be written.
        LedgerError: the end of the audit log is no log.
    """
    site.audit.write(KEY_USED, purpose=use.value)
    return PseudonymKey(site.pseudonym_key)


def open_ledger(site: SiteRoot, use: KeyUse = KeyUse.OPEN_LEDGER) -> Ledger:
    """Open a site's ledger, held to the ceiling that ``site.toml`` names at any moment.

    Args:
        site: The site.
        use: For the audit log: what the pseudonym key is loaded for.

    Raises:
        ConfigError: as ``pseudonym_key``.
        LedgerError: missing, altered, behind its witness, or of other keys.
    """
    return _open_ledger(site, pseudonym_key(site, use))


def names_of_patients(site: SiteRoot) -> PatientNames:
    """How the site's ledger names patients now: merged record numbers by one name.

    Raises:
        ConfigError: as ``pseudonym_key``.
        LedgerError: as ``open_ledger``.
    """
    key = pseudonym_key(site, KeyUse.NAME_PATIENTS)
    with closing(_open_ledger(site, key)) as ledger:
        return PatientNames(key, ledger.names())


def _open_ledger(site: SiteRoot, key: PseudonymKey) -> Ledger:
    scans = site.settings.scans
    return Ledger.open(
        site.ledger,
        HeadSigner(site.node_key),
        Witness(site.witness, site=site.name),
        site=site.name,
        pseudonym_check=key.check,
        patients_by=json.dumps({"array": scans.patient_array, "rule": scans.patient}),
        ceiling=lambda: ceiling_of(site),
    )


class Renewed(NamedTuple):
    """What came of a new witness.

    Attributes:
        head: What it remembers.
        ended: Approvals that ended and count as wholly spent.
        kept: Where the old witness was put; None: there was none.
    """

    head: Head
    ended: int
    kept: Path | None


def renew_witness(site: SiteRoot) -> Renewed:
    """Go on with the ledger as it lies here, though later entries of it may be lost.

    Nobody knows what those entries spent. So every approval that stands counts as wholly spent
    and ends; studies that were approved later are not known at all. An old witness is put aside.

    Raises:
        LedgerError: the ledger was altered.
    """
    kept = None
    if site.witness.exists():
        number = 1 + sum(1 for _ in site.witness.parent.glob(f"{site.witness.name}.*.aside"))
        kept = site.witness.rename(site.witness.with_name(f"{site.witness.name}.{number}.aside"))
    try:
        _witness_as_it_is(site)
        ledger = open_ledger(site)
    except MedfedError:
        if kept is not None:
            kept.replace(site.witness)
        raise
    try:
        ended = ledger.own_up()
        return Renewed(ledger.head, ended, kept)
    finally:
        ledger.close()


def _witness_as_it_is(site: SiteRoot) -> None:
    """Make a witness of the ledger as it lies here."""
    file = LedgerFile(site.ledger, HeadSigner(site.node_key), site=site.name)
    try:
        Witness(site.witness, site=site.name).keep(file.head)
    finally:
        file.close()


def ceiling_of(site: SiteRoot) -> Ceiling:
    """What a patient may lose over all studies together, as ``site.toml`` says it now.

    Where a limit is not written nothing private is approved, and next to nothing may be spent.

    Raises:
        ConfigError: ``site.toml`` cannot be read any more.
    """
    policy = read_settings(site.folder).policy
    return Ceiling(policy.epsilon_limit or _NEXT_TO_NOTHING, policy.delta_limit or _NEXT_TO_NOTHING)


def open_site(root: Path) -> SiteRoot:
    """Read and check a site's data root.

    Raises:
        ConfigError: not a site's root, ``site.toml`` breaks a rule, a key is missing or may be
            read by other users of the machine, or ``[ledger] pseudonym_key`` names a place in
            the site's folder or with the scans.
        TrustError: ``trust/ca.pem`` is no valid certificate authority. It may be missing: see
            ``check_may_join``.
    """
    site = SiteRoot(root.absolute(), read_settings(root))
    if site.settings.ledger.pseudonym_key:
        check_key_place(site.pseudonym_key, site.folder, site.scans)
    for secret in (site.node_key, site.pseudonym_key):
        check_secret(secret)
    if site.ca.exists():
        read_authority(site.ca)
    return site


def check_may_join(site: SiteRoot) -> None:
    """Refuse to join before the site knows whom to trust.

    Raises:
        ConfigError: it has no ``trust/ca.pem``; says which step of enrolment is missing.
    """
    if site.ca.exists():
        return
    request = site.folder / f"{site.name}.request.pem"
    first = "" if request.exists() else f"`medfed enrol request --root {site.folder}` writes it; "
    raise ConfigError(
        f"site {site.name!r}: is not enrolled; no approval of the coordinator was taken up.",
        advice=f"{first}send {request} to the coordinator, and take up what comes back: `medfed "
        f"enrol accept {site.name}.approval.json --root {site.folder} --fingerprint ...`.",
    )


def _check_no_other_ledger(scans: Path, witness: Path) -> None:
    if witness.exists():
        raise ConfigError(
            f"{scans}: a site with a ledger of these scans' patients was set up on this machine "
            f"before ({witness}). A second ledger would forget what they have spent.",
            advice="use that site, for another server too: change [server] in its site.toml. If "
            "its folder is lost, restore the newest backup. If these are other patients, give "
            "--witness another path.",
        )
