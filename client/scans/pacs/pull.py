"""The job: ask what there is, pull what is missing, stop in good order.

It is written to be ended at any moment and started again: what lies in the folder is not asked
for twice. A log line holds numbers only; who was found is nobody's business but the disk's.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any, Final, TypeVar

from medfed.client.scans.pacs.archive import Archive, NotPulledError, Reason
from medfed.client.scans.pacs.pace import Pace
from medfed.client.scans.pacs.part10 import check_identity
from medfed.client.scans.pacs.plan import (
    Instance,
    Query,
    Study,
    is_image,
    study_keys,
    wants_series,
    wants_study,
)
from medfed.client.scans.pacs.settings import Limits
from medfed.client.scans.pacs.store import PullStore
from medfed.common.errors import ConfigError, TransportError

RETRY_AFTER_S: Final = (2.0, 10.0)
"""How long to wait before something is tried again whose link failed, and how often."""
_GIB: Final = 1 << 30
_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


@dataclass
class Tally:
    """What a job found and did: numbers for the site's admin.

    Attributes:
        studies: Studies that fit the query.
        files: Images in them.
        there: Of these, already in the folder.
        pulled: Of these, pulled now.
        bytes_pulled: Size of what was pulled.
        modalities: Images by modality.
        estimated_bytes: Size of the missing ones without compression, of those whose size the
            archive tells.
        estimated: How many those are.
        left_out: What the archive named and was not asked for, by reason.
        failed: What was asked for and did not come, by reason.
    """

    studies: int = 0
    files: int = 0
    there: int = 0
    pulled: int = 0
    bytes_pulled: int = 0
    modalities: Counter[str] = field(default_factory=Counter)
    estimated_bytes: int = 0
    estimated: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    failed: Counter[Reason] = field(default_factory=Counter)

    @property
    def missing(self) -> int:
        """Images that are not in the folder: what a pull would bring, or did not."""
        return self.files - self.there - self.pulled

    def figures(self) -> dict[str, Any]:
        """The same for programs."""
        counters = {
            "modalities": dict(self.modalities),
            "left_out": dict(self.left_out),
            "failed": {reason.value: count for reason, count in self.failed.items()},
        }
        return vars(self) | {"missing": self.missing} | counters


Watch = Callable[[Tally], None]
"""Told after every file; shows how far the job is."""


class Pull:
    """One job.

    Args:
        archive: Asked.
        query: What is wanted.
        store: Where it goes.
        limits: What was agreed.
        pace: How fast.
        watch: See ``Watch``.
    """

    def __init__(
        self,
        archive: Archive,
        query: Query,
        store: PullStore,
        limits: Limits,
        pace: Pace,
        watch: Watch = lambda _tally: None,
    ) -> None:
        self._archive, self._query, self._store = archive, query, store
        self._limits, self._pace, self._watch = limits, pace, watch
        self.tally = Tally()

    def plan(self) -> Tally:
        """Search only: count what there is and what a pull would bring.

        Raises:
            TransportError: the archive cannot be reached or does not answer properly.
            TrustError: one of the two does not accept who the other is.
        """
        try:
            for instance in self._missing():
                if instance.size_bytes is not None:
                    self.tally.estimated += 1
                    self.tally.estimated_bytes += instance.size_bytes
        finally:
            self._archive.hang_up()
        return self.tally

    def run(self) -> Tally:
        """Pull what is missing.

        Raises:
            TransportError: the link failed again and again. What was pulled stays.
            TrustError: one of the two does not accept who the other is.
            ConfigError: the folder is as full as ``pacs.toml`` allows, or the disk is.

        Guarantee:
            Whenever it ends, by an error, Ctrl-C or power cut, every file in the folder is whole
            and is the object whose name it bears.
        """
        study = None
        try:
            for instance in self._missing():
                if instance.study != study:
                    self._pace.before_study()
                    study = instance.study
                self._pull(instance)
        finally:
            self._archive.hang_up()
            tally = self.tally
            _log.info(
                "pull.ended studies=%d files=%d there=%d pulled=%d failed=%d bytes=%d",
                *(tally.studies, tally.files, tally.there, tally.pulled),
                *(tally.failed.total(), tally.bytes_pulled),
            )
        return self.tally

    def _missing(self) -> Iterator[Instance]:
        """Count what fits the query, and give what is not in the folder."""
        for study in self._studies():
            self.tally.studies += 1
            for instance in self._patiently(partial(self._listed, study)):
                if not is_image(instance):
                    self.tally.left_out["not an image"] += 1
                    continue
                self.tally.files += 1
                self.tally.modalities[instance.modality] += 1
                if self._store.has(instance.uid):
                    self.tally.there += 1
                else:
                    yield instance
                self._watch(self.tally)

    def _studies(self) -> list[Study]:
        """Every study that fits, once. Only their names are kept: some 100 bytes each."""
        found: dict[str, Study] = {}
        for keys in study_keys(self._query):
            for study in self._patiently(partial(self._searched, keys)):
                if wants_study(self._query, study):
                    found.setdefault(study.uid, study)
                else:
                    self.tally.left_out["in a study that does not fit the query"] += 1
        return list(found.values())

    def _searched(self, keys: Mapping[str, str]) -> list[Study]:
        return list(self._archive.studies(keys))

    def _listed(self, study: Study) -> list[Instance]:
        listed = self._archive.instances(study, partial(wants_series, self._query))
        return list({instance.uid: instance for instance in listed}.values())

    def _pull(self, instance: Instance) -> None:
        try:
            self._patiently(partial(self._receive, instance))
        except NotPulledError as error:
            self.tally.failed[error.reason] += 1
        except OSError as error:
            raise ConfigError(
                f"{self._store.folder}: cannot be written ({error.strerror}).",
                advice="make room or choose another folder; a later run goes on from here.",
            ) from error

    def _receive(self, instance: Instance) -> None:
        room = self._room()
        limit = min(room, self._limits.max_object_mib << 20)
        check = partial(check_identity, uid=instance.uid)
        try:
            with self._store.receive(instance.uid, check) as file:
                sink = _FileSink(file, limit, self._pace)
                self._archive.fetch(instance, sink)
        except NotPulledError as error:
            if error.reason is Reason.TOO_LARGE and limit == room:
                raise self._full() from None
            raise
        self.tally.pulled += 1
        self.tally.bytes_pulled += sink.taken_bytes

    def _room(self) -> int:
        """What folder and disk have room for, in bytes.

        Raises:
            ConfigError: nothing.
        """
        agreed = int(self._limits.max_total_gib * _GIB) - self._store.total_bytes
        free = self._store.free_bytes() - int(self._limits.keep_free_gib * _GIB)
        if min(agreed, free) <= 0:
            raise self._full()
        return min(agreed, free)

    def _full(self) -> ConfigError:
        held, free = self._store.total_bytes / _GIB, self._store.free_bytes() / _GIB
        return ConfigError(
            f"{self._store.folder}: the next object does not fit. The folder holds {held:.1f} GiB "
            f"(allowed: {self._limits.max_total_gib:g}), the disk has {free:.1f} GiB left (to be "
            f"kept free: {self._limits.keep_free_gib:g}).",
            advice="make room, or raise the limits in pacs.toml; a later run goes on from here.",
        )

    def _patiently(self, request: Callable[[], _Answer]) -> _Answer:
        """Try again after a while where the link failed.

        Raises:
            TransportError: as the last attempt did.
        """
        for seconds in RETRY_AFTER_S:
            try:
                return request()
            except TransportError:
                self._archive.hang_up()
                self._pace.pause(seconds)
        return request()


class _FileSink:
    """Bytes on their way to a file; see ``Sink``."""

    def __init__(self, file: IO[bytes], limit_bytes: int, pace: Pace) -> None:
        self.limit_bytes, self.taken_bytes = limit_bytes, 0
        self._file, self._pace = file, pace

    def write(self, piece: bytes) -> None:
        """Take the next bytes, and wait as long as the pace asks for."""
        self.taken_bytes += len(piece)
        if self.taken_bytes > self.limit_bytes:
            raise NotPulledError(Reason.TOO_LARGE)
        self._file.write(piece)
        self._pace.after_bytes(len(piece))
