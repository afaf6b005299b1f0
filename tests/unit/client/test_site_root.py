from __future__ import annotations

import stat
from pathlib import Path

import pytest

from medfed.client.site_root import create_site, open_site, parse_site
from medfed.common.errors import ConfigError, TrustError
from medfed.common.trust.certificates import new_authority
from medfed.common.trust.keys import read_public_key
from tests.support.sites import make_site

GOOD = """site = "A"
[server]
address = "hub.example:8443"
[scans]
folder = "/scans"
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


@pytest.mark.parametrize(
    ("found", "wrong", "says"),
    [
        ('site = "A"', 'site = "../A"', r"line 1: site: found"),
        ('address = "hub.example:8443"', 'address = "hub.example"', r"line 3: .*host:port"),
        ('address = "hub.example:8443"', 'address = "hub:99999"', r"port from 1 to 65535"),
        ('folder = "/scans"', 'folder = "scans"', r"scans\.folder: .*absolute path"),
        ("epsilon_limit = 8.0", "epsilon_limt = 8.0", r"Did you mean 'epsilon_limit'"),
        ("epsilon_limit = 8.0", 'epsilon_limit = "8"', r"line 7: .*valid number"),
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


@pytest.mark.parametrize("name", ["node_key", "pseudonym.key"])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, name: str) -> None:
    site = make_site(tmp_path)
    (site.folder / "keys" / name).chmod(0o640)

    with pytest.raises(ConfigError, match=f"{name}: other users .*0640"):
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
