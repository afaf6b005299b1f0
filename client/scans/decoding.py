"""Read files in child processes that may crash, hang or ask for too much, and go on.

Decoders are C code that obeys what a file says. One of them that ends its process, never comes
back or fills the memory must cost the site one file and not the import. So the parent never
decodes: it hands jobs to a few children, each with a limit on what it may add to its memory and
on the time that one file may take. A child that breaks a limit is ended and replaced.

Jobs travel in small groups, which a child hands back half-done when they take long: the price of
a child is not paid per file, and the limit on time still holds for one file. When a group is lost
with its child, its jobs are tried again one by one, and only the culprit is blamed.

This keeps broken and hostile *pictures* from ending the import. It is no wall against one who
can run code of his own in a decoder: the children are processes of the same user.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any, Final, Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

from medfed.common.errors import ScanError

Job = TypeVar("Job")
Result = TypeVar("Result")

GROUP: Final = 16
"""Most jobs that a child gets at once."""
GROUP_S: Final = 0.5
"""Seconds after which a child hands back what it has done of a group."""
QUEUED: Final = 3
"""Groups on their way for each child."""
GROUPS_PER_CHILD: Final = 500
"""After so many a child is replaced: what a decoder leaks does not add up."""
MAX_RESTARTS: Final = 3
"""Pools started anew one after the other without one result between them."""
MALLOC: Final = {-3: 32 << 20, -1: 512 << 20}
"""Of glibc: M_MMAP_THRESHOLD, at its largest; M_TRIM_THRESHOLD. Both in bytes."""
ORPHAN_S: Final = 5.0
"""A child whose parent was killed outlives its time limit by no more than this."""

_read: Callable[[Any], Any] | None = None  # in a child: what reads one job
_time_s = 0.0  # in a child: the limit


class DecodingFailure(StrEnum):
    """Why a child gave no result for a file; the value is what the admin reads."""

    HUNG = "decoder did not finish in time"
    DIED = "decoder crashed"
    MEMORY = "decoder asked for too much memory"
    UNFORESEEN = "reader failed in a way not foreseen: please report it"


@dataclass(frozen=True)
class DecodingLimits:
    """What children may use.

    Attributes:
        children: How many there are at a time.
        time_s: Seconds that one file may take.
        memory_bytes: Address space that a child may add to what it has when it starts.
    """

    children: int = 2
    time_s: float = 30.0
    memory_bytes: int = 3 << 30


@dataclass(frozen=True)
class Decoding(Generic[Job, Result]):
    """Reads jobs in children.

    Attributes:
        make_reader: Called once in each child; gives the function that reads one job. It, jobs
            and results travel between processes, so it must be importable (``partial`` of a
            class, not a closure).
        limits: What children may use.
        preload: Module that all children need; imported once.
    """

    make_reader: Callable[[], Callable[[Job], Result]]
    limits: DecodingLimits = DecodingLimits()
    preload: str = __name__

    def results(
        self, jobs: Iterable[Job], check: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[Job, Result | DecodingFailure]]:
        """Give each job with its result, in the order in which they are done.

        Args:
            jobs: Taken a few at a time, as children get free; there may be any number.
            check: Called about once a second or oftener; what it raises ends the work.

        Raises:
            ScanError: the reader found that the data set as a whole cannot be read.
            RuntimeError: children cannot be started.

        Guarantee:
            Every job is given back once, with a result or a reason, whatever its file does to
            the child that reads it. Children end when the iterator does, and with this process.
        """
        run = _Run(self, iter(jobs))
        try:
            yield from run.results(check)
        finally:
            run.stop()


class _Run(Generic[Job, Result]):
    """One pass over jobs; the pool starts with the first of them."""

    def __init__(self, decoding: Decoding[Job, Result], jobs: Iterator[Job]) -> None:
        self._decoding, self._jobs = decoding, jobs
        self._again: deque[list[Job]] = deque()
        self._running: dict[Future[Any], list[Job]] = {}
        self._pool: ProcessPool | None = None
        self._restarts = 0

    def results(self, check: Callable[[], None]) -> Iterator[tuple[Job, Result | DecodingFailure]]:
        while self._fill():
            check()
            done = wait(self._running, timeout=1.0, return_when=FIRST_COMPLETED).done
            for future in done:
                yield from self._outcome(future, self._running.pop(future))

    def stop(self) -> None:
        """End all children, whatever they are doing."""
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call]  # pebble types it not
            self._pool.join()
            self._pool = None

    def _fill(self) -> bool:
        """Keep children busy; False once there is nothing more to wait for."""
        if self._pool is not None and not self._pool.active:
            self._restart()
        limits = self._decoding.limits
        while len(self._running) < QUEUED * limits.children:
            group = self._again.popleft() if self._again else list(islice(self._jobs, GROUP))
            if not group:
                break
            if self._pool is None:
                self._pool = _start(self._decoding)
            try:
                future = self._pool.schedule(
                    _read_group, args=[group], timeout=limits.time_s + GROUP_S
                )
            except RuntimeError:  # the pool gave up just now
                self._again.append(group)
                break
            self._running[future] = group
        return bool(self._running or self._again)

    def _outcome(
        self, future: Future[Any], group: list[Job]
    ) -> Iterator[tuple[Job, Result | DecodingFailure]]:
        error = future.exception()
        if error is None:
            results: Sequence[Result | DecodingFailure] = future.result()
            self._restarts = 0
            if len(results) < len(group):
                self._again.append(group[len(results) :])
            yield from zip(group, results, strict=False)
        elif isinstance(error, BrokenProcessPool):
            self._again.append(group)
        elif not isinstance(error, TimeoutError | ProcessExpired):
            raise error
        elif len(group) > 1:
            self._again.extend([job] for job in group)
        else:
            hung = isinstance(error, TimeoutError)
            yield group[0], DecodingFailure.HUNG if hung else DecodingFailure.DIED

    def _restart(self) -> None:
        """Begin with new children: the pool gives up when one dies between two jobs."""
        self._restarts += 1
        if self._restarts > MAX_RESTARTS:
            raise RuntimeError("the processes that decode scans end as soon as they start")
        self.stop()
        self._again.extend(self._running.values())
        self._running.clear()


def _start(decoding: Decoding[Any, Any]) -> ProcessPool:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([decoding.preload])
    return ProcessPool(
        max_workers=decoding.limits.children,
        max_tasks=GROUPS_PER_CHILD,
        initializer=_enter_child,
        initargs=(decoding.make_reader, decoding.limits),
        context=context,
    )


def _enter_child(make_reader: Callable[[], Callable[[Any], Any]], limits: DecodingLimits) -> None:
    """Set the limits of this process, which is a child, and make its reader."""
    global _read, _time_s
    silence = os.open(os.devnull, os.O_RDWR)  # what decoders print may quote a file
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = _address_space() + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    _keep_freed_memory()
    _read, _time_s = make_reader(), limits.time_s


def _keep_freed_memory() -> None:
    """Let this process use freed memory again instead of asking the system for each picture anew.

    glibc maps large blocks one by one and gives them back; the system then clears every page of
    them again. Measured: a fifth of the time of an import. Elsewhere nothing is changed.
    """
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    if change is not None:
        for option, value in MALLOC.items():
            change(option, value)


def _address_space() -> int:
    """Bytes of address space that this process has; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _read_group(group: list[Any]) -> list[Any]:
    """In a child: read jobs one after the other until the time of a group is over."""
    assert _read is not None  # _enter_child came first
    results: list[Any] = []
    begin = time.monotonic()
    for job in group:
        signal.setitimer(signal.ITIMER_REAL, _time_s + ORPHAN_S)  # the system's own, for orphans
        try:
            results.append(_read(job))
        except ScanError:
            raise
        except MemoryError:
            results.append(DecodingFailure.MEMORY)
        except Exception:  # one file must not end the import; it is counted and told
            results.append(DecodingFailure.UNFORESEEN)
        if time.monotonic() - begin > GROUP_S:
            break
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    return results
