"""A site's data root: the one folder that holds everything a site is.

    site.toml       the site's settings and its own limits
    keys/           node_key (private), node_key.pub, pseudonym.key
    trust/ca.pem    who must have signed the server's certificate
    approved/       the studies the site's admin approved, one file per digest
    ledger.db       what the patients' privacy has been spent on, and was promised
    flower/  log/   the node's own files; what the site's programs wrote

``site.toml`` is read from this folder and from nowhere else: no flag, no variable and no
message can widen what stands in it. Folders are 0700 and files 0600.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field

from medfed.client.exposure import Ceiling
from medfed.client.ledger import Ledger
from medfed.client.ledger_file import LedgerFile
from medfed.client.scans.layouts.layout import SourceRules
from medfed.client.scans.patients import PseudonymKey
from medfed.client.witness import Witness, default_witness
from medfed.common.errors import ConfigError, MedfedError
from medfed.common.strict_toml import StrictTable, read_strict
from medfed.common.study import SiteName
from medfed.common.study_scans import ArrayName
from medfed.common.trust.certificates import read_authority
from medfed.common.trust.keys import new_node_key
from medfed.common.trust.ledger_head import Head, HeadSigner
from medfed.common.trust.private_files import private_folder, write_private

_NEXT_TO_NOTHING = 1e-9
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")


def _check_address(value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if match is None or not 1 <= int(match.group(1)) <= 65535:
        raise ValueError('must be "host:port" with a port from 1 to 65535')
    return value


def _check_absolute(value: str) -> str:
    if not Path(value).is_absolute():
        raise ValueError("must be an absolute path")
    return value


Address = Annotated[str, AfterValidator(_check_address)]


class ServerSettings(StrictTable):
    """Where the coordinator's server is."""

    address: Address
    """``host:port``."""


class ScanSettings(SourceRules):
    """Where the scans are, and what the site says of them."""

    folder: Annotated[str, AfterValidator(_check_absolute)]
    """Absolute path: a folder in one of the known layouts, or one ``.npz`` file."""
    patient_array: ArrayName | None = None
    """For an ``.npz``: the array that says whose each scan is. The site says who its patients
    are, not a study: else the next study could count them anew by naming another array."""


class LedgerSettings(StrictTable):
    """Where the ledger's second memory is."""

    witness: Annotated[str, AfterValidator(_check_absolute)]
    """Absolute path of the file that remembers how far the ledger has come. Outside the site's
    folder, and outside its backups."""


class Policy(StrictTable):
    """What this site allows studies to do. Neither of the two ceilings has a default."""

    epsilon_limit: Annotated[float, Field(gt=0.0, le=1000.0)] | None = None
    """Most that a patient may lose, over all studies together, at ``delta_limit``; so too the
    most that one study may cost. Unset: approve refuses."""
    delta_limit: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """The ceiling's failure probability, and the largest delta a study may name. Unset: approve
    refuses."""
    study_epsilon_limit: Annotated[float, Field(gt=0.0, le=1000.0)] | None = None
    """Most that one study may cost a patient, at the study's delta. Unset: ``epsilon_limit``."""
    allow_no_privacy: bool = False
    """Whether a study without differential privacy may be approved at all."""


class SiteSettings(StrictTable):
    """``site.toml``, checked. Known to the site only."""

    site: SiteName
    server: ServerSettings
    scans: ScanSettings
    ledger: LedgerSettings
    policy: Policy


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
        """32 secret bytes that patient keys are hashed with."""
        return self.folder / "keys" / "pseudonym.key"

    @property
    def ca(self) -> Path:
        """The authority that must have signed the server's certificate."""
        return self.folder / "trust" / "ca.pem"

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


def create_site(
    root: Path,
    *,
    name: str,
    scans: Path,
    server: str,
    ca: Path,
    patient_array: str | None = None,
    witness: Path | None = None,
) -> SiteRoot:
    """Write a new data root with new keys and a new ledger.

    Args:
        root: Folder to make; must not exist or be empty.
        name: The site's name, as studies will list it.
        scans: The site's scans.
        server: ``host:port`` of the coordinator's server.
        ca: The coordinator's ``ca.pem``.
        patient_array: For an ``.npz``: the array that says whose each scan is.
        witness: Where the ledger's second memory lies; None: as ``default_witness``, one for
            all sites over the same scans.

    Raises:
        ConfigError: the root exists, or one of the values is not allowed, or these scans have
            a ledger already.
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
    _check_no_other_ledger(scans, witness)
    text = _site_toml(name, server, scans.absolute(), patient_array, witness)
    parse_site(text, source="site init")
    authority = read_authority(ca)

    part = root.with_name(f".{root.name}.{secrets.token_hex(4)}.part")
    try:
        for folder in ("keys", "trust", "approved", "flower", "log"):
            private_folder(private_folder(part) / folder)
        write_private(part / "site.toml", text.encode())
        write_private(part / "trust" / "ca.pem", authority)
        write_private(part / "keys" / "pseudonym.key", secrets.token_bytes(32))
        new_node_key(part / "keys")
        Ledger.create(
            part / "ledger.db",
            HeadSigner(part / "keys" / "node_key"),
            site=name,
            pseudonym_check=PseudonymKey(part / "keys" / "pseudonym.key").check,
        )
        part.rename(root)
    except OSError as error:
        raise ConfigError(
            f"{root}: the site's folder cannot be written ({error.strerror}).",
            advice="choose a --root on a disk that you may write to.",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    site = open_site(root)
    _witness_as_it_is(site)
    return site


def open_ledger(site: SiteRoot) -> Ledger:
    """Open a site's ledger, held to the ceiling that ``site.toml`` names at any moment.

    Raises:
        LedgerError: missing, altered, behind its witness, or of other keys.
    """
    scans = site.settings.scans
    return Ledger.open(
        site.ledger,
        HeadSigner(site.node_key),
        Witness(site.witness, site=site.name),
        site=site.name,
        pseudonym_check=PseudonymKey(site.pseudonym_key).check,
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
            read by other users of the machine.
        TrustError: ``trust/ca.pem`` is no valid certificate authority.
    """
    site = SiteRoot(root.absolute(), read_settings(root))
    for secret in (site.node_key, site.pseudonym_key):
        _check_secret(secret)
    read_authority(site.ca)
    return site


def read_settings(root: Path) -> SiteSettings:
    """Read and check the ``site.toml`` of a root.

    Raises:
        ConfigError: it cannot be read, or breaks a rule.
    """
    path = root / "site.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({_reason(error)}).",
            advice="give the site's folder as --root; `medfed site init` makes one.",
        ) from error
    return parse_site(text, source=str(path))


def parse_site(text: str, *, source: str = "site.toml") -> SiteSettings:
    """Check the text of a ``site.toml``.

    Raises:
        ConfigError: names the file, line and key, what was found and what is allowed.

    Example:
        >>> text = '''site = "A"
        ... [server]
        ... address = "hub.example:8443"
        ... [scans]
        ... folder = "/scans"
        ... [ledger]
        ... witness = "/var/lib/medfed/witness.json"
        ... [policy]
        ... epsilon_limit = 8.0
        ... '''
        >>> parse_site(text).policy.epsilon_limit, parse_site(text).policy.delta_limit
        (8.0, None)
    """
    return read_strict(text, SiteSettings, source=source, next_step=" and try again.")


def _check_no_other_ledger(scans: Path, witness: Path) -> None:
    if witness.exists():
        raise ConfigError(
            f"{scans}: a site with a ledger of these scans' patients was set up on this machine "
            f"before ({witness}). A second ledger would forget what they have spent.",
            advice="use that site, for another server too: change [server] in its site.toml. If "
            "its folder is lost, restore the newest backup. If these are other patients, give "
            "--witness another path.",
        )


def _site_toml(
    name: str, server: str, scans: Path, patient_array: str | None, witness: Path
) -> str:
    array = f"patient_array = {json.dumps(patient_array)}\n" if patient_array else ""
    return f"""\
# The settings of one site. medfed reads them from this file only.
site = {json.dumps(name)}

[server]
address = {json.dumps(server)}

[scans]
folder = {json.dumps(str(scans))}
{array}# layout = "chexpert"      # where what lies in the folder does not say it; `site check` does
# patient = "parent"       # in class folders: who the patient is; never change it afterwards
# join = "accession"       # the worklist's column by which its lines and the files are matched

[ledger]
# Remembers how far the ledger has come. Keep it out of the backups of this folder: it is there
# to notice when one is put back.
witness = {json.dumps(str(witness))}

[policy]
# What studies may cost a patient here. There is no default: your data board decides, you
# write it down, and `medfed site approve` refuses every study until then. For example:
#   epsilon_limit = 8.0        # most that all studies together may spend per patient
#   delta_limit = 1e-4         # at most this failure probability; below 1 / number of patients
#   study_epsilon_limit = 4.0  # if one study may spend less than all together
allow_no_privacy = false     # true lets a study without differential privacy be approved
"""


def _check_secret(path: Path) -> None:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(
            f"{path}: the key cannot be read ({_reason(error)}).",
            advice="restore it from a backup of the site's folder; a new site would forget what "
            "its patients have spent.",
        ) from error
    if mode & 0o077:
        raise ConfigError(
            f"{path}: other users of this machine may read the key (mode {mode:04o}, "
            "allowed: 0600).",
            advice=f"chmod 600 {path}",
        )


def _reason(error: Exception) -> str:
    return error.strerror or "" if isinstance(error, OSError) else type(error).__name__
