"""The small authority: its certificates work in TLS, and no other authority's do."""

from __future__ import annotations

import datetime
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from medfed.common.errors import ConfigError, TrustError
from medfed.common.trust import certificates
from medfed.common.trust.certificates import (
    issue_client_certificate,
    issue_server_certificate,
    new_authority,
    read_authority,
    server_certificate_serves,
)


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    folder = tmp_path / "trust"
    new_authority(folder)
    issue_server_certificate(folder, ["hub.example", "10.1.2.3"])
    issue_client_certificate(folder, tmp_path / "coordinator", "coordinator")
    return folder


def shake_hands(server: Path, client: Path, *, name: str = "localhost") -> str:
    """One mutual TLS handshake over a socket pair; the name that the server sees."""
    there, here = socket.socketpair()
    listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listening.load_cert_chain(server / "server.pem", server / "server.key")
    listening.load_verify_locations(server / "ca.pem")
    listening.verify_mode = ssl.CERT_REQUIRED
    calling = ssl.create_default_context(cafile=str(client / "ca.pem"))
    calling.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13 asks for by default
    calling.load_cert_chain(client / "client.pem", client / "client.key")
    seen: list[str] = []

    def answer() -> None:
        try:
            with listening.wrap_socket(there, server_side=True) as link:
                shown = link.getpeercert(binary_form=True)
                assert shown is not None
                subject = x509.load_der_x509_certificate(shown).subject
                seen.append(subject.rfc4514_string())
                link.send(b"x")
        except OSError:
            there.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with calling.wrap_socket(here, server_hostname=name) as link:
            assert link.recv(1) == b"x"
    finally:
        here.close()
        thread.join()
    return seen[0]


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "hub.example", "10.1.2.3"])
def test_server_and_coordinator_recognise_each_other(trust: Path, name: str) -> None:
    assert shake_hands(trust, trust.parent / "coordinator", name=name) == "CN=coordinator"


def test_a_name_that_was_not_given_is_not_accepted(trust: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(trust, trust.parent / "coordinator", name="other.example")


def test_a_client_of_another_authority_is_not_accepted(trust: Path, tmp_path: Path) -> None:
    new_authority(tmp_path / "other")
    issue_client_certificate(tmp_path / "other", tmp_path / "stranger", "coordinator")
    (tmp_path / "stranger" / "ca.pem").write_bytes((trust / "ca.pem").read_bytes())

    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        shake_hands(trust, tmp_path / "stranger")


def test_a_server_of_another_authority_is_not_accepted(trust: Path, tmp_path: Path) -> None:
    new_authority(tmp_path / "other")
    issue_server_certificate(tmp_path / "other", [])

    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path / "other", trust.parent / "coordinator")


def test_a_server_certificate_cannot_pose_as_a_client(trust: Path) -> None:
    pose = trust.parent / "coordinator"
    (pose / "client.pem").write_bytes((trust / "server.pem").read_bytes())
    (pose / "client.key").write_bytes((trust / "server.key").read_bytes())

    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        shake_hands(trust, pose)


def test_keys_are_for_their_owner_only(trust: Path) -> None:
    for path in (trust / "ca.key", trust / "server.key", trust.parent / "coordinator/client.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_only_the_authority_may_sign(trust: Path) -> None:
    leaf = x509.load_pem_x509_certificate((trust / "server.pem").read_bytes())
    root = x509.load_pem_x509_certificate((trust / "ca.pem").read_bytes())

    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    basic = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)


def test_a_second_authority_does_not_replace_the_first(trust: Path) -> None:
    before = (trust / "ca.key").read_bytes()

    with pytest.raises(ConfigError, match="holds a certificate authority already"):
        new_authority(trust)

    assert (trust / "ca.key").read_bytes() == before


def test_an_authority_that_was_cut_off_by_a_kill_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "ca.key").write_bytes(b"left over")

    read_authority(new_authority(tmp_path))
    issue_server_certificate(tmp_path, [])


def test_certificate_serves_the_hosts_it_names(trust: Path) -> None:
    assert server_certificate_serves(trust, ["hub.example", "127.0.0.1"])
    assert not server_certificate_serves(trust, ["hub.example", "new.example"])


def test_certificate_near_its_end_serves_no_more(
    trust: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "_LEAF_DAYS", 29)  # one day less than the margin of 30
    issue_server_certificate(trust, [])
    assert not server_certificate_serves(trust, [])


def test_without_a_key_nothing_is_served(trust: Path) -> None:
    (trust / "server.key").unlink()
    assert not server_certificate_serves(trust, [])


@pytest.mark.parametrize("what", ["text", "leaf"])
def test_what_is_no_authority_is_refused(trust: Path, what: str) -> None:
    bad = trust / "bad.pem"
    bad.write_bytes(b"text" if what == "text" else (trust / "server.pem").read_bytes())

    with pytest.raises(TrustError, match=r"bad\.pem: found .*allowed is the ca\.pem"):
        read_authority(bad)


def test_a_self_signed_certificate_that_may_not_sign_others_is_refused(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a web server")])
    now = datetime.datetime.now(datetime.UTC)
    alone = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, SHA384())
    )
    (tmp_path / "ca.pem").write_bytes(alone.public_bytes(Encoding.PEM))

    with pytest.raises(TrustError, match="found a certificate that is no authority"):
        read_authority(tmp_path / "ca.pem")


def test_an_expired_authority_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "_AUTHORITY_DAYS", 0)
    monkeypatch.setattr(certificates, "CLOCK_SLACK", datetime.timedelta(days=1))
    new_authority(tmp_path)

    with pytest.raises(TrustError, match="expired"):
        read_authority(tmp_path / "ca.pem")


def test_a_missing_authority_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_authority(tmp_path / "ca.pem")


def test_a_key_of_another_authority_is_refused(trust: Path, tmp_path: Path) -> None:
    new_authority(tmp_path / "other")
    (trust / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())

    with pytest.raises(TrustError, match=r"ca\.key does not belong to ca\.pem"):
        issue_server_certificate(trust, [])


def test_a_host_that_is_none_is_refused(trust: Path) -> None:
    with pytest.raises(ConfigError, match="neither a host name nor an IP address"):
        issue_server_certificate(trust, ["x" * 70])


def test_two_authorities_in_one_file_are_both_trusted_and_both_checked(
    trust: Path, tmp_path: Path
) -> None:
    new_authority(tmp_path / "next")
    both = (tmp_path / "next" / "ca.pem").read_bytes() + (trust / "ca.pem").read_bytes()
    client = trust.parent / "coordinator"
    (client / "ca.pem").write_bytes(both)

    assert read_authority(client / "ca.pem") == both
    assert shake_hands(trust, client) == "CN=coordinator"
    (client / "ca.pem").write_bytes(both + (trust / "server.pem").read_bytes())
    with pytest.raises(TrustError, match="no self-signed|no authority"):
        read_authority(client / "ca.pem")


def test_an_authority_whose_key_others_may_read_signs_nothing(trust: Path) -> None:
    (trust / "ca.key").chmod(0o644)

    with pytest.raises(ConfigError, match="mode 0644, allowed: 0600"):
        issue_server_certificate(trust, [])
