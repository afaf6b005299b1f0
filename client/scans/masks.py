"""Where in a picture the patient is, or the lungs: a box to cut out before a picture is made small.

A box is found on a small copy of the picture, by Otsu's threshold and the connected regions that
it leaves. Nothing is learned and nothing is kept from one scan for the next. Where the result
makes no sense as anatomy, the box is the larger one: cutting away a finding is worse than
keeping a margin.

A diseased lung may be as bright as the tissue around it, and then it is no part of the mask. The
box is therefore drawn around both lungs, and only where two of a kind are found.

Source:
    Otsu. A Threshold Selection Method from Gray-Level Histograms. IEEE Transactions on Systems,
    Man, and Cybernetics 9(1), 1979.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medfed.client.scans.enhance import luminance, need_skimage

Mask = NDArray[np.bool_]
Grey = NDArray[np.float32]
Element = TypeVar("Element", bound=np.generic)

SIDE: Final = 256
"""Longest side, in pixels, of the copy on which masks are drawn."""
SMALLEST: Final = 8
"""A picture with a shorter side than this is not cropped."""
MARGIN: Final = 0.05
"""Of a box's side, added at either end."""
FLAT: Final = 0.02
"""A picture whose values span less shows nothing that could be told apart."""
EMPTY: Final = 0.3
"""A surround brighter than this is not empty: air in the widest usual CT window is 0.23."""
EVEN: Final = 0.75
"""How much of a surround, at least, is nearer to its level than to where the patient begins."""
CORNER: Final = 0.04
"""Side of a corner, as a fraction of the picture's."""
WHITE: Final = 0.99
"""Whole rows and columns of at least this, at the rim, are unexposed film behind a collimator."""
LEAST_BODY: Final = 0.05
"""A foreground that covers less of the picture is none."""
KEPT_PART: Final = 0.25
"""Regions of at least this fraction of the largest stay: two knees are one picture."""
LUNG_AREA: Final = (0.02, 0.35)
"""What one lung covers of the picture, at least and at most."""
LUNG_RATIO: Final = 0.2
"""The smaller lung's area by the larger's, at least."""
LUNGS_WIDE: Final = 0.25
LUNGS_HIGH: Final = 0.15
"""Least sides of the box around both lungs, as fractions of the picture's."""
SKIN: Final = 0.02
"""Depth, as a fraction of the copy's longer side, to which the body's rim is as dark as a lung."""
GAP: Final = 0.01
"""Radius, as a fraction of the copy's longer side, of what thins out before regions are told
apart: skin folds and the air tube do not join a lung to anything."""


class Box(NamedTuple):
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right`` of a picture, ends excluded.

    Private: it follows from the patient's picture.
    """

    top: int
    left: int
    bottom: int
    right: int

    def of(self, array: NDArray[Element]) -> NDArray[Element]:
        """The part of ``(rows, columns, ...)`` inside the box; a view."""
        return array[self.top : self.bottom, self.left : self.right]


class _Surround(NamedTuple):
    """Where a picture shows nothing, and whether it is all of one shade.

    Where it is not, it may be a lung that the picture's edge cuts off.
    """

    mask: Mask
    even: bool


def box_of(
    values: NDArray[np.float64], valid: Mask | None, kind: Literal["foreground", "lungs"]
) -> Box:
    """Find the box that a study's ``crop`` keeps.

    Args:
        values: ``(rows, columns)`` or ``(rows, columns, 3)``, in [0, 1], 0 black. Private.
        valid: ``(rows, columns)``, False where a pixel shows nothing of the patient. Private.
        kind: ``foreground``: what is not empty surround. ``lungs``: the two lungs of a frontal
            chest radiograph, or of a CT slice in a lung window; foreground where they are not
            found.

    Returns:
        A box with a margin of 5 % of its sides (but not into strips of padding or of white film
        at the picture's rim), never empty unless the picture is; the whole picture where it is
        flat, has no empty surround, or the foreground is under 5 % of it. Private.

    Raises:
        ScanError: scikit-image is not installed.

    Guarantee:
        The same picture gives the same box, a mirrored picture the mirrored box (but for
        rounding, where a pixel lies on the threshold). No picture raises.

    Source:
        Otsu 1979 for both thresholds.

    Example:
        >>> import numpy as np
        >>> picture = np.zeros((100, 100))
        >>> picture[20:60, 30:70] = 0.8
        >>> box_of(picture, None, "foreground")
        Box(top=18, left=28, bottom=62, right=72)
    """
    need_skimage()
    rows, columns = values.shape[:2]
    whole = Box(0, 0, rows, columns)
    if min(rows, columns) < SMALLEST:
        return whole
    grey, seen = _small(luminance(values), valid)
    frame = _bounds(seen & (grey < WHITE))
    if frame is None:
        return whole
    grey, seen, small = frame.of(grey), frame.of(seen), grey.shape
    surround = _surround(grey, seen)
    body = _main_parts(~surround.mask)
    if body.sum() < LEAST_BODY * small[0] * small[1]:
        return whole
    found = _lungs(grey, body) if kind == "lungs" else None
    found = found or _bounds(body if surround.even else _main_parts(seen))
    return _enlarged(found, frame, small, whole) if found else whole


def _small(grey: NDArray[np.float64], valid: Mask | None) -> tuple[Grey, Mask]:
    """The picture with its longer side at most ``SIDE``, each pixel a mean; and what is valid."""
    seen = np.isfinite(grey) if valid is None else valid & np.isfinite(grey)
    shown = np.zeros(grey.shape, dtype=np.float32)
    np.copyto(shown, grey, where=seen, casting="same_kind")
    planes = [shown, seen.astype(np.float32)]
    if max(grey.shape) > SIDE:
        rows, columns = (max(1, round(side * SIDE / max(grey.shape))) for side in grey.shape)
        box = Image.Resampling.BOX
        planes = [np.asarray(Image.fromarray(p).resize((columns, rows), box)) for p in planes]
    return planes[0], planes[1] > 0.5


def _bounds(mask: Mask) -> Box | None:
    """The smallest box around a mask; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def _enlarged(found: Box, frame: Box, small: tuple[int, ...], whole: Box) -> Box:
    """A box within the frame of the small copy as a box of the picture, with its margin.

    In whole numbers, so that a mirrored picture rounds alike.
    """
    ends = []
    for axis in (0, 1):
        low, high = found[axis], found[axis + 2]
        margin = int(np.ceil(MARGIN * (high - low)))
        low = frame[axis] + max(0, low - margin)
        high = min(frame[axis + 2], frame[axis] + high + margin)
        side = whole[axis + 2]
        ends.append((low * side // small[axis], -(-high * side // small[axis])))
    (top, bottom), (left, right) = ends
    return Box(top, left, bottom, right)


def _surround(grey: Grey, seen: Mask) -> _Surround:
    """What is dark as far as it reaches from a corner, and padding; nothing in a flat picture.

    The threshold is halfway between the corners' level and Otsu's, because what is dim, as the
    rim of a retina or a lung, belongs to the patient.
    """
    values, corners = grey[seen], _corners(grey.shape)
    level = min((np.median(grey[c & seen]) for c in corners if (c & seen).any()), default=None)
    level = np.percentile(values, 5) if level is None else level
    if level > EMPTY or not values.max() - values.min() > FLAT:
        return _Surround(~seen, even=True)
    skimage = need_skimage()
    threshold = (level + skimage.filters.threshold_otsu(values)) / 2
    dark = ~seen | (grey <= threshold)
    labels = skimage.measure.label(dark, connectivity=1)
    reached = np.isin(labels, np.unique(labels[np.any(corners, axis=0) & dark]))
    shades = grey[reached & seen]
    near = int((shades < (level + threshold) / 2).sum())
    return _Surround(reached | ~seen, even=near >= EVEN * shades.size)


def _corners(shape: tuple[int, ...]) -> list[Mask]:
    rows, columns = (max(1, round(CORNER * side)) for side in shape)
    corners = []
    for down in (slice(rows), slice(-rows, None)):
        for across in (slice(columns), slice(-columns, None)):
            corner = np.zeros(shape, dtype=bool)
            corner[down, across] = True
            corners.append(corner)
    return corners


def _main_parts(mask: Mask) -> Mask:
    """The largest connected region and those that come near it."""
    skimage = need_skimage()
    labels = skimage.measure.label(mask)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    kept = (areas >= KEPT_PART * areas.max()) & (areas > 0)
    return np.asarray(kept[labels])


def _lungs(grey: Grey, body: Mask) -> Box | None:
    """The box around the two largest regions that could be lungs, if they make a pair.

    Such a region is dark, inside the body, away from the picture's edge and of plausible size.
    """
    skimage = need_skimage()
    skin = int(np.ceil(SKIN * max(grey.shape)))
    core = skimage.morphology.isotropic_erosion(np.pad(body, skin + 1, mode="edge"), skin)
    core = core[skin + 1 : -skin - 1, skin + 1 : -skin - 1]
    dark = core & (grey < skimage.filters.threshold_otsu(grey[body]))
    dark = skimage.morphology.isotropic_opening(dark, max(1.0, GAP * max(grey.shape)))
    inner = skimage.segmentation.clear_border(skimage.measure.label(dark))
    least, most = (share * grey.size for share in LUNG_AREA)
    regions = [r for r in skimage.measure.regionprops(inner) if least <= r.area <= most]
    regions.sort(key=lambda region: -region.area)
    if len(regions) < 2 or not _are_a_pair(regions[0], regions[1]):
        return None
    box = _bounds(np.isin(inner, [region.label for region in regions[:2]]))
    return box if box is not None and _plausible(box, grey.shape) else None


def _are_a_pair(one: Any, other: Any) -> bool:
    """Whether a region and a smaller one are of like size and at like height."""
    (top, _, bottom, _), (top2, _, bottom2, _) = one.bbox, other.bbox
    in_common = min(bottom, bottom2) - max(top, top2)
    return bool(
        other.area >= LUNG_RATIO * one.area and in_common >= 0.5 * min(bottom - top, bottom2 - top2)
    )


def _plausible(box: Box, shape: tuple[int, ...]) -> bool:
    high, wide = box.bottom - box.top, box.right - box.left
    return high >= LUNGS_HIGH * shape[0] and wide >= LUNGS_WIDE * shape[1]
