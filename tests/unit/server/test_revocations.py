"""The server's revocation list: only newer ones are taken, and what was known is never lost."""

from __future__ import annotations

import datetime
import os
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfed.common.errors import ConfigError, MedfedError, TrustError
from medfed.common.trust.revocation import (
    LARGEST_LIST_BYTES,
    RevocationList,
    open_revocations,
    serial_text,
    sign_revocations,
)
from medfed.common.trust.signatures import SigningKey
from medfed.server.revocations import ACCEPTED, LIST, Revocations

NOW = datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC)
KEY = SigningKey(Ed25519PrivateKey.generate())
OTHER = SigningKey(Ed25519PrivateKey.generate())


def signed(sequence: int, *serials: int, key: SigningKey = KEY) -> bytes:
    texts = tuple(serial_text(serial) for serial in serials)
    return sign_revocations(key, RevocationList(sequence=sequence, issued=NOW, serials=texts))


class Server:
    """A trust folder, its list, and what was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[MedfedError] = []
        self.seconds = 0.0
        (folder / "study.pub").write_text(KEY.public.pem)

    def bring(self, data: bytes) -> None:
        (self.folder / LIST).write_bytes(data)

    def start(self) -> Revocations:
        return Revocations(self.folder, self.told.append, clock=lambda: self.seconds)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    made = Server(tmp_path)
    made.bring(signed(5, 0xA1))
    return made


def test_a_list_is_read_as_it_was_signed() -> None:
    serial = 2**158 + 7  # as long as a random serial number gets

    found = open_revocations(signed(1, serial), [KEY.public], source="list")

    assert found.numbers == {serial}


def test_a_new_list_counts_from_the_next_question_on(server: Server) -> None:
    revoked = server.start()
    assert (revoked.is_revoked(0xA1), revoked.is_revoked(0xB2)) == (True, False)

    server.bring(signed(6, 0xA1, 0xB2))

    assert revoked.is_revoked(0xB2)
    assert (revoked.sequence, server.told) == (6, [])


def test_a_change_that_leaves_no_trace_is_seen_after_ten_seconds(server: Server) -> None:
    revoked = server.start()
    before = (server.folder / LIST).stat()
    changed = signed(6, 0xB2)  # as long as the one before
    assert len(changed) == before.st_size
    server.bring(changed)
    os.utime(server.folder / LIST, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not revoked.is_revoked(0xB2)

    server.seconds = 10.0

    assert revoked.is_revoked(0xB2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(signed(4), "sequence 4; the one in force has 5", id="lower"),
        pytest.param(signed(5), "sequence 5; the one in force has 5", id="another of its number"),
        pytest.param(signed(6, key=OTHER), "not by the study key", id="another signer"),
        pytest.param(b"", "medfed-revocations-1", id="nothing"),
        pytest.param(signed(6)[:-20], "medfed-revocations-1", id="cut off"),
        pytest.param(b" " * (LARGEST_LIST_BYTES + 1), "more than", id="too long"),
    ],
)
def test_a_list_that_is_not_better_changes_nothing_and_is_told_once(
    server: Server, data: bytes, message: str
) -> None:
    revoked = server.start()
    server.bring(data)

    answers = [revoked.is_revoked(0xA1) for _ in range(3)]
    server.seconds = 11.0
    answers.append(revoked.is_revoked(0xA1))

    assert answers == [True] * 4
    (told,) = server.told
    assert message in str(told)
    server.bring(signed(7))
    assert not revoked.is_revoked(0xA1)


def test_a_list_that_is_taken_away_stays_in_force(server: Server) -> None:
    revoked = server.start()
    (server.folder / LIST).unlink()

    assert revoked.is_revoked(0xA1)
    assert len(server.told) == 1


def test_a_restart_does_not_forget_what_was_revoked(server: Server) -> None:
    server.start()
    server.bring(signed(4))  # a backup from before

    again = server.start()

    assert again.is_revoked(0xA1) and again.sequence == 5
    assert "sequence 4" in str(server.told[0])
    (server.folder / LIST).unlink()
    assert server.start().is_revoked(0xA1)


def test_a_server_without_a_list_does_not_start(server: Server) -> None:
    (server.folder / LIST).unlink()

    with pytest.raises(ConfigError, match=r"revocations\.json: the revocation list cannot be read"):
        server.start()


def test_a_server_with_nothing_but_a_false_list_does_not_start(server: Server) -> None:
    server.bring(signed(6, key=OTHER))

    with pytest.raises(TrustError, match="not by the study key"):
        server.start()
    assert not (server.folder / ACCEPTED).exists()


def test_a_list_by_the_next_study_key_is_taken_in_the_overlap_and_after(server: Server) -> None:
    revoked = server.start()
    (server.folder / "study.pub").write_text(OTHER.public.pem + KEY.public.pem)
    server.bring(signed(6, 0xB2, key=OTHER))
    assert revoked.is_revoked(0xB2)

    (server.folder / "study.pub").write_text(OTHER.public.pem)

    assert server.start().is_revoked(0xB2)
    assert server.told == []


def test_a_new_study_key_does_not_open_the_way_for_an_older_list(server: Server) -> None:
    server.start()
    (server.folder / "study.pub").write_text(OTHER.public.pem)
    server.bring(signed(4, key=OTHER))

    with pytest.raises(TrustError, match="sequence 4; the one in force has 5"):
        server.start()
    server.bring(signed(6, 0xB2, key=OTHER))
    assert server.start().is_revoked(0xB2)


def test_a_list_that_is_handed_in_is_taken_or_refused_to_whoever_hands_it_in(
    server: Server,
) -> None:
    revoked = server.start()

    with pytest.raises(TrustError, match="sequence 4"):
        revoked.take(signed(4))
    assert revoked.take(signed(6, 0xB2)).sequence == 6

    assert revoked.is_revoked(0xB2)
    assert server.start().sequence == 6
    assert server.told == []


def test_threads_that_ask_while_lists_come_never_see_a_serial_come_back(server: Server) -> None:
    revoked = server.start()
    done, wrong = threading.Event(), []

    def ask() -> None:
        seen = 0
        while not done.is_set():
            newest = max((n for n in range(40) if revoked.is_revoked(n + 1)), default=0)
            if newest < seen:
                wrong.append((newest, seen))
            seen = newest
            done.wait(0.001)  # leaves the processor to whoever brings the lists

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for sequence in range(6, 46):
        revoked.take(signed(sequence, *range(1, sequence - 4)))
    done.set()
    for thread in threads:
        thread.join()

    assert wrong == [] and server.told == []
    assert revoked.is_revoked(40)
