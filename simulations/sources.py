"""Where a simulation's hospitals come from: one data set dealt to them, or a folder for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medfed.client.scans.read import read_scans
from medfed.client.scans.scanset import TEST, TRAIN, ScanSet, number_in_order
from medfed.common.errors import ScanError
from medfed.common.study import Study
from medfed.simulations.cohorts import deal_patients


@dataclass(frozen=True, repr=False)
class Source:
    """The scans of a simulation.

    Attributes:
        pooled: All scans of a data set that is dealt to the sites; None if each has its own.
        own: Site -> its scans, where each site has a folder; else empty.
        test: The test scans of all sites together.
    """

    pooled: ScanSet | None
    own: Mapping[str, ScanSet]
    test: ScanSet

    @property
    def unit(self) -> str:
        """What the privacy unit is: ``patient``, ``image`` or the name of a group key."""
        return self.test.unit

    @property
    def refused(self) -> int:
        """Files that were left out."""
        sets = [self.pooled] if self.pooled is not None else list(self.own.values())
        return sum(sum(scans.refused.values()) for scans in sets)

    def test_of(self, scans: ScanSet) -> ScanSet:
        """The scans to test on at a site: its own test patients, or the pooled ones if dealt."""
        return self.test if self.pooled is not None else scans.part_of(TEST)

    def for_sites(self, study: Study, *, partition: str, seed: int) -> dict[str, ScanSet]:
        """Give each site its scans.

        Args:
            study: Its sites.
            partition: How a pooled data set is dealt; see ``cohorts.deal_patients``.
            seed: Public; chooses the deal.
        """
        if self.pooled is None:
            return {site.name: self.own[site.name] for site in study.site}
        training = self.pooled.part_of(TRAIN)
        return deal_patients(training, study, rule=partition, seed=seed)


def open_source(path: Path, study: Study) -> Source:
    """Read the scans of a simulation.

    Args:
        path: An ``.npz`` file or a folder with a ``worklist.csv``, to be dealt to the sites; or a
            folder with one such folder per site, named as in the study.
        study: What to read them as.

    Raises:
        ScanError: the scans cannot be read, a site has no folder, or there is no test part.
    """
    if path.is_dir() and not (path / "worklist.csv").exists() and _site_folders(path, study):
        own = {site.name: _of_site(path, site.name, study) for site in study.site}
        test = together([scans.part_of(TEST) for scans in own.values()])
        source = Source(None, own, test)
    else:
        pooled = read_scans(path, study)
        source = Source(pooled, {}, pooled.part_of(TEST))
    if not len(source.test):
        raise ScanError(
            f"{path}: none of its patients is a test patient; a simulation ends with a test.",
            advice="state a test part: split.test_fraction, or a split in the data set.",
        )
    return source


def together(sets: Sequence[ScanSet]) -> ScanSet:
    """Join the scans of several sites; their patients stay apart."""
    offsets = np.cumsum([0, *(scans.patients for scans in sets)])
    patients = [scans.patient + offset for scans, offset in zip(sets, offsets, strict=False)]
    return ScanSet(
        images=np.concatenate([np.asarray(scans.images) for scans in sets]),
        labels=np.concatenate([scans.labels for scans in sets]),
        patient=number_in_order(np.concatenate(patients).tolist()),
        part=np.concatenate([scans.part for scans in sets]),
        unit=sets[0].unit,
    )


def _site_folders(path: Path, study: Study) -> bool:
    return any((path / site.name).is_dir() for site in study.site)


def _of_site(path: Path, site: str, study: Study) -> ScanSet:
    if not (path / site).is_dir():
        raise ScanError(
            f"{path}: no folder {site!r}; the study lists {', '.join(s.name for s in study.site)}.",
            advice="give each site of the study a folder of its name.",
        )
    return read_scans(path / site, study)
