"""What one site does when a round asks for it: check, pay, train, release.

Pure of Flower: ``flower_app.py`` turns a message into ``RoundRequest`` and an ``Released`` into
a reply. The same code runs in a deployed worker and in a simulation; they differ in what is
handed in: where studies and scans come from, the source of randomness, and the ledger.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from medfed.client.evaluation import noised_histogram
from medfed.client.ledger import Ledger, RoundKey
from medfed.client.noise import Randomness
from medfed.client.release import PrivateValue, PublicFact, Released, fact_about, release
from medfed.client.scans.scanset import PARTS, ScanSet
from medfed.client.training import TrainingData, prepare, train_round, vary_for
from medfed.common.errors import (
    ApprovalError,
    LedgerError,
    MedfedError,
    PrivacyError,
    UpdateRejectedError,
)
from medfed.common.networks.build import pick_device
from medfed.common.networks.network import Network
from medfed.common.networks.parameters import load_parameters, network_for, parameters_of
from medfed.common.privacy.histogram import encode_histogram
from medfed.common.privacy.mechanism import (
    EvaluatedPart,
    Mechanism,
    histogram_mechanism,
    mechanism_for,
)
from medfed.common.privacy.terms import EVALUATED_PARTS, Purpose, Terms, terms_of
from medfed.common.study import Site, Study
from medfed.common.trust.ledger_head import Head
from medfed.common.updates import Parameters, Shapes, decode, encode, fingerprint, shapes_of

log = logging.getLogger(__name__)

_LONGEST_RUN_NAME = 200


@dataclass(frozen=True)
class RoundRequest:
    """What the server asks of a site. Public.

    Attributes:
        digest: Digest of the study, 64 hexadecimal digits.
        run: The run's name at the server.
        round: Counted from 1.
        model: The global model in wire form: to train from, or to judge.
        purpose: What is asked for: an update, or a histogram of the patients of a part.
        known: The highest head of this site's ledger that the server has seen; None: none.
    """

    digest: str
    run: str
    round: int
    model: bytes
    purpose: Purpose = "train"
    known: Head | None = None


@dataclass(frozen=True, repr=False)
class _Ready:
    """One study made ready to train: kept warm between rounds. Private."""

    study: Study
    site: Site
    network: Network
    shapes: Shapes
    data: TrainingData
    judges: Mapping[Purpose, ScanSet]
    mechanism: Mechanism | None
    terms: Terms


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
            return release(self._paid(request), self.ledger)
        except MedfedError as error:
            log.warning("round.refused site=%s round=%d %s", self.site, request.round, error)
            return release(fact_about(error), self.ledger)
        except Exception as error:  # its class alone may depend on a patient: it stays here too
            where = traceback.extract_tb(error.__traceback__)[-1]
            log.error(
                "round.defect site=%s round=%d error=%s at=%s:%s",
                *(self.site, request.round, type(error).__name__, where.filename, where.lineno),
            )
            return release(PublicFact.UNAVAILABLE, self.ledger)

    def warm(self, study: Study) -> None:
        """Read the scans and build the network of a study before its first round.

        So that the time of a first round does not tell how many scans there are.

        Raises:
            MedfedError: as reading and building do. For the admin, before joining.
        """
        if study.digest not in self._ready:
            self._ready[study.digest] = self._make_ready(study)

    def use_device(self, prefer: str) -> None:
        """Train on another device from the next round on, if it is another one."""
        if prefer != self.prefer_device:
            self.prefer_device = prefer
            self._ready.clear()

    def _paid(self, request: RoundRequest) -> PrivateValue:
        if request.known is not None:
            self.ledger.check_known(request.known)
        if len(request.run) > _LONGEST_RUN_NAME:
            raise UpdateRejectedError(
                f"site {self.site!r}: the run's name has {len(request.run)} characters; allowed: "
                f"{_LONGEST_RUN_NAME}.",
                advice="use the same medfed version on both sides.",
            )
        ready = self._prepare(request.digest)
        self._check_schedule(ready.study, request)
        start = decode(request.model, ready.shapes, who="the server")
        key = RoundKey(
            request.digest, request.run, request.round, fingerprint(start), request.purpose
        )
        paid = self.ledger.paid(key)
        if paid is not None:
            return PrivateValue(*paid)
        self._check_terms(ready, request.digest)
        self.ledger.reserve(key)
        if key.purpose == "train":
            payload = encode(self._train(ready, start, key))
        else:
            payload = self._judge(ready, start, key, key.purpose)
        receipt = self.ledger.commit(key, payload)
        log.info("round.released site=%s round=%d bytes=%d", self.site, key.round, len(payload))
        return PrivateValue(payload, receipt)

    def _check_terms(self, ready: _Ready, digest: str) -> None:
        """Refuse to do anything else than was approved: another medfed may count otherwise."""
        approval = self.ledger.approval(digest)
        for purpose, term in approval.terms.items() if approval else ():
            if purpose not in ready.terms or ready.terms[purpose].cost != term.cost:
                raise LedgerError(
                    f"site {self.site!r}: the study would cost something else than was approved.",
                    advice="withdraw from the study and approve it again with the medfed that is "
                    "installed now.",
                )

    def _check_schedule(self, study: Study, request: RoundRequest) -> None:
        """Refuse what the approved schedule does not have."""
        rounds = study.training.rounds
        match request.purpose:
            case "train":
                allowed = range(1, rounds + 1)
            case "validation":
                allowed = study.validation_rounds
            case "test":
                allowed = range(rounds, rounds + 1)
        if request.round not in allowed:
            raise PrivacyError(
                f"site {self.site!r}: {request.purpose} in round {str(request.round)[:20]} is "
                f"outside the approved schedule of {rounds} rounds.",
                advice="the coordinator signs a study with the longer schedule; sites approve it.",
            )

    def _judge(self, ready: _Ready, model: Parameters, key: RoundKey, part: EvaluatedPart) -> bytes:
        """Score the server's model on the eligible patients of a part; noised, in wire form."""
        load_parameters(ready.network, model)
        histogram = noised_histogram(
            ready.network,
            ready.judges[part].only(self.ledger.eligible(key.digest, part)),
            histogram_mechanism(ready.study, part),
            self.randomness_for(key),
            next(ready.network.parameters()).device,
        )
        return encode_histogram(histogram)

    def _train(self, ready: _Ready, start: Parameters, key: RoundKey) -> Parameters:
        return train_round(
            ready.network,
            ready.data.only(self.ledger.eligible(key.digest, key.purpose)),
            start,
            study=ready.study,
            site=ready.site,
            mechanism=ready.mechanism,
            randomness=self.randomness_for(key),
        )

    def _prepare(self, digest: str) -> _Ready:
        self.warm(self.study_for(digest))  # asked every time: an approval can be withdrawn
        return self._ready[digest]

    def _make_ready(self, study: Study) -> _Ready:
        try:
            site = study.site_named(self.site)
        except MedfedError as error:
            raise ApprovalError(str(error)) from error
        device = pick_device(self.prefer_device)
        network = network_for(study).to(device)
        terms, scans = terms_of(study, site), self.scans_for(study)
        return _Ready(
            study=study,
            site=site,
            network=network,
            shapes=shapes_of(parameters_of(network)),
            data=prepare(network, scans, device, vary=vary_for(study)),
            judges={p: scans.part_of(PARTS[p]) for p in EVALUATED_PARTS if p in terms},
            mechanism=mechanism_for(study, site) if study.private else None,
            terms=terms,
        )
