"""Federated averaging, with server momentum.

    v ← β v + mean(Δ);   w ← w + η v

With β = 0 and η = 1 this is FedAvg; with β > 0, FedAvgM. Averages of noised updates are
post-processing: neither costs privacy.

Source:
    McMahan et al. Communication-Efficient Learning of Deep Networks from Decentralized Data.
    AISTATS 2017. https://arxiv.org/abs/1602.05629
    Hsu, Qi, Brown. Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification. 2019. https://arxiv.org/abs/1909.06335
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medfed.common.updates import Parameters


@dataclass(frozen=True)
class FedAvgState:
    """What the server keeps between rounds.

    Attributes:
        parameters: The global model, float32.
        velocity: ``v``, float64, same names and shapes.
    """

    parameters: Parameters
    velocity: Parameters


@dataclass(frozen=True)
class FedAvg:
    """The strategy: two functions without I/O.

    Attributes:
        learning_rate: ``η`` > 0.
        momentum: ``β`` in [0, 1).

    Example:
        >>> rule = FedAvg(learning_rate=1.0, momentum=0.5)
        >>> state = rule.init({"w": np.array([0.0], np.float32)})
        >>> for _ in range(2):
        ...     state = rule.apply(state, {"w": np.array([1.0])})
        >>> float(state.parameters["w"][0])  # 1 + (0.5 + 1)
        2.5
    """

    learning_rate: float = 1.0
    momentum: float = 0.0

    def init(self, parameters: Parameters) -> FedAvgState:
        """Start from a first global model."""
        zeros = {name: np.zeros(array.shape, np.float64) for name, array in parameters.items()}
        return FedAvgState(parameters, zeros)

    def apply(self, state: FedAvgState, mean_update: Parameters) -> FedAvgState:
        """Make the next global model from the mean update of a round.

        Args:
            state: The state so far; unchanged.
            mean_update: Weighted mean of the round's updates, float64.
        """
        velocity = {
            name: self.momentum * state.velocity[name] + mean_update[name]
            for name in state.velocity
        }
        parameters = {
            name: (array.astype(np.float64) + self.learning_rate * velocity[name]).astype(
                np.float32
            )
            for name, array in state.parameters.items()
        }
        return FedAvgState(parameters, velocity)
