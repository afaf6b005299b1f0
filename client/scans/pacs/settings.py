"""``pacs.toml``: how the hospital's archive is reached, and what was agreed with its keepers.

``EXAMPLE`` is such a file, with every key explained. A connection without TLS must be written
out (``plain = true``), and never carries a password to another machine. No secret stands in the
file, on the command line or in the environment.
"""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path
from typing import Annotated, Final, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from medfed.client.scans.pacs.pace import Rates, Window
from medfed.common.errors import ConfigError
from medfed.common.strict_toml import StrictTable, read_strict

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
EXAMPLE: Final = """\
# How medfed asks this hospital's image archive. Keep one of the two tables of archives.

[dicomweb]
url = "https://pacs.hospital.example/dicom-web"
credentials = "/etc/medfed/pacs.secret"      # mode 0600: user and password on two lines, or a
                                             # bearer token on one. Leave out if not asked for
ca = "/etc/medfed/pacs-ca.pem"               # who signed its certificate. Default: the system's
# certificate = "/etc/medfed/site.pem"       # ours, if the archive asks for one
# key = "/etc/medfed/site.key"               # mode 0600
# plain = true                               # without TLS, instead of ca, certificate and key

# [dimse]                                    # medfed only asks (C-FIND, C-GET); no port is opened
# address = "pacs.hospital.example:2762"
# called_ae = "PACS"                         # the archive's title
# calling_ae = "MEDFED"                      # ours; its keepers must admit it
# ca, certificate, key or plain as above

[limits]
window = "22:00-06:00"                       # when it may be asked, local time. Default: any time
requests_per_minute = 120                    # searches and files together. Default: no limit
studies_per_hour = 200                       # studies begun. Default: no limit
bytes_per_second = 5_000_000                 # on average. Default: no limit
max_object_mib = 512                         # larger objects are left out; 512 is also the most
max_total_gib = 500                          # how large the folder may become; no default
keep_free_gib = 10                           # what the disk must have left
"""
_MAX_SECRET_BYTES: Final = 16 << 10


def _absolute(value: str) -> str:
    if not Path(value).is_absolute():
        raise ValueError("must be an absolute path")
    return value


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be the http(s) address of the DICOMweb service")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must hold no user, password, query or fragment")
    return value.rstrip("/")


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError('must be "host:port" with a port from 1 to 65535')
    return value


def _window(value: str) -> str:
    try:
        Window.parse(value)
    except ConfigError:
        raise ValueError('must be like "22:00-06:00"') from None
    return value


PathText = Annotated[str, AfterValidator(_absolute)]
AeTitle = Annotated[str, Field(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")]
"""1 to 16 printable characters without a backslash; PS3.5 section 6.2, AE."""
Rate = Annotated[float, Field(gt=0.0)]


class Tls(StrictTable):
    """How the two prove who they are."""

    ca: PathText | None = None
    certificate: PathText | None = None
    key: PathText | None = None
    plain: bool = False
    """Whether to go without TLS."""

    @model_validator(mode="after")
    def _whole(self) -> Tls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together; one is missing")
        if self.plain and (self.ca or self.certificate):
            raise ValueError("plain = true leaves ca, certificate and key without effect")
        return self


class DicomWebSettings(Tls):
    """An archive that speaks DICOMweb."""

    url: Annotated[str, AfterValidator(_url)]
    credentials: PathText | None = None

    @model_validator(mode="after")
    def _no_open_secrets(self) -> DicomWebSettings:
        parts = urlsplit(self.url)
        if (parts.scheme == "http") != self.plain:
            raise ValueError("http:// goes with plain = true, https:// without it")
        if self.plain and self.credentials and parts.hostname not in LOOPBACK:
            raise ValueError("a password is not sent to another machine without TLS; use https://")
        return self


class DimseSettings(Tls):
    """An archive that speaks DIMSE, DICOM's own protocol."""

    address: Annotated[str, AfterValidator(_address)]
    called_ae: AeTitle
    calling_ae: AeTitle


class Limits(StrictTable):
    """What was agreed with the archive's keepers, and what the disk bears."""

    window: Annotated[str, AfterValidator(_window)] | None = None
    requests_per_minute: Rate | None = None
    studies_per_hour: Rate | None = None
    bytes_per_second: Rate | None = None
    max_object_mib: Annotated[int, Field(gt=0, le=512)] = 512
    """The reader takes no larger file."""
    max_total_gib: Annotated[float, Field(gt=0.0)]
    keep_free_gib: Annotated[float, Field(ge=0.0)] = 10.0

    def rates(self) -> Rates:
        """The rates for ``Pace``."""
        return Rates(self.requests_per_minute, self.studies_per_hour, self.bytes_per_second)

    def time_window(self) -> Window | None:
        """The window for ``Pace``."""
        return Window.parse(self.window) if self.window else None


class PacsSettings(StrictTable):
    """``pacs.toml``, checked."""

    dicomweb: DicomWebSettings | None = None
    dimse: DimseSettings | None = None
    limits: Limits

    @model_validator(mode="after")
    def _one_archive(self) -> PacsSettings:
        if (self.dicomweb is None) == (self.dimse is None):
            raise ValueError("found both or none of [dicomweb] and [dimse]; exactly one is needed")
        return self


class Credentials(NamedTuple):
    """What the archive asks for; its repr shows nothing.

    Attributes:
        user: None: ``secret`` is a bearer token.
        secret: Password or token.
    """

    user: str | None
    secret: str

    def __repr__(self) -> str:
        return "Credentials(secret)"


def read_settings(path: Path) -> PacsSettings:
    """Read and check a ``pacs.toml``.

    Raises:
        ConfigError: it cannot be read or breaks a rule.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(
            f"{path}: cannot be read ({reason}).",
            advice="`medfed scans pull --example > pacs.toml` writes one to start from.",
        ) from error
    return read_strict(text, PacsSettings, source=str(path), next_step=" and try again.")


def read_credentials(path: Path) -> Credentials:
    """Read user and password (two lines) or a bearer token (one line).

    Raises:
        ConfigError: it cannot be read, others may read it, or it holds something else. A
            message never quotes it.
    """
    check_private(path)
    try:
        with path.open("rb") as file:
            lines = file.read(_MAX_SECRET_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise _unusable(path, "cannot be read as UTF-8 text") from None
    if len(lines) not in (1, 2) or not all(line and line.isprintable() for line in lines):
        raise _unusable(path, "holds neither two lines (user, password) nor one (a token)")
    return Credentials(lines[0] if len(lines) == 2 else None, lines[-1])


def check_private(path: Path) -> None:
    """Refuse a secret that other users of the machine may read.

    Raises:
        ConfigError: they may, or there is no such file.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _unusable(path, f"cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise _unusable(path, "is no regular file")
    if mode & 0o077:
        raise ConfigError(
            f"{path}: other users of this machine may read the secret (mode "
            f"{stat.S_IMODE(mode):04o}, allowed: 0600).",
            advice=f"chmod 600 {path}",
        )


def check_files(tls: Tls) -> None:
    """Look at the certificate files before anything is asked.

    Raises:
        ConfigError: one cannot be read, or others may read the key.
    """
    for name in (tls.ca, tls.certificate):
        if name is not None and not os.access(name, os.R_OK):
            raise ConfigError(
                f"{name}: the certificate cannot be read.",
                advice="check the path in pacs.toml and who may read the file.",
            )
    if tls.key is not None:
        check_private(Path(tls.key))


def tls_context(tls: Tls) -> ssl.SSLContext:
    """What an archive must prove, and our own certificate: TLS 1.2 or newer, its name checked.

    Raises:
        ConfigError: a file cannot be read or is none of its kind.
    """
    check_files(tls)
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key, password="")
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        raise ConfigError(
            "ca, certificate or key of the archive: not PEM, or key and certificate do not fit.",
            advice="check the three files that pacs.toml names; a key has no passphrase.",
        ) from None
    return context


def _unusable(path: Path, found: str) -> ConfigError:
    return ConfigError(
        f"{path}: the secret {found}.",
        advice="write user and password on two lines, or a token on one, and chmod 600.",
    )
