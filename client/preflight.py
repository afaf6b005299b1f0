"""Look before joining: what would stop this site is said before anything is started.

In order, each with its own error class: ``site.toml`` and keys, an approved study, the
scans, the server and its certificate. What the scans look like is told to the site's admin
only; none of it travels, and a warning keeps nobody from joining.
"""

from __future__ import annotations

import email.utils
import math
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import Literal

import numpy as np

from medfed.client.approvals import approved_studies, scans_of_patients
from medfed.client.scans.importing import Progress
from medfed.client.scans.layouts.detect import layout_of
from medfed.client.scans.scanset import TRAIN, ScanSet
from medfed.client.site_root import SiteRoot, check_may_join, open_ledger
from medfed.client.tunnel_reach import reach
from medfed.common.errors import MedfedError, ScanError, TransportError, TrustError
from medfed.common.study import Study

CLOCK_AHEAD_S = 4.0
"""Flower refuses a signature that is more than 5 s in the server's future ..."""
CLOCK_BEHIND_S = 240.0
"""... or more than 305 s in its past."""

_MANY_MORE = 1.25
"""Declared numbers are rounded; above this many times them the admin is told."""
_ANSWER_LIMIT_BYTES = 4096
_ANSWER_LIMIT_S = 10.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 1.0, 15.0


@dataclass(frozen=True)
class Notice:
    """One line for the site's admin. May say private things: it never leaves the site."""

    kind: Literal["state", "warning"]
    text: str


Tell = Callable[[Notice], None]


@dataclass(frozen=True, repr=False)
class ScanReport:
    """What a study will find at this site. Private: for the admin's eyes only.

    Attributes:
        study: The study's name.
        layout: What the scans folder is taken for.
        unit: What the privacy unit is.
        patients: Privacy units, in all parts and in training.
        scans: Scans, in all parts and in training.
        labels: Label -> scans of it in all parts.
        refused: Reason -> number of files left out.
        warnings: What the admin should look at before joining.
    """

    study: str
    layout: str
    unit: str
    patients: tuple[int, int]
    scans: tuple[int, int]
    labels: Mapping[str, int]
    refused: Mapping[str, int]
    warnings: tuple[str, ...]


def preflight(site: SiteRoot, tell: Tell, *, retry_for_s: float) -> None:
    """Check everything that can be checked before joining.

    Args:
        site: The site.
        tell: Where lines for the admin go.
        retry_for_s: How long to go on trying to reach the server, seconds.

    Raises:
        ConfigError: the site was made to be enrolled, and is not yet.
        LedgerError: the ledger cannot be trusted.
        ApprovalError: no study is approved.
        ScanError: the scans cannot be used.
        TransportError: the server does not answer.
        TrustError: what answers is not the coordinator's server, or this clock is wrong.
    """
    check_may_join(site)
    open_ledger(site).close()  # a ledger that cannot be trusted is told before anything runs
    study = approved_studies(site)[0]
    tell(Notice("state", f"study {study.name} ({study.digest[:8]}) is approved here"))
    report = look_at_scans(site, study)
    tell(Notice("state", scan_line(report)))
    for warning in report.warnings:
        tell(Notice("warning", warning))
    reach_server(site, tell, retry_for_s=retry_for_s)


def look_at_scans(
    site: SiteRoot, study: Study, *, on_progress: Progress | None = None
) -> ScanReport:
    """Read the site's scans as a study says, and report to the admin.

    Raises:
        ConfigError: the study does not list the site.
        ScanError: unreadable, empty, or no scan to train on.
    """
    declared = study.site_named(site.name).declared_patients
    scans = scans_of_patients(site, study, on_progress=on_progress)
    training = scans.part_of(TRAIN)
    if not len(training):
        raise ScanError(
            f"{site.scans}: no scan to train on; all {len(scans)} are held out by the split.",
            advice="check the split column of the worklist, or the study's split.",
        )
    counts = np.bincount(scans.labels, minlength=study.classes)
    labels = dict(zip(study.task.labels, (int(count) for count in counts), strict=True))
    return ScanReport(
        study=study.name,
        layout=layout_of(site.scans, site.settings.scans.layout).name,
        unit=scans.unit,
        patients=(scans.patients, training.patients),
        scans=(len(scans), len(training)),
        labels=labels,
        refused=dict(scans.refused),
        warnings=tuple(_warnings(study, training, declared, scans.refused)),
    )


def _warnings(
    study: Study, training: ScanSet, declared: int, refused: Mapping[str, int]
) -> list[str]:
    found = []
    present = np.unique(training.labels)
    if len(present) == 1:
        found.append(
            f"all scans to train on are labelled {study.task.labels[int(present[0])]!r}; the "
            f"study has {study.classes} labels. Training will work, but teaches one side only."
        )
    if training.patients < declared:
        found.append(
            f"{training.patients} {training.unit} units to train on, fewer than the {declared} "
            "the study declares for this site. Privacy holds; the noise per patient is larger."
        )
    if training.patients > _MANY_MORE * declared:
        found.append(
            f"{training.patients} {training.unit} units to train on, far more than the {declared} "
            "the study declares for this site. Privacy holds; a step takes more of them than the "
            "study's lot."
        )
    delta = study.privacy.delta
    if delta is not None and delta * training.patients > 1.0:
        found.append(
            f"the study's delta, {delta:g}, is above one over the number of patients here: it "
            "would allow one of them to be given away entirely. Ask for a smaller delta."
        )
    if refused:
        found.append(f"{sum(refused.values())} files are left out: {_counted(refused)}.")
    return found


def scan_line(report: ScanReport) -> str:
    """Say in one line what was found. Private."""
    return (
        f"scans read: {report.scans[0]} of {report.patients[0]} {report.unit} units "
        f"({report.scans[1]} of {report.patients[1]} to train on); {_counted(report.labels)}"
    )


def _counted(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in numbers.items())


def reach_server(
    site: SiteRoot,
    tell: Tell,
    *,
    retry_for_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Ask the server for its health until it answers, and check who answers.

    An enrolled site goes the way that its tunnel will go, and shows its certificate.

    Args:
        site: The site.
        tell: Where lines for the admin go; each failed try is told.
        retry_for_s: How long to go on trying, seconds. 0: once.
        sleep: How to wait between tries.
        clock: The time in seconds.

    Raises:
        ConfigError: a file of an enrolled site is missing, or the proxy's variable is wrong.
        TransportError: no answer for ``retry_for_s`` seconds; says how often it was tried.
        TrustError: a certificate is not the coordinator's, has expired or is refused, or the
            clocks differ.
    """
    address = site.settings.server.address
    began, tries, delay = clock(), 0, _FIRST_DELAY_S
    while True:
        tries += 1
        try:
            server_clock_s = _ask_by_tunnel(site, tell) if site.is_enrolled else _ask(site)
            break
        except TransportError as error:
            waited = clock() - began
            if waited >= retry_for_s:
                raise TransportError(
                    f"{error.args[0]} Tried {tries} times in {waited:.0f} s.",
                    advice=error.advice
                    or "ask the coordinator whether the server runs; check the address in "
                    "site.toml and your firewall.",
                ) from error
            pause = min(delay, _LONGEST_DELAY_S, max(retry_for_s - waited, 0.1))
            tell(Notice("state", f"{error.args[0]} Trying again in {math.ceil(pause)} s"))
            sleep(pause)
            delay *= 2
    _check_clock(address, server_clock_s)
    tell(Notice("state", f"server {address} answers and is the coordinator's"))


def _ask(site: SiteRoot) -> float | None:
    """Ask once without a certificate of the site; the server's clock."""
    return _date_of(_ask_health(site.settings.server.address, site.ca))


def _ask_by_tunnel(site: SiteRoot, tell: Tell) -> float | None:
    """Ask once as the tunnel does; the server's clock."""
    found = reach(site.folder)
    if found.proxy is not None:
        tell(Notice("state", f"the way to the server goes through the proxy {found.proxy}"))
    if found.expires_soon:
        tell(
            Notice(
                "warning",
                f"this site's certificate expires on {found.expires:%Y-%m-%d}. Ask the coordinator "
                "for a new approval, and take it up with `medfed enrol accept`.",
            )
        )
    return found.server_clock_s


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Asks nobody but the server: a redirect stays an answer with a wrong status."""

    def redirect_request(self, *_: object) -> None:
        return None


def _ask_health(address: str, ca: Path) -> HTTPMessage:
    """Get ``/health``; its headers. TransportError: worth another try. TrustError: not."""
    openers: list[urllib.request.BaseHandler] = [
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(ca))),
        _NoRedirects(),
    ]
    if _is_loopback(address):
        openers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*openers)
    try:
        with opener.open(f"https://{address}/health", timeout=_ANSWER_LIMIT_S) as answer:
            answer.read(_ANSWER_LIMIT_BYTES)
            headers: HTTPMessage = answer.headers
            return headers
    except urllib.error.HTTPError as error:
        error.close()
        raise TransportError(
            f"server {address} answers with HTTP status {error.code}; a medfed server says 200."
        ) from error
    except (OSError, HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise _not_trusted(address, ca, cause) from error
        raise TransportError(f"server {address} does not answer ({_said(cause)}).") from error


def _said(cause: object) -> str:
    if isinstance(cause, ssl.SSLError):
        return "it does not speak TLS"
    if isinstance(cause, TimeoutError):
        return f"no reply within {_ANSWER_LIMIT_S:.0f} s"
    text = cause.strerror if isinstance(cause, OSError) else None
    return (text or type(cause).__name__).lower()


def _not_trusted(address: str, ca: Path, cause: ssl.SSLCertVerificationError) -> MedfedError:
    host = address.rpartition(":")[0]
    match cause.verify_code:
        case 62 | 64:  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
            return TrustError(
                f"server {address}: its certificate is not for {host!r}.",
                advice="use the name or address that the coordinator gave --host in site.toml.",
            )
        case 9 | 10:  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
            return TrustError(
                f"server {address}: its certificate is not valid today.",
                advice="check this machine's clock, then ask the coordinator for a new one.",
            )
    return TrustError(
        f"server {address}: its certificate is not signed by the authority in {ca}.",
        advice="ask the coordinator, by a way you trust, for the server's ca.pem and address; "
        "somebody else may be answering there.",
    )


def _check_clock(address: str, said: float | None) -> None:
    """Compare the clocks by the answer's date, which has whole seconds."""
    if said is None:
        return
    ahead = time.time() - (said + 1.0)
    if not -CLOCK_BEHIND_S < ahead < CLOCK_AHEAD_S:
        raise TrustError(
            f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} "
            f"server {address}; allowed: {CLOCK_AHEAD_S:.0f} s ahead, {CLOCK_BEHIND_S:.0f} s "
            "behind, else signatures are refused.",
            advice="set both clocks by NTP.",
        )


def _date_of(headers: HTTPMessage) -> float | None:
    """The Date header in seconds since 1970; None if absent or no date."""
    try:
        date = email.utils.parsedate_tz(headers.get("Date", ""))
        return None if date is None else float(email.utils.mktime_tz(date))
    except (ValueError, OverflowError, IndexError, TypeError):  # year 99999, hour 1e99, ...
        return None


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    return host == "localhost" or host == "::1" or host.startswith("127.")
