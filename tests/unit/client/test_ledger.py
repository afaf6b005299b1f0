"""The ledger: paid before it leaves, paid once, never beyond the schedule, whatever crashes."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from medfed.client.ledger import Ledger, Receipt, RoundKey
from medfed.client.ledger_file import LedgerFile
from medfed.common.errors import ApprovalError, LedgerError, PrivacyError
from medfed.common.privacy.accounting import composed_epsilon
from medfed.common.privacy.terms import Term, Terms
from medfed.common.trust.ledger_head import Head
from tests.support.ledgers import (
    COST,
    KEY,
    PAYLOAD,
    TERMS,
    FailingConnection,
    LedgerPlace,
    approve,
    crash,
    pay,
)

ROOT = Path(__file__).parents[3]
OTHER_BASE = replace(KEY, base="c" * 64)
ONE = composed_epsilon([COST], 1e-5)


@pytest.fixture
def place(tmp_path: Path) -> LedgerPlace:
    return LedgerPlace(tmp_path)


@pytest.fixture
def ledger(place: LedgerPlace) -> Iterator[Ledger]:
    opened = place.approved()
    yield opened
    opened.close()


def rounds(numbers: range) -> list[RoundKey]:
    return [replace(KEY, round=number) for number in numbers]


# ---- paid once, sent as often as asked -----------------------------------------------------------
def test_what_was_paid_for_is_given_again_and_costs_nothing_more(
    ledger: Ledger, place: LedgerPlace
) -> None:
    receipt = pay(ledger)
    spent = ledger.epsilon(1e-5)

    for again in (ledger, place.open()):
        assert again.paid(KEY) == (PAYLOAD, receipt)
        assert again.epsilon(1e-5) == spent == ONE
        assert again.rounds_paid(KEY.digest) == 1
    assert receipt == Receipt(ledger.head, hashlib.sha256(PAYLOAD).hexdigest())
    assert place.kinds() == ["open", "approve", "reserve", "commit"]


def test_nothing_is_known_of_a_round_that_was_not_paid_for(ledger: Ledger) -> None:
    pay(ledger)

    for other in (
        replace(KEY, digest="e" * 64),
        replace(KEY, run="run-2"),
        replace(KEY, round=2),
        replace(KEY, purpose="validation"),
    ):
        assert ledger.paid(other) is None


def test_a_second_training_of_a_paid_round_is_refused(ledger: Ledger, place: LedgerPlace) -> None:
    pay(ledger)

    with pytest.raises(LedgerError, match="round 1 of run 'run-1' is paid for; another"):
        ledger.reserve(KEY)
    with pytest.raises(LedgerError, match="Nothing was released"):
        ledger.commit(KEY, b"other bytes")
    assert place.kinds() == ["open", "approve", "reserve", "commit"]


def test_a_paid_round_from_another_global_model_is_refused(
    ledger: Ledger, place: LedgerPlace
) -> None:
    pay(ledger)

    for ask in (lambda: ledger.paid(OTHER_BASE), lambda: ledger.reserve(OTHER_BASE)):
        with pytest.raises(LedgerError, match="from another global model"):
            ask()
    with pytest.raises(LedgerError, match="not reserved like this"):
        ledger.commit(OTHER_BASE, b"x")
    assert len(place.kinds()) == 4


def test_bytes_leave_only_after_they_were_reserved(ledger: Ledger, place: LedgerPlace) -> None:
    with pytest.raises(LedgerError, match="was not reserved"):
        ledger.commit(KEY, PAYLOAD)
    ledger.reserve(KEY)
    for wrong in (
        OTHER_BASE,
        replace(KEY, round=2),
        replace(KEY, run="run-2"),
        replace(KEY, purpose="test"),
    ):
        with pytest.raises(LedgerError, match="was not reserved"):
            ledger.commit(wrong, PAYLOAD)

    assert place.kinds() == ["open", "approve", "reserve"]


def test_a_reservation_tells_what_the_approval_says_that_a_release_costs(
    place: LedgerPlace,
) -> None:
    assert place.approved().reserve(KEY) == COST

    ledger = place.open()
    approve(ledger, "e" * 64, "xyz", terms={"train": Term(None, 1)})
    assert ledger.reserve(replace(KEY, digest="e" * 64)) is None


# ---- no more than was approved -------------------------------------------------------------------
def test_what_nobody_approved_is_refused(ledger: Ledger, place: LedgerPlace) -> None:
    with pytest.raises(ApprovalError, match="digest eeeeeeee is not approved here") as caught:
        ledger.reserve(replace(KEY, digest="e" * 64))
    with pytest.raises(PrivacyError, match="this would be one more"):
        ledger.reserve(replace(KEY, purpose="test"))  # the terms have training only

    assert "medfed site approve" in caught.value.advice
    assert place.kinds() == ["open", "approve"]


def test_one_approval_buys_one_schedule_whatever_the_runs_are_called(place: LedgerPlace) -> None:
    ledger = place.approved(terms={"train": Term(COST, 2)})
    for number in (1, 2):
        pay(ledger, replace(KEY, run=f"run-{number}"))

    for key in (replace(KEY, run="run-3"), replace(KEY, round=2)):
        with pytest.raises(PrivacyError, match="is paid for; this would be one more"):
            ledger.reserve(key)
    assert len(place.kinds()) == 6
    assert ledger.epsilon(1e-5) == composed_epsilon([COST, COST], 1e-5)


def test_rounds_reserved_at_once_do_not_pass_the_schedule_together(place: LedgerPlace) -> None:
    # Found here: the schedule was asked about at the reservation only.
    ledger = place.approved(terms={"train": Term(COST, 2)})
    keys = [replace(KEY, run=f"run-{number}") for number in range(3)]
    for key in keys:
        ledger.reserve(key)

    for key in keys[:2]:
        ledger.commit(key, PAYLOAD)
    with pytest.raises(PrivacyError, match="this would be one more"):
        ledger.commit(keys[2], PAYLOAD)

    assert ledger.paid(keys[2]) is None
    assert ledger.rounds_paid(KEY.digest) == 2


# ---- what may leave ------------------------------------------------------------------------------
def test_paid_bytes_are_cleared_with_the_head_as_it_is_now(ledger: Ledger) -> None:
    first = pay(ledger)
    second = pay(ledger, replace(KEY, round=2))

    assert ledger.cleared(first) == ledger.cleared(second) == ledger.head == second.entry


def test_a_receipt_that_is_not_of_this_ledger_clears_nothing(ledger: Ledger) -> None:
    entry, sha256 = pay(ledger).entry, hashlib.sha256(PAYLOAD).hexdigest()
    reserve = ledger._file.entries[2].head  # an entry of the ledger that paid for nothing

    for wrong in (
        Receipt(reserve, sha256),
        Receipt(entry, "0" * 64),
        *(Receipt(entry._replace(sequence=number), sha256) for number in (-1, 0, 3, 5, 10**9)),
        Receipt(entry._replace(hash="0" * 64), sha256),
        Receipt(Head(4, "0" * 64, ""), sha256),
    ):
        assert ledger.cleared(wrong) is None
    assert ledger.cleared(Receipt(entry, sha256)) == entry


# ---- crashes -------------------------------------------------------------------------------------
def test_a_crash_after_the_reservation_costs_nothing_and_the_round_starts_anew(
    ledger: Ledger, place: LedgerPlace
) -> None:
    crash(place, "ledger.reserve(KEY)")

    assert ledger.paid(KEY) is None
    assert ledger.epsilon(1e-5) == 0.0
    receipt = pay(ledger)

    assert ledger.paid(KEY) == (PAYLOAD, receipt)
    assert ledger.epsilon(1e-5) == ONE
    assert place.kinds()[2:] == ["reserve", "void", "reserve", "commit"]


def test_a_crash_before_the_transaction_ends_leaves_no_payment(
    ledger: Ledger, place: LedgerPlace
) -> None:
    crash(
        place,
        "ledger.reserve(KEY)\n"
        "append = ledger._file.append\n"
        "ledger._file.append = lambda *a, **k: (append(*a, **k), die())\n"
        "ledger.commit(KEY, b'noised')",
    )

    assert place.open().paid(KEY) is None
    assert place.kinds()[2:] == ["reserve"]


@pytest.mark.parametrize("before", ["", "ledger._guard.keep = die\n"])
def test_a_crash_right_after_the_transaction_keeps_bytes_and_payment(
    ledger: Ledger, place: LedgerPlace, before: str
) -> None:
    crash(place, f"ledger.reserve(KEY)\n{before}ledger.commit(KEY, b'noised')")

    again = place.open()
    paid = again.paid(KEY)

    assert paid is not None
    assert paid[0] == b"noised"
    assert again.cleared(paid[1]) == again.head
    assert again.epsilon(1e-5) == ONE


def test_a_restart_with_another_global_model_voids_the_first(
    ledger: Ledger, place: LedgerPlace
) -> None:
    ledger.reserve(KEY)
    ledger.reserve(OTHER_BASE)

    with pytest.raises(LedgerError, match="was not reserved"):
        ledger.commit(KEY, PAYLOAD)
    ledger.commit(OTHER_BASE, PAYLOAD)

    assert ledger.epsilon(1e-5) == ONE
    assert place.kinds()[2:] == ["reserve", "void", "reserve", "commit"]
    assert [body["base"][0] for body in place.bodies()[2:]] == ["b", "b", "c", "c"]


def test_three_attempts_that_come_to_nothing_withdraw_the_site(
    ledger: Ledger, place: LedgerPlace
) -> None:
    for _ in range(3):
        ledger.reserve(KEY)

    with pytest.raises(ApprovalError, match="came to nothing 3 times; the site has withdrawn"):
        ledger.reserve(KEY)

    assert place.kinds()[2:] == ["reserve", "void"] * 3 + ["withdraw"]
    with pytest.raises(ApprovalError, match="was withdrawn"):
        place.open().reserve(replace(KEY, round=2))
    assert ledger.epsilon(1e-5) == 0.0


def test_attempts_at_several_rounds_do_not_add_up(ledger: Ledger) -> None:
    for key in rounds(range(1, 5)):
        for _ in range(3):
            ledger.reserve(key)
        ledger.commit(key, PAYLOAD)

    assert ledger.rounds_paid(KEY.digest) == 4


def test_a_site_that_withdrew_can_be_approved_anew_and_train_the_same_round(
    ledger: Ledger,
) -> None:
    # Found here: the old attempts were counted on, and withdrew the new approval at once.
    for _ in range(3):
        ledger.reserve(KEY)
    with pytest.raises(ApprovalError):
        ledger.reserve(KEY)
    approve(ledger, KEY.digest, "xyz")

    for _ in range(3):
        ledger.reserve(KEY)
    ledger.commit(KEY, PAYLOAD)

    assert ledger.paid(KEY) is not None


@pytest.mark.parametrize("statement", ["COMMIT", "INSERT INTO entry", "INSERT OR IGNORE", "BEGIN"])
def test_a_statement_that_fails_leaves_nothing_that_a_later_read_believes(
    ledger: Ledger, place: LedgerPlace, statement: str
) -> None:
    ledger.reserve(KEY)
    file: LedgerFile = ledger._file
    whole = file._db
    file._db = FailingConnection(whole, statement)  # type: ignore[assignment]  # a double

    with pytest.raises(LedgerError, match="disk is full") as caught:
        ledger.commit(KEY, PAYLOAD)
    file._db = whole

    assert "check the disk" in caught.value.advice
    assert ledger.paid(KEY) is None
    assert ledger.epsilon(1e-5) == 0.0
    assert place.kinds()[2:] == ["reserve"]
    ledger.commit(KEY, PAYLOAD)
    assert ledger.paid(KEY) is not None


def test_a_disk_that_is_full_when_a_study_is_approved_leaves_no_approval(
    place: LedgerPlace,
) -> None:
    ledger = place.open()
    whole = ledger._file._db
    ledger._file._db = FailingConnection(whole, "COMMIT")  # type: ignore[assignment]  # a double

    with pytest.raises(LedgerError, match="disk is full"):
        approve(ledger, KEY.digest, "xyz")
    ledger._file._db = whole

    assert ledger.approval(KEY.digest) is None
    assert ledger.exposures() == []
    assert place.kinds() == ["open"]


# ---- two at once ---------------------------------------------------------------------------------
@pytest.mark.parametrize("quicker", [0, 1])
def test_of_two_processes_that_train_the_same_round_only_one_releases(
    place: LedgerPlace, quicker: int
) -> None:
    both = [place.approved(), place.open()]
    for ledger in both:
        ledger.reserve(KEY)  # the second voids the first: it cannot know that it is alive

    both[quicker].commit(KEY, b"quicker")
    with pytest.raises(LedgerError, match="paid for by now"):
        both[1 - quicker].commit(KEY, b"slower")

    for ledger in both:
        paid = ledger.paid(KEY)
        assert paid is not None
        assert paid[0] == b"quicker"
        assert ledger.epsilon(1e-5) == ONE


def test_the_file_itself_refuses_a_second_payment_of_a_round(
    ledger: Ledger, place: LedgerPlace
) -> None:
    pay(ledger)

    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        place.tamper(
            "INSERT INTO entry (body, hash, signature) "
            "SELECT replace(body, 'bbbb', 'cccc'), hash, signature FROM entry WHERE sequence = 4"
        )


def in_threads(*work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_many_threads_pay_every_round_once(ledger: Ledger) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        for key in rounds(range(1, 11)):
            try:
                pay(ledger, key)
            except (LedgerError, ApprovalError) as error:
                errors.append(error)

    in_threads(work, work, work)

    known = ("paid for", "reserved", "withdrawn", "withdrew")  # too many voids withdraw the site
    assert all(any(word in str(error) for word in known) for error in errors)
    paid = [ledger.paid(key) for key in rounds(range(1, 11))]
    commits = [e for e in ledger.audit()[1] if e["kind"] == "commit"]
    assert len(commits) == sum(entry is not None for entry in paid) >= 1
    assert ledger.epsilon(1e-5) == composed_epsilon([COST] * len(commits), 1e-5)


def test_two_processes_wait_for_each_other_and_never_fail_because_the_other_writes(
    place: LedgerPlace,
) -> None:
    terms: Terms = {"train": Term(COST, 20)}
    ledgers = [place.approved(terms=terms), place.open()]  # a connection each, as processes have
    both_ready = threading.Barrier(2)
    errors: list[BaseException] = []

    def work(ledger: Ledger, run: str) -> Callable[[], None]:
        def pay_ten() -> None:
            for number in range(1, 11):
                both_ready.wait(timeout=60)
                try:
                    pay(ledger, replace(KEY, run=run, round=number))
                except LedgerError as error:
                    errors.append(error)

        return pay_ten

    in_threads(work(ledgers[0], "run-0"), work(ledgers[1], "run-1"))

    assert errors == []
    assert ledgers[0].rounds_paid(KEY.digest) == 20
    assert place.open().head == ledgers[1].head


def test_two_that_approve_at_once_approve_once(place: LedgerPlace) -> None:
    # Found here: a second approval doubled the schedule, and one withdrawal left the other.
    first, second = place.open(), place.open()
    begin = second._file.transaction

    def begin_late() -> AbstractContextManager[None]:
        approve(first, KEY.digest, "xyz")
        return begin()

    second._file.transaction = begin_late  # type: ignore[method-assign, assignment]  # the moment before
    approve(second, KEY.digest, "xyz")

    assert place.kinds() == ["open", "approve"]


# ---- released bytes ------------------------------------------------------------------------------
def test_the_last_bytes_of_a_study_are_kept_and_older_ones_dropped(
    ledger: Ledger, place: LedgerPlace
) -> None:
    keys = rounds(range(1, 7))
    for key in keys:
        pay(ledger, key, b"update %d" % key.round)

    for key in keys[3:]:  # the last three
        paid = ledger.paid(key)
        assert paid is not None
        assert paid[0] == b"update %d" % key.round
    for key in keys[:3]:
        with pytest.raises(LedgerError, match="is gone or was altered") as caught:
            ledger.paid(key)
        assert "long past" in caught.value.advice
        with pytest.raises(LedgerError):
            ledger.reserve(key)
    assert ledger.epsilon(1e-5) == composed_epsilon([COST] * 6, 1e-5)
    assert place.open().head == ledger.head  # a dropped payload is no damage


def test_each_purpose_and_study_keeps_bytes_of_its_own(place: LedgerPlace) -> None:
    ledger = place.approved(terms={**TERMS, "validation": Term(COST, 10)})
    approve(ledger, "e" * 64, "xyz")
    pay(ledger, KEY, b"update")
    pay(ledger, replace(KEY, digest="e" * 64), b"other study")
    for number in range(1, 6):
        key = replace(KEY, round=number, purpose="validation")
        pay(ledger, key, b"histogram %d" % number)

    assert ledger.paid(KEY) is not None
    assert ledger.paid(replace(KEY, digest="e" * 64)) is not None


def test_equal_bytes_of_two_rounds_are_not_dropped_with_the_older(ledger: Ledger) -> None:
    for key in rounds(range(1, 6)):
        pay(ledger, key, b"the same")

    assert ledger.paid(replace(KEY, round=5)) is not None


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE payload SET bytes = x'00'",
        "UPDATE payload SET bytes = 'text'",
        "DELETE FROM payload",
    ],
)
def test_bytes_that_were_altered_on_disk_are_found_and_not_sent(
    ledger: Ledger, place: LedgerPlace, change: str
) -> None:
    pay(ledger)
    place.tamper(change)

    for again in (ledger, place.open()):
        with pytest.raises(LedgerError, match="of round 1 is gone or was altered"):
            again.paid(KEY)
        with pytest.raises(LedgerError, match="of round 1 is gone or was altered"):
            again.reserve(KEY)


# ---- what it tells -------------------------------------------------------------------------------
def test_a_name_from_the_server_is_cut_and_escaped_in_messages(ledger: Ledger) -> None:
    key = replace(KEY, run="\n\x1b" + "x" * 10_000)

    with pytest.raises(LedgerError) as caught:
        ledger.commit(key, PAYLOAD)

    message = caught.value.args[0]
    assert len(message) < 300
    assert "\n" not in message
    assert "\x1b" not in message


def test_in_memory_it_keeps_the_same_rules_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = Ledger.in_memory("A")
    assert ledger.exclude([]) == 0  # before its first entry
    ledger.approve(KEY.digest, "study", TERMS, None)

    receipt = pay(ledger)

    assert ledger.paid(KEY) == (PAYLOAD, receipt)
    assert ledger.cleared(receipt) == receipt.entry
    assert ledger.eligible(KEY.digest, "train") is None  # everyone, who have no names
    assert ledger.epsilon(1e-5) == ONE
    with pytest.raises(LedgerError):
        ledger.reserve(KEY)
    assert list(tmp_path.iterdir()) == []
