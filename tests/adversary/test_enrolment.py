"""Attacks on enrolment: forged, hostile and replayed files, each named as the attack."""

from __future__ import annotations

import base64
import datetime
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medfed.client.enrolment import read_node_key, take_up, write_request
from medfed.common.errors import ConfigError, MedfedError, TrustError
from medfed.common.trust.certificates import issue, load_authority
from medfed.common.trust.enrolment_files import Approval, sign_approval, unverified_approval
from medfed.common.trust.identities import Role, role_certificate, site_certificate
from medfed.common.trust.signatures import canonical, read_signing_key
from medfed.common.trust.succession import RootText, sign_handover
from medfed.deploy.coordinator_root import Coordinator
from medfed.deploy.coordinator_rotation import root_in
from medfed.server.revocations import ACCEPTED, Revocations
from tests.support.enrolling import (
    SERVER,
    Clock,
    bare_site,
    bring_bundle,
    enrolled_site,
    make_coordinator,
    shake_hands,
)


class Scene(NamedTuple):
    """A coordinator, and site A that asks to be let in."""

    folder: Path
    clock: Clock
    coordinator: Coordinator
    root: Path

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        return read_node_key(self.root / "keys" / "node_key")

    def approve(self) -> Path:
        return self.coordinator.approve_request(
            write_request(self.root).file.read_bytes(), "A"
        ).file

    def take_up(self, file: Path, fingerprint: str | None = "the right one") -> None:
        right = self.coordinator.fingerprint if fingerprint == "the right one" else fingerprint
        take_up(self.root, file, right, clock=self.clock)

    def forged(self, **changes: Any) -> Path:
        """An approval with changes, signed by the coordinator's own study key."""
        honest = unverified_approval(self.approve().read_bytes(), source="A")
        key = read_signing_key(self.coordinator.study_key)
        file = self.folder / "forged.json"
        file.write_bytes(sign_approval(key, honest.model_copy(update=changes)))
        return file

    def certified(self, **changes: Any) -> Path:
        """An approval over a certificate of the real authority that is made otherwise."""
        made = {
            "name": "A",
            "usage": ExtendedKeyUsageOID.CLIENT_AUTH,
            "names": [x509.UniformResourceIdentifier("urn:medfed:site:A")],
            "days": 90,
            "key": self.key.public_key(),
            "at": self.clock.at,
        } | changes
        certificate = issue(load_authority(self.coordinator.folder), **made)
        return self.forged(certificate=pem(certificate), expires=certificate.not_valid_after_utc)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    clock = Clock()
    return Scene(tmp_path, clock, make_coordinator(tmp_path, clock), bare_site(tmp_path))


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


# ---- what a false coordinator sends to a site ----------------------------------------------------
def test_an_approval_by_a_false_coordinator(scene: Scene) -> None:
    false = make_coordinator(scene.folder / "false", scene.clock)
    file = false.approve_request(write_request(scene.root).file.read_bytes(), "A").file

    for fingerprint in ("the right one", None):
        with pytest.raises(TrustError) as caught:
            scene.take_up(file, fingerprint)
        assert caught.value.exit_code == 15
    assert not (scene.root / "trust" / "ca.pem").exists()


def test_a_false_authority_under_the_real_study_key(scene: Scene) -> None:
    false = make_coordinator(scene.folder / "false", scene.clock)
    honest = unverified_approval(scene.approve().read_bytes(), source="A")
    mixed = honest.roots[0].model_copy(update={"authority": (false.folder / "ca.pem").read_text()})

    with pytest.raises(TrustError, match="its fingerprint is"):
        scene.take_up(scene.forged(roots=(mixed,)))


def test_the_real_root_under_a_false_signature(scene: Scene) -> None:
    false = make_coordinator(scene.folder / "false", scene.clock)
    honest = unverified_approval(scene.approve().read_bytes(), source="A")
    file = scene.folder / "forged.json"
    changed = honest.model_copy(update={"server": "evil.example:443"})
    file.write_bytes(sign_approval(read_signing_key(false.study_key), changed))

    with pytest.raises(TrustError, match="not by the study key"):
        scene.take_up(file)


def test_a_false_root_beside_the_real_one(scene: Scene) -> None:
    false = make_coordinator(scene.folder / "false", scene.clock)
    honest = unverified_approval(scene.approve().read_bytes(), source="A")
    theirs = RootText(
        authority=(false.folder / "ca.pem").read_text(),
        study_key=(false.folder / "study.pub").read_text(),
        until=None,
    )

    with pytest.raises(TrustError, match="the one in use is first"):
        scene.take_up(scene.forged(roots=(honest.roots[0], theirs)))


def test_a_handover_that_the_authority_did_not_endorse(scene: Scene) -> None:
    scene.take_up(scene.approve())
    false = make_coordinator(scene.folder / "false", scene.clock)
    # The thief has the study key, but not the authority's.

    handover = sign_handover(
        load_authority(false.folder),
        read_signing_key(scene.coordinator.study_key),
        root_in(false.folder),
        number=2**40,
        issued=scene.clock.at,
    )
    scene.clock.turn(minutes=1)
    request = write_request(scene.root).file.read_bytes()
    theirs = unverified_approval(false.approve_request(request, "A").file.read_bytes(), source="A")
    file = scene.folder / "forged.json"
    forged = theirs.model_copy(update={"handovers": (handover.decode(),)})
    file.write_bytes(sign_approval(read_signing_key(false.study_key), forged))

    with pytest.raises(TrustError, match="did not hand over to it"):
        scene.take_up(file, None)


def test_an_old_approval_replayed(scene: Scene) -> None:
    old = scene.folder / "old.json"
    old.write_bytes(scene.approve().read_bytes())
    scene.clock.turn(minutes=1)
    scene.take_up(scene.coordinator.renew("A").file)

    for fingerprint in ("the right one", None):
        with pytest.raises(TrustError, match="only a newer one may follow"):
            scene.take_up(old, fingerprint)


def test_an_old_approval_replayed_after_a_rotation(scene: Scene) -> None:
    old = scene.folder / "old.json"
    old.write_bytes(scene.approve().read_bytes())
    before = scene.coordinator.fingerprint
    scene.take_up(old)
    scene.coordinator.rotate_root()
    scene.take_up(scene.coordinator.folder / "approvals" / "A.approval.json", None)

    with pytest.raises(TrustError, match="did not hand over to it"):
        scene.take_up(old, None)
    with pytest.raises(TrustError, match="only a newer one may follow"):
        scene.take_up(old, before)  # the admin types the fingerprint of an old e-mail


def test_the_approval_of_another_site(scene: Scene) -> None:
    other = bare_site(scene.folder / "other", "B")
    file = scene.coordinator.approve_request(write_request(other).file.read_bytes(), "B").file

    with pytest.raises(TrustError, match="is for site 'B'; this is site 'A'"):
        scene.take_up(file)


def test_another_sites_certificate_under_this_sites_name(scene: Scene) -> None:
    authority = load_authority(scene.coordinator.folder)
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    text = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    theirs = site_certificate(authority, text, "A", at=scene.clock.at)

    with pytest.raises(TrustError, match="is for another key"):
        scene.take_up(scene.forged(certificate=pem(theirs), expires=theirs.not_valid_after_utc))


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        pytest.param({"days": 91}, "expired on", id="expired"),
        pytest.param({"hours": -1}, "the clock of this machine says", id="not yet issued"),
    ],
)
def test_an_approval_outside_its_time(scene: Scene, turn: dict[str, float], message: str) -> None:
    file, fingerprint = scene.approve(), scene.coordinator.fingerprint
    scene.clock.turn(**turn)

    with pytest.raises(TrustError, match=message):
        scene.take_up(file, fingerprint)


def test_an_approval_from_the_future_over_a_certificate_of_today(scene: Scene) -> None:
    later = scene.clock.at + datetime.timedelta(hours=1)

    with pytest.raises(TrustError, match="was issued at"):
        scene.take_up(scene.forged(issued=later))


def test_a_certificate_that_is_not_valid_yet(scene: Scene) -> None:
    later = scene.clock.at + datetime.timedelta(days=1)

    with pytest.raises(TrustError, match="is valid from"):
        scene.take_up(scene.certified(at=later))


def test_a_certificate_for_servers_as_a_sites(scene: Scene) -> None:
    with pytest.raises(TrustError, match="not for clients"):
        scene.take_up(scene.certified(usage=ExtendedKeyUsageOID.SERVER_AUTH))


def test_an_authority_as_a_sites_certificate(scene: Scene) -> None:
    authority = load_authority(scene.coordinator.folder)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A")])
    names = [x509.UniformResourceIdentifier("urn:medfed:site:A")]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(authority.certificate.subject)
        .public_key(scene.key.public_key())
        .serial_number(7)
        .not_valid_before(scene.clock.at)
        .not_valid_after(scene.clock.at + datetime.timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
        .sign(authority.key, SHA384())
    )

    with pytest.raises(TrustError, match="an authority"):
        scene.take_up(scene.forged(certificate=pem(made), expires=made.not_valid_after_utc))


def test_a_coordinators_own_certificate_as_a_sites(scene: Scene) -> None:
    made = role_certificate(
        load_authority(scene.coordinator.folder),
        scene.key.public_key(),
        "A",
        Role.COORDINATOR,
        at=scene.clock.at,
    )

    with pytest.raises(TrustError, match="is not that of site 'A'"):
        scene.take_up(scene.forged(certificate=pem(made), expires=made.not_valid_after_utc))


def test_a_certificate_of_another_authority_in_the_real_approval(scene: Scene) -> None:
    false = make_coordinator(scene.folder / "false", scene.clock)
    made = issue(
        load_authority(false.folder),
        scene.key.public_key(),
        name="A",
        usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        names=[x509.UniformResourceIdentifier("urn:medfed:site:A")],
        days=90,
        at=scene.clock.at,
    )

    with pytest.raises(TrustError, match="another authority's"):
        scene.take_up(scene.forged(certificate=pem(made), expires=made.not_valid_after_utc))


def a_long_one(honest: bytes) -> bytes:
    return honest.strip() + b" " * (10 * 2**20)


def a_deep_one(_: bytes) -> bytes:
    return b'{"body":' * 20_000 + b"1" + b"}" * 20_000


def a_key_twice(honest: bytes) -> bytes:
    return honest.replace(b'"site":"A"', b'"site":"B","site":"A"')


def a_further_field(honest: bytes) -> bytes:
    fields = json.loads(honest)
    fields["body"]["admin"] = True
    return canonical(fields)


def a_flipped_signature(honest: bytes) -> bytes:
    fields = json.loads(honest)
    signature = bytearray(base64.b64decode(fields["signature"]))
    signature[0] ^= 1
    fields["signature"] = base64.b64encode(signature).decode()
    return canonical(fields)


def an_escape_for_the_terminal(honest: bytes) -> bytes:
    return honest.replace(b'"site":"A"', b'"site":"A\\u001b[2J\\u202e"')


def a_path_for_a_name(honest: bytes) -> bytes:
    return honest.replace(b'"site":"A"', b'"site":"../../A"')


@pytest.mark.parametrize(
    "hostile",
    [
        a_long_one,
        a_deep_one,
        a_key_twice,
        a_further_field,
        a_flipped_signature,
        an_escape_for_the_terminal,
        a_path_for_a_name,
    ],
    ids=lambda made: made.__name__,
)
def test_a_hostile_approval_file(scene: Scene, hostile: Callable[[bytes], bytes]) -> None:
    file = scene.folder / "hostile.json"
    file.write_bytes(hostile(scene.approve().read_bytes()))

    with pytest.raises(TrustError) as caught:
        scene.take_up(file)

    assert str(caught.value).replace("\n", "").isprintable()
    assert not (scene.root / "trust" / "site.pem").exists()


# ---- what a false site sends to a coordinator ----------------------------------------------------
def csr(key: Any, *attributes: tuple[x509.ObjectIdentifier, str]) -> x509.CertificateSigningRequest:
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])
    how = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA384()
    return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, how)


def in_the_name_of(name: str) -> bytes:
    key = ec.generate_private_key(ec.SECP384R1())
    return csr(key, (NameOID.COMMON_NAME, name)).public_bytes(Encoding.PEM)


def over(key: Any) -> bytes:
    return csr(key, (NameOID.COMMON_NAME, "A")).public_bytes(Encoding.PEM)


def asking_for(extension: x509.ExtensionType) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    key = ec.generate_private_key(ec.SECP384R1())
    return (
        builder.add_extension(extension, critical=True)
        .sign(key, SHA384())
        .public_bytes(Encoding.PEM)
    )


def with_a_password() -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    builder = builder.add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, b"word")
    key = ec.generate_private_key(ec.SECP384R1())
    return builder.sign(key, SHA384()).public_bytes(Encoding.PEM)


def signed_by_another() -> bytes:
    """The key of one in a request whose signature is spoiled."""
    honest = csr(ec.generate_private_key(ec.SECP384R1()), (NameOID.COMMON_NAME, "A"))
    der = bytearray(honest.public_bytes(Encoding.DER))
    der[-1] ^= 1
    text = base64.encodebytes(bytes(der)).decode()
    return (
        f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n".encode()
    )


def a_private_key() -> bytes:
    key = ec.generate_private_key(ec.SECP384R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


REQUESTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "for another site": (lambda: in_the_name_of("B"), "in the name of 'B', not of 'A'"),
    "with an escape": (lambda: in_the_name_of("A\x1b[2J"), "in the name of 'A.{1,9}2J'"),
    "with a look-alike": (lambda: in_the_name_of("\u0410"), "in the name of"),
    "with two names": (
        lambda: csr(
            ec.generate_private_key(ec.SECP384R1()),
            (NameOID.COMMON_NAME, "B"),
            (NameOID.COMMON_NAME, "A"),
        ).public_bytes(Encoding.PEM),
        "another subject",
    ),
    "over RSA": (
        lambda: over(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        "another kind of key",
    ),
    "over Ed25519": (lambda: over(ed25519.Ed25519PrivateKey.generate()), "another kind of key"),
    "over P-256": (lambda: over(ec.generate_private_key(ec.SECP256R1())), "another kind of key"),
    "asking to be an authority": (
        lambda: asking_for(x509.BasicConstraints(ca=True, path_length=None)),
        "asks for more",
    ),
    "asking for another name": (
        lambda: asking_for(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier("urn:medfed:role:coordinator")]
            )
        ),
        "asks for more",
    ),
    "with a password": (with_a_password, "asks for more"),
    "without its key": (signed_by_another, "not signed with its own key"),
    "too long": (lambda: in_the_name_of("A") + b"\n" * 20_000, "no certification request"),
    "garbage": (lambda: b"\x00\xff" * 99, "no certification request"),
    "a private key": (a_private_key, "must never leave the site"),
}


@pytest.mark.parametrize("attack", REQUESTS)
def test_a_hostile_request(scene: Scene, attack: str) -> None:
    made, message = REQUESTS[attack]

    with pytest.raises(TrustError, match=message) as caught:
        scene.coordinator.approve_request(made(), "A")

    assert str(caught.value).replace("\n", "").isprintable()
    assert scene.coordinator.list_certificates() == []


def test_a_request_over_another_sites_key(scene: Scene) -> None:
    scene.approve()
    stolen = csr(scene.key, (NameOID.COMMON_NAME, "B")).public_bytes(Encoding.PEM)

    with pytest.raises(TrustError, match="already certified for site 'A'"):
        scene.coordinator.approve_request(stolen, "B")


@pytest.mark.parametrize("site", ["../A", "", "A\n", "-A", "A" * 33, "\u0410"])
def test_a_site_name_that_leaves_the_folder(scene: Scene, site: str) -> None:
    with pytest.raises(ConfigError, match="is not allowed"):
        scene.coordinator.approve_request(in_the_name_of("A"), site)


# ---- against the server --------------------------------------------------------------------------
def test_a_site_of_a_false_coordinator_at_the_server(scene: Scene) -> None:
    false = make_coordinator(scene.folder / "false", scene.clock)
    stranger = enrolled_site(scene.folder / "false", false, scene.clock)
    trust = bring_bundle(scene.coordinator, scene.folder / "trust")
    (stranger / "trust" / "ca.pem").write_bytes((trust / "ca.pem").read_bytes())

    with pytest.raises(OSError):
        shake_hands(trust, stranger)


def test_a_server_of_a_false_coordinator_before_a_site(scene: Scene) -> None:
    scene.take_up(scene.approve())
    false = make_coordinator(scene.folder / "false", scene.clock)
    trust = bring_bundle(false, scene.folder / "trust")

    with pytest.raises(OSError, match="certificate verify failed"):
        shake_hands(trust, scene.root)


def test_a_revocation_list_rolled_back_while_the_server_is_down(scene: Scene) -> None:
    told: list[MedfedError] = []
    scene.approve()
    trust = bring_bundle(scene.coordinator, scene.folder / "trust")
    before = (trust / "revocations.json").read_bytes()
    serial = int(scene.coordinator.list_certificates()[0].serial, 16)
    done = scene.coordinator.revoke("A")
    (trust / "revocations.json").write_bytes(done.file.read_bytes())
    assert Revocations(trust, told.append).is_revoked(serial)

    (trust / "revocations.json").write_bytes(before)

    again = Revocations(trust, told.append)
    assert again.is_revoked(serial)
    assert "only a newer one is taken" in str(told[0])
    assert (trust / ACCEPTED).read_bytes() == done.file.read_bytes()


def test_an_approval_passed_off_as_a_revocation_list(scene: Scene) -> None:
    approval = scene.approve().read_bytes()
    trust = bring_bundle(scene.coordinator, scene.folder / "trust")
    (trust / "revocations.json").write_bytes(
        approval.replace(b"medfed-approval-1", b"medfed-revocations-1")
    )

    with pytest.raises(TrustError, match="not by the study key"):
        Revocations(trust, lambda _: None)


def test_a_key_in_what_the_command_line_shows(scene: Scene) -> None:
    file = scene.approve()
    code = (
        "from medfed.deploy.cli.enrol import app\n"
        f"app(['accept', {str(file)!r}, '--root', {str(scene.root)!r},"
        f" '--fingerprint', {scene.coordinator.fingerprint!r}, '--format', 'json'],"
        " standalone_mode=False)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    shown = json.loads(done.stdout)
    assert (shown["site"], shown["server"]) == ("A", SERVER)
    assert "PRIVATE" not in done.stdout + done.stderr


def test_the_signed_fields_are_all_that_an_approval_has() -> None:
    # Nothing secret and nothing of patients: the design's list, and the root's history.
    assert set(Approval.model_fields) == {
        *("site", "server", "number", "issued", "expires", "certificate", "roots", "handovers")
    }
