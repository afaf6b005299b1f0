"""Coordinators who sign studies in folders of a test's own, and sites that trust them."""

from __future__ import annotations

from pathlib import Path

from medfed.client.site_root import SiteRoot
from medfed.common.signed_study import sign_study
from medfed.common.study import Study
from medfed.common.trust.certificates import load_authority, new_authority
from medfed.common.trust.private_files import private_folder
from medfed.common.trust.signatures import new_signing_key
from medfed.common.trust.succession import Root
from tests.support.sites import STUDY


class Signer:
    """A coordinator's two keys.

    Args:
        folder: Where they are made.
    """

    def __init__(self, folder: Path) -> None:
        private_folder(folder)
        new_authority(folder)
        self.key = new_signing_key(folder)
        self.root = Root(load_authority(folder).certificate, self.key.public)
        self.fingerprint = self.root.fingerprint

    def sign(self, study: Study, path: Path) -> Path:
        """Write a signed study."""
        path.write_bytes(sign_study(self.key, self.root, study))
        return path

    def trusted_by(self, site: SiteRoot, *others: Signer) -> None:
        """Let a site trust this coordinator and others, as its enrolment would."""
        keys = "".join(one.key.public.pem for one in (self, *others))
        (site.folder / "trust" / "study.pub").write_text(keys)


def write_toml(path: Path, *changes: tuple[str, str]) -> Path:
    """The study of tests as its author has it, with pieces of its text replaced."""
    text = STUDY
    for old, new in changes:
        text = text.replace(old, new)
    path.write_text(text)
    return path
