"""Audit a study: every check, with the numbers of each site, on synthetic patients.

The audit can fail, and is tested to: ``tests/support/planted_faults.py`` holds the faults that
it must find. What it runs is the code that a deployed site runs (`AUDITED`), with the study's
network, clip norm, noise multiplier, sampling rate and scans per patient. What it cannot see:
whether a site was changed after it was audited, and what else than updates a site may send.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from medfed.client import bookkeeping, layer_gradients, noise, private_gradients, training
from medfed.client.noise import Randomness, SecretRandomness
from medfed.common.networks.build import pick_device
from medfed.common.privacy.mechanism import Mechanism, mechanism_for
from medfed.common.study import Site, Study
from medfed.simulations.privacy_audit.canaries import check_canaries
from medfed.simulations.privacy_audit.noise_level import check_generator, check_noise
from medfed.simulations.privacy_audit.result import AuditResult, Check
from medfed.simulations.privacy_audit.sampling import check_sampling
from medfed.simulations.privacy_audit.sensitivity import check_sensitivity
from medfed.simulations.privacy_audit.subject import Subject
from medfed.simulations.seeded import SeededRandomness

AUDITED = (bookkeeping, layer_gradients, noise, private_gradients, training)
"""The modules of a site in which the privacy mechanism lives."""

CANARIES = 4000
"""Canaries of the black box, unless another number is asked for."""

_FEWEST_CANARIES = 100

Progress = Callable[[str, int, int], None]
Part = Callable[[], list[Check]]


def audit_study(
    study: Study,
    *,
    sites: tuple[str, ...] = (),
    seed: int | None = None,
    canaries: int = CANARIES,
    device: str = "auto",
    progress: Progress = lambda what, done, total: None,
) -> AuditResult:
    """Audit the privacy mechanism of this installation, as the study sets it.

    Args:
        study: With privacy.
        sites: Names of the sites whose declared numbers are audited; none: all, where sites
            with the same mechanism are audited once.
        seed: None: the noise comes from a site's own secret generator. A number: from the
            seeded generator of simulations, so that the audit repeats.
        canaries: Of the black box; >= 100.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: Told the part, steps done and steps in all.

    Raises:
        ConfigError: the study has no privacy mechanism, or lists no such site.
        ValueError: too few canaries.

    Guarantee:
        On honest code each check passes but for a probability of ``FALSE_ALARM``. No patient's
        data is read.
    """
    if canaries < _FEWEST_CANARIES:
        raise ValueError(f"canaries must be >= {_FEWEST_CANARIES}, got {canaries}")
    chosen = [study.site_named(name) for name in sites] or list(study.site)
    distinct: dict[Mechanism, Site] = {}
    for site in chosen:
        distinct.setdefault(mechanism_for(study, site), site)
    checks: list[Check] = []
    for number, (mechanism, site) in enumerate(distinct.items()):
        subject = Subject(
            study=study,
            site=site,
            mechanism=mechanism,
            device=pick_device(device),
            randomness_for=_generator(seed),
            patients=np.random.default_rng((seed or 0, number)),
        )
        parts = _parts(subject, seed, canaries)
        for done, part in enumerate(parts, start=1):
            checks += part()
            progress(f"audit of site {site.name}", done, len(parts))
    return AuditResult(
        study=study.name,
        digest=study.digest,
        code=code_digest(),
        version=version("medfed"),
        secret=seed is None,
        checks=tuple(checks),
    )


def _parts(subject: Subject, seed: int | None, canaries: int) -> list[Part]:
    """The parts of an audit of one site, in order. A seeded one leaves out what cannot repeat."""
    seeded = SeededRandomness(f"audit of the generator, seed={seed or 0}")
    own = [] if seed is not None else [("secret generator", SecretRandomness())]
    generators: list[tuple[str, Randomness]] = [*own, ("seeded generator", seeded)]
    return [
        lambda: check_sensitivity(subject),
        lambda: check_noise(subject),
        lambda: [
            row for name, source in generators for row in check_generator(subject, name, source)
        ],
        lambda: check_sampling(subject),
        lambda: check_canaries(subject, canaries),
    ]


def _generator(seed: int | None) -> Callable[[str], Randomness]:
    """What makes the randomness of a round: a site's own way, or the way of simulations."""
    if seed is None:
        return lambda key: SecretRandomness()
    return lambda key: SeededRandomness(f"medfed seed={seed} {key}")


def code_digest() -> str:
    """Digest the source files of the audited mechanism: SHA-256, 64 hexadecimal digits.

    Guarantee:
        The same files give the same digest on every machine; a changed byte another one.
    """
    total = hashlib.sha256()
    for module in AUDITED:
        assert module.__file__ is not None  # they are files of this package
        source = Path(module.__file__).read_bytes()
        total.update(module.__name__.encode() + b"\0" + hashlib.sha256(source).digest())
    return total.hexdigest()
