"""Requests, fingerprints, identities and handovers: the parts that enrolment is made of."""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from medfed.common.errors import ConfigError, TrustError
from medfed.common.trust.certificates import (
    CLOCK_SLACK,
    Authority,
    issue,
    load_authority,
    new_authority,
)
from medfed.common.trust.fingerprints import check_fingerprint, site_fingerprint, trust_fingerprint
from medfed.common.trust.identities import (
    SITE_DAYS,
    Role,
    check_identity,
    role_certificate,
    site_certificate,
)
from medfed.common.trust.keys import new_node_key, parse_public_key
from medfed.common.trust.received_files import read_received, read_secret, shown
from medfed.common.trust.signatures import SigningKey, new_signing_key
from medfed.common.trust.site_requests import read_site_request, write_site_request
from medfed.common.trust.succession import Root, newest_root, open_handover, sign_handover

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("authority")
    new_authority(folder)
    return load_authority(folder)


def node_key() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return key, parse_public_key(public, source="test")


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


# ---- requests ------------------------------------------------------------------------------------
def test_a_request_tells_the_site_and_its_key() -> None:
    key, public = node_key()

    read = read_site_request(write_site_request(key, "A"), site="A", source="A.request.pem")

    assert (read.site, read.public_key) == ("A", public)
    assert read.fingerprint == site_fingerprint(public)


def test_a_request_for_a_name_that_is_no_site_is_not_written() -> None:
    with pytest.raises(ConfigError, match=r"site name '\.\./A' is not allowed"):
        write_site_request(node_key()[0], "../A")


# ---- fingerprints --------------------------------------------------------------------------------
def test_a_fingerprint_is_four_groups_of_four(authority: Authority, tmp_path: Path) -> None:
    found = trust_fingerprint(authority.certificate, new_signing_key(tmp_path).public)

    assert re.fullmatch(r"[A-Z2-7]{4}(-[A-Z2-7]{4}){3}", found)


def test_a_fingerprint_is_of_both_keys_together(authority: Authority, tmp_path: Path) -> None:
    keys = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        keys.append(new_signing_key(tmp_path / name).public)
    new_authority(tmp_path / "other")
    other = load_authority(tmp_path / "other")

    found = {trust_fingerprint(a.certificate, key) for a in (authority, other) for key in keys}

    assert len(found) == 4  # two authorities times two keys


@pytest.mark.parametrize(
    "typed", ["K7QX-2MNA-RT5P-WZ3D", "k7qx2mnart5pwz3d", " K7QX 2MNA  RT5P-WZ3D\n"]
)
def test_case_blanks_and_dashes_do_not_matter(typed: str) -> None:
    check_fingerprint(typed, "K7QX-2MNA-RT5P-WZ3D", source="a file")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("K7QX-2MNA-RT5P-WZ3E", "its fingerprint is K7QX-2MNA-RT5P-WZ3D"),
        ("K7QX-2MNA-RT5P", "is no fingerprint"),
        ("", "is no fingerprint"),
        ("K7QX-2MNA-RT5P-WZ3D-AAAA", "is no fingerprint"),
        ("\x1b[2J", "is no fingerprint"),
    ],
)
def test_another_fingerprint_is_refused(typed: str, message: str) -> None:
    with pytest.raises(TrustError, match=message) as caught:
        check_fingerprint(typed, "K7QX-2MNA-RT5P-WZ3D", source="a file")
    assert caught.value.exit_code == 15
    assert "\x1b" not in str(caught.value)


# ---- identities ----------------------------------------------------------------------------------
def test_a_sites_certificate_names_it_for_ninety_days(authority: Authority) -> None:
    _, public = node_key()

    made = site_certificate(authority, public, "A", at=NOW)
    who = check_identity(pem(made), [authority.certificate], source="site.pem", at=NOW)

    assert (who.name, who.role, who.public_key) == ("A", None, public)
    assert (who.begins, who.expires) == (NOW - CLOCK_SLACK, NOW + datetime.timedelta(days=90))
    assert SITE_DAYS == 90  # of the design


@pytest.mark.parametrize("role", list(Role))
def test_a_persons_certificate_names_them_and_their_role(authority: Authority, role: Role) -> None:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()

    made = role_certificate(authority, key, "Ada Byron", role)
    who = check_identity(pem(made), [authority.certificate], source="client.pem")

    assert (who.name, who.role) == ("Ada Byron", role)


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", " a", "\x1b[2J"])
def test_a_persons_name_that_cannot_be_shown_is_refused(authority: Authority, name: str) -> None:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()

    with pytest.raises(ConfigError, match="a person's name"):
        role_certificate(authority, key, name, Role.OBSERVER)


@pytest.mark.parametrize(
    ("days", "message"), [(-1, "is valid from"), (89.9, None), (90.1, "expired on")]
)
def test_a_certificate_holds_in_its_time_only(
    authority: Authority, days: float, message: str | None
) -> None:
    made = pem(site_certificate(authority, node_key()[1], "A", at=NOW))
    at = NOW + datetime.timedelta(days=days)

    if message is None:
        check_identity(made, [authority.certificate], source="site.pem", at=at)
    else:
        with pytest.raises(TrustError, match=message):
            check_identity(made, [authority.certificate], source="site.pem", at=at)


@pytest.mark.parametrize(
    ("name", "uris"),
    [
        ("A", ["urn:medfed:site:B"]),
        ("A", ["urn:medfed:site:A", "urn:medfed:role:coordinator"]),
        ("A", ["urn:medfed:site:A b"]),
        ("A", ["urn:medfed:site:../A"]),
        ("A", ["urn:other:site:A"]),
        ("Ada", ["urn:medfed:role:king"]),
    ],
)
def test_a_certificate_that_names_nobody_in_our_form_is_refused(
    authority: Authority, name: str, uris: list[str]
) -> None:
    made = issue(
        authority,
        node_key()[0].public_key(),
        name=name,
        usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        names=[x509.UniformResourceIdentifier(uri) for uri in uris],
        days=9,
    )

    with pytest.raises(TrustError, match="names|role that is unknown"):
        check_identity(pem(made), [authority.certificate], source="site.pem")


def test_a_certificate_over_another_curve_is_refused(authority: Authority) -> None:
    made = issue(
        authority,
        ec.generate_private_key(ec.SECP256R1()).public_key(),
        name="A",
        usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        names=[x509.UniformResourceIdentifier("urn:medfed:site:A")],
        days=9,
    )

    with pytest.raises(TrustError, match="another kind of key"):
        check_identity(pem(made), [authority.certificate], source="site.pem")


# ---- handovers -----------------------------------------------------------------------------------
def roots(tmp_path: Path, count: int) -> list[tuple[Authority, SigningKey, Root]]:
    made = []
    for number in range(count):
        folder = tmp_path / str(number)
        new_authority(folder)
        authority, key = load_authority(folder), new_signing_key(folder)
        made.append((authority, key, Root(authority.certificate, key.public)))
    return made


def test_handovers_are_followed_to_the_newest_from_wherever_one_stands(tmp_path: Path) -> None:
    (a1, k1, r1), (a2, k2, r2), (_, _, r3) = roots(tmp_path, 3)
    chain = [
        sign_handover(a1, k1, r2, number=1, issued=NOW).decode(),
        sign_handover(a2, k2, r3, number=2, issued=NOW).decode(),
    ]

    ends = [newest_root(root, chain, source="chain").fingerprint for root in (r1, r2, r3)]

    assert ends == [r3.fingerprint] * 3


@pytest.mark.parametrize("stolen", ["study key", "authority"])
def test_neither_key_alone_can_hand_over(tmp_path: Path, stolen: str) -> None:
    (a1, k1, r1), (a2, k2, r2) = roots(tmp_path, 2)
    forged = sign_handover(
        a1 if stolen == "authority" else a2,
        k1 if stolen == "study key" else k2,
        r2,
        number=1,
        issued=NOW,
    )

    with pytest.raises(TrustError):
        open_handover(forged, r1, source="handover")
    assert newest_root(r1, [forged.decode()], source="handover") == r1


# ---- files from elsewhere ------------------------------------------------------------------------
def test_a_file_that_is_too_long_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "A.approval.json"
    with path.open("wb") as file:
        file.truncate(10 * 2**30)  # ten GiB that take no room

    with pytest.raises(TrustError, match="found more than 100 bytes"):
        read_received(path, 100, what="an approval")


def test_a_pipe_and_a_folder_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)

    for path in (tmp_path / "pipe", tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_received(path, 100, what="an approval")
        with pytest.raises(ConfigError, match="cannot be read"):
            read_secret(path, what="the key")


def test_what_is_quoted_is_short_and_on_one_line() -> None:
    text = shown("A\x1b[31m\r\n\u202eB" + "x" * 1000)

    assert text.isprintable() and len(text) <= 62


def test_a_private_node_key_is_refused_as_a_request(tmp_path: Path) -> None:
    new_node_key(tmp_path)

    with pytest.raises(TrustError, match="must never leave the site"):
        read_site_request((tmp_path / "node_key").read_bytes(), site="A", source="A.request.pem")
