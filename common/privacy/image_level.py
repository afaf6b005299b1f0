"""What a guarantee per image means for a patient with several images.

Clipping each image by itself and sampling images, as most published code does, protects one
image. A patient's images are then sampled one by one and each adds a gradient of its own, so a
patient with k images moves the sum by as much as k clip norms: by i of them with the probability
that i of k coins fall on heads. The largest possible effect on the released sums is thus a
mixture of Gaussians, whose privacy loss is composed exactly; bounds for groups from the image's
own (epsilon, delta) are far looser, or void.

medfed itself clips per patient and needs none of this: it is for telling a reader what an
image-level claim would have hidden.

Source:
    Charles et al. Fine-Tuning Large Language Models with User-Level Differential Privacy. 2024.
    https://arxiv.org/abs/2407.07737 (example-level sampling, accounted for a user)
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from medfed.common.privacy.accounting import (
    JointSpend,
    Spend,
    beyond_floating_point,
    check_delta,
    compose_equal,
    largest_loss,
    steps_by_kind,
)
from medfed.common.privacy.several_ids import chances_of


@lru_cache(maxsize=64)
def patient_epsilon(spend: Spend, delta: float, images: int) -> float:
    """Epsilon of a patient whose images were sampled and clipped one by one.

    Args:
        spend: The steps as accounted for an image: noise over one *image's* clip norm, sampling
            rate of an image.
        delta: In (0, 1).
        images: Images of the patient among those that training samples from, 1 to 1000.

    Returns:
        An upper bound (pessimistic estimate, within about 0.1 %) at ``delta``, add-or-remove one
        patient with all these images. For one image that of ``accounting.epsilon``; 0.0 for no
        steps; infinite where floating point ends.

    Raises:
        ValueError: a number outside its range.

    Example:
        >>> image_level = Spend(1.42, 0.032, 937)  # epsilon 2.98 for an image
        >>> round(patient_epsilon(image_level, 1e-4, 2), 1)
        6.9
    """
    check_delta(delta)
    if not 1 <= images <= 1000:
        raise ValueError(f"images must be 1 to 1000, got {images!r}")
    steps = steps_by_kind([spend])
    if not steps:
        return 0.0
    if beyond_floating_point(steps_by_kind([JointSpend(*spend, images)])):
        return math.inf
    # 1.4 s to import: only who needs an epsilon pays it.
    from dp_accounting.pld import privacy_loss_distribution  # noqa: PLC0415  lazy, see above

    chances = chances_of(images, spend.sampling_rate)
    step = privacy_loss_distribution.from_mixture_gaussian_mechanism(
        spend.noise_multiplier,
        sensitivities=list(range(images + 1)),
        sampling_probs=chances,
        pessimistic_estimate=True,
        value_discretization_interval=_interval_for(spend, chances),
        use_connect_dots=True,
    )
    return float(compose_equal(step, spend.steps).get_epsilon_for_delta(delta))


def _interval_for(spend: Spend, chances: list[float]) -> float:
    """Choose the grid of the loss: a tenth of a step's typical one, but not too many points.

    Typical is the mean over the standard deviation; the spread is the square root of the
    chi-square distance, ``sum over i, j of p_i p_j (e^(ij / sigma^2) - 1)``.

    The counterpart of the grid in ``accounting``, coarser because the figure is told to three
    digits and a step costs k times as much to set up.
    """
    sigma, rate, count = spend
    images = len(chances) - 1
    largest = largest_loss(sigma / images, min(1.0, images * rate))
    inner = np.outer(np.arange(images + 1), np.arange(images + 1)) / sigma**2
    weights = np.array(chances)
    spread = math.sqrt(max(0.0, float(weights @ np.expm1(np.minimum(700.0, inner)) @ weights)))
    wanted = max(
        0.1 * rate * images / sigma,
        largest / 50_000,
        20.0 * math.sqrt(count) * min(largest, spread) / 1e6,
        1e-8,
    )
    return float(2.0 ** math.floor(math.log2(min(8.0, wanted))))
