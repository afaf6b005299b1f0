"""An archive in memory, and a clock that nobody waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydicom.uid import ComputedRadiographyImageStorage

from medfed.client.scans.pacs.archive import NotPulledError, Reason, Sink
from medfed.client.scans.pacs.plan import Instance, Study
from medfed.common.errors import MedfedError


@dataclass
class FakeClock:
    """A clock that is moved by sleeping only; it remembers how long."""

    start: datetime = datetime(2026, 3, 2, 12, 0)
    elapsed_s: float = 0.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> datetime:
        return self.start + timedelta(seconds=self.elapsed_s)

    def monotonic(self) -> float:
        return 1000.0 + self.elapsed_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.elapsed_s += seconds


def instance(
    uid: str,
    *,
    study: str = "1.2",
    sop_class: str | None = ComputedRadiographyImageStorage,
    modality: str = "CR",
    size_bytes: int | None = None,
) -> Instance:
    return Instance(study, f"{study}.1", uid, sop_class, modality, size_bytes)


def part10(uid: str, size_bytes: int = 600) -> bytes:
    """A file whose meta information names an object; its data set is zeros."""
    value = uid.encode() + b"\0" * (len(uid) % 2)
    element = b"\x02\x00\x03\x00UI" + len(value).to_bytes(2, "little") + value
    head = bytes(128) + b"DICM" + element
    return head + b"\x08\x00\x05\x00CS\x00\x00" + bytes(max(0, size_bytes - len(head) - 8))


@dataclass
class MemoryArchive:
    """Studies with their objects; what it sends can be replaced, and it can fail.

    Attributes:
        holds: Study → its objects.
        sends: SOP Instance UID → bytes instead of a sound file.
        fails: SOP Instance UID → errors to raise, one per request, before it works.
        before: Called at every fetch, with the UID.
    """

    holds: dict[Study, list[Instance]]
    sends: dict[str, bytes] = field(default_factory=dict)
    fails: dict[str, list[MedfedError]] = field(default_factory=dict)
    before: Callable[[str], None] = lambda _uid: None
    asked: list[Mapping[str, str]] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    hung_up: int = 0

    def studies(self, keys: Mapping[str, str]) -> Iterator[Study]:
        self.asked.append(dict(keys))
        yield from self.holds

    def instances(self, study: Study, wanted: Callable[[str], bool]) -> Iterator[Instance]:
        yield from (each for each in self.holds[study] if wanted(each.modality))

    def fetch(self, instance: Instance, sink: Sink) -> None:
        self.fetched.append(instance.uid)
        self.before(instance.uid)
        if self.fails.get(instance.uid):
            raise self.fails[instance.uid].pop(0)
        content = self.sends.get(instance.uid, part10(instance.uid))
        if not content:
            raise NotPulledError(Reason.NOT_SENT)
        for start in range(0, len(content), 256):
            sink.write(content[start : start + 256])

    def hang_up(self) -> None:
        self.hung_up += 1


def study(uid: str = "1.2", date: str = "20250601", description: str = "Chest pa") -> Study:
    return Study(uid, date, description, "A1")
