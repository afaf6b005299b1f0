"""Study files at a site: whose are taken, what is kept, and what is checked again."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from medfed.client.site_root import SiteRoot
from medfed.client.study_files import read_offer, receive, received
from medfed.common.errors import ConfigError, TrustError
from tests.support.signing import Signer, write_toml
from tests.support.sites import make_site, make_study

STUDY = make_study()


@pytest.fixture
def site(tmp_path: Path) -> SiteRoot:
    return make_site(tmp_path)


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(tmp_path / "coordinator")


def test_a_signed_study_is_verified_by_the_key_that_the_site_took_up(
    site: SiteRoot, signer: Signer, tmp_path: Path
) -> None:
    signer.trusted_by(site)

    offer = read_offer(site, signer.sign(STUDY, tmp_path / "s.json"))

    assert offer == (STUDY, signer.fingerprint, True)


def test_a_site_without_a_key_takes_any_file_and_says_that_it_verified_none(
    site: SiteRoot, signer: Signer, tmp_path: Path
) -> None:
    signed = read_offer(site, signer.sign(STUDY, tmp_path / "s.json"))

    assert signed == (STUDY, signer.fingerprint, False)
    assert read_offer(site, write_toml(tmp_path / "s.toml")) == (STUDY, None, False)


def test_a_site_with_a_key_refuses_unsigned_studies_in_every_form(
    site: SiteRoot, signer: Signer, tmp_path: Path
) -> None:
    signer.trusted_by(site)
    bare = tmp_path / "bare.json"
    bare.write_bytes(STUDY.canonical())

    for file in (write_toml(tmp_path / "s.toml"), bare):
        with pytest.raises(TrustError, match="is not signed.*study.pub") as caught:
            receive(site, file)
        assert "medfed study sign" in caught.value.advice
    assert not (site.folder / "received").exists()


def test_a_study_that_another_coordinator_signed_is_refused(
    site: SiteRoot, signer: Signer, tmp_path: Path
) -> None:
    signer.trusted_by(site)
    theirs = Signer(tmp_path / "other").sign(STUDY, tmp_path / "theirs.json")

    with pytest.raises(TrustError, match="not by the study key that is trusted here"):
        receive(site, theirs)


def test_both_keys_are_taken_while_one_hands_over_to_the_next(
    site: SiteRoot, signer: Signer, tmp_path: Path
) -> None:
    other = Signer(tmp_path / "next")
    other.trusted_by(site, signer)

    for each in (signer, other):
        offer = read_offer(site, each.sign(STUDY, tmp_path / "s.json"))
        assert offer == (STUDY, each.fingerprint, True)


@pytest.mark.parametrize("signed", [True, False])
def test_what_was_received_is_found_by_its_digest_or_the_first_digits(
    site: SiteRoot, signer: Signer, tmp_path: Path, signed: bool
) -> None:
    if signed:
        signer.trusted_by(site)
    file = signer.sign(STUDY, tmp_path / "s.json") if signed else write_toml(tmp_path / "s.toml")

    offer = receive(site, file)
    file.unlink()

    kept = site.folder / "received" / f"{STUDY.digest}.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert received(site, STUDY.digest) == received(site, STUDY.digest[:8]) == offer


def test_the_signature_of_what_was_received_is_checked_again_by_todays_keys(
    site: SiteRoot, signer: Signer, tmp_path: Path
) -> None:
    signer.trusted_by(site)
    receive(site, signer.sign(STUDY, tmp_path / "s.json"))

    Signer(tmp_path / "next").trusted_by(site)

    with pytest.raises(TrustError, match="not by the study key"):
        received(site, STUDY.digest)


def test_a_received_file_under_another_digest_is_refused(site: SiteRoot, tmp_path: Path) -> None:
    receive(site, write_toml(tmp_path / "s.toml"))
    folder = site.folder / "received"
    (folder / f"{STUDY.digest}.json").rename(folder / f"{'0' * 64}.json")

    with pytest.raises(ConfigError, match=f"holds the study with digest {STUDY.digest}"):
        received(site, "0" * 64)


@pytest.mark.parametrize("digest", ["0" * 64, "../../approved/x", "*" * 8, "1234567", ""])
def test_a_digest_of_nothing_that_was_received_is_refused(site: SiteRoot, digest: str) -> None:
    with pytest.raises(ConfigError, match=r"no received studies begin so.*\n.*medfed site receive"):
        received(site, digest)


def test_a_study_that_does_not_list_the_site_is_not_kept(site: SiteRoot, tmp_path: Path) -> None:
    file = write_toml(tmp_path / "s.toml", ('name = "A"', 'name = "C"'))

    with pytest.raises(ConfigError, match="'A' is not in study"):
        receive(site, file)
    assert not (site.folder / "received").exists()
