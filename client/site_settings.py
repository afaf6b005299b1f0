"""``site.toml``: what a site says of itself, and what it allows studies to do.

Read from the site's folder and from nowhere else: no flag, no variable and no message can widen
what stands in it.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from medfed.client.scans.layouts.layout import SourceRules
from medfed.common.errors import ConfigError
from medfed.common.strict_toml import StrictTable, read_strict
from medfed.common.study import SiteName
from medfed.common.study_about import Name
from medfed.common.study_scans import ArrayName

_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_HOURS = re.compile(rf"{_CLOCK}-{_CLOCK}")


def _check_address(value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if match is None or not 1 <= int(match.group(1)) <= 65535:
        raise ValueError('must be "host:port" with a port from 1 to 65535')
    return value


def _check_absolute(value: str) -> str:
    if not Path(value).is_absolute():
        raise ValueError("must be an absolute path")
    return value


def _times(hours: str) -> tuple[datetime.time, datetime.time]:
    begin, end = (datetime.time.fromisoformat(part) for part in hours.split("-"))
    return begin, end


def _check_hours(value: str) -> str:
    if _HOURS.fullmatch(value) is None:
        raise ValueError('must be "HH:MM-HH:MM", from 00:00 to 23:59')
    if len(set(_times(value))) == 1:
        raise ValueError("must begin and end at different times; leave it out to allow all day")
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
    """Where the files lie that the ledger needs and that are not backed up together with it."""

    witness: Annotated[str, AfterValidator(_check_absolute)]
    """Absolute path of the file that remembers how far the ledger has come. Outside the site's
    folder, and outside its backups."""
    pseudonym_key: Annotated[str, AfterValidator(_check_absolute)] | None = None
    """Absolute path of the key by which the ledger names patients. Outside the site's folder and
    the scans folder: who has it and the ledger can tell which patient took part in what. Unset:
    ``keys/pseudonym.key`` in the site's folder, where every backup has both."""


class Policy(StrictTable):
    """What this site allows studies to do. Neither of the two ceilings has a default.

    Read anew at every round, so that a change holds without a restart.
    """

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
    rounds_limit: Annotated[int, Field(ge=1)] | None = None
    """Most rounds of one study. Unset: any number that the two ceilings allow."""
    studies: tuple[Name, ...] | None = None
    """Names of the studies that may be approved. Unset: any."""
    networks: tuple[str, ...] | None = None
    """Names of the networks that may be trained. Unset: any that medfed has."""
    minimum_patients: Annotated[int, Field(ge=1)] | None = None
    """Fewest patients with whom this site takes part: declared in the study, and there to train
    on when it is approved. Unset: any number."""
    pause: bool = False
    """While true nothing is trained."""
    hours: Annotated[str, AfterValidator(_check_hours)] | None = None
    """When rounds may begin, "20:00-06:00", in this machine's local time; the end is not part of
    it. A round that has begun goes on to its end. Unset: all day."""
    cpu_threads: Annotated[int, Field(ge=1)] | None = None
    """Most threads that training uses. Unset: one per core that the worker may use."""
    gpu: bool = True
    """Whether training may use a GPU, where there is one."""
    gpu_memory_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Most of the GPU's memory that training may use. Unset: all that is free."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.gpu and self.gpu_memory_fraction is not None:
            raise ValueError("gpu = false leaves gpu_memory_fraction without a meaning")
        return self

    def within_hours(self, at: datetime.time) -> bool:
        """Whether a round may begin at a local time.

        Example:
            >>> night = Policy(hours="20:00-06:00")
            >>> [night.within_hours(datetime.time(hour)) for hour in (5, 6, 12, 20)]
            [True, False, False, True]
        """
        if self.hours is None:
            return True
        begin, end = _times(self.hours)
        return begin <= at < end if begin < end else at >= begin or at < end


class SiteSettings(StrictTable):
    """``site.toml``, checked. Known to the site only."""

    site: SiteName
    server: ServerSettings
    scans: ScanSettings
    ledger: LedgerSettings
    policy: Policy


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


def site_toml(
    name: str,
    server: str,
    scans: Path,
    patient_array: str | None,
    witness: Path,
    pseudonym_key: Path,
    limits: Mapping[str, float] | None = None,
) -> str:
    """The text of a new site's ``site.toml``: paths filled in, and the limits that are given."""
    written = "".join(f"{key} = {value!r}\n" for key, value in (limits or {}).items())
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
# without_patient = "leave-out"  # scans without a patient id; "refuse": no private study then

[ledger]
# Remembers how far the ledger has come. Keep it out of the backups of this folder: it is there
# to notice when one is put back.
witness = {json.dumps(str(witness))}
# By this key the ledger names patients. Keep a copy of it in a safe, apart from the backups of
# this folder: with both, anyone can tell which patient took part in what.
pseudonym_key = {json.dumps(str(pseudonym_key))}

[policy]
# What studies may cost a patient here. There is no default: your data board decides, you
# write it down, and `medfed site approve` refuses every study until then. For example:
#   epsilon_limit = 8.0        # most that all studies together may spend per patient
#   delta_limit = 1e-4         # at most this failure probability; below 1 / number of patients
#   study_epsilon_limit = 4.0  # if one study may spend less than all together
{written}allow_no_privacy = false     # true lets a study without differential privacy be approved
# Everything below is optional, and holds from the next round on:
#   pause = true                    # train nothing until it is false
#   hours = "20:00-06:00"           # begin rounds only then; local time
#   rounds_limit = 100              # most rounds of one study
#   studies = ["chest_2027"]        # only studies of these names
#   networks = ["scatter-small"]    # only these networks
#   minimum_patients = 200          # fewest patients, declared and really there
#   cpu_threads = 8                 # most threads that training uses
#   gpu = false                     # train on the CPU also where there is a GPU
#   gpu_memory_fraction = 0.5       # most of the GPU's memory
"""


def _reason(error: Exception) -> str:
    return error.strerror or "" if isinstance(error, OSError) else type(error).__name__
