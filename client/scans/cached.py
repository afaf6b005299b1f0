"""A site's scans through its cache: what training gets in the place of reading every file."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medfed.client.scans.cache import Found, ScanCache, Source
from medfed.client.scans.cache_index import load_key
from medfed.client.scans.cache_records import CachedTensors
from medfed.client.scans.entries import own_key
from medfed.client.scans.facts import LookedAt, ScanFacts, scan_about
from medfed.client.scans.import_reader import Unsteady, state_of_entry
from medfed.client.scans.importing import Progress, import_scans
from medfed.client.scans.layouts.layout import Entry, Index, SourceRules, nothing_left
from medfed.client.scans.patients import LEFT_OUT, PatientNames, Pseudonymise, is_left_out
from medfed.client.scans.read import BY_SIGHT, index_scans
from medfed.client.scans.recipe import recipe_of
from medfed.client.scans.refusals import Reason
from medfed.client.scans.scanset import PARTS, TRAIN, ScanSet
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
        The set is that of ``read_scans`` to the bit. Its tensors stay in the cache until they are
        asked for; each was read once to see that it decrypts, and anew from its file if not.
    """
    index = index_of(site, study)
    with open_cache(site, study.scans) as cache:
        import_scans(index, study.scans, cache, on_progress=on_progress)
        scans = _assembled(index, study, cache, pseudonymise, site.settings.scans)
        damaged = _tensors(scans).damaged()
        if not damaged:
            return scans
        cache.forget(damaged)
        import_scans(index, study.scans, cache, on_progress=on_progress)
        return _assembled(index, study, cache, pseudonymise, site.settings.scans)


def looked_at(
    index: Index,
    study: Study,
    cache: ScanCache,
    pseudonymise: Pseudonymise,
    rules: SourceRules = BY_SIGHT,
) -> Iterator[LookedAt]:
    """Give every usable scan of an index that was imported, with what its file says of it.

    Args:
        index: The site's.
        study: Its split rule decides the part.
        cache: Open, and up to date.
        pseudonymise: Names the patients.
        rules: What the site says of its scans; decides which are left out.

    Returns:
        One by one, in the index's order; nothing is kept. A scan without a patient is its own.
        Private.
    """
    merged = _parts_of_merged(index, study, cache, pseudonymise, rules)
    for entry, found in _used(index, cache, rules):
        try:
            facts, look = scan_about(cache.about(found))
        except ValueError:
            facts, look = ScanFacts(), int.from_bytes(found.name[:8], "big")  # like no other's
        key = _key(entry, found)
        name = pseudonymise(key)
        yield LookedAt(
            entry.file,
            entry.label,
            merged.get(name, part_of(entry, key, study)),
            name,
            facts,
            found.name,
            look,
            entry.frame,
        )


def _parts_of_merged(
    index: Index,
    study: Study,
    cache: ScanCache,
    pseudonymise: Pseudonymise,
    rules: SourceRules,
) -> dict[bytes, int]:
    """Name -> part of the persons with merged record numbers: the first that any of these is in."""
    persons = pseudonymise.persons if isinstance(pseudonymise, PatientNames) else frozenset()
    parts: dict[bytes, int] = {}
    for entry, found in _used(index, cache, rules) if persons else ():
        key = _key(entry, found)
        name = pseudonymise(key)
        if name in persons:
            part = part_of(entry, key, study)
            parts[name] = min(part, parts.get(name, part))
    return parts


def tensors_of(index: Index, cache: ScanCache, rules: SourceRules) -> CachedTensors:
    """Open the tensors of the scans that ``looked_at`` gives, in its order."""
    return cache.tensors(found for _, found in _used(index, cache, rules))


def _used(
    index: Index, cache: ScanCache, rules: SourceRules, others: Counter[str] | None = None
) -> Iterator[tuple[Entry, Found]]:
    """The entries that have a tensor and are not left out, with what the cache has of them.

    Why the others are not used is counted in ``others``.
    """
    counted = Counter[str]() if others is None else others
    for entry in index.entries:
        found = _found(cache, index.folder, entry)
        if not isinstance(found, Found) or found.refused is not None:
            counted[found if isinstance(found, str) else str(found.refused)] += 1
        elif is_left_out(entry.patient or found.patient, rules):
            counted[LEFT_OUT] += 1
        else:
            yield entry, found


def _key(entry: Entry, found: Found) -> str:
    """The key of the privacy unit. Private."""
    return entry.patient or found.patient or own_key(entry)


def part_of(entry: Entry, key: str, study: Study) -> int:
    """Which part a scan is in, by the study's rule; where it says none, training."""
    if study.split.rule == "hash":
        return PARTS[study.split.part_of(key)]
    return TRAIN if entry.part is None else entry.part


def _tensors(scans: ScanSet) -> CachedTensors:
    assert isinstance(scans.images, CachedTensors)
    return scans.images


def _assembled(
    index: Index,
    study: Study,
    cache: ScanCache,
    pseudonymise: Pseudonymise | None,
    rules: SourceRules = BY_SIGHT,
) -> ScanSet:
    gathered = _Gathered(Counter(index.refused))
    tensors = cache.tensors(gathered.usable(index, cache, rules))
    if not len(tensors):
        raise nothing_left(index.folder, gathered.refused)
    return ScanSet.assemble(
        tensors,
        gathered.labels,
        gathered.keys,
        gathered.parts if len(gathered.parts) == len(tensors) else None,
        study,
        unit=index.unit if gathered.all_have_patients else "image",
        refused=gathered.refused,
        pseudonymise=pseudonymise,
    )


@dataclass(repr=False)
class _Gathered:
    """What is kept of each scan beside its tensor: a few bytes, for there may be a million."""

    refused: Counter[str]
    labels: array[int] = field(default_factory=lambda: array("q"))
    parts: array[int] = field(default_factory=lambda: array("b"))
    keys: list[str] = field(default_factory=list)
    all_have_patients: bool = True

    def usable(self, index: Index, cache: ScanCache, rules: SourceRules) -> Iterator[Found]:
        """Give what the cache has of each usable scan; count the others."""
        same: dict[str, str] = {}  # a patient's key is kept once
        for entry, found in _used(index, cache, rules, self.refused):
            self.labels.append(entry.label)
            if entry.part is not None:
                self.parts.append(entry.part)
            key = _key(entry, found)
            named = bool(entry.patient or found.patient)
            self.keys.append(same.setdefault(key, key) if named else key)
            self.all_have_patients = self.all_have_patients and named
            yield found


def _found(cache: ScanCache, folder: Path, entry: Entry) -> Found | str:
    """What the cache has of an entry that was imported just now; else why it has nothing."""
    state = state_of_entry(folder, entry)
    if state is None:
        return Reason.MISSING.value
    found = cache.find(Source(folder / entry.file, state, entry.frame, settled=False))
    return Unsteady.CHANGED.value if found is None else found
