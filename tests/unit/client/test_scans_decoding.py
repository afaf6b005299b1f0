from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from medfed.client.scans.decoding import GROUP, Decoding, DecodingFailure, DecodingLimits
from medfed.common.errors import ScanError
from tests.support.misbehaving import (
    let_children_import_tests,
    make_fearful,
    make_misbehaving,
)

QUICK = DecodingLimits(children=2, time_s=0.7, memory_bytes=1 << 30)


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    let_children_import_tests(monkeypatch)


def outcomes(jobs: list[str], limits: DecodingLimits = QUICK) -> dict[str, str]:
    return dict(Decoding(make_misbehaving, limits).results(jobs))


def test_every_job_comes_back_once() -> None:
    jobs = [str(number) for number in range(10 * GROUP + 3)]

    results = list(Decoding(make_misbehaving, QUICK).results(jobs))

    assert sorted(job for job, _ in results) == sorted(jobs)
    assert all(job == result for job, result in results)


def test_jobs_that_take_long_together_are_all_done_and_none_is_blamed() -> None:
    jobs = [f"slow {number}" for number in range(GROUP)]  # 3.2 s, where one may take 0.7 s

    assert outcomes(jobs) == dict(zip(jobs, jobs, strict=True))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("hang", DecodingFailure.HUNG),
        ("sleep", DecodingFailure.HUNG),
        ("abort", DecodingFailure.DIED),
        ("segfault", DecodingFailure.DIED),
        ("exit", DecodingFailure.DIED),
        ("greedy", DecodingFailure.MEMORY),
        ("defect", DecodingFailure.UNFORESEEN),
    ],
)
def test_only_the_culprit_is_refused(what: str, reason: DecodingFailure) -> None:
    sound = [str(number) for number in range(2 * GROUP)]  # before it, beside it and after it
    jobs = [*sound[: GROUP + 3], what, *sound[GROUP + 3 :]]

    assert outcomes(jobs) == dict(zip(sound, sound, strict=True)) | {what: reason}


def test_many_crashes_are_survived() -> None:
    jobs = ["abort" if number % 4 == 0 else str(number) for number in range(24)]

    results = list(Decoding(make_misbehaving, QUICK).results(jobs))

    assert sum(result is DecodingFailure.DIED for _, result in results) == 6
    assert len(results) == 24


def test_jobs_are_taken_only_as_children_get_free() -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield str(taken)

    results = Decoding(make_misbehaving, QUICK).results(endless())
    for _ in range(10):
        next(results)
    results.close()  # type: ignore[attr-defined]  # a generator

    assert taken <= 10 + 16 * GROUP


def test_what_a_decoder_prints_goes_nowhere() -> None:
    assert outcomes(["where it prints"]) == {"where it prints": "/dev/null /dev/null"}


def test_children_leave_no_core_and_no_process() -> None:
    before = set(children_of_forkserver())

    outcomes(["abort", "hang"])

    assert set(children_of_forkserver()) <= before
    assert not list(Path().glob("core*"))


def test_closing_early_ends_a_child_that_hangs() -> None:
    before = set(children_of_forkserver())
    limits = DecodingLimits(children=2, time_s=600.0)

    results = Decoding(make_misbehaving, limits).results(["1"] * GROUP + ["hang"])
    next(results)
    results.close()  # type: ignore[attr-defined]  # a generator

    assert set(children_of_forkserver()) <= before


def test_an_error_of_the_whole_data_set_is_raised() -> None:
    with pytest.raises(ScanError, match="cannot be read") as caught:
        outcomes(["no data set"])
    assert caught.value.advice == "give another."


def test_children_that_cannot_start_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="end as soon as they start"):
        list(Decoding(make_fearful, QUICK).results(["1"]))


def children_of_forkserver() -> list[int]:
    """Processes below this one, two levels deep."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry))
    return [pid for server in parents.get(os.getpid(), []) for pid in parents.get(server, [])]
