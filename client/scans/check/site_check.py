"""Check a site's scans for a study: import what is new, look at all, write the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from medfed.client.approvals import naming_patients
from medfed.client.scans.cache import ScanCache
from medfed.client.scans.cache_records import CachedTensors, DamagedRecordsError
from medfed.client.scans.cached import index_of, looked_at, open_cache, tensors_of
from medfed.client.scans.check.examine import Examination, examine
from medfed.client.scans.check.overview import gather
from medfed.client.scans.check.page import NAMES, page_html, write_names, write_page
from medfed.client.scans.entries import own_key
from medfed.client.scans.facts import LookedAt
from medfed.client.scans.importing import Progress, Tally, import_scans
from medfed.client.scans.layouts.layout import Entry, Index, nothing_left
from medfed.client.scans.patients import LEFT_OUT
from medfed.client.site_root import SiteRoot, names_of_patients
from medfed.common.study import Study
from medfed.common.trust.private_files import private_folder

FOLDER: Final = "check"
"""Of the site's folder: where pages lie unless another place is asked for."""


@dataclass(frozen=True, repr=False)
class Checked:
    """A check that was made. Private: for the site's admin.

    Attributes:
        found: What it found.
        page: Where the page lies.
        names: Where the files are named that it speaks of; None: there are none.
    """

    found: Examination
    page: Path
    names: Path | None


def check_site(
    site: SiteRoot,
    study: Study,
    *,
    page: Path | None = None,
    on_progress: Progress | None = None,
    now: datetime | None = None,
) -> Checked:
    """Import what is new, check all scans of a site for a study, and write the page.

    Args:
        site: The site.
        study: What its scans are to be read for.
        page: Where the page is written; None: in a folder of its own under the site's.
        on_progress: Told after every scan that is imported.
        now: The time that the page names; None: as it is.

    Raises:
        ConfigError: the study does not list the site, or the page cannot be written.
        ScanError: the scans cannot be read, or none is usable.
        LedgerError: the ledger, which knows which record numbers are one person, cannot be read.

    Guarantee:
        Page and names can be read by their owner only. What is written names no patient.
    """
    now = now or datetime.now()
    declared = study.site_named(site.name).declared_patients
    study = naming_patients(site, study)
    index = index_of(site, study)
    with open_cache(site, study.scans) as cache:
        tally = import_scans(index, study.scans, cache, on_progress=on_progress)
        look = _Look(site, study, index, cache, tally)
        try:
            found, html = look.examine(declared, now)
        except DamagedRecordsError as error:
            cache.forget(error.rows)
            look.tally = import_scans(index, study.scans, cache, on_progress=on_progress)
            found, html = look.examine(declared, now)
        path = page or _place(site, study, now)
        write_page(html, path)
        names = path.with_name(NAMES if page is None else f"{path.stem}.{NAMES}")
        named = write_names(found, look.scans(), names)
    return Checked(found, path, names if named else None)


class _Look:
    """Looks at the scans of an open cache; as often as is asked for."""

    def __init__(
        self, site: SiteRoot, study: Study, index: Index, cache: ScanCache, tally: Tally
    ) -> None:
        self._study, self._index, self._cache, self.tally = study, index, cache, tally
        self._folder, self._rules = site.scans, site.settings.scans
        self._names, self._some_are_nobodys = names_of_patients(site), False

    def examine(self, declared: int, now: datetime) -> tuple[Examination, str]:
        """Look at all, and draw the page."""
        overview = gather(self.scans(), self._study, unit=self._index.unit)
        refused, left_out = self.tally.refused, Counter(self.tally.left_out)
        missing = self.tally.listed - refused.total() - overview.total
        if missing:
            left_out[LEFT_OUT] += missing
        if not overview.total:
            raise nothing_left(self._folder, refused + left_out)
        overview = replace(
            overview,
            unit="image" if self._some_are_nobodys else overview.unit,
            refused=dict(refused),
            left_out=dict(left_out),
        )
        with self._tensors() as tensors:
            found = examine(overview, tensors.read, declared=declared)
            return found, page_html(found, tensors.read, now)

    def scans(self) -> Iterator[LookedAt]:
        """All usable scans; those of a merged person are in one part, as in training."""
        looked = looked_at(self._index, self._study, self._cache, self._names, self._rules)
        for scan in looked:
            own = own_key(Entry(scan.file, scan.label, frame=scan.frame))
            self._some_are_nobodys |= scan.patient == self._names(own)
            yield scan

    def _tensors(self) -> CachedTensors:
        return tensors_of(self._index, self._cache, self._rules)


def _place(site: SiteRoot, study: Study, now: datetime) -> Path:
    folder = private_folder(site.folder / FOLDER) / f"{study.name}-{now:%Y-%m-%d}"
    return private_folder(folder) / "index.html"
