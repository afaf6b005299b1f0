"""The server remembers how far a site's ledger had come, and takes nothing from an older one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medfed.common.errors import TrustError
from medfed.common.trust.keys import new_node_key
from medfed.common.trust.ledger_head import Head, HeadSigner
from medfed.server.heads import KnownHeads


@pytest.fixture
def signer(tmp_path: Path) -> HeadSigner:
    return enrolled(tmp_path, "A")


def enrolled(folder: Path, site: str) -> HeadSigner:
    """A site whose public key lies in the server's folder of sites."""
    keys = folder / f"keys-{site}-{os.urandom(4).hex()}"
    sites = folder / "sites"
    sites.mkdir(exist_ok=True)
    (sites / f"{site}.pub").write_bytes(new_node_key(keys).read_bytes())
    return HeadSigner(keys / "node_key")


def heads(folder: Path) -> KnownHeads:
    return KnownHeads(folder / "sites")  # anew each time: another process has no more to go by


def test_the_highest_head_is_known_to_every_later_process(
    tmp_path: Path, signer: HeadSigner
) -> None:
    assert heads(tmp_path).of("A") is None

    for sequence in (3, 7, 7):  # the same release may be sent again
        heads(tmp_path).take("A", signer.sign(sequence, f"{sequence}" * 64))

    known = heads(tmp_path).of("A")
    assert known is not None
    assert known[:2] == (7, "7" * 64)
    assert (tmp_path / "sites" / "A.head.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("sequence", "hash_", "found"),
    [(6, "6" * 64, "is behind what it released"), (7, "a" * 64, "is another one than it released")],
)
def test_a_ledger_that_is_behind_or_beside_is_refused_and_changes_nothing(
    tmp_path: Path, signer: HeadSigner, sequence: int, hash_: str, found: str
) -> None:
    heads(tmp_path).take("A", signer.sign(7, "7" * 64))

    with pytest.raises(TrustError, match=f"site 'A': its ledger {found}") as caught:
        heads(tmp_path).take("A", signer.sign(sequence, hash_))

    assert "restores its newest ledger" in caught.value.advice
    known = heads(tmp_path).of("A")
    assert known is not None
    assert known.sequence == 7


def test_a_head_that_another_key_signed_or_none_at_all_is_refused(
    tmp_path: Path, signer: HeadSigner
) -> None:
    other = enrolled(tmp_path, "B")
    good = signer.sign(7, "7" * 64)

    for head in (
        other.sign(7, "7" * 64),
        good._replace(sequence=8),
        good._replace(hash="8" * 64),
        good._replace(signature=""),
        good._replace(signature="zz"),
        good._replace(sequence=0),
        Head(7, "../" * 30, good.signature),
    ):
        with pytest.raises(TrustError, match="is not signed by the key of site 'A'"):
            heads(tmp_path).take("A", head)
    with pytest.raises(TrustError, match="says nothing of its ledger"):
        heads(tmp_path).take("A", None)
    assert heads(tmp_path).of("A") is None


def test_a_site_that_is_enrolled_with_a_new_key_begins_anew(
    tmp_path: Path, signer: HeadSigner
) -> None:
    heads(tmp_path).take("A", signer.sign(7, "7" * 64))
    replaced = enrolled(tmp_path, "A")

    assert heads(tmp_path).of("A") is None
    heads(tmp_path).take("A", replaced.sign(2, "2" * 64))

    known = heads(tmp_path).of("A")
    assert known is not None
    assert known.sequence == 2
