"""A ledger that is older than, or other than, what was released is refused, with the way out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from medfed.client.ledger import Ledger
from medfed.client.witness import Witness
from medfed.common.errors import LedgerError, LedgerMismatchError, TrustError
from medfed.common.trust.keys import new_node_key
from medfed.common.trust.ledger_head import HeadSigner, check_head
from tests.support.ledgers import KEY, PAYLOAD, LedgerPlace, approve, pay

SECOND, THIRD = replace(KEY, round=2), replace(KEY, round=3)


@pytest.fixture
def place(tmp_path: Path) -> LedgerPlace:
    return LedgerPlace(tmp_path)


def backup(place: LedgerPlace) -> Path:
    """A copy of the ledger's file, which nobody has open."""
    return Path(shutil.copy(place.path, place.folder.parent / "backup.db"))


def restore(place: LedgerPlace, copy: Path) -> None:
    for beside in place.folder.glob("ledger.db*"):
        beside.unlink()
    shutil.copy(copy, place.path)


def run(place: LedgerPlace, *keys: object) -> None:
    """Open the ledger, pay rounds, let their bytes out, and close it."""
    ledger = place.open()
    for key in keys:
        assert ledger.cleared(pay(ledger, key)) is not None  # type: ignore[arg-type]  # round keys
    ledger.close()


# ---- put back ------------------------------------------------------------------------------------
def test_a_ledger_from_a_backup_is_refused_with_the_way_out(place: LedgerPlace) -> None:
    place.approved().close()
    run(place, KEY)
    copy = backup(place)
    run(place, SECOND)
    newest = Path(shutil.copy(place.path, place.folder.parent / "newest.db"))
    restore(place, copy)

    for _ in range(2):
        with pytest.raises(LedgerMismatchError, match="ends at entry 4; .* entry 6") as caught:
            place.open()
    assert "restore the newest ledger.db" in caught.value.advice
    assert "Nothing was released" in str(caught.value)

    restore(place, newest)  # the way out
    assert place.open().rounds_paid(KEY.digest) == 2


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_ledger_that_was_cut_short_is_refused(place: LedgerPlace, lost: int) -> None:
    place.approved().close()
    run(place, KEY)
    place.tamper(f"DELETE FROM entry WHERE sequence > {4 - lost}")

    with pytest.raises(LedgerMismatchError, match=f"ends at entry {4 - lost}"):
        place.open()


def test_a_reservation_that_a_power_cut_took_is_no_rollback(place: LedgerPlace) -> None:
    ledger = place.approved()
    ledger.reserve(KEY)
    ledger.close()
    place.tamper("DELETE FROM entry WHERE json_extract(body, '$.kind') = 'reserve'")

    pay(place.open())


def test_a_copy_that_went_on_elsewhere_and_came_back_is_refused(place: LedgerPlace) -> None:
    place.approved().close()
    copy, witness = backup(place), place.folder.parent / "witness-of-the-copy.json"
    shutil.copy(place.witness, witness)
    elsewhere = place.open(path=copy, witness=witness)
    for key in (KEY, SECOND):
        pay(elsewhere, replace(key, run="run-2"))
    elsewhere.close()
    run(place, KEY)
    restore(place, copy)

    with pytest.raises(LedgerMismatchError, match="has another entry 4"):
        place.open()


def test_a_new_ledger_in_place_of_the_old_one_is_refused(place: LedgerPlace) -> None:
    place.approved().close()
    place.path.unlink()
    Ledger.create(place.path, place.signer, site="A", pseudonym_check="c" * 64)

    with pytest.raises(LedgerMismatchError, match="ends at entry 1"):
        place.open()


# ---- the server remembers, too -------------------------------------------------------------------
def test_a_machine_that_was_put_back_as_a_whole_is_refused_by_what_the_server_knows(
    place: LedgerPlace,
) -> None:
    place.approved().close()
    copy, witness = backup(place), place.witness.read_bytes()
    run(place, KEY)
    known = place.open().head
    restore(place, copy)
    place.witness.write_bytes(witness)

    ledger = place.open()  # nothing on this machine can tell
    with pytest.raises(LedgerMismatchError, match="ends at entry 2; .* entry 4"):
        ledger.check_known(known)
    with pytest.raises(LedgerMismatchError):  # from now on without the server
        place.open()


def test_another_line_that_the_server_knows_is_not_forgotten_though_this_one_is_longer(
    place: LedgerPlace,
) -> None:
    # Found here: only a head higher than the witness's was remembered.
    place.approved().close()
    copy, witness = backup(place), place.folder.parent / "witness-of-the-copy.json"
    shutil.copy(place.witness, witness)
    elsewhere = place.open(path=copy, witness=witness)
    known = pay(elsewhere, replace(KEY, run="run-2")).entry
    ledger = place.open()
    for key in (KEY, SECOND):
        pay(ledger, key)

    with pytest.raises(LedgerMismatchError, match="has another entry 4"):
        ledger.check_known(known)

    receipt = ledger.paid(SECOND)
    assert receipt is not None
    with pytest.raises(LedgerMismatchError):
        ledger.cleared(receipt[1])
    with pytest.raises(LedgerMismatchError):
        place.open()


def test_every_head_that_this_ledger_had_is_known_as_its_own(place: LedgerPlace) -> None:
    ledger = place.approved()
    heads = [ledger.head]
    for key in (KEY, SECOND):
        pay(ledger, key)
        heads.append(ledger.head)

    for head in heads:
        ledger.check_known(head)
    assert place.open().head == heads[-1]


def test_a_head_that_the_site_never_signed_changes_nothing(place: LedgerPlace) -> None:
    ledger = place.approved()
    head = ledger.head

    for forged in (
        head._replace(sequence=99),
        head._replace(hash="0" * 64),
        head._replace(signature=""),
        head._replace(sequence=0),
    ):
        with pytest.raises(TrustError, match="not signed by"):
            ledger.check_known(forged)
    pay(ledger)
    assert place.open().rounds_paid(KEY.digest) == 1


def test_the_head_that_leaves_is_signed_by_the_site_and_the_same_for_equal_bytes(
    place: LedgerPlace,
) -> None:
    ledger = place.approved()
    head = ledger.cleared(pay(ledger))

    assert head is not None
    check_head(head, place.signer.public_key, who="site A")
    assert head.sequence == len(place.kinds()) == 4


# ---- copies --------------------------------------------------------------------------------------
def test_of_two_running_copies_of_a_site_only_one_releases(place: LedgerPlace) -> None:
    # Found here: the witness was asked only when a ledger was opened.
    place.approved().close()
    first, second = place.open(), place.open(path=backup(place))

    other = replace(KEY, run="run-2")
    second.reserve(other)

    receipt = pay(first)
    with pytest.raises(LedgerMismatchError, match="runs in two places"):
        second.commit(other, PAYLOAD)
    with pytest.raises(LedgerMismatchError, match="runs in two places"):
        second.reserve(SECOND)
    mine = second.paid(other)

    assert first.cleared(receipt) is not None
    assert mine is not None  # written before the witness is asked; it stays here
    with pytest.raises(LedgerMismatchError):
        second.cleared(mine[1])


def test_a_copy_without_the_witness_is_refused_with_the_way_out(place: LedgerPlace) -> None:
    place.approved().close()
    copy = backup(place)

    with pytest.raises(
        LedgerMismatchError, match="2 entries, and the witness .* missing"
    ) as caught:
        place.open(path=copy, witness=place.folder / "none.json")
    assert "medfed site witness" in caught.value.advice


def test_a_witness_that_disappears_stops_releases(place: LedgerPlace) -> None:
    ledger = place.approved()
    receipt = pay(ledger)
    place.witness.unlink()

    with pytest.raises(LedgerMismatchError, match="missing"):
        ledger.cleared(receipt)


def test_a_ledger_without_its_witness_is_refused_however_new_it_is(place: LedgerPlace) -> None:
    # A backup of the day of `site init`, put back on another machine, has one entry.
    assert place.open().head.sequence == 1
    place.witness.unlink()

    with pytest.raises(LedgerMismatchError, match="the witness .* is missing") as caught:
        place.open()

    assert "site witness --lost" in caught.value.advice


def test_the_witness_of_another_site_is_refused_by_name(place: LedgerPlace, tmp_path: Path) -> None:
    place.approved().close()
    other = LedgerPlace(tmp_path / "other")
    other.open().close()

    with pytest.raises(LedgerMismatchError, match=r"elsewhere/witness\.json remembers another"):
        place.open(witness=other.witness)
    altered = json.loads(place.witness.read_text())
    place.witness.write_text(json.dumps({**altered, "sequence": 1}))
    with pytest.raises(LedgerMismatchError, match="or was altered"):
        place.open()


# ---- keys ----------------------------------------------------------------------------------------
def test_a_replaced_node_key_is_refused(place: LedgerPlace) -> None:
    place.approved().close()
    place.key.unlink()
    new_node_key(place.key.parent)

    with pytest.raises(LedgerError, match="entry 2 .* not signed by keys/node_key") as caught:
        place.open()
    assert "restore keys/node_key" in caught.value.advice


def test_a_replaced_pseudonym_key_is_refused(place: LedgerPlace) -> None:
    place.approved().close()

    with pytest.raises(LedgerError, match=r"the pseudonym key is not the key") as caught:
        place.open(pseudonym_check="0" * 64)
    assert "restore the pseudonym key" in caught.value.advice


# ---- a witness that cannot be written ------------------------------------------------------------
def test_nothing_leaves_while_the_witness_cannot_be_written(place: LedgerPlace) -> None:
    ledger = place.approved()
    before = place.witness.read_bytes()
    ledger.reserve(KEY)
    place.witness.unlink()
    place.witness.mkdir()  # as good as a broken disk, also for an administrator

    with pytest.raises(LedgerError, match="witness .* cannot be read or written"):
        ledger.commit(KEY, PAYLOAD)
    with pytest.raises(LedgerError, match="witness .* cannot be read or written"):
        ledger.reserve(SECOND)
    paid = ledger.paid(KEY)
    assert paid is not None
    with pytest.raises(LedgerError, match="cannot be read or written"):
        ledger.cleared(paid[1])

    place.witness.rmdir()
    place.witness.write_bytes(before)
    assert ledger.cleared(paid[1]) == ledger.head  # paid before, sent now
    assert ledger.paid(KEY) == (PAYLOAD, paid[1])


# ---- audit ---------------------------------------------------------------------------------------
def test_an_audit_gives_every_entry_and_finds_a_signature_that_opening_does_not_need(
    place: LedgerPlace,
) -> None:
    ledger = place.approved()
    pay(ledger)
    head, entries = ledger.audit()
    assert head == ledger.head
    assert [entry["kind"] for entry in entries] == ["open", "approve", "reserve", "commit"]

    ledger.close()
    place.tamper("UPDATE entry SET signature = '00' WHERE sequence = 2")
    with pytest.raises(LedgerError, match="entry 2 of the ledger is not signed"):
        place.open().audit()


def test_what_is_approved_is_witnessed_before_it_is_told(place: LedgerPlace) -> None:
    ledger = place.open()
    for step in (
        lambda: approve(ledger, KEY.digest, "xyz"),
        lambda: ledger.exclude([b"x" * 16]),
        lambda: pay(ledger),
        lambda: ledger.withdraw(KEY.digest, "over"),
    ):
        step()
        assert Witness(place.witness, site="A").read() == (ledger.head,)


def test_a_signer_is_needed_that_signs_as_the_node_does(place: LedgerPlace) -> None:
    signed = HeadSigner(place.key).sign(7, "a" * 64)

    check_head(signed, place.signer.public_key, who="site A")
