"""A site's node key: made whole, kept private, recognised strictly."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)

from medfed.common.errors import ConfigError, TrustError
from medfed.common.trust.keys import fingerprint, new_node_key, parse_public_key, read_public_key
from medfed.common.trust.private_files import private_folder, write_private

# Made once with `ssh-keygen -t ecdsa -b 384`; the fingerprint is what `ssh-keygen -lf` printed.
KNOWN_KEY = (
    b"ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBAebIk8qNHQlFO2ggr"
    b"mcMqE+7Dlj6I0XV7QLja9LmN1C7K52PHmCwJs8zLNfG7egYtOXmhupKGNZ1xxES4SvaKwYtyG6IsseosGU87Ki1quGdkrfaQj513q/VYnKpr2k4w=="
    b" a comment"
)
KNOWN_FINGERPRINT = "SHA256:8Ij3Z+8zjW2adsJgRJdWh7fMtiLpx2wP61ST1+GXoHU"


def test_public_key_belongs_to_the_private_key(tmp_path: Path) -> None:
    public = read_public_key(new_node_key(tmp_path / "keys"))

    private = load_ssh_private_key((tmp_path / "keys" / "node_key").read_bytes(), None)

    assert isinstance(private, ec.EllipticCurvePrivateKey)
    line = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    assert public == line + b"\n"


def test_private_key_is_for_its_owner_only(tmp_path: Path) -> None:
    new_node_key(tmp_path / "keys")

    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "keys" / "node_key").stat().st_mode) == 0o600


def test_a_comment_does_not_make_another_key() -> None:
    plain = parse_public_key(KNOWN_KEY.rpartition(b" a ")[0], source="x")
    assert parse_public_key(KNOWN_KEY, source="x") == plain
    assert parse_public_key(plain, source="x") == plain


def test_fingerprint_is_the_one_that_ssh_keygen_shows() -> None:
    assert fingerprint(parse_public_key(KNOWN_KEY, source="x")) == KNOWN_FINGERPRINT


def test_a_second_key_does_not_replace_the_first(tmp_path: Path) -> None:
    new_node_key(tmp_path)
    before = (tmp_path / "node_key").read_bytes()

    with pytest.raises(ConfigError, match="node_key: exists already"):
        new_node_key(tmp_path)

    assert (tmp_path / "node_key").read_bytes() == before


def test_a_private_key_is_refused_by_name(tmp_path: Path) -> None:
    new_node_key(tmp_path)

    with pytest.raises(TrustError, match="found a private key") as error:
        read_public_key(tmp_path / "node_key")

    assert b"BEGIN" not in str(error.value).encode()


def _ssh(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


@pytest.mark.parametrize(
    "data",
    [
        _ssh(ec.generate_private_key(ec.SECP256R1()).public_key()),
        _ssh(ed25519.Ed25519PrivateKey.generate().public_key()),
        b"",
        b"no key",
        KNOWN_KEY + b"x" * 5000,
        KNOWN_KEY[:60],
    ],
    ids=["P-256", "Ed25519", "empty", "text", "too long", "cut off"],
)
def test_what_is_no_p384_key_is_refused_with_its_source(data: bytes) -> None:
    with pytest.raises(TrustError, match=r"^A\.pub: found .*; allowed is an ECDSA P-384"):
        parse_public_key(data, source="A.pub")


def test_a_missing_key_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_public_key(tmp_path / "none.pub")


def test_a_private_file_is_never_wider_than_its_owner(tmp_path: Path) -> None:
    path = write_private(private_folder(tmp_path / "a" / "b") / "secret", b"1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    write_private(path, b"2", replace=True)
    assert path.read_bytes() == b"2"
    assert [entry.name for entry in path.parent.iterdir()] == ["secret"]  # no half-written rest


def test_a_file_where_a_folder_belongs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="private folder"):
        private_folder(tmp_path / "file")
