"""What a check says of patients: whose the scans are, and pictures that stand more than once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from medfed.client.scans.check.copies import Copies, Kind
from medfed.client.scans.check.overview import Overview
from medfed.client.scans.check.remark import Remark, Severity
from medfed.client.scans.check.wording import plural, verb


class _Case(NamedTuple):
    """How copies of a kind are told; ``{s}`` stands for the ending of the verb."""

    kind: Kind
    severity: Severity
    slug: str
    noun: str
    text: str
    step: str


_JOIN: Final = "Join the two numbers if it is one person, else take the copy away"
_BY_EYE: Final = "Compare the pairs below by eye"
_CASES: Final = (
    _Case(
        Kind.PARTS,
        Severity.STOP,
        "copies-across-parts",
        "picture",
        "stand{s} in more than one of train, validation and test: a test would ask what training "
        "has shown.",
        _JOIN,
    ),
    _Case(
        Kind.PATIENTS,
        Severity.STOP,
        "copies-across-patients",
        "picture",
        "stand{s} under two {units}: one person under two numbers, whose privacy would be spent "
        "twice, or a copy.",
        _JOIN,
    ),
    _Case(
        Kind.LABELS,
        Severity.LOOK,
        "copies-with-two-labels",
        "picture",
        "stand{s} with two different labels; one of them is wrong.",
        "Correct the label",
    ),
    _Case(
        Kind.NEAR_PARTS,
        Severity.LOOK,
        "near-copies-across-parts",
        "pair",
        "of pictures in two parts look{s} nearly the same: saved again, or one person under two "
        "numbers.",
        _BY_EYE,
    ),
    _Case(
        Kind.NEAR_PATIENTS,
        Severity.LOOK,
        "near-copies-across-patients",
        "pair",
        "of pictures of two {units} look{s} nearly the same: saved again, or one person under two "
        "numbers.",
        _BY_EYE,
    ),
    _Case(
        Kind.REPEATED,
        Severity.LOOK,
        "copies-of-a-patient",
        "picture",
        "stand{s} twice among the scans of one {unit}, and weigh{s} double.",
        "Take the copies away",
    ),
)
_OF_NOBODY: Final = {
    Kind.PARTS: _CASES[0]._replace(step="Take the copy out of all parts but one"),
    Kind.PATIENTS: _CASES[1]._replace(
        severity=Severity.LOOK,
        text="stand{s} more than once, and weigh{s} double.",
        step="Take the copies away",
    ),
}
"""How they are told where nothing says whose a scan is."""


def patients_remarks(overview: Overview, copies: Copies) -> Iterator[Remark]:
    """Say whose the scans are, and which stand more than once."""
    yield from _parts(overview)
    yield from _ids(overview)
    yield from _copies(overview, copies)


def _parts(overview: Overview) -> Iterator[Remark]:
    number = overview.in_several_parts
    if number:
        yield Remark(
            Severity.STOP,
            "patients-in-several-parts",
            f"{plural(number, overview.unit)} {verb(number, 'has', 'have')} scans in more than one "
            "of train, validation and test; training refuses such a split.",
            'Split by patient and not by scan, or let the study split (rule = "hash").',
        )


def _ids(overview: Overview) -> Iterator[Remark]:
    if overview.unit != "image":
        text = f"Every scan says which {overview.unit} it belongs to."
        yield Remark(Severity.FINE, "patient-ids", text)
    elif overview.study.private:
        yield Remark(
            Severity.STOP,
            "patient-ids",
            "Not every scan says whose it is, and this study protects patients: it cannot be "
            "approved here.",
            "Write the PatientID into the files, name the patient in the table or by [scans] "
            'patient in site.toml, or leave such scans out: [scans] without_patient = "leave-out".',
        )
    else:
        yield Remark(
            Severity.LOOK,
            "patient-ids",
            "Not every scan says whose it is, so one person may be in train and in test.",
            "Write the PatientID into the files, or name the patient in the table.",
        )


def _copies(overview: Overview, copies: Copies) -> Iterator[Remark]:
    least = "At least " if copies.more else ""
    for case in _CASES:
        if overview.unit == "image":
            case = _OF_NOBODY.get(case.kind, case)
        count = copies.count(case.kind)
        if count:
            ending = verb(count, "s", "")
            text = case.text.format(s=ending, unit=overview.unit, units=overview.units)
            yield Remark(
                case.severity,
                case.slug,
                f"{least}{plural(count, case.noun)} {text}",
                f"{case.step}; files.csv beside the page names the files.",
            )
    if not any(copies.count(kind) for kind in Kind):
        yield Remark(Severity.FINE, "copies", "No picture stands twice, exactly or nearly.")
