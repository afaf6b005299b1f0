"""Ask the sites for noised score histograms of one model, and wait for them.

After the update of a round was averaged the model that would be released is judged, where the
study says so, by every site on its own validation or test patients. No quorum: the figures say
which sites they are about, and the run says which it misses.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from medfed.common.errors import UpdateRejectedError
from medfed.common.privacy.mechanism import EvaluatedPart, histogram_mechanism
from medfed.common.study import Study
from medfed.server.evaluation import Evaluation, HistogramSum
from medfed.server.link import Answer, Link, plain
from medfed.server.rounds import NOT_CONNECTED

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.2
_LATE = "late: no histogram by the deadline"


def collect_histograms(
    study: Study,
    link: Link,
    part: EvaluatedPart,
    round_: int,
    model: bytes,
    *,
    stop_requested: Callable[[], bool],
) -> tuple[Evaluation, dict[str, str]]:
    """Let the connected sites judge a model on one part of their patients.

    Args:
        study: Says the mechanism, the threshold and how long a round may take.
        link: How to reach the sites.
        part: Whose histograms.
        round_: The round that the model came out of.
        model: In wire form.
        stop_requested: Asked while waiting.

    Returns:
        What the histograms that arrived say, and site -> why it is missing.
    """
    histograms = HistogramSum(
        histogram_mechanism(study, part),
        threshold=study.evaluation.threshold,  # type: ignore[union-attr]  # the mechanism needs it
    )
    present = link.present()
    missing = {site.name: NOT_CONNECTED for site in study.site if site.name not in present}
    pending = {site.name for site in study.site} - missing.keys()
    patience = study.cohort.round_deadline_s
    link.ask(round_, tuple(sorted(pending)), model, patience, purpose=part)
    until = time.monotonic() + patience
    while pending and time.monotonic() < until and not stop_requested():
        answer = link.next_answer()
        if answer is None:
            time.sleep(_LOOK_AGAIN_S)
        elif answer.site in pending:
            pending.remove(answer.site)
            problem = _taken(histograms, answer)
            if problem:
                missing[answer.site] = problem
    missing |= dict.fromkeys(pending, _LATE)
    return histograms.evaluation(), missing


def _taken(histograms: HistogramSum, answer: Answer) -> str:
    """Add an answer's histogram; why that was not possible, else ``""``."""
    if answer.payload is None:
        return f"{answer.failure}: {plain(answer.reason)}"
    try:
        histograms.add(answer.site, answer.payload)
    except UpdateRejectedError as error:
        log.warning("histogram.rejected site=%s %s", answer.site, error)
        return "rejected: its histogram failed the checks"
    return ""
