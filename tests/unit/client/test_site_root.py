from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from medfed.client.exposure import Ceiling
from medfed.client.site_root import (
    SiteRoot,
    ceiling_of,
    create_site,
    open_ledger,
    open_site,
    renew_witness,
)
from medfed.client.site_settings import parse_site
from medfed.client.witness import Witness, default_witness
from medfed.common.errors import (
    ConfigError,
    LedgerError,
    LedgerMismatchError,
    PrivacyError,
    TrustError,
)
from medfed.common.privacy.accounting import composed_epsilon
from medfed.common.trust.certificates import new_authority
from medfed.common.trust.keys import new_node_key, read_public_key
from tests.support.ledgers import TERMS, patients
from tests.support.sites import make_site, write_scans

GOOD = """site = "A"
[server]
address = "hub.example:8443"
[scans]
folder = "/scans"
[ledger]
witness = "/var/lib/medfed/witness.json"
[policy]
epsilon_limit = 8.0
delta_limit = 1e-4
"""


def test_everything_in_a_new_site_is_for_its_owner_only(tmp_path: Path) -> None:
    site = make_site(tmp_path, limits="")

    paths = [site.folder, *site.folder.rglob("*")]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()}
    folders = {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()}

    assert (modes, folders) == ({0o600}, {0o700})
    assert len(site.pseudonym_key.read_bytes()) == 32
    assert b"nistp384" in read_public_key(site.public_key)


def test_two_sites_have_different_keys(tmp_path: Path) -> None:
    a, b = make_site(tmp_path, name="A"), make_site(tmp_path, name="B")

    assert a.pseudonym_key.read_bytes() != b.pseudonym_key.read_bytes()
    assert a.public_key.read_bytes() != b.public_key.read_bytes()


def test_a_new_site_has_no_privacy_limits_and_forbids_training_without_privacy(
    tmp_path: Path,
) -> None:
    policy = make_site(tmp_path, limits="").settings.policy

    assert policy.epsilon_limit is None
    assert policy.delta_limit is None
    assert not policy.allow_no_privacy


def test_the_template_explains_how_to_write_the_limits(tmp_path: Path) -> None:
    site = make_site(tmp_path, limits="")
    text = (site.folder / "site.toml").read_text()
    for key in ("epsilon_limit", "delta_limit"):
        text = text.replace(f"#   {key}", key)

    policy = parse_site(text).policy

    assert (policy.epsilon_limit, policy.delta_limit) == (8.0, 1e-4)  # the template's examples


def test_a_site_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    before = site.node_key.read_bytes()

    with pytest.raises(ConfigError, match="site-A: exists already"):
        make_site(tmp_path, ca=site.ca)
    assert site.node_key.read_bytes() == before


def test_a_refused_site_leaves_nothing_behind(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("no certificate")
    root = tmp_path / "site"

    with pytest.raises(TrustError, match=r"ca\.pem"):
        create_site(root, name="A", scans=tmp_path, server="hub:1", ca=ca)
    with pytest.raises(ConfigError, match="host:port"):
        create_site(root, name="A", scans=tmp_path, server="hub", ca=new_authority(tmp_path / "t"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.pem", "t"]
    assert not default_witness(tmp_path).exists()


@pytest.mark.parametrize(
    ("found", "wrong", "says"),
    [
        ('site = "A"', 'site = "../A"', r"line 1: site: found"),
        ('address = "hub.example:8443"', 'address = "hub.example"', r"line 3: .*host:port"),
        ('address = "hub.example:8443"', 'address = "hub:99999"', r"port from 1 to 65535"),
        ('folder = "/scans"', 'folder = "scans"', r"scans\.folder: .*absolute path"),
        ("epsilon_limit = 8.0", "epsilon_limt = 8.0", r"Did you mean 'epsilon_limit'"),
        ('folder = "/scans"', 'folder = "/scans"\nwitness = "/w"', r"line 6: .*scans"),
        ('witness = "/var/lib/medfed/witness.json"', 'witness = "w"', r"absolute path"),
        ('[ledger]\nwitness = "/var/lib/medfed/witness.json"\n', "", r"ledger: .*missing"),
        ("epsilon_limit = 8.0", 'epsilon_limit = "8"', r"line 9: .*valid number"),
        ("epsilon_limit = 8.0", "study_epsilon_limit = -1.0", r"greater than 0"),
        ("epsilon_limit = 8.0", "epsilon_limit = inf", r"epsilon_limit: found"),
        ("epsilon_limit = 8.0", "epsilon_limit = 0.0", r"greater than 0"),
        ("delta_limit = 1e-4", "delta_limit = 1.0", r"less than 1"),
        ("delta_limit = 1e-4", "allow_no_privacy = 1", r"valid boolean"),
        ("[policy]", "[polcy]", r"Did you mean 'policy'"),
        ("[policy]", "[policy", r"not valid TOML"),
    ],
)
def test_a_wrong_line_is_refused_and_named(found: str, wrong: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_site(GOOD.replace(found, wrong))


def test_a_folder_that_is_no_site_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"site\.toml: cannot be read.*\n.*medfed site init"):
        open_site(tmp_path)


@pytest.mark.parametrize("name", ["node_key", "pseudonym_key"])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, name: str) -> None:
    site = make_site(tmp_path)
    key: Path = getattr(site, name)
    key.chmod(0o640)

    with pytest.raises(ConfigError, match=f"{key.name}: other users .*0640"):
        open_site(site.folder)


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    site.node_key.unlink()

    with pytest.raises(ConfigError, match="the key cannot be read"):
        open_site(site.folder)


@pytest.mark.parametrize(
    ("line", "says"),
    [("site = 2026-11-20", r"line 1: site: found"), (f"site = {'9' * 5000}", "not valid TOML")],
)
def test_a_date_is_no_text_and_a_number_too_long_no_traceback(line: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_site(line)


# ---- the ledger and its witness ------------------------------------------------------------------
def test_a_new_site_has_a_ledger_of_its_keys_and_a_witness_outside_its_folder(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path)

    ledger = open_ledger(site)

    assert site.witness == default_witness(site.scans)
    assert not site.witness.is_relative_to(site.folder)
    assert Witness(site.witness, site="A").read() == (ledger.head,)
    (opened,) = ledger.audit()[1]
    assert (opened["kind"], opened["site"], opened["format"]) == ("open", "A", 1)


@pytest.mark.parametrize("name", ["A", "B"])
def test_a_second_site_over_the_same_scans_is_refused_with_the_way_out(
    tmp_path: Path, name: str
) -> None:
    # `site init` in another folder would forget what these patients have spent.
    scans = make_site(tmp_path / "first").scans

    with pytest.raises(ConfigError, match="a site with a ledger of these scans") as caught:
        make_site(tmp_path / "second", name=name, scans=scans)

    assert "--witness" in caught.value.advice
    assert not list((tmp_path / "second").glob("site-*"))


def test_a_site_set_up_anew_after_its_folder_was_lost_is_refused(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    shutil.rmtree(site.folder)

    with pytest.raises(ConfigError, match="was set up on this machine before"):
        make_site(tmp_path, scans=site.scans, ca=tmp_path / "trust-A" / "ca.pem")


def test_the_witness_lies_where_it_is_wanted(tmp_path: Path) -> None:
    ca, scans = new_authority(tmp_path / "t"), write_scans(tmp_path / "scans.npz")
    witness = tmp_path / "elsewhere" / "w.json"

    site = create_site(
        tmp_path / "A", name="A", scans=scans, server="hub:1", ca=ca, witness=witness
    )

    assert open_site(site.folder).witness == witness
    assert witness.is_file()
    assert not default_witness(scans).exists()


# ---- the pseudonym key ---------------------------------------------------------------------------
def made(tmp_path: Path, **paths: Path) -> SiteRoot:
    ca = tmp_path / "t" / "ca.pem"
    return create_site(
        tmp_path / "A",
        name="A",
        scans=paths.pop("scans", None) or write_scans(tmp_path / "scans.npz"),
        server="hub:1",
        ca=ca if ca.exists() else new_authority(tmp_path / "t"),
        **paths,
    )


def test_the_pseudonym_key_lies_beside_the_witness_and_not_with_what_it_names(
    tmp_path: Path,
) -> None:
    site = made(tmp_path, witness=tmp_path / "state" / "w.json")

    assert site.pseudonym_key == tmp_path / "state" / "w-pseudonym.key"
    assert not site.key_is_backed_up
    key = site.pseudonym_key.read_bytes()
    files = [file for file in site.folder.rglob("*") if file.is_file()]
    assert not any(key in file.read_bytes() for file in files)


def test_the_pseudonym_key_lies_where_it_is_wanted(tmp_path: Path) -> None:
    wanted = tmp_path / "safe" / "of" / "the" / "board.key"

    site = made(tmp_path, pseudonym_key=wanted)

    assert open_site(site.folder).pseudonym_key == wanted
    assert stat.S_IMODE(wanted.stat().st_mode) == 0o600
    open_ledger(site).close()


def test_a_key_that_is_there_is_used_so_that_patients_keep_their_names(tmp_path: Path) -> None:
    wanted = tmp_path / "board.key"
    wanted.write_bytes(bytes(range(32)))
    wanted.chmod(0o600)

    assert made(tmp_path, pseudonym_key=wanted).pseudonym_key.read_bytes() == bytes(range(32))


@pytest.mark.parametrize("where", ["A/keys/p.key", "scans/p.key", "scans/deep/p.key", "link/p.key"])
def test_a_key_with_the_ledger_or_with_the_scans_is_refused(tmp_path: Path, where: str) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    (tmp_path / "link").symlink_to(scans)

    with pytest.raises(ConfigError, match="would lie in the (site's|scans) folder") as caught:
        made(tmp_path, scans=scans, pseudonym_key=tmp_path / where)
    assert "--pseudonym-key" in caught.value.advice
    assert not (tmp_path / "A").exists() and not list(scans.iterdir())

    site = made(tmp_path, scans=scans)
    named = tmp_path / where
    named.parent.mkdir(exist_ok=True, parents=True)
    shutil.move(site.pseudonym_key, named)
    settings = site.folder / "site.toml"
    settings.write_text(settings.read_text().replace(str(site.pseudonym_key), str(named)))
    with pytest.raises(ConfigError, match="would lie in the (site's|scans) folder"):
        open_site(site.folder)


def test_a_refused_site_takes_its_own_key_away_and_no_other(tmp_path: Path) -> None:
    kept, new = tmp_path / "kept.key", tmp_path / "new.key"
    kept.write_bytes(bytes(3))
    kept.chmod(0o600)

    with pytest.raises(ConfigError, match="has 3 bytes, not 32"):
        made(tmp_path, pseudonym_key=kept)
    assert kept.exists()
    (tmp_path / "A").symlink_to(tmp_path / "nowhere")  # found when everything else is written
    with pytest.raises(ConfigError, match="the site's folder cannot be written"):
        made(tmp_path, pseudonym_key=new)
    assert not new.exists()


def test_an_older_site_with_its_key_in_its_folder_goes_on_until_it_is_moved(
    tmp_path: Path,
) -> None:
    site = made(tmp_path)
    settings = site.folder / "site.toml"
    inside, outside = site.folder / "keys" / "pseudonym.key", site.pseudonym_key
    shutil.move(outside, inside)
    text = settings.read_text()
    line = f'pseudonym_key = "{outside}"\n'
    assert line in text
    settings.write_text(text.replace(line, ""))

    older = open_site(site.folder)
    open_ledger(older).close()
    assert (older.pseudonym_key, older.key_is_backed_up) == (inside, True)

    shutil.move(inside, outside)
    settings.write_text(text)
    open_ledger(open_site(site.folder)).close()


@pytest.mark.parametrize(
    ("limits", "ceiling"),
    [
        ("epsilon_limit = 8.0\ndelta_limit = 1e-4\n", Ceiling(8.0, 1e-4)),
        ("", Ceiling(1e-9, 1e-9)),
        ("epsilon_limit = 8.0\n", Ceiling(8.0, 1e-9)),
    ],
)
def test_the_ceiling_is_what_site_toml_says_and_next_to_nothing_where_it_is_silent(
    tmp_path: Path, limits: str, ceiling: Ceiling
) -> None:
    assert ceiling_of(make_site(tmp_path, limits=limits)) == ceiling


def test_a_ceiling_that_is_written_anew_holds_for_a_ledger_that_is_open(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    ledger = open_ledger(site)
    ledger.approve("d" * 64, "study", TERMS, {"train": patients("xy")})
    assert ledger.eligible("d" * 64, "train") == patients("xy")
    settings = site.folder / "site.toml"

    settings.write_text(settings.read_text().replace("limit = 50.0", "limit = 0.5"))

    assert ledger.eligible("d" * 64, "train") == frozenset()


def test_a_site_toml_that_cannot_be_read_any_more_stops_the_ledger(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    ledger = open_ledger(site)
    ledger.approve("d" * 64, "study", TERMS, {"train": patients("xy")})
    (site.folder / "site.toml").write_text("[policy")

    with pytest.raises(ConfigError, match="not valid TOML"):
        ledger.eligible("d" * 64, "train")


@pytest.mark.parametrize("name", ["node_key", "pseudonym_key"])
def test_a_key_that_was_replaced_is_refused(tmp_path: Path, name: str) -> None:
    site = make_site(tmp_path)
    site.pseudonym_key.write_bytes(bytes(32)) if name == "pseudonym_key" else replace_key(site)

    with pytest.raises(LedgerError, match="keys/node_key|the pseudonym key is not"):
        open_ledger(open_site(site.folder))


def replace_key(site: SiteRoot) -> None:
    site.node_key.unlink()
    new_node_key(site.node_key.parent)


def test_going_on_without_the_newest_ledger_counts_all_that_is_approved_as_spent(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path)
    ledger = open_ledger(site)
    approval = ledger.approve("d" * 64, "study", TERMS, {"train": patients("xy")})
    ledger.close()
    term = approval.terms["train"]
    site.witness.unlink()
    with pytest.raises(LedgerMismatchError, match="missing"):
        open_ledger(site)

    done = renew_witness(site)
    ledger = open_ledger(site)

    assert (done.ended, done.kept) == (1, None)
    assert done.head == ledger.head
    assert ledger.approval("d" * 64) is None
    whole = term.spent(term.releases)
    assert whole is not None
    assert ledger.epsilon(1e-3) == composed_epsilon([whole], 1e-3)
    with pytest.raises(PrivacyError, match="is paid"):  # and nothing is left of it
        ledger.approve("d" * 64, "study", TERMS, {"train": patients("xy")})
    ledger.close()


def test_a_witness_that_was_there_is_put_aside_and_kept(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    before = site.witness.read_bytes()

    first, second = renew_witness(site).kept, renew_witness(site).kept

    assert first is not None and second is not None
    assert first != second
    assert first.read_bytes() == before


def test_no_witness_is_made_of_a_ledger_that_was_altered(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    site.witness.unlink()
    replace_key(site)

    with pytest.raises(LedgerError, match="not signed"):
        renew_witness(site)
    assert not site.witness.exists()
