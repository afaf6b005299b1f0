"""How large the messages are that leave a site: the same for every site, patient and round."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medfed.common.networks.parameters import network_for, parameters_of
from medfed.common.privacy.histogram import encode_histogram
from medfed.common.privacy.mechanism import EvaluatedPart, histogram_mechanism, histograms_of
from medfed.common.study import Study
from medfed.common.updates import encode

_PARTS: tuple[EvaluatedPart, ...] = ("validation", "test")


class MessageSizes(NamedTuple):
    """Bytes of what a site releases for one round, without the envelope of the transport. Public.

    Attributes:
        update: Of the change of the weights.
        histograms: Part of the patients -> bytes of one noised histogram of its scores.
    """

    update: int
    histograms: dict[EvaluatedPart, int]


def message_sizes(study: Study) -> MessageSizes:
    """Measure what a study makes a site send, by encoding it.

    Raises:
        ConfigError: as ``network_for``.
    """
    histograms: dict[EvaluatedPart, int] = {
        part: len(encode_histogram(np.zeros(histogram_mechanism(study, part).shape)))
        for part in _PARTS
        if histograms_of(study, part)
    }
    return MessageSizes(len(encode(parameters_of(network_for(study)))), histograms)
