"""A study on one page, for the people who decide about it: an ethics board, a data board.

What stands on it follows from the study file alone, so it is public, and anyone with the file can
draw the same page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from medfed.common.privacy.mechanism import (
    EvaluatedPart,
    evaluation_epsilon,
    histograms_of,
    study_epsilon,
)
from medfed.common.privacy.terms import EVALUATED_PARTS
from medfed.common.report.markup import paragraphs, safe, section, terms
from medfed.common.report.page import document
from medfed.common.report.preparation import preparation, preparation_warnings
from medfed.common.report.words import delta_text, epsilon_text
from medfed.common.signed_study import StudyFile
from medfed.common.study import Study

if TYPE_CHECKING:  # it brings torch with it
    from medfed.common.networks.message_sizes import MessageSizes


def study_page(file: StudyFile, sizes: MessageSizes) -> str:
    """Draw the page.

    Args:
        file: The study, and the fingerprint of who signed it.
        sizes: Of the messages that it makes a site send.

    Returns:
        An HTML document that loads nothing. The same study gives the same text.
    """
    study = file.study
    parts = (
        _banner(file),
        _tiles(study),
        _purpose(study),
        _who(study),
        _leaving(study, sizes),
        _privacy(study),
        _seen(study),
        _duration(study),
        _withdrawing(study),
        _scans(study),
        _compare(file),
    )
    return document(f"Study {study.name}, serial {study.study.serial}", parts)


def guess_text(epsilon: float, delta: float) -> str:
    """Say how often a guess whether a patient took part can be right, where both are as likely.

    Returns:
        At most ``(e^ε + δ) / (1 + e^ε)`` of the time, rounded up, as a percentage.

    Source:
        Kairouz, Oh, Viswanath. The Composition Theorem for Differential Privacy. ICML 2015,
        theorem 2.1: the two errors of any such guess sum to at least 2 (1 - δ) / (1 + e^ε).
        https://arxiv.org/abs/1311.0776

    Example:
        >>> guess_text(0.0, 0.0), guess_text(1.0, 1e-5), guess_text(8.0, 1e-5)
        ('50 %', '73.2 %', '99.97 %')
    """
    wrong = 100.0 * (1.0 - delta) / (1.0 + math.exp(min(epsilon, 700.0)))
    if wrong < 1e-6:
        return "practically 100 %"
    decimals = max(1, -math.floor(math.log10(wrong)))
    right = 100.0 - math.floor(wrong * 10**decimals + 1e-9) / 10**decimals
    return f"{right:.{decimals}f}".rstrip("0").rstrip(".") + " %"


def size_text(size_bytes: int) -> str:
    """Say a size: ``812 bytes``, ``48.2 kB``, ``31.4 MB``."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes} bytes"


def _banner(file: StudyFile) -> str:
    study = file.study
    head = (
        '<header class="offered">'
        f'<p class="outcome">Study to be approved</p><h1>{safe(study.name)}, serial '
        f'{study.study.serial}</h1><p class="soft">Digest <code>{study.digest}</code></p>'
        "</header>\n"
    )
    if file.fingerprint is None:
        words = "<strong>Signed by nobody.</strong> A draft: hospitals with an enrolment refuse it."
    else:
        words = (
            f"<strong>Signed by {safe(file.fingerprint)}.</strong> Anybody can make such a file: "
            "before you rely on it, compare these letters with those that the coordinator reads "
            "out by phone."
        )
    return head + paragraphs([words], "notice")


def _tiles(study: Study) -> str:
    training = max(study_epsilon(study, site) for site in study.site)
    loss = epsilon_text(training) if study.private else "no limit"
    at = f"epsilon at delta {delta_text(study.privacy.delta or 0.0)}, per patient"
    tiles = (
        ("Hospitals", str(len(study.site)), f"{study.cohort.quorum} needed for a round"),
        ("Rounds", str(study.training.rounds), "fixed before the first"),
        ("Privacy loss, at most", loss, at if study.private else "trained without privacy"),
        ("Last day", str(study.study.expires or "none"), "of approval and training"),
    )
    items = (
        f"<li><span>{safe(name)}</span><strong>{safe(value)}</strong><small>{safe(small)}</small>"
        "</li>"
        for name, value, small in tiles
    )
    return f'<ul class="tiles">{"".join(items)}</ul>\n'


def _purpose(study: Study) -> str:
    labels = ", ".join(study.task.labels)
    decides = f"The model tells apart: {safe(labels)}. Network: {safe(study.network.name)}."
    return section("What it is for", paragraphs([safe(study.study.purpose), decides]))


def _who(study: Study) -> str:
    rows = []
    for site in study.site:
        epsilon = study_epsilon(study, site)
        loss = epsilon_text(epsilon) if study.private else "no limit"
        rows.append(
            f"<tr><th>{safe(site.name)}</th>"
            f'<td data-head="Patients, declared">{site.declared_patients:,}</td>'
            f'<td data-head="Privacy loss of a training patient">{loss}</td></tr>'
        )
    head = "<th>Hospital</th><th>Patients, declared</th><th>Privacy loss of a training patient</th>"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    note = "The numbers are declared and rounded. How many patients there really are is not told."
    return section("Who takes part", table + paragraphs([note], "soft"))


def _leaving(study: Study, sizes: MessageSizes) -> str:
    rounds = study.training.rounds
    how = (
        "made from patients drawn at random, each one's influence limited, noise added"
        if study.private
        else "<strong>without noise</strong>"
    )
    entries = [
        (
            "Change of the model",
            f"{rounds} times {size_text(sizes.update)} ({size_text(rounds * sizes.update)} in "
            f"all): one number for each weight of the network, {how}.",
        )
    ]
    for part, size in sizes.histograms.items():
        entries.append((f"Scores, {part} patients", _histogram_words(study, part, size)))
    entries += [
        ("Ledger's head", "With each of these, how many entries the hospital's own record of "
         "spent privacy has, and their signed hash: less than 1 kB."),
        ("Codes", "Where the hospital refuses a round, one code of a short public list."),
    ]  # fmt: skip
    never = (
        "<strong>Nothing else leaves a hospital:</strong> no scan, no report, no name or number of "
        "a patient, no exact count."
    )
    return section("What leaves each hospital", terms(entries) + paragraphs([never]))


def _histogram_words(study: Study, part: EvaluatedPart, size: int) -> str:
    count = histograms_of(study, part)
    times = "once" if count == 1 else f"{count} times"
    return (
        f"{times}, {size_text(size)}: how many patients of each class got which score, with noise "
        "added to every number."
    )


def _privacy(study: Study) -> str:
    if not study.private:
        return section(
            "What it costs a patient",
            paragraphs(
                [
                    "<strong>This study trains without differential privacy: nothing limits what "
                    "the model may tell about a patient.</strong> A hospital must allow that by "
                    "name before it can approve the study."
                ]
            ),
        )
    delta = study.privacy.delta or 0.0
    dearest = max(study_epsilon(study, site) for site in study.site)
    costs = [("Training patients", dearest)]
    costs += [
        (f"{part.capitalize()} patients", evaluation_epsilon(study, part))
        for part in EVALUATED_PARTS
        if histograms_of(study, part)
    ]
    entries = [(name, _cost(epsilon, delta)) for name, epsilon in costs]
    meaning = (
        "The promise compares the world with one in which this one patient never was at the "
        "hospital: whoever sees everything that leaves, with any computer and any other knowledge, "
        "concludes almost the same in both. It holds for the patient with all of their scans, "
        "whoever they are. Epsilon says how nearly the same (0: exactly), delta with which "
        "probability that may fail.",
        "Which patients a step of the training uses is decided by secret coins, and of each at "
        f"most {study.privacy.scans_per_patient} scans are used. Training, validation and test "
        "patients are different people. Each hospital keeps a record over all studies together, "
        "and refuses what would pass its own limit.",
    )
    return section("What it costs a patient", terms(entries) + paragraphs(map(safe, meaning)))


def _cost(epsilon: float, delta: float) -> str:
    return (
        f"epsilon {epsilon_text(epsilon)} at delta {delta_text(delta)} (1 in {1 / delta:,.0f}). "
        "Somebody who must guess whether a given patient took part, where both are as likely, and "
        f"sees everything, guesses right at most {guess_text(epsilon, delta)} of the time; who "
        "sees nothing, 50 %."
    )


def _seen(study: Study) -> str:
    noised = "noised" if study.private else "not noised"
    entries = (
        ("The hospital", "its own scans and patients; the model of each round."),
        (
            "The coordinator's server",
            f"the {noised} message of each hospital by itself, and when it comes. No scan.",
        ),
        ("Other hospitals", "the model of each round, which is an average. No other's message."),
        ("The network between", "that messages pass, and how large they are; not what is in them."),
        ("Who gets the model", "the finished model, and the figures that are reported with it."),
    )
    return section("Who sees what", terms((name, safe(words)) for name, words in entries))


def _duration(study: Study) -> str:
    about = study.study
    follows = f"serial {about.serial}"
    if about.supersedes:
        follows += f"; it replaces the study with digest {about.supersedes}"
    last = (
        f"{about.expires} (UTC) is the last day on which it is approved or trained"
        if about.expires
        else "no last day is set"
    )
    entries = (
        ("Rounds", f"{study.training.rounds}; each waits at most "
         f"{study.cohort.round_deadline_s / 60:,.0f} minutes for the hospitals"),
        ("Ends", last),
        ("Version", follows),
        ("Approval", "buys this one schedule, once; more needs another serial and approval"),
    )  # fmt: skip
    return section("How long", terms((name, safe(words)) for name, words in entries))


def _withdrawing(study: Study) -> str:
    entries = (
        (
            "A hospital",
            f"<code>medfed site withdraw {study.digest[:8]}</code> ends it at once: nothing more "
            "leaves. <code>pause = true</code> in its site.toml stops it for a while.",
        ),
        (
            "A patient",
            "tells the hospital, which takes them out of all studies with <code>medfed site "
            "exclude</code>, from the next round on. Nobody outside learns of it.",
        ),
        (
            "What left before",
            "cannot be called back: the model keeps what it learned, within the privacy loss "
            "stated above."
            if study.private
            else "cannot be called back.",
        ),
    )
    return section("How to withdraw", terms(entries))


def _scans(study: Study) -> str:
    lines = [(name, safe(line)) for name, line in preparation(study.scans, study.augmentation)]
    warnings = [safe(warning) for warning in preparation_warnings(study.augmentation)]
    return section("Which scans, and how they are prepared", terms(lines) + paragraphs(warnings))


def _compare(file: StudyFile) -> str:
    return section("To compare", terms(_marks(file)))


def _marks(file: StudyFile) -> Iterator[tuple[str, str]]:
    yield "Digest of the study", f"<code>{file.study.digest}</code>"
    signed = "signed by nobody" if file.fingerprint is None else safe(file.fingerprint)
    yield "Coordinator", f"<code>{signed}</code>"
    yield (
        "What to do",
        "Approve only this digest: one changed character of the study gives another. The "
        "coordinator reads the second line out by phone.",
    )
