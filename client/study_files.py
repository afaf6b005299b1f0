"""Studies as they reach a site: files that the coordinator sent, read and kept until approved.

A site that took up its enrolment has ``trust/study.pub``: from then on a study must be signed by
one of these keys. A site without it, as in a demo, takes unsigned files too. What was received
lies in ``received/<DIGEST>.json``, and is checked again when it is approved.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from medfed.client.site_root import SiteRoot
from medfed.common.errors import ConfigError, TrustError
from medfed.common.signed_study import LARGEST_STUDY_BYTES, read_study_file
from medfed.common.study import Study
from medfed.common.trust.private_files import private_folder, write_private
from medfed.common.trust.received_files import read_received, shown
from medfed.common.trust.signatures import VerifyingKey, read_verifying_keys

_DIGEST = re.compile(r"[0-9a-f]{8,64}")


class Offer(NamedTuple):
    """A study that is offered to a site. Public.

    Attributes:
        study: The study.
        fingerprint: Of the root that it says it was signed by; None: unsigned.
        verified: Whether the signature is by a key that this site trusts.
    """

    study: Study
    fingerprint: str | None
    verified: bool


def needs_signature(site: SiteRoot) -> bool:
    """Whether this site takes signed studies only: it knows its coordinator's study key."""
    return _keys_file(site).exists()


def read_offer(site: SiteRoot, file: Path) -> Offer:
    """Read a study file and check its signature.

    Args:
        site: The site.
        file: TOML, or signed.

    Raises:
        ConfigError: it cannot be read, or is no study.
        TrustError: the site has study keys, and the file is not signed, or by none of them; or
            the file is signed and was changed.
    """
    keys = _keys(site)
    study, fingerprint = read_study_file(file, keys)
    if keys is not None and fingerprint is None:
        raise unsigned(site, str(file))
    return Offer(study, fingerprint, keys is not None)


def receive(site: SiteRoot, file: Path) -> Offer:
    """Check a study file and keep it, to be approved by its digest.

    Raises:
        ConfigError: as ``read_offer``; or the study does not list this site, or cannot be kept.
        TrustError: as ``read_offer``.
    """
    offer = read_offer(site, file)
    offer.study.site_named(site.name)
    kept = private_folder(site.folder / "received") / f"{offer.study.digest}.json"
    whole = read_received(file, LARGEST_STUDY_BYTES, what="a study")
    write_private(kept, whole if offer.fingerprint else offer.study.canonical(), replace=True)
    return offer


def received(site: SiteRoot, digest: str) -> Offer:
    """Read a study that was received before, and check its signature again.

    Args:
        site: The site.
        digest: Of the study; its first 8 digits or more are enough where only one begins so.

    Raises:
        ConfigError: none or several were received of that digest, or the file is another study.
        TrustError: as ``read_offer``, by the keys that the site has now.
    """
    found = []
    if _DIGEST.fullmatch(digest):
        found = sorted((site.folder / "received").glob(f"{digest}*.json"))
    if len(found) != 1:
        raise ConfigError(
            f"site {site.name!r}: {shown(digest)} is no file, and "
            f"{len(found) or 'no'} received studies begin so.",
            advice=f"give the study's file, or keep it first: `medfed site receive FILE --root "
            f"{site.folder}`.",
        )
    offer = read_offer(site, found[0])
    if offer.study.digest != found[0].stem:
        raise ConfigError(
            f"{found[0]}: holds the study with digest {offer.study.digest}.",
            advice="receive the study again from the coordinator's file.",
        )
    return offer


def unsigned(site: SiteRoot, what: str) -> TrustError:
    """The refusal of an unsigned study."""
    return TrustError(
        f"site {site.name!r}: {what} is not signed. Allowed here: studies signed by the "
        f"coordinator's key ({_keys_file(site)}).",
        advice="ask the coordinator for the file that `medfed study sign` writes.",
    )


def _keys_file(site: SiteRoot) -> Path:
    return site.folder / "trust" / "study.pub"


def _keys(site: SiteRoot) -> tuple[VerifyingKey, ...] | None:
    return read_verifying_keys(_keys_file(site)) if needs_signature(site) else None
