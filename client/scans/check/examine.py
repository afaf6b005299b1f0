"""What a check found, as a whole: the numbers, the copies and what its admin is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medfed.client.scans.check.copies import Copies, Pictures, find_copies
from medfed.client.scans.check.overview import Overview
from medfed.client.scans.check.remark import Remark, Severity, worst
from medfed.client.scans.check.remarks import headline, remarks_on
from medfed.client.scans.scanset import PARTS

FORMAT = 1
"""Of the JSON; raised when a key changes its name or meaning."""


@dataclass(frozen=True, repr=False)
class Examination:
    """What a check found. Private: for the site's admin only.

    Attributes:
        overview: The scans in numbers.
        copies: Pictures that stand more than once.
        remarks: What the admin is told, the gravest first.
    """

    overview: Overview
    copies: Copies
    remarks: tuple[Remark, ...]

    @property
    def severity(self) -> Severity:
        """The gravest of the remarks'."""
        return worst(self.remarks)

    @property
    def headline(self) -> str:
        """Whether the folder is ready for the study, in one sentence. Private."""
        return headline(self.overview, self.remarks)

    def as_json(self) -> dict[str, Any]:
        """For programs of the site: the numbers and remarks, without pictures. Private."""
        overview, labels = self.overview, self.overview.study.task.labels
        return {
            "format": FORMAT,
            "study": overview.study.name,
            "severity": self.severity.value,
            "headline": self.headline,
            "unit": overview.unit,
            "patients": overview.patients_in_all,
            "scans": overview.total,
            "labels": {
                name: {
                    part: {"patients": patients, "scans": scans}
                    for part, patients, scans in zip(PARTS, *numbers, strict=True)
                }
                for name, *numbers in zip(
                    labels, overview.patients.tolist(), overview.scans.tolist(), strict=True
                )
            },
            "refused": dict(overview.refused),
            "left_out": dict(overview.left_out),
            "attributes": {
                name: {value: int(row.sum()) for value, row in counts.rows()}
                for name, counts in overview.by.items()
            },
            "remarks": [
                {
                    "severity": remark.severity.value,
                    "kind": remark.kind,
                    "text": remark.text,
                    "next_step": remark.next_step,
                }
                for remark in self.remarks
            ],
        }


def examine(overview: Overview, pictures: Pictures, *, declared: int | None = None) -> Examination:
    """Check the scans of a site for the study that they were gathered for.

    Args:
        overview: The scans in numbers.
        pictures: Gives tensors by the scans' places in the order in which they were gathered.
        declared: Patients that the study declares for the site; None: not known.

    Raises:
        ScanError: the pictures cannot be read.
    """
    copies = find_copies(overview.marks, pictures)
    return Examination(overview, copies, tuple(remarks_on(overview, copies, declared=declared)))
