"""A site's scans through its cache: what training gets in the place of reading every file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from medfed.client.scans.cache import Found, ScanCache, Source
from medfed.client.scans.cache_index import load_key
from medfed.client.scans.cache_records import DamagedRecordsError
from medfed.client.scans.entries import ScanRead
from medfed.client.scans.import_reader import Unsteady, state_of
from medfed.client.scans.importing import Progress, import_scans
from medfed.client.scans.layouts.layout import Entry, Index, nothing_left
from medfed.client.scans.patients import Pseudonymise
from medfed.client.scans.read import index_scans
from medfed.client.scans.recipe import recipe_of
from medfed.client.scans.refusals import Reason
from medfed.client.scans.scanset import ScanSet
from medfed.common.study import Study
from medfed.common.study_scans import Scans

if TYPE_CHECKING:
    from medfed.client.site_root import SiteRoot


def index_of(site: SiteRoot, study: Study) -> Index:
    """A site's index, as ``site.toml`` and the study say. Errors as ``index_scans``."""
    return index_scans(site.scans, study, rules=site.settings.scans)


def open_cache(site: SiteRoot, scans: Scans) -> ScanCache:
    """Open the site's cache for a study's ``[scans]`` table.

    Raises:
        ConfigError: the cache's key cannot be used.
        ScanError: another process has it open, or it cannot be written.
    """
    return ScanCache(
        site.folder / "cache", load_key(site.folder / "keys" / "cache.key"), recipe_of(scans)
    )


def cached_scans(
    site: SiteRoot,
    study: Study,
    *,
    pseudonymise: Pseudonymise | None = None,
    on_progress: Progress | None = None,
) -> ScanSet:
    """Read a site's scans through its cache, which is brought up to date first.

    Arguments, result and errors are those of ``read_scans``, for a site.

    Guarantee:
        The set is that of ``read_scans``, with each value to within half of one of 65,535 steps
        from black to white; pictures of 8 or 16 bits that need no resizing, to the bit where the
        study does not normalise. A damaged record is read anew from its file.
    """
    index = index_of(site, study)
    with open_cache(site, study.scans) as cache:
        import_scans(index, study.scans, cache, on_progress=on_progress)
        try:
            return _assembled(index, study, cache, pseudonymise)
        except DamagedRecordsError as error:
            cache.forget(error.rows)
        import_scans(index, study.scans, cache, on_progress=on_progress)
        return _assembled(index, study, cache, pseudonymise)


def _assembled(
    index: Index, study: Study, cache: ScanCache, pseudonymise: Pseudonymise | None
) -> ScanSet:
    used: list[tuple[Entry, Found]] = []
    refused = Counter(index.refused)
    for entry in index.entries:
        found = _found(cache, index.folder / entry.file, entry)
        if isinstance(found, Found) and found.refused is None:
            used.append((entry, found))
        else:
            refused[found if isinstance(found, str) else str(found.refused)] += 1
    if not used:
        raise nothing_left(index.folder, refused)
    patients = [entry.patient or found.patient for entry, found in used]
    parts = [entry.part for entry, _ in used if entry.part is not None]
    with cache.tensors(found for _, found in used) as tensors:
        images = tensors.read(range(len(used)))
    return ScanSet.assemble(
        images,  # type: ignore[arg-type]  # an array of tensors is a sequence of them
        [entry.label for entry, _ in used],
        [
            ScanRead(image, patient).key(entry)
            for image, patient, (entry, _) in zip(images, patients, used, strict=True)
        ],
        parts if len(parts) == len(used) else None,
        study,
        unit=index.unit if all(patients) else "image",
        refused=refused,
        pseudonymise=pseudonymise,
    )


def _found(cache: ScanCache, path: Path, entry: Entry) -> Found | str:
    """What the cache has of an entry that was imported just now; else why it has nothing."""
    state = state_of(path)
    if state is None:
        return Reason.MISSING.value
    found = cache.find(Source(path, state, entry.frame, settled=False))
    return Unsteady.CHANGED.value if found is None else found
