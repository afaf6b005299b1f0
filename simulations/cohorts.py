"""Deal the patients of one data set to several virtual hospitals.

A patient is never split between hospitals. The sizes that come out are what the hospitals
would declare; a simulation sets them against what the study declares.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medfed.client.scans.scanset import ScanSet
from medfed.common.errors import ConfigError
from medfed.common.study import Study


def deal_patients(
    scans: ScanSet, study: Study, *, rule: str = "iid", seed: int = 0
) -> dict[str, ScanSet]:
    """Deal patients to the study's sites.

    Args:
        scans: The patients to deal.
        study: Its sites and declared patient numbers, which set the shares.
        rule: ``iid``, or ``dirichlet:ALPHA`` (ALPHA > 0; smaller: more unequal label mixes).
        seed: Public; another one deals otherwise.

    Returns:
        Site -> its patients. All patients are dealt, each to one site.

    Raises:
        ConfigError: an unknown rule.
    """
    generator = np.random.default_rng([seed, 0x6D65])
    declared = np.array([site.declared_patients for site in study.site], dtype=np.float64)
    shares = declared / declared.sum()
    if rule == "iid":
        parts = _cut(generator.permutation(scans.patients), shares)
    elif rule.startswith("dirichlet:"):
        parts = _dirichlet(scans, shares, _alpha(rule), generator)
    else:
        raise ConfigError(
            f"unknown partition {rule!r}; allowed: iid, dirichlet:ALPHA.",
            advice="for example --partition dirichlet:0.5",
        )
    return {site.name: scans.select(np.sort(p)) for site, p in zip(study.site, parts, strict=True)}


def _alpha(rule: str) -> float:
    text = rule.partition(":")[2]
    try:
        alpha = float(text)
    except ValueError:
        alpha = 0.0
    if not alpha > 0:
        raise ConfigError(
            f"partition {rule!r}: {text!r} is not a number above 0.",
            advice="for example --partition dirichlet:0.5",
        )
    return alpha


def _cut(
    order: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]
) -> Sequence[npt.NDArray[np.int64]]:
    borders = np.rint(np.cumsum(shares)[:-1] * len(order)).astype(np.int64)
    return np.split(order, borders)


def _dirichlet(
    scans: ScanSet,
    shares: npt.NDArray[np.float64],
    alpha: float,
    generator: np.random.Generator,
) -> Sequence[npt.NDArray[np.int64]]:
    """Label by label, with shares drawn around the declared ones.

    Source:
        Hsu, Qi, Brown. 2019. https://arxiv.org/abs/1909.06335
    """
    label_of = np.zeros(scans.patients, np.int64)
    label_of[scans.patient[::-1]] = scans.labels[::-1]  # a patient's first label
    parts: list[list[npt.NDArray[np.int64]]] = [[] for _ in shares]
    for label in np.unique(label_of):
        patients = generator.permutation(np.flatnonzero(label_of == label))
        drawn = generator.dirichlet(alpha * shares * len(shares))
        for part, piece in zip(parts, _cut(patients, drawn), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]
