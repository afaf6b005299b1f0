"""What a site's admin approved: studies, kept by the digest of what was read.

Approving is the site's own act. The admin reads the study, the site's limits in
``site.toml`` are held against it, and its canonical bytes are stored under their digest.
A message of a round names a digest; without the file of that digest nothing is trained.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from medfed.client.policy import (
    check_enough_patients,
    check_limits_are_written,
    check_not_expired,
    check_policy,
)
from medfed.client.scans.cached import cached_scans
from medfed.client.scans.importing import Progress
from medfed.client.scans.scanset import PARTS, ScanSet
from medfed.client.serials import check_follows
from medfed.client.site_root import SiteRoot, names_of_patients, open_ledger
from medfed.client.study_files import needs_signature, unsigned
from medfed.common.errors import ApprovalError, ScanError
from medfed.common.privacy.mechanism import dearest_epsilon
from medfed.common.privacy.terms import PURPOSES, Purpose, terms_of
from medfed.common.study import Study, study_from_canonical
from medfed.common.trust.private_files import write_private


@dataclass(frozen=True)
class Approval:
    """A study that a site approved, and what it may cost.

    Attributes:
        study: The study's name.
        digest: SHA-256 of its canonical form: what was approved.
        epsilon: Cost of the whole schedule for one patient of the site, add-or-remove-one,
            at ``delta``; infinite without privacy.
        delta: The study's delta; None without privacy.
        file: Where the approval is stored.
    """

    study: str
    digest: str
    epsilon: float
    delta: float | None
    file: Path
    eligible: tuple[int, int] = field(repr=False)
    """Training patients who can afford the study, and all. Private: for the admin."""


def approve(
    site: SiteRoot, study: Study, *, signed: bool = False, at: datetime.datetime | None = None
) -> Approval:
    """Hold a study against the site's policy and store the approval.

    The whole schedule is set aside in the ledger for every patient who can afford it beside
    the studies approved before. Whoever cannot takes no part, now and later; so do patients
    who come after the approval. Neither shows in what the server sees.

    Args:
        site: The site.
        study: The study.
        signed: Whether its signature was checked with the site's study keys (``study_files``).
        at: When, with a time zone; None: now.

    Raises:
        ConfigError: the study does not list the site, or the admin has not yet written the
            limits into ``site.toml``.
        TrustError: the site has study keys, and the study is not signed.
        ApprovalError: the study asks for more than the site's policy allows, expired, or does
            not follow what was approved here before.
        ScanError: as ``scans_of_patients``.
        LedgerError: the ledger cannot be trusted or written.

    Guarantee:
        Nothing is stored unless every limit holds. Approving twice changes nothing.
    """
    if needs_signature(site) and not signed:
        raise unsigned(site, f"study {study.name!r} ({study.digest[:8]})")
    member = study.site_named(site.name)
    policy, source = site.settings.policy, str(site.folder / "site.toml")
    check_limits_are_written(policy, study, source=source)
    epsilon = dearest_epsilon(study, member)
    check_policy(policy, study, member, epsilon, source=source)
    check_not_expired(study, site.name, at or datetime.datetime.now(datetime.UTC))
    with closing(open_ledger(site)) as ledger:  # before the scans, which take time to read
        check_follows(study, ledger.approvals(), site.name, one_per_serial=signed)
    patients = patients_by_part(scans_of_patients(site, study))
    check_enough_patients(policy, study, member, len(patients["train"]))
    with closing(open_ledger(site)) as ledger:
        terms, serial = terms_of(study, member), study.study.serial
        given = ledger.approve(study.digest, study.name, terms, patients, serial=serial)
    file = _file_of(site, study.digest)
    write_private(file, study.canonical(), replace=True)
    eligible = (len(given.members.get("train") or ()), len(patients["train"]))
    return Approval(study.name, study.digest, epsilon, study.privacy.delta, file, eligible)


def withdraw(site: SiteRoot, digest: str) -> None:
    """End a study at this site: no more of it is released. What was spent stays spent.

    Raises:
        ApprovalError: the study is not approved here.
        LedgerError: the ledger cannot be trusted or written.
    """
    with closing(open_ledger(site)) as ledger:
        ledger.withdraw(digest, "the site's admin withdrew")
    _file_of(site, digest).unlink(missing_ok=True)


def patients_by_part(scans: ScanSet) -> dict[Purpose, frozenset[bytes]]:
    """The pseudonyms of the patients of each part. Private."""
    return {name: scans.pseudonyms_in(PARTS[name]) for name in PURPOSES}


def approved_study(site: SiteRoot, digest: str) -> Study:
    """Read the study of a digest, if the site approved it.

    Raises:
        ApprovalError: no such approval, or its file was changed since.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ApprovalError(
            f"site {site.name!r}: {digest[:80]!r} is no digest of a study.",
            advice="use the same medfed version on both sides.",
        )
    try:
        content = _file_of(site, digest).read_bytes()
    except OSError as error:
        raise ApprovalError(
            f"site {site.name!r}: the study with digest {digest[:8]} is not approved here.",
            advice=f"read the study, then `medfed site approve STUDY.toml --root {site.folder}`.",
        ) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise ApprovalError(
            f"site {site.name!r}: the approval of study {digest[:8]} was changed after it was "
            "given.",
            advice="approve the study again from its file.",
        )
    return study_from_canonical(content)


def scans_of_patients(
    site: SiteRoot, study: Study, *, on_progress: Progress | None = None
) -> ScanSet:
    """Read the site's scans, and refuse a promise to patients that they cannot keep.

    What is not in the site's cache is imported first; the tensors stay there until asked for.

    Args:
        site: The site.
        study: What is read, and how.
        on_progress: Told after every scan that is imported.

    Raises:
        ConfigError: the cache's key cannot be used.
        ScanError: as ``cached_scans``; or the study protects patients, and scans carry no
            patient id, so that only single images would be protected.
    """
    _check_patient_array(site, study)
    pseudonymise = names_of_patients(site)
    scans = cached_scans(
        site, naming_patients(site, study), pseudonymise=pseudonymise, on_progress=on_progress
    )
    if study.private and scans.unit == "image":
        raise ScanError(
            f"site {site.name!r}: study {study.name!r} protects patients, and not every scan in "
            f"{site.scans} says whose it is; a patient with several scans would be protected less.",
            advice="write the PatientID into DICOM files; for pictures in class folders say who "
            "the patient is in site.toml, [scans] patient; for an .npz which array; or "
            'leave such scans out with without_patient = "leave-out".',
        )
    return scans


def naming_patients(site: SiteRoot, study: Study) -> Study:
    """The study with the site's own array of patients, where it names none."""
    named = site.settings.scans.patient_array
    if named is None or study.scans.group_key is not None or site.scans.suffix.lower() != ".npz":
        return study
    scans = study.scans.model_copy(update={"group_key": named})
    return study.model_copy(update={"scans": scans})


def _check_patient_array(site: SiteRoot, study: Study) -> None:
    """Let the site say who its patients are: a study with another array would count them anew."""
    named, asked = site.settings.scans.patient_array, study.scans.group_key
    if not study.private or site.scans.suffix.lower() != ".npz" or asked is None:
        return
    if named != asked:
        found = "does not say which array" if named is None else f"says that array {named!r}"
        raise ScanError(
            f"site {site.name!r}: study {study.name!r} takes patients from array {asked!r} of "
            f"{site.scans}, and site.toml {found} tells patients apart.",
            advice=f'if {asked!r} does, write patient_array = "{asked}" into site.toml, [scans], '
            "once and for all; else refuse the study: it would protect something else.",
        )


def approved_studies(site: SiteRoot) -> list[Study]:
    """Read every study the site approved, the latest approval first.

    Raises:
        ApprovalError: none is approved, or a file was changed since.
    """
    files = sorted(site.approved.glob("*.json"), key=lambda f: f.stat().st_mtime_ns, reverse=True)
    if not files:
        raise ApprovalError(
            f"site {site.name!r}: no study is approved here.",
            advice=f"read the coordinator's study file, then `medfed site approve STUDY.toml "
            f"--root {site.folder}`.",
        )
    return [approved_study(site, file.stem) for file in files]


def _file_of(site: SiteRoot, digest: str) -> Path:
    return site.approved / f"{digest}.json"
