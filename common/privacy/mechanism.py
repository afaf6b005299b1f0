"""The privacy mechanism of one site, from public numbers only.

DP-SGD with Poisson sampling over patients: in each step every patient takes part by an
independent coin of probability ``q``, their mean gradient is clipped to the L2 norm ``S``,
the clipped gradients are summed, Gaussian noise of standard deviation ``sigma`` is added,
and the sum is divided by the lot. Sampling rate, lot and steps follow from the study file
(declared numbers), never from the size of the data: a lot that depends on ``len(dataset)``
tells whether one patient is in it.

Source:
    Abadi et al. Deep Learning with Differential Privacy. CCS 2016.
    https://arxiv.org/abs/1607.00133 (algorithm 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from medfed.common.errors import ConfigError
from medfed.common.privacy.accounting import epsilon, noise_multiplier_for
from medfed.common.privacy.histogram import HistogramMechanism
from medfed.common.study import Site, Study, steps_per_round

EvaluatedPart: TypeAlias = Literal["validation", "test"]
"""Whose histograms: patients who validate, or patients who test. No patient is both."""


@dataclass(frozen=True)
class Mechanism:
    """What one site does to its patients' gradients. Every field is public.

    Attributes:
        sampling_rate: ``q``, probability that a patient takes part in a step, in (0, 1].
        lot: The divisor of the noised sum: patients expected in a step, if the site has as
            many as it declared.
        clip_norm: ``S``, L2 bound on one patient's gradient, in the units of the parameters.
        noise_multiplier: ``sigma / S``, dimensionless, > 0.
        steps_per_round: Steps of one round; all of them are paid for.
        rounds: Rounds of the study's whole schedule.
        delta: Failure probability that every epsilon of the study refers to.
        scans_per_patient: At most this many scans of a patient enter a step.
    """

    sampling_rate: float
    lot: int
    clip_norm: float
    noise_multiplier: float
    steps_per_round: int
    rounds: int
    delta: float
    scans_per_patient: int

    @property
    def steps(self) -> int:
        """Steps of the whole schedule."""
        return self.steps_per_round * self.rounds


def mechanism_for(study: Study, site: Site) -> Mechanism:
    """Derive a site's mechanism from the study.

    The sampling rate is lot / declared patients. If the study names a target epsilon the noise
    multiplier is the smallest that keeps the *whole schedule* within it.

    Raises:
        ConfigError: the study's privacy mode is ``none``.

    Guarantee:
        A function of the study alone: server, site and auditor compute the same numbers.
    """
    privacy, training = study.privacy, study.training
    if (
        privacy.clip_norm is None
        or privacy.delta is None
        or privacy.scans_per_patient is None
        or not study.private
    ):
        raise ConfigError(
            f"study {study.name!r} has privacy.mode = {privacy.mode!r}: it has no mechanism.",
            advice='set privacy.mode = "dp-sgd" and its limits to train with privacy.',
        )
    lot = min(training.batch_size, site.declared_patients)
    rate = lot / site.declared_patients
    per_round = steps_per_round(study, site)
    sigma = privacy.noise_multiplier
    if sigma is None:
        assert privacy.target_epsilon is not None  # the study file requires one of the two
        sigma = noise_multiplier_for(
            privacy.target_epsilon, privacy.delta, rate, per_round * training.rounds
        )
    return Mechanism(
        sampling_rate=rate,
        lot=lot,
        clip_norm=privacy.clip_norm,
        noise_multiplier=sigma,
        steps_per_round=per_round,
        rounds=training.rounds,
        delta=privacy.delta,
        scans_per_patient=privacy.scans_per_patient,
    )


def study_epsilon(study: Study, site: Site) -> float:
    """Epsilon of a study's whole schedule for the patients of one site.

    Returns:
        Epsilon at ``study.privacy.delta``; infinity where ``privacy.mode`` is ``none``.
    """
    return epsilon_after(study, site, study.training.rounds)


def epsilon_after(study: Study, site: Site, rounds: int) -> float:
    """Epsilon that a site's patients have spent after some rounds of training.

    Args:
        study: The study.
        site: One of its sites.
        rounds: Rounds the site trained in, >= 0.
    """
    if not study.private:
        return math.inf if rounds else 0.0
    m = mechanism_for(study, site)
    return epsilon(m.noise_multiplier, m.sampling_rate, m.steps_per_round * rounds, m.delta)


def histograms_of(study: Study, part: EvaluatedPart) -> int:
    """Count the score histograms of one part over the study's whole schedule."""
    if study.evaluation is None:
        return 0
    return len(study.validation_rounds) if part == "validation" else int(study.evaluation.test)


def histogram_mechanism(study: Study, part: EvaluatedPart) -> HistogramMechanism:
    """Derive the mechanism of one part's score histograms from the study.

    If the study names a target epsilon the noise multiplier is the smallest that keeps *all* of
    the part's histograms within it.

    Raises:
        ConfigError: the study asks for no histogram of that part.

    Guarantee:
        A function of the study alone, the same at every site.
    """
    wanted, count, delta = study.evaluation, histograms_of(study, part), study.privacy.delta
    if wanted is None or delta is None or not count:
        raise ConfigError(
            f"study {study.name!r} asks for no score histogram of {part} patients.",
            advice="set evaluation.every (validation) or evaluation.test in the study.",
        )
    sigma = wanted.noise_multiplier
    if sigma is None:
        assert wanted.target_epsilon is not None  # the study file requires one of the two
        sigma = noise_multiplier_for(wanted.target_epsilon, delta, 1.0, count)
    two = study.classes == 2
    return HistogramMechanism(
        bins=wanted.bins,
        targets=(study.task.positive_index,) if two else tuple(range(study.classes)),
        noise_multiplier=sigma,
        histograms=count,
        delta=delta,
    )


def evaluation_epsilon(study: Study, part: EvaluatedPart) -> float:
    """Epsilon of the study's whole schedule of histograms for the patients of one part.

    Returns:
        Epsilon at ``study.privacy.delta``; 0.0 where the study asks for no histogram of the part.
    """
    if not histograms_of(study, part):
        return 0.0
    mechanism = histogram_mechanism(study, part)
    return epsilon(*mechanism.whole_spend, mechanism.delta)


def dearest_epsilon(study: Study, site: Site) -> float:
    """Epsilon of the patients who pay most: those who train, who validate or who test.

    Returns:
        At ``study.privacy.delta``, for the whole schedule; infinite without privacy.
    """
    return max(
        study_epsilon(study, site),
        evaluation_epsilon(study, "validation"),
        evaluation_epsilon(study, "test"),
    )
