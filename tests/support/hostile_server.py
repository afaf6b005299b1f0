"""A server that asks a site for whatever it likes, and what it gets to see.

The sites it asks are real: keys, ledger and witness on disk, secret randomness. Scans are made
so that a tensor tells whose it is, which lets a test see who took part past the code under test.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from medfed.client.approvals import approve
from medfed.client.flower_app import open_session
from medfed.client.scans.patients import PseudonymKey
from medfed.client.session import RoundRequest, SiteSession
from medfed.client.site_root import SiteRoot, open_ledger
from medfed.common.networks.parameters import network_for, parameters_of
from medfed.common.privacy.terms import Purpose
from medfed.common.study import Study
from medfed.common.trust.ledger_head import Head
from medfed.common.updates import encode
from tests.support.sites import make_site


class Seen(NamedTuple):
    """All that a server sees of one answer but the noised numbers.

    Attributes:
        code: Why it was refused; None: it was not.
        size_bytes: Of what was released.
        sequence: Where the head says that the ledger stands; None without a head.
    """

    code: str | None
    size_bytes: int
    sequence: int | None


@dataclass
class HostileServer:
    """Asks one site, and keeps all that it sees.

    Attributes:
        session: The site.
        transcript: What was seen, in order.
        released: The distinct bytes that left, with the study and what they were for.
        heads: The heads that came with them.
    """

    session: SiteSession
    transcript: list[Seen] = field(default_factory=list)
    released: dict[bytes, tuple[str, Purpose]] = field(default_factory=dict)
    heads: list[Head] = field(default_factory=list)

    def ask(
        self,
        digest: str,
        model: bytes,
        *,
        round: int = 1,
        run: str = "run-1",
        purpose: Purpose = "train",
        known: Head | None = None,
    ) -> bytes | None:
        """Ask for a release; gives its bytes."""
        request = RoundRequest(digest, run, round, model, purpose=purpose, known=known)
        answer = self.session.answer(request)
        size, sequence = len(answer.payload or b""), answer.head and answer.head.sequence
        self.transcript.append(Seen(answer.code, size, sequence))
        if answer.payload is not None and answer.head is not None:
            self.released[answer.payload] = (digest, purpose)
            self.heads.append(answer.head)
        return answer.payload


def write_patients(path: Path, patients: Iterable[int]) -> Path:
    """An npz of one scan per patient, whose first pixel is the patient's number (below 256)."""
    numbers = sorted(patients)
    images = np.stack([np.random.default_rng(n).integers(0, 256, (28, 28)) for n in numbers])
    images[:, 0, 0] = numbers
    labels = np.array([n % 2 for n in numbers], dtype=np.int64)
    np.savez(path, images=images.astype(np.uint8), labels=labels, patient=np.array(numbers))
    return path


def patients_in(images: torch.Tensor, study: Study) -> frozenset[int]:
    """Whose the scans of a tensor ``(scans, 1, 28, 28)`` are."""
    pixel = images[:, 0, 0, 0].double().numpy() * study.scans.std + study.scans.mean
    return frozenset(int(n) for n in np.rint(pixel * 255.0))


def in_part(study: Study, part: str, count: int) -> list[int]:
    """The first patients whom a study puts into a part."""
    found = (n for n in range(256) if study.split.part_of(str(n)) == part)
    return [n for n, _ in zip(found, range(count), strict=False)]


def site_of(folder: Path, patients: Iterable[int], limits: str) -> SiteRoot:
    """A site of these patients; its limits are lines of TOML."""
    folder.mkdir(parents=True, exist_ok=True)
    return make_site(folder, scans=write_patients(folder / "scans.npz", patients), limits=limits)


def approve_with(site: SiteRoot, study: Study, patients: Iterable[int]) -> None:
    """Approve a study while the site has these patients."""
    write_patients(site.scans, patients)
    approve(site, study)


def exclude(site: SiteRoot, patients: Collection[int]) -> None:
    """Take patients out of everything."""
    key = PseudonymKey(site.pseudonym_key)
    ledger = open_ledger(site)
    ledger.exclude({key(str(n)) for n in patients})
    ledger.close()


def serve(site: SiteRoot) -> HostileServer:
    """Start the site and give the server that asks it."""
    return HostileServer(open_session(site.folder))


def first_model(study: Study) -> bytes:
    """A global model that fits."""
    return encode(parameters_of(network_for(study)))


def other_model(study: Study, shift: float = 0.25) -> bytes:
    """Another one that fits."""
    parameters = parameters_of(network_for(study))
    return encode({name: array + np.float32(shift) for name, array in parameters.items()})
