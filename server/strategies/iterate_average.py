"""Iterate averaging: release the moving average of the global models instead of the last one.

Averaging over rounds removes noise that each round's model still carries; as post-processing
it is free of privacy cost. The decay warms up, so that early models are forgotten.

Source:
    Polyak, Juditsky. Acceleration of Stochastic Approximation by Averaging. SIAM J. Control
    and Optimization 30(4), 1992. https://doi.org/10.1137/0330046
"""

from __future__ import annotations

import numpy as np

from medfed.common.updates import Parameters


def averaged(
    before: Parameters | None, latest: Parameters, *, decay: float, round_: int
) -> Parameters:
    """Fold the latest global model into the average.

    Args:
        before: The average after the round before; None in the first round.
        latest: The global model of this round, float32.
        decay: Largest weight of the past, in [0, 1); the weight is ``min(decay,
            round / (round + 4))``.
        round_: This round, from 1.

    Returns:
        float32 parameters; with ``decay`` 0 exactly ``latest``.
    """
    if before is None or decay == 0.0:
        return latest
    past = min(decay, round_ / (round_ + 4))
    return {
        name: (
            past * before[name].astype(np.float64) + (1.0 - past) * latest[name].astype(np.float64)
        ).astype(np.float32)
        for name in latest
    }
