"""Which certificates are revoked, as the server knows it at any moment.

``revocations.json`` is what the coordinator last brought; ``revocations.accepted.json`` beside it
is the newest list that was ever taken, written by this module. A list that is worse than that
(unsigned, damaged, gone, an older one from a backup) changes nothing but is told. A server that
never had a list does not start: every bundle brings one, so one that is missing was taken away,
and without it every revoked certificate would be let in.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from medfed.common.errors import MedfedError, TrustError
from medfed.common.trust.private_files import write_private
from medfed.common.trust.received_files import read_received
from medfed.common.trust.revocation import (
    LARGEST_LIST_BYTES,
    REVOCATIONS,
    RevocationList,
    open_revocations,
)
from medfed.common.trust.signatures import read_verifying_keys, unverified

log = logging.getLogger(__name__)

LIST = "revocations.json"
ACCEPTED = "revocations.accepted.json"
STUDY_KEYS = "study.pub"
_LOOK_AGAIN_S = 10.0
_WHAT = "the revocation list"

_Stamp = tuple[int, int, int] | None


class Revocations:
    """The revoked certificates of one server. Safe to share between threads.

    Args:
        folder: Where the server's trust lies: ``study.pub`` and the lists.
        tell: Called with what is wrong with a list that was not taken, once per list. It may be
            called by any thread that asks.
        clock: Seconds that only go up.

    Raises:
        ConfigError: there is no list, or ``study.pub`` cannot be read.
        TrustError: there is no list with a good signature.
    """

    def __init__(
        self,
        folder: Path,
        tell: Callable[[MedfedError], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._tell, self._clock = folder, tell, clock
        self._one_at_a_time = threading.Lock()
        self._stamps: list[_Stamp] = []
        self._told: list[_Stamp] | None = None
        self._current = self._first()
        self._look_at = 0.0
        self._revoked = self._current.numbers
        self._look()

    @property
    def sequence(self) -> int:
        """Sequence number of the list in force."""
        return self._current.sequence

    def is_revoked(self, serial: int) -> bool:
        """Whether a certificate is revoked.

        A list that was put in place before the call counts, but where another thread is just
        reading it.

        Args:
            serial: The certificate's number.

        Guarantee:
            The file is read anew when its size, time or place changed, and every 10 s in any
            case. A serial that was ever found here stays revoked while a list with a good
            signature and a higher sequence still names it.
        """
        if self._one_at_a_time.acquire(blocking=False):
            try:
                if self._clock() >= self._look_at or self._stamp() != self._stamps:
                    self._look()
            finally:
                self._one_at_a_time.release()
        return serial in self._revoked

    def take(self, data: bytes) -> RevocationList:
        """Take a list that a coordinator hands in, and put it in place.

        Raises:
            TrustError: it is no list, has no good signature, or is older than the one in force.
            ConfigError: it cannot be written; the earlier list stays in force.
        """
        with self._one_at_a_time:
            found = self._checked(data, source=_WHAT)
            self._keep(data, found)
            write_private(self._folder / LIST, data, replace=True)
            return found

    def _first(self) -> RevocationList:
        """The newest list that was ever taken; at the first start the one that was brought."""
        accepted = self._folder / ACCEPTED
        if not accepted.exists():
            return self._read(self._folder / LIST)
        try:
            return self._read(accepted)
        except TrustError:  # by a study key that is no longer in use, or damaged
            found, floor = self._read(self._folder / LIST), _sequence_of(accepted)
            if found.sequence < floor:
                raise _older(str(self._folder / LIST), found.sequence, floor) from None
            return found

    def _look(self) -> None:
        stamps = self._stamp()
        try:
            data = read_received(self._folder / LIST, LARGEST_LIST_BYTES, what=_WHAT)
            found = self._checked(data, source=str(self._folder / LIST))
            if found != self._current or not (self._folder / ACCEPTED).exists():
                self._keep(data, found)
            self._told = None
        except MedfedError as error:
            if stamps != self._told:
                self._told = stamps
                log.warning("revocations.kept sequence=%d", self._current.sequence)
                self._tell(error)
        self._stamps, self._look_at = stamps, self._clock() + _LOOK_AGAIN_S

    def _checked(self, data: bytes, *, source: str) -> RevocationList:
        keys = read_verifying_keys(self._folder / STUDY_KEYS)
        found = open_revocations(data, keys, source=source)
        now = self._current
        if found.sequence < now.sequence or (found.sequence == now.sequence and found != now):
            raise _older(source, found.sequence, now.sequence)
        return found

    def _keep(self, data: bytes, found: RevocationList) -> None:
        """Write a list down before it is used: what was in force is never forgotten."""
        write_private(self._folder / ACCEPTED, data, replace=True)
        self._current, self._revoked = found, found.numbers
        log.info("revocations.taken sequence=%d", found.sequence)

    def _read(self, path: Path) -> RevocationList:
        data = read_received(path, LARGEST_LIST_BYTES, what=_WHAT)
        return open_revocations(
            data, read_verifying_keys(self._folder / STUDY_KEYS), source=str(path)
        )

    def _stamp(self) -> list[_Stamp]:
        return [_stamp(self._folder / name) for name in (LIST, STUDY_KEYS)]


def _sequence_of(accepted: Path) -> int:
    """The sequence of the list that this module wrote down, whoever signed it; 0: unreadable."""
    try:
        data = read_received(accepted, LARGEST_LIST_BYTES, what=_WHAT)
        return unverified(data, REVOCATIONS, RevocationList, source=str(accepted)).sequence
    except MedfedError:
        return 0


def _older(source: str, found: int, in_force: int) -> TrustError:
    return TrustError(
        f"{source}: found the revocation list with sequence {found}; the one in force has "
        f"{in_force}, and only a newer one is taken.",
        advice="bring the newest revocations.json from the coordinator's machine.",
    )


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
