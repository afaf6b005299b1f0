"""Whatever is done to a site's ledger, it is noticed before the next release, and can be mended.

Each test damages a real site: SQLite file, keys and witness on the disk, opened as the client
opens it. "Mended" means: do what the message says, and the site gives the next round.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from medfed.client.flower_app import open_session
from medfed.client.scans.patients import PseudonymKey
from medfed.client.site_root import (
    SiteRoot,
    create_site,
    open_ledger,
    open_site,
    renew_witness,
)
from medfed.common.errors import ConfigError, LedgerError, LedgerMismatchError, MedfedError
from medfed.common.trust.keys import new_node_key
from medfed.common.trust.ledger_head import Head
from tests.support.hostile_server import HostileServer, first_model
from tests.support.sites import make_ready_site, make_study

STUDY = make_study(("rounds = 2", "rounds = 9"), ("local_steps = 2", "local_steps = 1"))
MODEL = first_model(STUDY)
PROGRAM = Path(__file__).parents[1] / "support" / "ledger_process.py"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site that has given two rounds; its ledger has six entries."""
    folder = tmp_path_factory.mktemp("template")
    site = make_ready_site(folder, STUDY)
    with running(site) as server:
        assert server.ask(STUDY.digest, MODEL, round=1) and server.ask(STUDY.digest, MODEL, round=2)
    shutil.copy(site.witness, folder / "witness.json")
    shutil.copy(site.pseudonym_key, folder / "pseudonym.key")
    return folder


@pytest.fixture
def site(template: Path, tmp_path: Path) -> SiteRoot:
    """A copy of the template that knows nothing of it."""
    folder = tmp_path / "hospital"
    shutil.copytree(template, folder)
    settings = folder / "site-A" / "site.toml"
    own = open_site(template / "site-A")
    text = settings.read_text().replace(str(own.witness), str(folder / "witness.json"))
    text = text.replace(str(own.pseudonym_key), str(folder / "pseudonym.key"))
    settings.write_text(text.replace(str(template), str(folder)))
    return open_site(folder / "site-A")


class running:
    """The site's client, started and ended."""

    def __init__(self, site: SiteRoot) -> None:
        self._session = open_session(site.folder)

    def __enter__(self) -> HostileServer:
        return HostileServer(self._session)

    def __exit__(self, *_: object) -> None:
        self._session.ledger.close()


def refusal(site: SiteRoot, kind: type[MedfedError] = LedgerError) -> str:
    """The client does not even start; gives its message."""
    with pytest.raises(kind) as caught:
        open_session(site.folder)
    assert "Next step: " in str(caught.value)
    return str(caught.value)


def gives(site: SiteRoot, round: int, *, known: Head | None = None) -> None:
    with running(site) as server:
        assert server.ask(STUDY.digest, MODEL, round=round, known=known), server.transcript


def head_of(site: SiteRoot) -> Head:
    with closing(open_ledger(site)) as ledger:
        return ledger.head


def copy_of(site: SiteRoot) -> Path:
    """A backup of ledger.db alone, made while nothing runs."""
    return Path(shutil.copy(site.ledger, site.folder.parent / "backup.db"))


def tampered(site: SiteRoot, *statements: str, triggers: bool = False) -> None:
    """Change the file with SQL, past all guards."""
    with closing(sqlite3.connect(site.ledger)) as db:
        found = db.execute("SELECT name, sql FROM sqlite_master WHERE type='trigger'").fetchall()
        for name, _ in found:
            db.execute(f"DROP TRIGGER {name}")
        db.execute("DROP INDEX IF EXISTS paid_once")
        for statement in statements:
            db.execute(statement)
        if triggers:
            for _, sql in found:
                db.execute(sql)
        db.commit()


def rows_of(site: SiteRoot) -> list[tuple[int, str, str, str]]:
    with closing(sqlite3.connect(site.ledger)) as db:
        return db.execute("SELECT * FROM entry ORDER BY sequence").fetchall()


ENTRIES = range(1, 7)  # open, approve, and twice reserve and commit


# ---- edited --------------------------------------------------------------------------------------
EDITS = {
    "other body": "body = replace(body, 'A', 'B') || ' '",
    "other hash": f"hash = '{'e' * 64}'",
    "hash as bytes": "hash = CAST(hash AS BLOB)",
    "body as bytes": "body = CAST(body AS BLOB)",
    "later sequence": "sequence = sequence + 100",
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edit_of_any_field_of_any_entry_is_noticed_when_the_ledger_is_opened(
    site: SiteRoot, edit: str
) -> None:
    newest = copy_of(site)
    for number in ENTRIES:
        tampered(site, f"UPDATE entry SET {edit} WHERE sequence = {number}", triggers=True)
        with pytest.raises(LedgerError, match="cannot be trusted: entry|ends at entry") as caught:
            open_ledger(site)
        assert "restore the newest" in caught.value.advice
        shutil.copy(newest, site.ledger)
    gives(site, 3)


@pytest.mark.parametrize("column", ["body", "hash"])
@pytest.mark.parametrize("number", ENTRIES)
def test_a_single_changed_character_is_noticed(site: SiteRoot, column: str, number: int) -> None:
    value = dict(zip(("n", "body", "hash", "signature"), rows_of(site)[number - 1], strict=True))
    for place in range(0, len(str(value[column])), 17):
        text = str(value[column])
        text = text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :]
        with closing(sqlite3.connect(site.ledger)) as db:
            db.executescript("DROP TRIGGER IF EXISTS no_update; DROP INDEX IF EXISTS paid_once")
            db.execute(f"UPDATE entry SET {column} = ? WHERE sequence = ?", (text, number))
            db.commit()
        with pytest.raises(LedgerError):
            open_ledger(site)


def test_entries_hashed_anew_without_the_key_are_noticed(site: SiteRoot) -> None:
    # The attacker makes the approval's price ten times lower and knows how entries are hashed.
    newest, before, statements = copy_of(site), "0" * 64, []
    for number, body, _, _ in rows_of(site):
        body = body.replace('"cost":[1.0', '"cost":[10.0')
        before = hashlib.sha256(f"{before} {number} {body}".encode()).hexdigest()
        statements.append(
            f"UPDATE entry SET body = '{body}', hash = '{before}' WHERE sequence = {number}"
        )
    tampered(site, *statements, triggers=True)

    assert "entry 6 of the ledger is not signed by keys/node_key" in refusal(site)
    shutil.copy(newest, site.ledger)
    gives(site, 3)


FORGED = {
    "another entry's": "(SELECT signature FROM entry AS e WHERE e.sequence = 2)",
    "none": "''",
    "no number": "'signed'",
    "bytes": "CAST(signature AS BLOB)",
    "too long": "hex(zeroblob(200000))",
}


@pytest.mark.parametrize("signature", FORGED.values(), ids=FORGED.keys())
def test_another_signature_is_noticed_at_the_end_by_the_client_and_anywhere_by_the_audit(
    site: SiteRoot, signature: str
) -> None:
    newest = copy_of(site)
    tampered(site, f"UPDATE entry SET signature = {signature} WHERE sequence = 6", triggers=True)
    assert "is not signed by keys/node_key" in refusal(site)

    shutil.copy(newest, site.ledger)
    tampered(site, f"UPDATE entry SET signature = {signature} WHERE sequence = 3", triggers=True)
    with closing(open_ledger(site)) as ledger, pytest.raises(LedgerError, match="entry 3"):
        ledger.audit()


@pytest.mark.parametrize("trick", ["INSTEAD_IGNORE", "AFTER_DELETE"])
def test_a_trigger_that_swallows_entries_is_noticed_before_anything_leaves(
    site: SiteRoot, trick: str
) -> None:
    newest = copy_of(site)
    body = {
        "INSTEAD_IGNORE": "BEFORE INSERT ON entry BEGIN SELECT RAISE(IGNORE); END",
        "AFTER_DELETE": "AFTER INSERT ON entry BEGIN DELETE FROM entry "
        "WHERE sequence = NEW.sequence; END",
    }[trick]
    tampered(site, f"CREATE TRIGGER quietly {body}")

    with running(site) as server:
        assert server.ask(STUDY.digest, MODEL, round=3) is None
    assert len(rows_of(site)) == 6
    shutil.copy(newest, site.ledger)
    gives(site, 3)


def test_a_patient_set_that_was_changed_is_noticed(site: SiteRoot) -> None:
    newest = copy_of(site)
    tampered(site, "UPDATE patient_set SET members = zeroblob(16)", triggers=True)

    assert "the patient set" in refusal(site)
    shutil.copy(newest, site.ledger)
    gives(site, 3)


def test_released_bytes_that_were_changed_are_not_sent(site: SiteRoot) -> None:
    newest = copy_of(site)
    tampered(site, "UPDATE payload SET bytes = zeroblob(100)", triggers=True)

    with running(site) as server:
        assert server.ask(STUDY.digest, MODEL, round=2) is None
        assert server.transcript[-1].code == "refused-by-policy"
    shutil.copy(newest, site.ledger)
    with running(site) as server:
        assert server.ask(STUDY.digest, MODEL, round=2)


def test_the_guards_in_the_file_refuse_changes_by_other_programs(site: SiteRoot) -> None:
    with closing(sqlite3.connect(site.ledger)) as db:
        for statement in ("UPDATE entry SET body = ''", "DELETE FROM entry"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                db.execute(statement)


# ---- truncated -----------------------------------------------------------------------------------
@pytest.mark.parametrize("kept", range(6))
def test_a_ledger_whose_last_entries_were_deleted_is_refused(site: SiteRoot, kept: int) -> None:
    newest = copy_of(site)
    tampered(site, f"DELETE FROM entry WHERE sequence > {kept}", triggers=True)

    message = refusal(site)

    assert f"ends at entry {kept}" in message or kept == 0
    shutil.copy(newest, site.ledger)
    gives(site, 3)


def test_a_file_that_was_cut_is_refused_unless_every_entry_is_still_there(site: SiteRoot) -> None:
    newest, content = copy_of(site), site.ledger.read_bytes()
    refused = 0
    for size in [0, 1, 100, *range(4096, len(content), 4096), len(content) - 1]:
        site.ledger.write_bytes(content[:size])
        try:
            with closing(open_ledger(site)) as ledger:
                assert ledger.audit()[0].sequence == 6  # the cut took released bytes only
        except LedgerError as error:
            assert "restore the newest copy" in error.advice
            refused += 1

    assert refused > 10
    shutil.copy(newest, site.ledger)
    gives(site, 3)


def test_a_missing_file_is_refused_and_no_empty_one_is_made(site: SiteRoot) -> None:
    newest = copy_of(site)
    site.ledger.unlink()

    assert "never start with an empty one" in refusal(site)
    assert not site.ledger.exists()
    shutil.copy(newest, site.ledger)
    gives(site, 3)


def test_a_copy_of_the_file_alone_is_whole(site: SiteRoot) -> None:
    # Found by a stranger: for hours everything stood in the -wal file, which a backup left out.
    with running(site) as server:
        assert server.ask(STUDY.digest, MODEL, round=3)
        alone = copy_of(site)  # without the -wal, while the site runs
    for file in site.folder.glob("ledger.db*"):
        file.unlink()
    shutil.copy(alone, site.ledger)

    gives(site, 4)


# ---- put back ------------------------------------------------------------------------------------
def test_a_ledger_put_back_from_a_backup_is_refused(site: SiteRoot) -> None:
    old = copy_of(site)
    gives(site, 3)
    newest = shutil.copy(site.ledger, site.folder.parent / "newest.db")
    shutil.copy(old, site.ledger)

    assert "ends at entry 6; the site released at entry 8" in refusal(site, LedgerMismatchError)
    shutil.copy(newest, site.ledger)
    gives(site, 4)


@pytest.mark.parametrize("how", ["written over", "moved over"])
def test_a_ledger_put_back_under_a_running_client_is_refused(site: SiteRoot, how: str) -> None:
    old = copy_of(site)
    with running(site) as server:
        assert server.ask(STUDY.digest, MODEL, round=3)
        server.session.ledger.close()  # so that the newest copy is whole
        newest = shutil.copy(site.ledger, site.folder.parent / "newest.db")
    with running(site) as server:
        assert server.ask(STUDY.digest, MODEL, round=3)
        if how == "written over":
            shutil.copy(old, site.ledger)
        else:
            old.rename(site.ledger)
        given = server.ask(STUDY.digest, MODEL, round=4)

    if given is not None:  # SQLite held on to all pages: then the payment is in the file
        with closing(open_ledger(site)) as ledger:
            assert ledger.rounds_paid(STUDY.digest) == 4
        return
    shutil.copy(newest, site.ledger)
    gives(site, 4)


def test_a_site_put_back_whole_is_refused_by_its_witness(site: SiteRoot) -> None:
    backup = shutil.copytree(site.folder, site.folder.parent / "backup")
    gives(site, 3)
    newest = shutil.copy(site.ledger, site.folder.parent / "newest.db")
    shutil.rmtree(site.folder)
    shutil.copytree(backup, site.folder)

    assert "ends at entry 6; the site released at entry 8" in refusal(site, LedgerMismatchError)
    shutil.copy(newest, site.ledger)
    gives(site, 4)


def test_a_site_put_back_with_its_witness_is_refused_by_what_the_server_remembers(
    site: SiteRoot, caplog: pytest.LogCaptureFixture
) -> None:
    backup = shutil.copytree(site.folder.parent, site.folder.parent.parent / "backup")
    gives(site, 3)
    newest = shutil.copy(site.ledger, site.folder.parent.parent / "newest.db")
    remembered = head_of(site)
    shutil.rmtree(site.folder.parent)
    shutil.copytree(backup, site.folder.parent)

    with running(site) as server:
        assert server.ask(STUDY.digest, MODEL, round=4, known=remembered) is None
        assert server.transcript[-1].code == "ledger-mismatch"
        # It is not forgotten: a server that keeps quiet about it gets nothing either.
        assert server.ask(STUDY.digest, MODEL, round=4) is None
    assert "restore the newest ledger.db" in caplog.text
    assert "the site released at" in refusal(site, LedgerMismatchError)

    shutil.copy(newest, site.ledger)
    gives(site, 4, known=remembered)


def test_a_moved_site_without_its_witness_asks_for_it(site: SiteRoot) -> None:
    elsewhere = site.witness.rename(site.witness.with_name("elsewhere"))

    assert f"the witness {site.witness} is missing" in refusal(site, LedgerMismatchError)
    elsewhere.rename(site.witness)  # "bring the witness file"
    gives(site, 3)
    site.witness.unlink()
    renew_witness(site)  # "counts all that is approved as spent and makes a new one"
    with running(site) as server:
        assert server.ask(STUDY.digest, MODEL, round=4) is None
        assert server.transcript[-1].code == "not-approved"


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"sequence": Infinity}', b"[" * 100_000]
)
def test_a_witness_that_cannot_be_read_stops_the_site(site: SiteRoot, content: bytes) -> None:
    kept = site.witness.read_bytes()
    site.witness.write_bytes(content)

    assert str(site.witness) in refusal(site)
    site.witness.write_bytes(kept)
    gives(site, 3)


def test_a_witness_that_was_forged_stops_the_site(site: SiteRoot) -> None:
    kept = site.witness.read_text()
    site.witness.write_text(kept.replace('"sequence": 6', '"sequence": 4'))

    assert str(site.witness) in refusal(site)
    site.witness.write_text(kept)
    gives(site, 3)


# ---- two of them ---------------------------------------------------------------------------------
def clone_of(site: SiteRoot) -> SiteRoot:
    """A second root with the same keys, ledger and witness."""
    return open_site(Path(shutil.copytree(site.folder, site.folder.parent / "clone")))


def test_of_two_clones_that_both_run_only_one_gives_a_round(site: SiteRoot) -> None:
    clone = clone_of(site)
    with running(site) as first, running(clone) as second:
        assert first.ask(STUDY.digest, MODEL, round=3)
        assert second.ask(STUDY.digest, MODEL, round=3) is None
        assert second.ask(STUDY.digest, MODEL, round=4) is None
        assert second.transcript[-1].code == "ledger-mismatch"
        assert first.ask(STUDY.digest, MODEL, round=4)

    assert "runs in two places" in refusal(clone, LedgerMismatchError)
    shutil.rmtree(clone.folder)  # "stop every other copy of this site"
    gives(site, 5)


def test_a_clone_with_a_witness_of_its_own_is_refused_by_what_the_server_remembers(
    site: SiteRoot,
) -> None:
    hidden = Path(shutil.copytree(site.folder.parent, site.folder.parent.parent / "hidden"))
    settings = hidden / "site-A" / "site.toml"
    settings.write_text(settings.read_text().replace(str(site.folder.parent), str(hidden)))
    clone = open_site(hidden / "site-A")
    gives(site, 3)
    remembered = head_of(site)

    with running(clone) as server:
        assert server.ask(STUDY.digest, MODEL, round=3, known=remembered) is None
        assert server.transcript[-1].code == "ledger-mismatch"
    gives(site, 4, known=remembered)


def test_a_new_site_over_the_same_scans_is_refused(site: SiteRoot, tmp_path: Path) -> None:
    ca = site.ca
    # The template's site lies where `default_witness` says, so its scans are known already.
    scans = tmp_path / "own.npz"
    shutil.copy(site.scans, scans)
    own = {"name": "A", "scans": scans, "server": "127.0.0.1:1", "ca": ca}
    old = create_site(tmp_path / "old", **own)

    for root in (tmp_path / "new", old.folder):
        with pytest.raises(ConfigError):
            create_site(root, **own)
    shutil.move(old.folder, tmp_path / "lost")
    with pytest.raises(ConfigError, match="would forget what they have spent") as caught:
        create_site(old.folder, **own)
    assert not old.folder.exists() and "restore the newest backup" in caught.value.advice
    shutil.move(tmp_path / "lost", old.folder)
    open_ledger(open_site(old.folder)).close()


def test_a_ledger_begun_anew_in_the_old_root_is_refused(site: SiteRoot, tmp_path: Path) -> None:
    newest = copy_of(site)
    other = create_site(
        tmp_path / "other",
        name="A",
        scans=site.scans,
        server="127.0.0.1:1",
        ca=site.ca,
        witness=tmp_path / "other.json",
    )
    shutil.copy(other.ledger, site.ledger)
    assert "not signed by keys/node_key" in refusal(site)

    shutil.copytree(other.folder / "keys", site.folder / "keys", dirs_exist_ok=True)
    shutil.copy(other.pseudonym_key, site.pseudonym_key)
    assert str(site.witness) in refusal(site)  # of the old key: no longer this site's
    assert len(rows_of(site)) == 1
    site.witness.unlink()
    assert "may be a copy" in refusal(site)
    # An admin who insists: now nothing here knows of the old one. No study is approved in it:
    renew_witness(site)
    with running(site) as server:
        assert server.ask(STUDY.digest, MODEL, round=3) is None
        assert server.transcript[-1].code == "not-approved"
    assert newest.exists()


# ---- keys ----------------------------------------------------------------------------------------
def test_another_pseudonym_key_is_refused(site: SiteRoot) -> None:
    kept = site.pseudonym_key.read_bytes()
    site.pseudonym_key.write_bytes(bytes(32))

    assert "restore the pseudonym key" in refusal(site)
    assert PseudonymKey(site.pseudonym_key).check
    site.pseudonym_key.write_bytes(kept)
    gives(site, 3)


def test_another_node_key_is_refused(site: SiteRoot) -> None:
    kept = site.node_key.read_bytes()
    site.node_key.unlink()
    site.public_key.unlink()
    new_node_key(site.folder / "keys")

    assert "restore keys/node_key" in refusal(site)
    site.node_key.write_bytes(kept)
    gives(site, 3)


# ---- a full disk, and two processes --------------------------------------------------------------
class Child:
    """A site's ledger in a process of its own."""

    def __init__(self, site: SiteRoot, *before: str) -> None:
        self._process = subprocess.Popen(
            [*before, sys.executable, str(PROGRAM), str(site.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def does(self, command: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    begun: list[Child] = []

    def begin(site: SiteRoot, *before: str) -> Child:
        begun.append(Child(site, *before))
        return begun[-1]

    yield begin
    for process in begun:
        process.end()


def own_disk(site: SiteRoot) -> list[str]:
    """A command before which a site's folder lies on a file system of 1 MiB of its own."""
    script = 'cp -a "$0" "$0.all" && mount -t tmpfs -o size=1m t "$0" && cp -a "$0.all/." "$0" '
    return ["unshare", "-Urm", "sh", "-c", script + '&& exec "$@"', str(site.folder)]


def can_mount() -> bool:
    """Whether this machine lets us have a mount of our own."""
    try:
        command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "t", "/mnt"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


FULL = {"a file may not grow": "limit 69632"} | ({"full disk": "fill"} if can_mount() else {})


@pytest.mark.parametrize("full", FULL.values(), ids=FULL.keys())
def test_on_a_full_disk_nothing_is_released_and_with_room_all_goes_on(
    site: SiteRoot, child: Callable[..., Child], full: str
) -> None:
    process = child(site, *(own_disk(site) if full == "fill" else []))
    if full == "fill":
        process.does(full)
        assert "check the disk" in process.does("open")  # and not: restore another copy
        process.does("room")
    assert process.does("open") == "ok 6"
    assert process.does(f"reserve {STUDY.digest} run-1 3") == "ok"
    process.does(full)

    said = process.does(f"commit {STUDY.digest} run-1 3 100000")

    assert said.startswith("refused LedgerError") and "check the disk" in said
    assert process.does("head") == "ok 7"
    process.does("room")
    assert process.does(f"commit {STUDY.digest} run-1 3 100000") == "ok 8"
    assert process.does("open") == "ok 8"


def test_a_witness_that_cannot_be_written_holds_the_release_back_until_it_can(
    site: SiteRoot,
) -> None:
    with running(site) as server:
        away = site.witness.rename(site.witness.with_name("away"))
        site.witness.mkdir()
        assert server.ask(STUDY.digest, MODEL, round=3) is None
        site.witness.rmdir()
        away.rename(site.witness)
        assert server.ask(STUDY.digest, MODEL, round=3)
        assert server.session.ledger.rounds_paid(STUDY.digest) == 3


def test_two_processes_write_one_ledger_in_turn_and_pay_a_round_once(
    site: SiteRoot, child: Callable[..., Child]
) -> None:
    one, two = child(site), child(site)
    assert (one.does("open"), two.does("open")) == ("ok 6", "ok 6")

    assert one.does(f"reserve {STUDY.digest} run-1 3") == "ok"
    assert two.does(f"reserve {STUDY.digest} run-1 3") == "ok"  # voids the other's
    said = one.does(f"commit {STUDY.digest} run-1 3 1000")
    other = two.does(f"commit {STUDY.digest} run-1 3 1000")

    assert sorted([said.split()[0], other.split()[0]]) == ["ok", "refused"], (said, other)
    assert "let one client at a time train" in said + other
    assert one.does("head") == two.does("head")
    with closing(open_ledger(site)) as ledger:
        assert ledger.rounds_paid(STUDY.digest) == 3


def test_two_processes_cannot_buy_more_than_was_approved(
    site: SiteRoot, child: Callable[..., Child]
) -> None:
    # Seven of nine rounds are left; two processes set nine aside before either pays.
    one, two = child(site), child(site)
    assert (one.does("open"), two.does("open")) == ("ok 6", "ok 6")
    keys = [((one, two)[n % 2], f"{STUDY.digest} run-{n} 1") for n in range(2, 11)]
    for who, key in keys:
        assert who.does(f"reserve {key}") == "ok"

    said = [who.does(f"commit {key} 10").split()[0] for who, key in keys]

    assert said == ["ok"] * 7 + ["refused"] * 2
    with closing(open_ledger(site)) as ledger:
        assert ledger.rounds_paid(STUDY.digest) == 9
