"""Denoising and local contrast, where a study asks for them.

Each scan is treated by itself: nothing is kept from one scan for the next, and nothing is random,
so that a patient's tensors depend on that patient's files alone.

``scikit-image`` does the work, which comes with the extra ``enhance``. It is imported when the
first scan needs it.

Source:
    Zuiderveld. Contrast Limited Adaptive Histogram Equalization. Graphics Gems IV, 1994.
    Buades, Coll, Morel. A non-local algorithm for image denoising. CVPR 2005.
    Immerkær. Fast Noise Variance Estimation. Computer Vision and Image Understanding 64(2), 1996.
"""

from __future__ import annotations

import importlib
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from medfed.common.errors import ScanError

LUMINANCE: Final = np.asarray([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the luminance (ITU-R BT.601)."""
PATCH: Final = 5
"""Side, in pixels, of the patches that non-local means compares."""
SEARCH: Final = 5
"""How far away, in pixels, it looks for similar ones. Buades has patches of 7 and 10; these take
a quarter of the time."""
STRENGTH: Final = 0.6
"""Decay ``h`` of a patch's weight, in units of the noise (scikit-image's advice)."""
TILES: Final = 8
"""Contextual regions per side, as Zuiderveld has them."""
SMALLEST_TILE: Final = 8
"""Their least side in pixels: the histogram of a few pixels says nothing."""
LAPLACIANS: Final = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))
"""Immerkær's mask: blind to brightness, slopes and straight edges along rows or columns; what it
leaves of noise has 6 times its standard deviation."""
MAD_OF_NORMAL: Final = 0.6745
"""Median absolute value of a standard normal variable."""


def need_skimage() -> Any:
    """Give the module.

    Raises:
        ScanError: it is not installed.
    """
    try:
        return importlib.import_module("skimage")
    except ImportError:
        raise ScanError(
            "the study's denoise, crop or clahe_clip needs the package scikit-image, which is not "
            "installed.",
            advice="install it: pip install 'medfed[enhance]'.",
        ) from None


def luminance(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Grey ``(rows, columns)`` of grey, which it is already, or of ``(rows, columns, 3)``."""
    return values if values.ndim == 2 else np.asarray(values @ LUMINANCE)


def denoised(
    values: NDArray[np.float64], how: Literal["median", "non-local-means"]
) -> NDArray[np.float64]:
    """Take noise out of a picture.

    Args:
        values: ``(rows, columns)`` or ``(rows, columns, 3)``, in [0, 1]. Private.
        how: ``median``: of 3 × 3 pixels, each colour by itself. ``non-local-means``: the mean of
            the pixels around that have similar surroundings, as strong as the picture's own
            noise; a picture without noise is left alone.

    Returns:
        The same shape, float64, in [0, 1]; new storage or ``values``. Private.

    Raises:
        ScanError: scikit-image is not installed and ``how`` needs it.

    Guarantee:
        No value below the least or above the largest of the picture.

    Source:
        Buades, Coll, Morel 2005, in the form of scikit-image's ``denoise_nl_means``.
    """
    if how == "median":
        window = (3, 3, 1)[: values.ndim]
        ndimage = importlib.import_module("scipy.ndimage")
        return np.asarray(ndimage.median_filter(values, size=window, mode="nearest"))
    restoration = need_skimage().restoration
    planes = [values] if values.ndim == 2 else [values[:, :, index] for index in range(3)]
    noise = float(np.mean([noise_of(plane) for plane in planes]))
    if noise == 0.0:
        return values
    cleaned = restoration.denoise_nl_means(
        values,
        patch_size=PATCH,
        patch_distance=SEARCH,
        h=STRENGTH * noise,
        sigma=noise,
        fast_mode=True,
        channel_axis=-1 if values.ndim == 3 else None,
    )
    return np.asarray(np.clip(cleaned, values.min(), values.max()))


def noise_of(grey: NDArray[np.float64]) -> float:
    """Estimate the standard deviation of a picture's noise from its finest differences.

    Args:
        grey: ``(rows, columns)``, in [0, 1]. Private.

    Returns:
        The standard deviation, in the same units; 0 where too little is left to tell. Private.

    Guarantee:
        Pixels at 0 or 1 do not count: there the noise is clipped away. Edges that cover less
        than a quarter of the picture hardly count: the median passes over them.

    Source:
        Immerkær 1996, with the median of the absolute values in place of their mean.
    """
    mask = np.asarray(LAPLACIANS)
    rest = sum(
        mask[i, j] * grey[i : grey.shape[0] - 2 + i, j : grey.shape[1] - 2 + j]
        for i in range(3)
        for j in range(3)
    )
    centre = grey[1:-1, 1:-1]
    counted = np.abs(np.asarray(rest)[(centre > 0.0) & (centre < 1.0)])
    return float(np.median(counted) / (6.0 * MAD_OF_NORMAL)) if counted.size else 0.0


def equalised(values: NDArray[np.float64], clip: float) -> NDArray[np.float64]:
    """Raise local contrast, no more than the clip limit allows (CLAHE).

    Args:
        values: ``(rows, columns)`` or ``(rows, columns, 3)``, in [0, 1]. Private.
        clip: Largest share of a region's pixels in one of its histogram's bins, in (0, 1]; what
            is above is spread over all bins. Less is milder.

    Returns:
        The same shape, float64, in [0, 1]; a flat picture is unchanged. Private.

    Raises:
        ScanError: scikit-image is not installed.

    Guarantee:
        Of colour the luminance is equalised. Each pixel keeps the ratio of its colours as long as
        that stays within 1, and what is missing to its new luminance comes as white: no value
        is clipped, and the luminance is what equalisation says.

    Source:
        Zuiderveld 1994, as scikit-image's ``equalize_adapthist`` with 8 × 8 regions, or with
        fewer where a region would have less than 8 pixels a side.
    """
    exposure = need_skimage().exposure
    grey = luminance(values)
    if not grey.max() > grey.min():
        return values
    tile = [max(side // TILES, SMALLEST_TILE) for side in grey.shape]
    wanted = exposure.equalize_adapthist(np.clip(grey, 0.0, 1.0), kernel_size=tile, clip_limit=clip)
    if values.ndim == 2:
        return np.asarray(wanted)
    return _with_luminance(values, grey, wanted)


def _with_luminance(
    values: NDArray[np.float64], grey: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Colours of the wanted luminance, as saturated as [0, 1] allows."""
    one = np.ones_like(grey)
    factor = np.divide(wanted, grey, out=one.copy(), where=grey > 0.0)
    brightest = values.max(axis=2)
    factor = np.minimum(factor, np.divide(1.0, brightest, out=one, where=brightest > 0.0))
    scaled, reached = values * factor[:, :, None], grey * factor
    white = np.divide(wanted - reached, 1.0 - reached, out=np.zeros_like(grey), where=reached < 1.0)
    white = np.clip(white, 0.0, 1.0)[:, :, None]
    return np.asarray(np.clip(scaled + (1.0 - scaled) * white, 0.0, 1.0))
