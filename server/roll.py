"""Keep the enrolled sites of a guarded server equal to what the coordinator brought.

The guard alone decides who comes in, at once and at every request. What happens here decides who
is asked in rounds: a site is enrolled at Flower when its certificate lies in the bundle, and taken
out when all its certificates are revoked. Flower never takes a key back, so a revocation must have
stood for ``SETTLED_S`` first: in a bundle that is being copied the list comes before the sites.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from medfed.common.errors import MedfedError, TransportError
from medfed.server.data_root import DataRoot
from medfed.server.enrolment import Enrolment
from medfed.server.site_certificates import SiteCertificates

log = logging.getLogger(__name__)

SETTLED_S: Final = 10.0
_LOOK_S: Final = 3.0


class Roll:
    """The sites of a guarded server.

    Args:
        root: Its data root, prepared.
        enrolment: The sites as Flower knows them.
        is_revoked: Tells of a certificate's serial number.
        clock: Seconds that only go up.
    """

    def __init__(
        self,
        root: DataRoot,
        enrolment: Enrolment,
        is_revoked: Callable[[int], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._enrolment, self._clock = root, enrolment, clock
        self._certificates = SiteCertificates(root.trust, root.sites, is_revoked)
        self._revoked_since: dict[str, float] = {}
        self._told: dict[str, str] = {}

    def follow(self) -> None:
        """Look at the bundle once, and tell Flower of what changed.

        A site that cannot be enrolled is told once and leaves the others alone.

        Raises:
            ConfigError: the bundle or the data root cannot be read.
            TrustError: the authorities are none.
            TransportError: Flower does not answer.
        """
        good, revoked = self._certificates.look()
        enrolled = self._root.enrolled()
        for site, key in good.items():
            if enrolled.get(site) != key:
                self._enrol(site, key)
        now = self._clock()
        self._revoked_since = {
            site: self._revoked_since.get(site, now) for site in revoked & enrolled.keys()
        }
        for site, since in self._revoked_since.items():
            if now - since >= SETTLED_S:
                self._enrolment.throw_out(site)

    def _enrol(self, site: str, key: bytes) -> None:
        """Let a site in; with another key than before if the coordinator certified another."""
        if key == self._root.thrown_out(site):
            self._tell(site, "its key was thrown out; the site needs a new one")
            return
        try:
            self._enrolment.approve(site, key, replace=site in self._root.enrolled())
            self._told.pop(site, None)
        except TransportError:
            raise
        except MedfedError as error:
            self._tell(site, str(error.args[0]))

    def _tell(self, site: str, why: str) -> None:
        if self._told.get(site) != why:
            self._told[site] = why
            log.warning("enrol.refused site=%s %s", site, why)


class RollKeeper:
    """A thread that follows the bundle until it is closed.

    Args:
        roll: What it does every few seconds.
    """

    def __init__(self, roll: Roll) -> None:
        self._roll, self._end = roll, threading.Event()
        self._thread = threading.Thread(target=self._keep, name="roll", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it; returns when a call of Flower that is under way has ended."""
        self._end.set()
        self._thread.join()

    def _keep(self) -> None:
        last = ""
        while not self._end.wait(_LOOK_S):
            try:
                self._roll.follow()
                last = ""
            except MedfedError as error:
                if not self._end.is_set() and str(error) != last:
                    last = str(error)
                    log.warning("roll.not-followed %s", error.args[0])
            except Exception:
                log.exception("roll.defect")  # and look again
