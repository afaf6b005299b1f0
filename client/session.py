"""What one site does when a round asks for it: check, pay, train, release.

Pure of Flower: ``flower_app.py`` turns a message into ``RoundRequest`` and an ``Released`` into
a reply. The same code runs in a deployed worker and in a simulation; they differ in what is
handed in: where studies and scans come from, the source of randomness, and the ledger.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from medfed.client.ledger import Ledger, RoundKey
from medfed.client.noise import Randomness
from medfed.client.release import PrivateValue, PublicFact, Released, fact_about, release
from medfed.client.scans.scanset import ScanSet
from medfed.client.training import TrainingData, prepare, train_round
from medfed.common.errors import ApprovalError, MedfedError, PrivacyError
from medfed.common.networks.build import pick_device
from medfed.common.networks.network import Network
from medfed.common.networks.parameters import network_for, parameters_of
from medfed.common.privacy.mechanism import Mechanism, mechanism_for
from medfed.common.study import Site, Study
from medfed.common.updates import Parameters, Shapes, decode, encode, fingerprint, shapes_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundRequest:
    """What the server asks of a site. Public.

    Attributes:
        digest: Digest of the study, 64 hexadecimal digits.
        run: The run's name at the server.
        round: Counted from 1.
        model: The global model in wire form.
    """

    digest: str
    run: str
    round: int
    model: bytes


@dataclass(frozen=True, repr=False)
class _Ready:
    """One study made ready to train: kept warm between rounds. Private."""

    study: Study
    site: Site
    network: Network
    shapes: Shapes
    data: TrainingData
    mechanism: Mechanism | None


@dataclass(repr=False)
class SiteSession:
    """One site, ready to take part in rounds.

    Attributes:
        site: The site's name.
        study_for: Gives the approved study of a digest, or raises ApprovalError.
        scans_for: Reads the site's scans as a study says.
        randomness_for: A fresh source of randomness for a round. Secret in a deployed site.
        ledger: The site's durable record.
        prefer_device: ``auto``, ``cpu`` or ``cuda``.
    """

    site: str
    study_for: Callable[[str], Study]
    scans_for: Callable[[Study], ScanSet]
    randomness_for: Callable[[RoundKey], Randomness]
    ledger: Ledger
    prefer_device: str = "auto"
    _ready: dict[str, _Ready] = field(default_factory=dict)

    def answer(self, request: RoundRequest) -> Released:
        """Take part in one round.

        Returns:
            The paid update, or a public code where the round was refused. An error becomes its
            code; its text stays in the site's log, and of a defect not even its class leaves.
        """
        try:
            return release(self._paid_update(request))
        except MedfedError as error:
            log.warning("round.refused site=%s round=%d %s", self.site, request.round, error)
            return release(fact_about(error))
        except Exception as error:  # its class alone may depend on a patient: it stays here too
            where = traceback.extract_tb(error.__traceback__)[-1]
            log.error(
                "round.defect site=%s round=%d error=%s at=%s:%s",
                *(self.site, request.round, type(error).__name__, where.filename, where.lineno),
            )
            return release(PublicFact.UNAVAILABLE)

    def warm(self, study: Study) -> None:
        """Read the scans and build the network of a study before its first round.

        So that the time of a first round does not tell how many scans there are.

        Raises:
            MedfedError: as reading and building do. For the admin, before joining.
        """
        self._prepare(study.digest)

    def _paid_update(self, request: RoundRequest) -> PrivateValue | PublicFact:
        ready = self._prepare(request.digest)
        rounds = ready.study.training.rounds
        if not 1 <= request.round <= rounds:
            raise PrivacyError(
                f"site {self.site!r}: round {str(request.round)[:20]} is outside the approved "
                f"schedule, rounds 1 to {rounds}.",
                advice="the coordinator signs a study with the longer schedule; sites approve it.",
            )
        start = decode(request.model, ready.shapes, who="the server")
        key = RoundKey(request.digest, request.run, request.round, fingerprint(start))
        paid = self.ledger.paid(key)
        if paid is not None:
            return PrivateValue(*paid)
        self.ledger.reserve(key, ready.mechanism, most_rounds=rounds)
        payload = encode(self._train(ready, start, key))
        receipt = self.ledger.commit(key, payload, ready.mechanism)
        log.info("round.released site=%s round=%d bytes=%d", self.site, key.round, len(payload))
        return PrivateValue(payload, receipt)

    def _train(self, ready: _Ready, start: Parameters, key: RoundKey) -> Parameters:
        return train_round(
            ready.network,
            ready.data,
            start,
            study=ready.study,
            site=ready.site,
            mechanism=ready.mechanism,
            randomness=self.randomness_for(key),
        )

    def _prepare(self, digest: str) -> _Ready:
        study = self.study_for(digest)  # asked every time: an approval can be withdrawn
        if digest not in self._ready:
            self._ready[digest] = self._make_ready(study)
        return self._ready[digest]

    def _make_ready(self, study: Study) -> _Ready:
        try:
            site = study.site_named(self.site)
        except MedfedError as error:
            raise ApprovalError(str(error)) from error
        device = pick_device(self.prefer_device)
        network = network_for(study).to(device)
        return _Ready(
            study=study,
            site=site,
            network=network,
            shapes=shapes_of(parameters_of(network)),
            data=prepare(network, self.scans_for(study), device),
            mechanism=mechanism_for(study, site) if study.private else None,
        )
