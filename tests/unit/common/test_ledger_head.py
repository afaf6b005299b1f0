"""A ledger's head is signed by the site's node key, and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from medfed.common.errors import TrustError
from medfed.common.trust.keys import new_node_key, read_public_key
from medfed.common.trust.ledger_head import Head, HeadSigner, check_head

HASH = "0123456789abcdef" * 4
# Made once with `ssh-keygen -t ecdsa -b 384 -N secret`.
WITH_PASSWORD = b"""\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABDBeZL4cG
X4R8abf1InoJlVAAAAEAAAAAEAAACIAAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlz
dHAzODQAAABhBNcTj1/KzECvRxSoPo6PbqQRE/fQHVrXxkxUykhHqhxxwlRFikozn9d5pU
qjPfWDHg8GeUTeGLkV6R4+ZqZ7qyPJcMlLMWLhVLVSkcj8j2QMHqwRiyJ3jh/y9aVSOuGw
iAAAANDdGENckvQbYvGKPMLxTWEhrbqK6jqNCAn4oCW9zUacL6aVTSAsnbZBJcajpBJKXe
HCRAbWUQMo8K8igO2ADG9d0XxFBUY840u+hxHD1TNbZtpyOuypjt8cnYB6SgWiZrR1SyI7
ZUApPVXaeqoL3v2P/+DjlBM+shixAwxbapkXgUqy5Wra/OPusWqUuyuQ1uLVl/1iDmvARq
AN3WSVx5wILNStr2dwoxAE1i6m6FIwMXMAH1XnO465LeO3zok+FdlWIWNSa+W9BCVngXMw
8QDu
-----END OPENSSH PRIVATE KEY-----
"""


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    new_node_key(tmp_path)
    return tmp_path


def test_a_signed_head_is_recognised_by_the_public_key_in_either_form(keys: Path) -> None:
    signer = HeadSigner(keys / "node_key")

    for sequence in (1, 7, 2**53):
        head = signer.sign(sequence, HASH)
        assert head[:2] == (sequence, HASH)
        check_head(head, signer.public_key, who="site A")
        check_head(head, read_public_key(keys / "node_key.pub"), who="site A")


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": 8},
        {"sequence": 0},
        {"sequence": -7},
        {"sequence": 2**53 + 1},
        {"sequence": "7"},
        {"sequence": None},
        {"sequence": 7.5},
        {"hash": HASH[::-1]},
        {"hash": HASH.upper()},
        {"hash": HASH + "\n"},
        {"hash": HASH[:-1]},
        {"hash": ""},
        {"hash": None},
        {"hash": "é" * 64},
        {"signature": ""},
        {"signature": "00"},
        {"signature": "no digits"},
        {"signature": None},
        {"signature": b"\x00"},
        {"signature": "0" * 1_000_000},
    ],
)
def test_a_head_that_was_changed_is_refused_whatever_is_in_it(
    keys: Path, change: dict[str, Any]
) -> None:
    signer = HeadSigner(keys / "node_key")
    head = signer.sign(7, HASH)._replace(**change)

    with pytest.raises(TrustError, match="of site A is not signed by the key of site A"):
        check_head(head, signer.public_key, who="site A")


def test_every_digit_of_a_signature_counts(keys: Path) -> None:
    signer = HeadSigner(keys / "node_key")
    head = signer.sign(7, HASH)

    for place in range(0, len(head.signature), 7):
        other = "0" if head.signature[place] != "0" else "1"
        signature = head.signature[:place] + other + head.signature[place + 1 :]
        with pytest.raises(TrustError):
            check_head(head._replace(signature=signature), signer.public_key, who="site A")


def test_another_site_cannot_sign_for_this_one(keys: Path, tmp_path: Path) -> None:
    new_node_key(tmp_path / "other")
    head = HeadSigner(tmp_path / "other" / "node_key").sign(7, HASH)

    with pytest.raises(TrustError):
        check_head(head, read_public_key(keys / "node_key.pub"), who="site A")


def test_a_signature_over_something_else_is_no_head(keys: Path) -> None:
    # The node key signs Flower's requests too: a head has a prefix of its own.
    signer = HeadSigner(keys / "node_key")
    other = signer.sign(77, HASH).signature

    with pytest.raises(TrustError):
        check_head(Head(7, f"7{HASH}"[:64], other), signer.public_key, who="site A")


def private_bytes(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


@pytest.mark.parametrize("kind", ["missing", "text", "ed25519", "p256", "password"])
def test_a_key_that_is_no_node_key_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "node_key"
    content = {
        "text": b"no key",
        "ed25519": private_bytes(ed25519.Ed25519PrivateKey.generate()),
        "p256": private_bytes(ec.generate_private_key(ec.SECP256R1())),
        "password": WITH_PASSWORD,
    }
    if kind != "missing":
        path.write_bytes(content[kind])

    with pytest.raises(TrustError, match="node_key: the site's private key cannot be") as caught:
        HeadSigner(path)
    assert "backup" in caught.value.advice
