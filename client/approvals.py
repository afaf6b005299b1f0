"""What a site's admin approved: studies, kept by the digest of what was read.

Approving is the site's own act. The admin reads the study, the site's limits in
``site.toml`` are held against it, and its canonical bytes are stored under their digest.
A message of a round names a digest; without the file of that digest nothing is trained.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from medfed.client.scans.patients import PseudonymKey
from medfed.client.scans.read import read_scans
from medfed.client.scans.scanset import PARTS, ScanSet
from medfed.client.site_root import Policy, SiteRoot, open_ledger
from medfed.common.errors import ApprovalError, ConfigError, ScanError
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


def approve(site: SiteRoot, study: Study) -> Approval:
    """Hold a study against the site's policy and store the approval.

    The whole schedule is set aside in the ledger for every patient who can afford it beside
    the studies approved before. Whoever cannot takes no part, now and later; so do patients
    who come after the approval. Neither shows in what the server sees.

    Raises:
        ConfigError: the study does not list the site, or the admin has not yet written the
            limits into ``site.toml``.
        ApprovalError: the study asks for more than the site's policy allows.
        ScanError: as ``scans_of_patients``.
        LedgerError: the ledger cannot be trusted or written.

    Guarantee:
        Nothing is stored unless every limit holds. Approving twice changes nothing.
    """
    member = study.site_named(site.name)
    source = str(site.folder / "site.toml")
    _check_limits_are_written(site.settings.policy, study, source)
    epsilon = dearest_epsilon(study, member)
    check_policy(site.settings.policy, study, epsilon, source=source)
    patients = patients_by_part(scans_of_patients(site, study))
    with closing(open_ledger(site)) as ledger:
        given = ledger.approve(study.digest, study.name, terms_of(study, member), patients)
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


def check_policy(policy: Policy, study: Study, epsilon: float, *, source: str) -> None:
    """Hold a study's cost against a site's limits.

    Args:
        policy: The site's limits.
        study: The study.
        epsilon: Its cost for one patient of the site at the study's delta.
        source: Where the limits stand, for messages.

    Raises:
        ApprovalError: one of the limits is passed, or is not written.
    """
    if not study.private:
        if not policy.allow_no_privacy:
            raise _refused(
                study, 'it trains without privacy (privacy.mode = "none")', source, "dp-sgd only"
            )
        return
    delta = study.privacy.delta
    for key in ("epsilon_limit", "study_epsilon_limit"):
        limit = getattr(policy, key)
        if (limit is None and key == "epsilon_limit") or (limit and not epsilon <= limit):
            raise _refused(study, f"it costs epsilon = {epsilon:.3f}", source, f"{key} {limit}")
    limit = policy.delta_limit
    if limit is None or delta is None or not delta <= limit:
        raise _refused(study, f"its delta is {delta}", source, f"delta_limit {limit}")


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


def scans_of_patients(site: SiteRoot, study: Study) -> ScanSet:
    """Read the site's scans, and refuse a promise to patients that they cannot keep.

    Raises:
        ScanError: as ``read_scans``; or the study protects patients, and scans carry no
            patient id, so that only single images would be protected.
    """
    _check_patient_array(site, study)
    pseudonymise = PseudonymKey(site.pseudonym_key)
    scans = read_scans(
        site.scans,
        _naming_patients(site, study),
        pseudonymise=pseudonymise,
        rules=site.settings.scans,
    )
    if study.private and scans.unit == "image":
        raise ScanError(
            f"site {site.name!r}: study {study.name!r} protects patients, and not every scan in "
            f"{site.scans} says whose it is; a patient with several scans would be protected less.",
            advice="write the PatientID into the DICOM files; for an .npz, let patient_array in "
            "site.toml, [scans], name the array that says whose each scan is.",
        )
    return scans


def _naming_patients(site: SiteRoot, study: Study) -> Study:
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


def _check_limits_are_written(policy: Policy, study: Study, source: str) -> None:
    missing = [key for key in ("epsilon_limit", "delta_limit") if getattr(policy, key) is None]
    if study.private and missing:
        raise ConfigError(
            f"{source}: [policy] has no {' and no '.join(missing)}; limits have no default.",
            advice="write what your data board decided into site.toml, then approve again.",
        )


def _refused(study: Study, found: str, source: str, allowed: str) -> ApprovalError:
    return ApprovalError(
        f"study {study.name!r} ({study.digest[:8]}) is not approved: {found}. "
        f"Allowed here: {allowed} ({source}).",
        advice="ask the coordinator for a study within the limits, or have the data board "
        "change them in site.toml.",
    )
