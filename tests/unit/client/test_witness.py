"""The ledger's second memory keeps the highest head, for the site only, and never guesses."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from medfed.client.witness import Witness, default_witness
from medfed.common.errors import LedgerError
from medfed.common.trust.ledger_head import Head


def head(sequence: int, hash_: str = "a") -> Head:
    return Head(sequence, hash_ * 64, "00")


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path / "state" / "witness.json", site="A")


def test_the_highest_head_is_remembered_in_whatever_order_they_come(witness: Witness) -> None:
    assert witness.read() == ()
    for number in (3, 1, 7, 2, 7):
        witness.keep(head(number))

    assert witness.read() == (head(7),)
    assert Witness(witness.path, site="A").read() == (head(7),)


def test_of_two_heads_of_one_number_the_first_is_remembered(witness: Witness) -> None:
    witness.keep(head(3, "a"))
    witness.keep(head(3, "b"))

    assert witness.read() == (head(3, "a"),)


def test_a_head_in_dispute_is_remembered_beside_the_highest(witness: Witness) -> None:
    witness.keep(head(7))
    for _ in range(2):  # the same dispute is one
        witness.dispute(head(3, "b"))
        witness.dispute(head(9, "c"))
    witness.keep(head(8))

    assert witness.read() == (head(8), head(3, "b"), head(9, "c"))


def test_a_dispute_may_be_the_first_thing_that_is_known(witness: Witness) -> None:
    witness.dispute(head(3))

    assert witness.read() == (head(3),)


def test_many_at_once_lose_nothing(witness: Witness) -> None:
    def keep_all(numbers: range) -> None:
        for number in numbers:
            witness.keep(head(number))

    threads = [
        threading.Thread(target=keep_all, args=(numbers,))
        for numbers in (range(1, 20, 2), range(2, 21, 2))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert witness.read() == (head(20),)


def test_file_and_new_folder_are_for_the_site_only(witness: Witness) -> None:
    witness.keep(head(1))

    assert stat.S_IMODE(witness.path.parent.stat().st_mode) == 0o700
    for file in witness.path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    # Found here: --witness /var/lib/w.json, made by root, would have closed /var/lib to all.
    folder = tmp_path / "lib"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)

    Witness(folder / "witness.json", site="A").keep(head(1))

    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_a_name_like_that_of_a_lock_is_a_name_like_any_other(tmp_path: Path) -> None:
    witness = Witness(tmp_path / "witness.lock", site="A")
    witness.keep(head(1))

    assert witness.read() == (head(1),)


def test_the_same_scans_have_the_same_witness_by_whatever_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, other = tmp_path / "scans", tmp_path / "other"
    scans.mkdir()
    (tmp_path / "link").symlink_to(scans)
    monkeypatch.chdir(tmp_path)

    found = default_witness(scans)

    assert found == default_witness(tmp_path / "link") == default_witness(Path("scans"))
    assert found == default_witness(scans / ".." / "scans")
    assert found != default_witness(other)
    assert found.is_relative_to(Path.home() / ".local" / "state" / "medfed")
    assert "scans" not in found.name


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no JSON",
        "[]",
        "null",
        "{}",
        '{"sequence": 1, "hash": "aa"}',
        '{"sequence": "x", "hash": "aa", "signature": "00"}',
        '{"sequence": Infinity, "hash": "aa", "signature": "00"}',
        '{"sequence": null, "hash": "aa", "signature": "00"}',
        b"\xff\xfe",
    ],
)
def test_a_file_that_is_no_witness_is_refused_and_kept(
    witness: Witness, content: str | bytes
) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    witness.path.parent.mkdir()
    witness.path.write_bytes(data)

    for ask in (witness.read, lambda: witness.keep(head(9))):
        with pytest.raises(LedgerError, match="cannot be read or written") as caught:
            ask()
        assert "[ledger] witness" in caught.value.advice
    assert witness.path.read_bytes() == data


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    for path in (tmp_path / "file" / "witness.json", tmp_path):
        with pytest.raises(LedgerError, match=r"cannot be read or written .*Nothing was released"):
            Witness(path, site="A").keep(head(1))
