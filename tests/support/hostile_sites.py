"""Import a site's scans as the command does, and read its report."""

from __future__ import annotations

import csv
from pathlib import Path

from medfed.client.scans.cache import REFUSED
from medfed.client.scans.cached import index_of, open_cache
from medfed.client.scans.importing import Tally, import_scans
from medfed.client.site_root import SiteRoot
from medfed.common.study import Study
from tests.support.scans import HASH, study_of

STUDY = study_of(split=HASH)


def imported(site: SiteRoot, study: Study = STUDY, **how: object) -> tuple[Tally, dict[str, str]]:
    """Import; give what was done, and the reasons by file."""
    with open_cache(site, study.scans) as cache:
        tally = import_scans(index_of(site, study), study.scans, cache, **how)  # type: ignore[arg-type]  # passed on
        return tally, reasons_in(cache.folder / REFUSED)


def reasons_in(report: Path) -> dict[str, str]:
    """File -> why it was refused."""
    with report.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {line["file"]: line["reason"] for line in csv.DictReader(file)}
