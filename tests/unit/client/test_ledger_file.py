"""Nothing in a ledger's file is changed, removed, inserted or reordered without being found."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import stat
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from medfed.client.ledger_file import FIRST, LedgerFile
from medfed.common.errors import LedgerError
from tests.support.ledgers import KEY, LedgerPlace, approve, patients, pay


@pytest.fixture
def place(tmp_path: Path) -> LedgerPlace:
    """A ledger of six entries: open, approve, reserve, commit, reserve, commit."""
    made = LedgerPlace(tmp_path)
    ledger = made.approved()
    pay(ledger)
    pay(ledger, replace(KEY, round=2), b"second")
    ledger.close()
    return made


def open_file(place: LedgerPlace) -> LedgerFile:
    return LedgerFile(place.path, place.signer, site="A")


def rows(place: LedgerPlace) -> list[tuple[int, str, str, str]]:
    with closing(sqlite3.connect(place.path)) as db:
        return db.execute("SELECT * FROM entry ORDER BY sequence").fetchall()


def put_back(place: LedgerPlace, whole: bytes) -> None:
    for beside in place.folder.glob("ledger.db?*"):
        beside.unlink()
    place.path.write_bytes(whole)


def chained(bodies: list[str]) -> list[tuple[int, str, str]]:
    """Entries as somebody without the key can make them: with hashes that fit."""
    found, before = [], FIRST
    for sequence, body in enumerate(bodies, start=1):
        before = hashlib.sha256(f"{before} {sequence} {body}".encode()).hexdigest()
        found.append((sequence, body, before))
    return found


def rewrite(place: LedgerPlace, bodies: list[str]) -> None:
    """Replace all entries, with fitting hashes and the old signatures."""
    signatures = [row[3] for row in rows(place)]
    place.tamper("DELETE FROM entry")
    with closing(sqlite3.connect(place.path)) as db, db:
        for entry, signature in zip(chained(bodies), signatures, strict=False):
            db.execute("INSERT INTO entry VALUES (?, ?, ?, ?)", (*entry, signature))


# ---- damage --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entry SET body = replace(body, ':', ': ') WHERE sequence = {}",
        "UPDATE entry SET body = x'00' WHERE sequence = {}",
        "UPDATE entry SET body = '' WHERE sequence = {}",
        "UPDATE entry SET hash = upper(hash) || 'a' WHERE sequence = {}",
        "UPDATE entry SET sequence = 100 WHERE sequence = {}",
    ],
)
def test_every_change_of_every_entry_is_found(place: LedgerPlace, change: str) -> None:
    whole = place.path.read_bytes()
    for sequence in range(1, 7):
        place.tamper("DROP INDEX paid_once", change.format(sequence))
        with pytest.raises(LedgerError, match=f"entry {sequence} was changed or removed") as caught:
            open_file(place)
        put_back(place, whole)

    assert "never start with an empty one" in caught.value.advice
    assert len(open_file(place).entries) == 6


@pytest.mark.parametrize("how", ["DELETE FROM entry", "UPDATE entry SET sequence = -1"])
def test_an_entry_that_is_missing_in_between_is_found(place: LedgerPlace, how: str) -> None:
    whole = place.path.read_bytes()
    for sequence in range(1, 6):  # the last one's absence is for the witness to find
        place.tamper(f"{how} WHERE sequence = {sequence}")
        with pytest.raises(LedgerError, match=f"entry {sequence} was changed or removed"):
            open_file(place)
        put_back(place, whole)


def test_entries_in_another_order_are_found(place: LedgerPlace) -> None:
    place.tamper(
        *(f"UPDATE entry SET sequence = {to} WHERE sequence = {at}" for at, to in ((3, 9), (5, 3))),
        "UPDATE entry SET sequence = 5 WHERE sequence = 9",
    )

    with pytest.raises(LedgerError, match="entry 3 was changed or removed"):
        open_file(place)


def test_hashes_made_anew_without_the_key_do_not_help(place: LedgerPlace) -> None:
    bodies = [row[1] for row in rows(place)]
    rewrite(place, [bodies[0], bodies[1].replace('"releases":10', '"releases":99'), *bodies[2:]])

    with pytest.raises(LedgerError, match="entry 6 of the ledger is not signed by") as caught:
        open_file(place)
    assert "nothing is released until they match" in caught.value.advice


@pytest.mark.parametrize("last", ["no JSON", "[]", "null", '{"kind": "commit"}', "9" * 5000])
def test_an_entry_that_is_none_is_refused_and_no_defect(place: LedgerPlace, last: str) -> None:
    place.tamper("DROP INDEX paid_once")
    rewrite(place, [*(row[1] for row in rows(place)[:-1]), last])

    with pytest.raises(LedgerError, match="is not signed by"):
        open_file(place)


@pytest.mark.parametrize("signature", ["''", "'zz'", "'é'", "x'00'", "7", "'00' || signature"])
def test_a_signature_that_is_none_is_refused(place: LedgerPlace, signature: str) -> None:
    place.tamper(f"UPDATE entry SET signature = {signature} WHERE sequence = 6")

    with pytest.raises(LedgerError, match="is not signed by"):
        open_file(place)


def test_an_unsigned_entry_that_appears_while_running_is_refused_every_time(
    place: LedgerPlace,
) -> None:
    # Found here: the second look believed it.
    file = open_file(place)
    body = json.dumps({"kind": "withdraw"})
    entry = chained([*(row[1] for row in rows(place)), body])[-1]
    place.tamper(f"INSERT INTO entry VALUES ({entry[0]}, '{entry[1]}', '{entry[2]}', '00')")

    for _ in range(2):
        with pytest.raises(LedgerError, match="entry 7 of the ledger is not signed"):
            file.refresh()
        with pytest.raises(LedgerError, match="is not signed"), file.transaction():
            raise AssertionError("not reached")
    assert len(file.entries) == 6


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM patient_set",
        "UPDATE patient_set SET members = x'00'",
        "UPDATE patient_set SET members = substr(members, 17)",  # one patient fewer
        "UPDATE patient_set SET sha256 = 'other'",
    ],
)
def test_a_patient_set_that_is_gone_or_altered_is_found_at_opening(
    place: LedgerPlace, change: str
) -> None:
    place.tamper(change)

    with pytest.raises(LedgerError, match="the patient set .* is gone or was altered"):
        place.open()


# ---- append-only ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE entry SET body = '{}'",
        "DELETE FROM entry",
        "UPDATE patient_set SET members = x''",
        "DELETE FROM patient_set",
    ],
)
def test_the_file_itself_refuses_to_change_or_remove(place: LedgerPlace, sql: str) -> None:
    with (
        closing(sqlite3.connect(place.path)) as db,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        db.execute(sql)

    assert len(open_file(place).entries) == 6


def test_each_entry_holds_the_hash_of_the_one_before(place: LedgerPlace) -> None:
    found = rows(place)

    assert [(row[0], row[1], row[2]) for row in found] == chained([row[1] for row in found])
    assert [entry.sequence for entry in open_file(place).entries] == [1, 2, 3, 4, 5, 6]


def test_all_signatures_are_checked_when_asked(place: LedgerPlace) -> None:
    open_file(place).check_all_signatures()
    place.tamper("UPDATE entry SET signature = '00' WHERE sequence = 3")
    file = open_file(place)  # the last signature covers all hashes

    with pytest.raises(LedgerError, match="entry 3 of the ledger is not signed"):
        file.check_all_signatures()


# ---- transactions --------------------------------------------------------------------------------
def test_what_fails_half_way_is_undone_here_and_on_the_disk(place: LedgerPlace) -> None:
    file = open_file(place)

    with pytest.raises(RuntimeError), file.transaction():
        sha256 = file.store_set(b"x" * 16)
        file.append({"kind": "exclude", "patients": sha256})
        raise RuntimeError("half-way")

    assert len(file.entries) == len(rows(place)) == 6
    with pytest.raises(LedgerError, match="patient set"):
        file.read_set(sha256)
    with file.transaction():
        file.append({"kind": "withdraw"})
    assert open_file(place).head == file.head


def test_what_another_process_appended_is_seen_before_the_next_entry(place: LedgerPlace) -> None:
    first, second = open_file(place), open_file(place)
    for file in (first, second, first):
        with file.transaction():
            file.append({"kind": "withdraw"})

    with second.reading():
        assert second.head == first.head
    assert [entry.sequence for entry in second.entries] == list(range(1, 10))


def test_equal_contents_are_kept_once(place: LedgerPlace) -> None:
    file = open_file(place)
    with file.transaction():
        names = {file.store_set(b"x" * 16), file.store_set(b"x" * 16)}
        names |= {file.store_payload(b"update"), file.store_payload(b"update")}

    assert names == {hashlib.sha256(b"x" * 16).hexdigest(), hashlib.sha256(b"update").hexdigest()}
    assert file.read_payload(hashlib.sha256(b"update").hexdigest()) == b"update"


# ---- the file ------------------------------------------------------------------------------------
def test_a_file_that_is_no_ledger_is_refused_and_kept(tmp_path: Path, place: LedgerPlace) -> None:
    path = tmp_path / "other.db"
    path.write_bytes(b"no database, but 100 bytes of something else" * 3)

    with pytest.raises(LedgerError, match=r"other\.db cannot be opened") as caught:
        LedgerFile(path, place.signer, site="A")

    assert "never start with an empty one" in caught.value.advice
    assert path.read_bytes().startswith(b"no database")


def test_a_ledger_of_an_older_medfed_is_refused_and_kept(
    tmp_path: Path, place: LedgerPlace
) -> None:
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE entry (sequence INTEGER PRIMARY KEY, kind TEXT, digest TEXT)")

    with pytest.raises(LedgerError, match="cannot be opened"):
        LedgerFile(path, place.signer, site="A")


def test_a_missing_file_is_refused_and_not_made(place: LedgerPlace) -> None:
    place.path.unlink()

    with pytest.raises(LedgerError, match=r"ledger\.db is missing"):
        place.open()
    assert not place.path.exists()


def test_an_empty_file_is_refused(place: LedgerPlace) -> None:
    place.path.write_bytes(b"")

    with pytest.raises(LedgerError, match="cannot be opened"):
        place.open()


def test_a_ledger_that_is_there_is_never_replaced(place: LedgerPlace) -> None:
    with pytest.raises(LedgerError, match="cannot be made") as caught:
        LedgerFile.create(place.path, place.signer, {"kind": "open"}, site="A")

    assert "never replaced" in caught.value.advice
    assert len(rows(place)) == 6


def test_only_the_site_may_read_it(place: LedgerPlace) -> None:
    ledger = place.open()
    approve(ledger, "e" * 64, {"train": patients("q")})

    files = sorted(place.folder.glob("ledger.db*"))
    assert len(files) == 3  # SQLite's log beside it holds the same entries
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_a_file_that_others_may_read_is_closed_to_them(place: LedgerPlace) -> None:
    place.path.chmod(0o644)
    open_file(place)

    assert stat.S_IMODE(place.path.stat().st_mode) == 0o600


def test_in_memory_nothing_is_signed() -> None:
    file = LedgerFile(None, None, site="A")
    with file.transaction():
        file.append({"kind": "withdraw"})

    assert file.head.sequence == 1
    assert file.head.signature == ""
