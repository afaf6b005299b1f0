"""The one door to a site's scans, whatever their layout."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

from medfed.client.scans.cache_records import rounded
from medfed.client.scans.entries import EntryReader, ScanRead
from medfed.client.scans.layouts.detect import layout_of
from medfed.client.scans.layouts.layout import Entry, Index, SourceRules, nothing_left
from medfed.client.scans.layouts.series import by_series
from medfed.client.scans.layouts.views import of_views
from medfed.client.scans.patients import LEFT_OUT, Pseudonymise, is_left_out
from medfed.client.scans.recipe import recipe_of
from medfed.client.scans.refusals import RefusedScanError
from medfed.client.scans.scanset import ScanSet
from medfed.common.study import Study

BY_SIGHT: Final = SourceRules()
"""The layout is the one that fits, with nothing said about it."""


def read_scans(
    source: Path,
    study: Study,
    *,
    pseudonymise: Pseudonymise | None = None,
    rules: SourceRules = BY_SIGHT,
) -> ScanSet:
    """Read the scans of a site as the study says.

    A file that is no usable scan is counted in ``refused`` with its reason and left out. A scan
    without a patient is its own privacy unit; as soon as there is one, ``unit`` is ``"image"``,
    the weaker claim, though scans with a patient still group by it.

    Args:
        source: A folder in one of the layouts of ``layouts/detect.py``, or an ``.npz`` file.
        study: Labels and the findings that mean them, split, privacy unit and how a scan becomes
            a tensor.
        pseudonymise: How the ledger names patients; None: it does not (simulation).
        rules: What the site says of its own scans.

    Returns:
        The scans, grouped by patient and split, in the index's order. All of it is private but
        ``unit``.

    Raises:
        ScanError: the source cannot be read, holds no usable scan, or contradicts the study.
            The message is for the site's admin: it may name paths and counts, never a
            patient, a label or a pixel.

    Guarantee:
        The result does not depend on the order of files on disk, and the same files give the
        same bits with the same libraries, those that a site reads from its cache: each value is
        rounded to one of 65,536 steps from black to white. A patient is never in two parts.
    """
    index = index_scans(source, study, rules=rules)
    reader = EntryReader(index, study.scans)
    read: list[ScanRead] = []
    used: list[Entry] = []
    refused = Counter(index.refused)
    form = recipe_of(study.scans).form
    for entry in index.entries:
        try:
            scan = reader.read(entry)
            if is_left_out(scan.patient, rules):
                refused[LEFT_OUT] += 1
                continue
            read.append(scan._replace(tensor=rounded(scan.tensor, form)))
            used.append(entry)
        except RefusedScanError as error:
            refused[error.reason.value] += 1
    if not read:
        raise nothing_left(source, refused)
    parts = [entry.part for entry in used if entry.part is not None]
    return ScanSet.assemble(
        [scan.tensor for scan in read],
        [entry.label for entry in used],
        [scan.key(entry) for scan, entry in zip(read, used, strict=True)],
        parts if len(parts) == len(used) else None,
        study,
        unit=index.unit if all(scan.patient for scan in read) else "image",
        refused=refused,
        pseudonymise=pseudonymise,
    )


def index_scans(
    source: Path,
    study: Study,
    *,
    rules: SourceRules = BY_SIGHT,
) -> Index:
    """Say which scans there are, without reading a pixel.

    Args and errors are those of ``read_scans``; the index is private. What the study does not
    take by the view that a table says is left out, and files are joined into series where the
    study takes series.
    """
    index = layout_of(source, rules.layout).index(source, study, rules)
    index = of_views(index, study.scans.views)
    index = by_series(index) if study.scans.series else index
    if not index.entries:
        raise nothing_left(source, index.refused)
    return index
