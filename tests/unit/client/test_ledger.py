"""The ledger: paid before it leaves, paid once, never above the ceiling, whatever crashes when."""

from __future__ import annotations

import hashlib
import math
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant

from medfed.client import ledger as module
from medfed.client.ledger import Ledger, Receipt, RoundKey
from medfed.common.errors import BudgetExceededError, LedgerError
from medfed.common.privacy.accounting import Spend, composed_epsilon
from medfed.common.privacy.mechanism import Mechanism

KEY = RoundKey(digest="d" * 64, run="run-1", round=1, base="b" * 64)
OTHER_BASE = replace(KEY, base="c" * 64)
M = Mechanism(
    sampling_rate=0.1,
    lot=10,
    clip_norm=1.0,
    noise_multiplier=1.0,
    steps_per_round=5,
    rounds=10,
    delta=1e-5,
    scans_per_patient=1,
)
COST = Spend(1.0, 0.1, 5)
ONE = composed_epsilon([COST], 1e-5)
TWO = composed_epsilon([COST, COST], 1e-5)
PAYLOAD = b"noised weights"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = Ledger(path, site="A")
    yield opened
    opened.close()


def reopened(path: Path, **limits: float) -> Ledger:
    return Ledger(path, site="A", **limits)


def entries(path: Path) -> list[tuple[str, int]]:
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT kind, round FROM entry ORDER BY sequence").fetchall()
    db.close()
    return rows


def pay(ledger: Ledger, key: RoundKey = KEY, payload: bytes = PAYLOAD) -> Receipt:
    ledger.reserve(key, M)
    return ledger.commit(key, payload, M)


# ---- paid once, sent as often as asked -----------------------------------------------------------
def test_what_was_paid_for_is_given_again_and_costs_nothing_more(
    ledger: Ledger, path: Path
) -> None:
    receipt = pay(ledger)
    spent = ledger.epsilon(1e-5)

    for again in (ledger, reopened(path)):
        assert again.paid(KEY) == (PAYLOAD, receipt)
        assert again.epsilon(1e-5) == spent == ONE
        assert again.rounds_paid(KEY.digest) == 1
    assert receipt == Receipt(2, hashlib.sha256(PAYLOAD).hexdigest())
    assert entries(path) == [("reserve", 1), ("commit", 1)]


def test_nothing_is_known_of_a_round_that_was_not_paid_for(ledger: Ledger) -> None:
    pay(ledger)

    for other in (
        replace(KEY, digest="e" * 64),
        replace(KEY, run="run-2"),
        replace(KEY, round=2),
    ):
        assert ledger.paid(other) is None


def test_a_second_training_of_a_paid_round_is_refused(ledger: Ledger, path: Path) -> None:
    pay(ledger)

    with pytest.raises(LedgerError, match="round 1 of run 'run-1' is paid for; another"):
        ledger.reserve(KEY, M)
    with pytest.raises(LedgerError, match="Nothing was released"):
        ledger.commit(KEY, b"other bytes", M)
    assert entries(path) == [("reserve", 1), ("commit", 1)]


def test_a_paid_round_from_another_global_model_is_refused(ledger: Ledger, path: Path) -> None:
    pay(ledger)

    for ask in (
        lambda: ledger.paid(OTHER_BASE),
        lambda: ledger.reserve(OTHER_BASE, M),
        lambda: ledger.commit(OTHER_BASE, b"x", M),
    ):
        with pytest.raises(LedgerError, match="from another global model"):
            ask()
    assert len(entries(path)) == 2


def test_bytes_leave_only_after_they_were_reserved(ledger: Ledger, path: Path) -> None:
    with pytest.raises(LedgerError, match="was not reserved"):
        ledger.commit(KEY, PAYLOAD, M)
    ledger.reserve(KEY, M)
    for wrong in (OTHER_BASE, replace(KEY, round=2), replace(KEY, run="run-2")):
        with pytest.raises(LedgerError, match="was not reserved"):
            ledger.commit(wrong, PAYLOAD, M)

    assert entries(path) == [("reserve", 1)]


@pytest.mark.parametrize(
    "other",
    [
        replace(M, noise_multiplier=2.0),
        replace(M, sampling_rate=0.05),
        replace(M, steps_per_round=1),
        None,
    ],
)
def test_what_was_done_must_be_what_was_reserved(ledger: Ledger, other: Mechanism | None) -> None:
    ledger.reserve(KEY, M)

    with pytest.raises(LedgerError, match="not reserved like this"):
        ledger.commit(KEY, PAYLOAD, other)
    assert ledger.paid(KEY) is None


# ---- crashes -------------------------------------------------------------------------------------
def crash(path: Path, code: str) -> None:
    """Run code with a ledger in a process of its own that kills itself."""
    program = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from medfed.client import ledger as module\n"
        "from medfed.client.ledger import Ledger, RoundKey\n"
        "from medfed.common.privacy.mechanism import Mechanism\n"
        f"KEY = {KEY!r}\nM = {M!r}\n"
        f"ledger = Ledger(Path({str(path)!r}), site='A')\n"
        "def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{code}\ndie()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_a_crash_after_the_reservation_costs_nothing_and_the_round_starts_anew(path: Path) -> None:
    crash(path, "ledger.reserve(KEY, M)")
    ledger = reopened(path)

    assert ledger.paid(KEY) is None
    assert ledger.epsilon(1e-5) == 0.0
    receipt = pay(ledger)

    assert ledger.paid(KEY) == (PAYLOAD, receipt)
    assert ledger.epsilon(1e-5) == ONE
    assert entries(path) == [("reserve", 1), ("void", 1), ("reserve", 1), ("commit", 1)]


def test_a_crash_before_the_transaction_ends_leaves_no_payment(path: Path) -> None:
    crash(
        path,
        "ledger.reserve(KEY, M)\n"
        "append = ledger._append\n"
        "ledger._append = lambda *a, **k: (append(*a, **k), die())\n"
        "ledger.commit(KEY, b'noised', M)",
    )

    assert reopened(path).paid(KEY) is None
    assert entries(path) == [("reserve", 1)]


def test_a_crash_right_after_the_transaction_keeps_bytes_and_payment(path: Path) -> None:
    crash(path, "ledger.reserve(KEY, M); ledger.commit(KEY, b'noised', M)")

    paid = reopened(path).paid(KEY)

    assert paid is not None
    assert paid[0] == b"noised"
    assert reopened(path).epsilon(1e-5) == ONE


def test_a_crash_and_a_restart_with_another_global_model_voids_the_first(path: Path) -> None:
    ledger = reopened(path)
    ledger.reserve(KEY, M)
    ledger.reserve(OTHER_BASE, M)

    with pytest.raises(LedgerError, match="was not reserved"):
        ledger.commit(KEY, PAYLOAD, M)
    ledger.commit(OTHER_BASE, PAYLOAD, M)

    assert ledger.epsilon(1e-5) == ONE
    assert [kind for kind, _ in entries(path)] == ["reserve", "void", "reserve", "commit"]


@pytest.mark.parametrize("statement", ["COMMIT", "INSERT", "BEGIN"])
def test_a_statement_that_fails_leaves_nothing_that_a_later_read_believes(
    ledger: Ledger, path: Path, statement: str
) -> None:
    class Failing:
        """The connection, failing at one statement as on a full disk."""

        def __init__(self, db: sqlite3.Connection) -> None:
            self.db = db

        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
            if sql.startswith(statement):
                raise sqlite3.OperationalError("database or disk is full")
            return self.db.execute(sql, *values)  # type: ignore[arg-type]  # passed on as they came

        def __getattr__(self, name: str) -> object:
            return getattr(self.db, name)

    ledger.reserve(KEY, M)
    whole = ledger._db
    ledger._db = Failing(whole)  # type: ignore[assignment]  # a double

    with pytest.raises(LedgerError, match="disk is full") as caught:
        ledger.commit(KEY, PAYLOAD, M)
    ledger._db = whole

    assert "check the disk" in caught.value.advice
    assert ledger.paid(KEY) is None
    assert ledger.epsilon(1e-5) == 0.0
    assert entries(path) == [("reserve", 1)]
    ledger.commit(KEY, PAYLOAD, M)
    assert ledger.paid(KEY) is not None


# ---- two at once ---------------------------------------------------------------------------------
def test_of_two_processes_that_train_the_same_round_only_one_releases(path: Path) -> None:
    first, second = reopened(path), reopened(path)
    first.reserve(KEY, M)
    second.reserve(KEY, M)  # voids the first: it cannot know that it is alive

    second.commit(KEY, b"second", M)
    with pytest.raises(LedgerError, match="paid for by now"):
        first.commit(KEY, b"first", M)

    for ledger in (first, second):
        paid = ledger.paid(KEY)
        assert paid is not None
        assert paid[0] == b"second"
        assert ledger.epsilon(1e-5) == ONE


def test_the_file_itself_refuses_a_second_payment_of_a_round(ledger: Ledger, path: Path) -> None:
    pay(ledger)

    with sqlite3.connect(path) as db, pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        db.execute(
            "INSERT INTO entry (kind, digest, run, round, base, time) "
            "SELECT kind, digest, run, round, 'other', time FROM entry WHERE kind = 'commit'"
        )
    db.close()


def test_two_rounds_reserved_at_once_do_not_pass_the_ceiling_together(path: Path) -> None:
    limit = (ONE + TWO) / 2
    first, second = (reopened(path, epsilon_limit=limit) for _ in range(2))
    other = replace(KEY, round=2)
    first.reserve(KEY, M)
    second.reserve(other, M)

    first.commit(KEY, PAYLOAD, M)
    with pytest.raises(BudgetExceededError, match="Nothing was released"):
        second.commit(other, PAYLOAD, M)

    assert second.paid(other) is None
    assert second.epsilon(1e-5) == ONE


def test_many_threads_pay_every_round_once(path: Path) -> None:
    ledger = reopened(path)
    keys = [replace(KEY, round=number) for number in range(1, 21)]
    errors: list[BaseException] = []

    def work() -> None:
        for key in keys:
            try:
                pay(ledger, key)
            except LedgerError as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert all("paid for" in str(error) or "reserved" in str(error) for error in errors)
    assert ledger.rounds_paid(KEY.digest) == len(keys)
    assert ledger.epsilon(1e-5) == composed_epsilon([COST] * len(keys), 1e-5)


def test_two_processes_wait_for_each_other_and_never_fail_because_the_other_writes(
    path: Path,
) -> None:
    ledgers = [reopened(path) for _ in range(2)]  # a connection each, as two processes have
    both_ready = threading.Barrier(2)
    errors: list[BaseException] = []

    def work(ledger: Ledger, run: str) -> None:
        for number in range(1, 21):
            both_ready.wait(timeout=60)
            try:
                pay(ledger, replace(KEY, run=run, round=number))
            except LedgerError as error:
                errors.append(error)

    threads = [
        threading.Thread(target=work, args=(ledger, f"run-{number}"))
        for number, ledger in enumerate(ledgers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert errors == []
    assert ledgers[0].rounds_paid(KEY.digest) == 40


# ---- append-only, and damage ---------------------------------------------------------------------
@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE entry SET steps = 0",
        "UPDATE entry SET payload = x'00' WHERE kind = 'commit'",
        "DELETE FROM entry",
    ],
)
def test_entries_are_never_changed_or_removed(ledger: Ledger, path: Path, sql: str) -> None:
    pay(ledger)

    with sqlite3.connect(path) as db, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        db.execute(sql)
    db.close()

    assert ledger.paid(KEY) is not None


@pytest.mark.parametrize("change", ["payload = x'00'", "payload = NULL", "payload_sha256 = '00'"])
def test_a_payload_that_was_altered_on_disk_is_found_and_not_sent(path: Path, change: str) -> None:
    pay(reopened(path))
    with sqlite3.connect(path) as db:
        db.execute("DROP TRIGGER no_update")
        db.execute(f"UPDATE entry SET {change} WHERE kind = 'commit'")
    db.close()

    with pytest.raises(LedgerError, match="of round 1 is gone or was altered"):
        reopened(path).paid(KEY)
    with pytest.raises(LedgerError, match="of round 1 is gone or was altered"):
        reopened(path).reserve(KEY, M)


def test_a_file_that_is_no_ledger_is_refused_and_kept(path: Path) -> None:
    path.write_bytes(b"no database, but 100 bytes of something else" * 3)

    with pytest.raises(LedgerError, match=r"ledger .*ledger\.db cannot be opened") as caught:
        reopened(path)

    assert "never start with an empty one" in caught.value.advice
    assert path.read_bytes().startswith(b"no database")


def test_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be opened"):
        reopened(tmp_path / "missing" / "ledger.db")


def test_only_the_site_may_read_it(ledger: Ledger, path: Path) -> None:
    pay(ledger)

    for file in path.parent.iterdir():  # the log beside it holds the same entries
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


# ---- epsilon and the ceiling ---------------------------------------------------------------------
def test_epsilon_is_what_dp_accounting_composes_over_all_studies(ledger: Ledger) -> None:
    stronger = replace(M, noise_multiplier=1.5, sampling_rate=0.2, steps_per_round=7)
    for number, mechanism in enumerate([M, stronger, M], start=1):
        key = replace(KEY, round=number, digest=str(number) * 64)
        ledger.reserve(key, mechanism)
        ledger.commit(key, PAYLOAD, mechanism)

    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-3)
    for sigma, rate, steps in ((1.0, 0.1, 10), (1.5, 0.2, 7)):
        gauss = dp_event.GaussianDpEvent(sigma)
        accountant.compose(dp_event.PoissonSampledDpEvent(rate, gauss), steps)

    assert ledger.epsilon(1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=2e-3)
    assert ledger.epsilon(1e-5, also=COST) > ledger.epsilon(1e-5)
    assert ledger.epsilon(1e-3) < ledger.epsilon(1e-5)


def test_reservations_and_voids_are_not_spent(ledger: Ledger) -> None:
    for _ in range(3):
        ledger.reserve(KEY, M)

    assert ledger.epsilon(1e-5) == 0.0
    assert ledger.rounds_paid(KEY.digest) == 0


def test_the_ceiling_refuses_with_its_numbers_and_writes_nothing(path: Path) -> None:
    ledger = reopened(path, epsilon_limit=(ONE + TWO) / 2)
    pay(ledger)
    before = entries(path)

    with pytest.raises(BudgetExceededError) as caught:
        ledger.reserve(replace(KEY, digest="e" * 64), M)  # over all studies, not one

    error = caught.value
    assert (error.site, error.spent, error.needed) == ("A", ONE, TWO)
    assert (error.limit, error.delta) == ((ONE + TWO) / 2, 1e-5)
    assert entries(path) == before
    assert ledger.paid(KEY) is not None  # what was paid for may be sent again


def test_exactly_the_ceiling_may_be_spent(path: Path) -> None:
    ledger = reopened(path, epsilon_limit=TWO)

    pay(ledger)
    pay(ledger, replace(KEY, round=2))

    assert ledger.epsilon(1e-5) == TWO


def test_after_a_refusal_an_earlier_reservation_is_still_there(path: Path) -> None:
    reopened(path).reserve(KEY, M)

    with pytest.raises(BudgetExceededError):
        reopened(path, epsilon_limit=ONE / 2).reserve(KEY, M)

    assert entries(path) == [("reserve", 1)]


def test_after_a_study_without_privacy_no_private_one_fits_any_ceiling(path: Path) -> None:
    ledger = reopened(path, epsilon_limit=1e6)
    ledger.reserve(KEY, None)
    ledger.commit(KEY, PAYLOAD, None)

    assert ledger.epsilon(1e-5) == math.inf
    with pytest.raises(BudgetExceededError):
        ledger.reserve(replace(KEY, round=2), M)


@pytest.mark.parametrize(
    "limits",
    [
        {"epsilon_limit": math.nan},
        {"epsilon_limit": 0.0},
        {"epsilon_limit": -1.0},
        {"epsilon_limit": 1.0, "delta_limit": 0.0},
        {"epsilon_limit": 1.0, "delta_limit": math.nan},
        {"epsilon_limit": 1.0, "delta_limit": 1.0},
    ],
)
def test_a_ceiling_that_would_hold_nothing_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no ceiling"):
        Ledger(None, site="A", **limits)


def test_an_accountant_that_fails_refuses_the_round(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "composed_epsilon", lambda *_: math.nan)

    with pytest.raises(BudgetExceededError):
        reopened(path, epsilon_limit=8.0).reserve(KEY, M)
    assert entries(path) == []


# ---- what it tells -------------------------------------------------------------------------------
def test_a_name_from_the_server_is_cut_and_escaped_in_messages(ledger: Ledger) -> None:
    key = replace(KEY, run="\n\x1b" + "x" * 10_000)

    with pytest.raises(LedgerError) as caught:
        ledger.commit(key, PAYLOAD, M)

    message = caught.value.args[0]
    assert len(message) < 300
    assert "\n" not in message
    assert "\x1b" not in message


def test_in_memory_it_keeps_the_same_rules_and_no_file(tmp_path: Path) -> None:
    ledger = Ledger(None, site="A")

    receipt = pay(ledger)

    assert ledger.paid(KEY) == (PAYLOAD, receipt)
    with pytest.raises(LedgerError):
        ledger.reserve(KEY, M)
    assert list(tmp_path.iterdir()) == []
