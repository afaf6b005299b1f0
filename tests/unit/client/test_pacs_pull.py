from __future__ import annotations

import logging
from collections import namedtuple
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from pydicom.uid import BasicTextSRStorage

from medfed.client.scans.pacs.archive import Reason
from medfed.client.scans.pacs.pace import Pace, Rates
from medfed.client.scans.pacs.plan import Query
from medfed.client.scans.pacs.pull import Pull
from medfed.client.scans.pacs.settings import Limits
from medfed.client.scans.pacs.store import PullStore
from medfed.common.errors import ConfigError, TransportError, TrustError
from tests.support.memory_archive import FakeClock, MemoryArchive, instance, part10, study

QUERY = Query(since=date(2025, 1, 1))
LIMITS = Limits(max_total_gib=1.0, keep_free_gib=0.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PullStore]:
    with PullStore.open(tmp_path / "scans") as opened:
        yield opened


def archive(count: int = 3) -> MemoryArchive:
    return MemoryArchive({study(): [instance(f"1.2.{n}") for n in range(count)]})


def job(
    source: MemoryArchive,
    store: PullStore,
    *,
    query: Query = QUERY,
    limits: Limits = LIMITS,
    pace: Pace | None = None,
) -> Pull:
    return Pull(source, query, store, limits, pace or Pace(Rates(), clock=FakeClock()))


def test_everything_that_fits_is_pulled_byte_for_byte(store: PullStore) -> None:
    tally = job(archive(), store).run()

    assert (tally.studies, tally.files, tally.pulled, tally.missing) == (1, 3, 3, 0)
    for n in range(3):
        assert store.path_of(f"1.2.{n}").read_bytes() == part10(f"1.2.{n}")


def test_a_second_run_asks_for_nothing_that_is_there(store: PullStore) -> None:
    source = archive()
    job(source, store).run()
    store.path_of("1.2.1").unlink()
    source.fetched.clear()

    tally = job(source, store).run()

    assert source.fetched == ["1.2.1"]
    assert (tally.there, tally.pulled) == (2, 1)


def test_a_dry_run_asks_for_no_file_and_says_what_would_come(store: PullStore) -> None:
    source = archive()
    source.holds[study("1.3")] = [instance("1.3.1", study="1.3", size_bytes=500, modality="DX")]
    job(archive(1), store).run()

    tally = job(source, store).plan()

    assert source.fetched == []
    assert (tally.studies, tally.files, tally.there, tally.missing) == (2, 4, 1, 3)
    assert (tally.estimated, tally.estimated_bytes) == (1, 500)
    assert tally.modalities == {"CR": 3, "DX": 1}


def test_what_the_archive_offers_beyond_the_query_is_left(store: PullStore) -> None:
    source = archive(1)
    source.holds[study("1.3", date="20240601")] = [instance("1.3.1", study="1.3")]
    source.holds[study("1.4")] = [
        instance("1.4.1", study="1.4", sop_class=BasicTextSRStorage),
        instance("1.4.2", study="1.4", modality="MR"),
    ]

    tally = job(source, store, query=Query(("CR",), since=date(2025, 1, 1))).run()

    assert source.fetched == ["1.2.0"]
    assert tally.left_out == {"not an image": 1, "in a study that does not fit the query": 1}


def test_a_study_that_answers_two_searches_is_pulled_once(store: PullStore) -> None:
    source = archive(2)

    tally = job(source, store, query=Query(("CR", "DX"), since=date(2025, 1, 1))).run()

    assert len(source.asked) == 2
    assert (tally.studies, tally.files, len(source.fetched)) == (1, 2, 2)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"no dicom" * 100, Reason.NOT_DICOM),
        (bytes(128) + b"DICM", Reason.OTHER_OBJECT),
        (part10("1.2.0"), Reason.OTHER_OBJECT),
        (part10("1.2.1", 2 << 20), Reason.TOO_LARGE),
        (b"", Reason.NOT_SENT),
    ],
)
def test_one_file_that_cannot_be_used_is_counted_and_the_others_come(
    store: PullStore, sent: bytes, reason: Reason
) -> None:
    source = archive()
    source.sends["1.2.1"] = sent

    tally = job(source, store, limits=LIMITS.model_copy(update={"max_object_mib": 1})).run()

    assert tally.failed == {reason: 1}
    assert (tally.pulled, tally.missing) == (2, 1)
    assert not store.path_of("1.2.1").exists()


def test_a_link_that_fails_for_a_while_is_tried_again(store: PullStore) -> None:
    source, clock = archive(), FakeClock()
    source.fails["1.2.1"] = [TransportError("away"), TransportError("away")]

    tally = job(source, store, pace=Pace(Rates(), clock=clock)).run()

    assert tally.pulled == 3
    assert source.fetched.count("1.2.1") == 3
    assert clock.slept == [2.0, 10.0]
    assert source.hung_up == 3  # before each new attempt, and at the end


def test_a_link_that_stays_away_ends_the_run_and_the_next_one_goes_on(store: PullStore) -> None:
    source = archive()
    source.fails["1.2.1"] = [TransportError("away")] * 3
    first = job(source, store)

    with pytest.raises(TransportError):
        first.run()
    assert first.tally.pulled == 1
    assert job(source, store).run().pulled == 2


def test_an_archive_that_does_not_accept_us_is_not_asked_again(store: PullStore) -> None:
    source = archive()
    source.fails["1.2.0"] = [TrustError("who are you")]

    with pytest.raises(TrustError):
        job(source, store).run()
    assert source.fetched == ["1.2.0"]


def test_an_interruption_leaves_whole_files_and_the_next_run_goes_on(store: PullStore) -> None:
    source = archive()

    def interrupt(uid: str) -> None:
        if uid == "1.2.1":
            raise KeyboardInterrupt

    source.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        job(source, store).run()
    source.before = lambda _uid: None
    source.fetched.clear()

    assert job(source, store).run().pulled == 2
    assert source.fetched == ["1.2.1", "1.2.2"]


def test_the_run_stops_before_the_folder_grows_over_its_limit(store: PullStore) -> None:
    limits = LIMITS.model_copy(update={"max_total_gib": 1500 / 2**30})

    with pytest.raises(ConfigError, match="does not fit"):
        job(archive(), store, limits=limits).run()  # 600 bytes each: two fit

    assert store.total_bytes == 1200
    assert len(list(store.folder.glob("*/*.dcm"))) == 2


def test_the_run_stops_before_the_disk_is_full(
    store: PullStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage(0, 0, 3 << 30))

    source = archive()
    with pytest.raises(ConfigError, match="does not fit"):
        job(source, store, limits=LIMITS.model_copy(update={"keep_free_gib": 3.0})).run()
    assert (store.total_bytes, source.fetched) == (0, [])


def test_a_disk_that_is_full_all_the_same_is_told_with_the_way_out(store: PullStore) -> None:
    source = archive()

    def full(_uid: str) -> None:
        raise OSError(28, "No space left on device")

    source.before = full

    with pytest.raises(ConfigError, match="No space left"):
        job(source, store).run()


def test_the_agreed_rates_are_kept(store: PullStore) -> None:
    source, clock = archive(2), FakeClock()
    source.holds[study("1.3")] = [instance("1.3.1", study="1.3")]
    pace = Pace(Rates(studies_per_hour=60, bytes_per_second=60), clock=clock)

    job(source, store, pace=pace).run()

    # Two files of 600 bytes at 60 bytes/s: 20 s. The second study may begin after 60 s; its
    # file takes 10 s.
    assert clock.elapsed_s == pytest.approx(70.0)


def test_nothing_that_is_there_costs_a_studys_share_of_time(store: PullStore) -> None:
    clock = FakeClock()
    source = archive(1)
    for n in range(5):
        source.holds[study(f"1.{n + 3}")] = [instance(f"1.{n + 3}.1", study=f"1.{n + 3}")]
    job(source, store).run()

    job(source, store, pace=Pace(Rates(studies_per_hour=1), clock=clock)).run()

    assert clock.slept == []


def test_the_log_holds_numbers_only(store: PullStore, caplog: pytest.LogCaptureFixture) -> None:
    source = archive()
    source.sends["1.2.1"] = b"PATIENT" * 100

    with caplog.at_level(logging.DEBUG):
        job(source, store, query=Query(accessions=("A1",))).run()

    assert "pull.ended studies=1 files=3 there=0 pulled=2 failed=1 bytes=1200" in caplog.text
    assert not [private for private in ("1.2", "A1", "PATIENT", "Chest") if private in caplog.text]
