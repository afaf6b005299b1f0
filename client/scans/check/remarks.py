"""All that a site's admin is told about the scans, in order, and the sentence above it."""

from __future__ import annotations

from collections.abc import Sequence

from medfed.client.scans.check.about_labels import labels_remarks
from medfed.client.scans.check.about_patients import patients_remarks
from medfed.client.scans.check.about_pictures import pictures_remarks
from medfed.client.scans.check.copies import Copies
from medfed.client.scans.check.overview import Overview
from medfed.client.scans.check.remark import Remark, Severity
from medfed.client.scans.check.wording import plural, verb
from medfed.common.report.words import clean


def remarks_on(overview: Overview, copies: Copies, *, declared: int | None = None) -> list[Remark]:
    """Say what matters about a site's scans, the gravest first.

    Args:
        overview: The scans in numbers.
        copies: Pictures that stand more than once.
        declared: Patients that the study declares for the site; None: not known.

    Returns:
        At least one remark. Private.
    """
    found = [
        *patients_remarks(overview, copies),
        *labels_remarks(overview, declared),
        *pictures_remarks(overview),
    ]
    order = list(Severity)
    return sorted(found, key=lambda remark: order.index(remark.severity))


def headline(overview: Overview, remarks: Sequence[Remark]) -> str:
    """Say in one sentence whether the folder is ready for the study. Private."""
    study = f"study {clean(overview.study.name)}"
    grave = sum(remark.severity is Severity.STOP for remark in remarks)
    light = sum(remark.severity is Severity.LOOK for remark in remarks)
    if grave:
        return f"Not ready for {study}: {plural(grave, 'thing')} must be put right first."
    scans = plural(overview.total, "scan")
    if overview.unit != "image":
        scans += f" of {plural(overview.patients_in_all, overview.unit)}"
    ready = f"{scans} {verb(overview.total, 'is', 'are')} ready for {study}"
    if light:
        return f"{ready} once somebody has looked at {plural(light, 'thing')}."
    return f"{ready}; nothing needs care."
