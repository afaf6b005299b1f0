"""What a check says of labels: files and lines left out, parts, and how the labels are spread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.check.overview import Overview
from medfed.client.scans.check.remark import Remark, Severity
from medfed.client.scans.check.wording import most, plural, share, verb
from medfed.client.scans.scanset import TEST, TRAIN
from medfed.common.report.words import clean

HALF_REFUSED: Final = 0.5
"""From this share of refused files on something is wrong with the folder as a whole."""
FEW_TO_TRAIN: Final = 20
FEW_TO_TEST: Final = 10
"""Fewer patients of a label than these teach, or test, nothing that can be relied on."""
UNEVEN: Final = 1.5
"""Up to this ratio of the largest to the smallest label they count as equal."""
UNBALANCED: Final = 10.0
"""From this ratio of the largest to the smallest label on it is pointed out."""
PARTS_DIFFER: Final = 0.15
"""Difference of a label's share between two parts from which on it is pointed out ..."""
PARTS_MEASURED: Final = 50
"""... where both have so many patients."""
MANY_MORE: Final = 1.25
"""Declared numbers are rounded; above this many times them the admin is told."""


def labels_remarks(overview: Overview, declared: int | None) -> Iterator[Remark]:
    """Say what is left out and missing, and how labels are spread over patients and parts.

    Args:
        overview: The scans in numbers.
        declared: Patients that the study declares for the site; None: not known.
    """
    yield from _refused(overview)
    yield from _left_out(overview)
    yield from _parts(overview)
    yield from _labels(overview)
    yield from _balance(overview)
    yield from _parts_differ(overview)
    yield from _declared(overview, declared)


def _refused(overview: Overview) -> Iterator[Remark]:
    refused = sum(overview.refused.values())
    if not refused:
        yield Remark(Severity.FINE, "refused", "Every listed file can be read.")
        return
    listed = refused + overview.total
    yield Remark(
        Severity.STOP if refused >= HALF_REFUSED * listed else Severity.LOOK,
        "refused",
        f"{refused:,} of {plural(listed, 'listed scan')} ({share(refused, listed)}) cannot be "
        f"used, most often for this reason: {most(overview.refused)}.",
        "`medfed scans import` says where refused.csv lies, which has their names; docs/scans.md "
        "has a remedy for each reason.",
    )


def _left_out(overview: Overview) -> Iterator[Remark]:
    number = sum(overview.left_out.values())
    if number:
        what = plural(number, "scan or line", "scans or lines")
        yield Remark(
            Severity.LOOK,
            "left-out",
            f"{what} of the folder or its table {verb(number, 'is', 'are')} left out, most often "
            f"for this reason: {most(overview.left_out)}.",
            "docs/scans.md has a remedy for each reason; where no label was found, the study says "
            "which finding means which label (findings.means).",
        )


def _parts(overview: Overview) -> Iterator[Remark]:
    if not overview.patients_of_part[TRAIN]:
        yield Remark(
            Severity.STOP,
            "nothing-to-train-on",
            "No scan is there to train on; all are held out by the split.",
            "Check the split column of the table, or the study's split.",
        )
    if not overview.patients_of_part[TEST]:
        yield Remark(
            Severity.LOOK,
            "nothing-to-test-on",
            "No patient is held out for the test, so nobody can say how well the model does here.",
            "Check the split column of the table, or the study's split.",
        )


def _labels(overview: Overview) -> Iterator[Remark]:
    """Of each label at most one remark: it is missing, or there is too little to learn or test."""
    trains, tests = (bool(overview.patients_of_part[part]) for part in (TRAIN, TEST))
    for label, name in enumerate(map(clean, overview.study.task.labels)):
        train, test = (int(overview.patients[label, part]) for part in (TRAIN, TEST))
        if not overview.scans[label].any():
            yield Remark(
                Severity.LOOK,
                "label-missing",
                f"No scan here has the label “{name}”.",
                "If there are such patients, check findings.means in the study; else training "
                "works, but this site teaches nothing about them.",
            )
        elif trains and train < FEW_TO_TRAIN:
            yield Remark(
                Severity.LOOK,
                "label-too-few",
                f"Only {plural(train, overview.unit)} to train on {verb(train, 'has', 'have')} "
                f"the label “{name}”; fewer than {FEW_TO_TRAIN} teach little.",
                "Add scans of such patients if there are any.",
            )
        elif tests and test < FEW_TO_TEST:
            yield Remark(
                Severity.LOOK,
                "label-too-few-to-test",
                f"Only {plural(test, overview.unit)} in the test {verb(test, 'has', 'have')} the "
                f"label “{name}”; figures of this site alone mean little for it.",
                "Add scans of such patients if there are any.",
            )


def _balance(overview: Overview) -> Iterator[Remark]:
    """Compare the labels in train, by patients and by scans: the more unequal of the two."""
    ratio, counted, large, small = max(
        _ratio(overview.patients[:, TRAIN], overview.units),
        _ratio(overview.scans[:, TRAIN], "scans"),
    )
    names = [clean(label) for label in overview.study.task.labels]
    text = (
        f"In train there are {ratio:.1f} {counted} of “{names[large]}” to one of “{names[small]}”."
    )
    if ratio >= UNBALANCED:
        step = "Tell the coordinator; class weights in the study can balance it."
        yield Remark(Severity.LOOK, "unbalanced", text, step)
    elif ratio >= UNEVEN:
        yield Remark(Severity.FINE, "unbalanced", text)
    elif ratio:
        text = "In train the labels are about equally frequent."
        yield Remark(Severity.FINE, "unbalanced", text)


def _ratio(counts: NDArray[np.int64], counted: str) -> tuple[float, str, int, int]:
    """The largest over the smallest above 0, what was counted, and which; 0 where there is one."""
    large = int(counts.argmax())
    small = int(np.where(counts > 0, counts, counts.max() + 1).argmin())
    several = (counts > 0).sum() > 1
    return float(counts[large] / counts[small]) if several else 0.0, counted, large, small


def _parts_differ(overview: Overview) -> Iterator[Remark]:
    train, test = overview.patients[:, TRAIN], overview.patients[:, TEST]
    if min(train.sum(), test.sum()) < PARTS_MEASURED:
        return
    train, test = train / train.sum(), test / test.sum()
    label = int(np.abs(train - test).argmax())
    if abs(train[label] - test[label]) > PARTS_DIFFER:
        yield Remark(
            Severity.LOOK,
            "parts-differ",
            f"Train and test differ: “{clean(overview.study.task.labels[label])}” is "
            f"{share(train[label], 1)} of the one and {share(test[label], 1)} of the other.",
            "If the split is yours, draw it at random among patients.",
        )


def _declared(overview: Overview, declared: int | None) -> Iterator[Remark]:
    training = int(overview.patients_of_part[TRAIN])
    if declared is not None and training and not declared <= training <= MANY_MORE * declared:
        yield Remark(
            Severity.LOOK,
            "declared",
            f"There {verb(training, 'is', 'are')} {plural(training, overview.unit)} to train on; "
            f"the study declares {declared:,} for this site. Privacy holds, but the noise per "
            f"{overview.unit} fits less well.",
            "Tell the coordinator a rounded number that is nearer.",
        )
    delta = overview.study.privacy.delta
    if delta is not None and delta * training > 1.0:
        yield Remark(
            Severity.LOOK,
            "delta",
            f"The study's delta, {delta:g}, is above one over the number of {overview.units} "
            "here: it would allow one of them to be given away entirely.",
            "Ask for a smaller delta.",
        )
