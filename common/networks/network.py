"""What every network is to the rest of medfed: a fixed front, a trained body, a loss per scan.

The training loop clips what one patient contributes, so it needs the loss of each scan
(never a mean over a batch), and layers whose gradients can be split by scan. Every body
therefore keeps to one contract, which ``tests/unit/common/test_networks.py`` holds:

* parameters sit only in ``nn.Conv2d`` (zero padding, given in pixels), ``nn.Linear`` (2-D
  input) and ``nn.GroupNorm``, and each such layer runs exactly once per forward;
* no layer mixes scans of a batch (no BatchNorm), none is random (no dropout), none writes in
  place, no parameter is shared, and training changes parameters only, never a buffer.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Network(nn.Module):
    """A diagnostic network: ``body(front(scans))``.

    Attributes:
        front: A fixed transform without parameters, or None. It is deterministic and treats
            each scan alone, so its outputs may be computed once per scan and cached. It adds
            nothing to ``state_dict()``. Its outputs are as private as the scans.
        body: Everything that is trained.
    """

    def __init__(self, body: nn.Module, front: nn.Module | None = None) -> None:
        super().__init__()
        self.front = front
        self.body = body

    def forward(self, scans: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(scans, outputs)`` of scans ``(scans, channels, size, size)``.

        Args:
            scans: float32 in [0, 1] or standardised, square.

        Returns:
            One logit per class, or one for the second class in a binary network. float32,
            or bfloat16 under ``build.autocast``.
        """
        features = scans if self.front is None else self.front(scans)
        logits: torch.Tensor = self.body(features)
        return logits


def loss_per_scan(
    logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the cross-entropy of each scan; binary cross-entropy where there is one logit.

    Args:
        logits: ``(scans, classes)``, or ``(scans, 1)`` from a binary network. Any floating
            dtype; the loss is computed in float32.
        labels: Class index per scan, ``(scans,)``, int64, in ``[0, classes)``. Private.
        class_weights: Factor on the loss per class, ``(classes,)``, float32, positive. Public
            numbers from the study, never counted from the labels. None means 1 for each.

    Returns:
        Loss per scan in nats, ``(scans,)``, float32. Private. Weights scale each loss; they
        are not divided out, so a scan's loss does not depend on the other scans.

    Raises:
        ValueError: ``logits`` are not 2-D, or there is not exactly one label per scan.

    Guarantee:
        No value of one scan reaches another's loss; an empty batch gives an empty result.

    Example:
        >>> loss_per_scan(torch.zeros(1, 2), torch.tensor([1])).item()  # ln 2
        0.6931471824645996
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (scans, outputs) and labels (scans,), "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    return functional.cross_entropy(
        _logit_per_class(logits), labels, weight=class_weights, reduction="none"
    )


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Turn logits into one probability per class.

    Args:
        logits: ``(scans, classes)``, or ``(scans, 1)`` from a binary network.

    Returns:
        ``(scans, classes)``, float32, in [0, 1], rows sum to 1: the softmax; from one logit
        ``z`` the two columns ``1 - sigmoid(z)`` and ``sigmoid(z)``. Private.

    Example:
        >>> probabilities(torch.tensor([[0.0]])).tolist()
        [[0.5, 0.5]]
    """
    return functional.softmax(_logit_per_class(logits), dim=1)


def _logit_per_class(logits: torch.Tensor) -> torch.Tensor:
    """Return float32 logits with a column per class.

    A binary network's logit ``z`` becomes ``(0, z)``: the softmax of that is the sigmoid of
    ``z``, and its cross-entropy the binary one, both stable for large ``|z|``.
    """
    logits = logits.float()
    if logits.shape[1] != 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], dim=1)
