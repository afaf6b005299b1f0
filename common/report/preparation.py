"""Which scans a study takes, and how it prepares and varies them, in words.

The same on the terminal (`medfed study show`) and on the page of a run. Everything said follows
from the study file, so it is public.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from medfed.common.study_scans import Augmentation, Scans

_TAKE: Final = {
    "first": "the first frame",
    "middle": "the middle one",
    "maximum": "the brightest value along them",
    "mean": "the mean along them",
}
_DENOISE: Final = {
    "median": "denoised by the median of 3 x 3 pixels",
    "non-local-means": "denoised by non-local means",
}
_CROP: Final = {"foreground": "cropped to what is not background", "lungs": "cropped to the lungs"}


def preparation(scans: Scans, augmentation: Augmentation | None) -> tuple[tuple[str, str], ...]:
    """Say what becomes of a scan before a network sees it.

    Returns:
        Pairs of a name and one line of ASCII: what is taken, how it is prepared, how it is varied
        in training. Public.

    Example:
        >>> for name, line in preparation(Scans(size=(28, 28), channels=1), Augmentation()):
        ...     print(f"{name}: {line}")
        Scans: any modality, any view; each file is a scan, of several frames the first frame
        Prepared: grey levels by the header's window; resized to 28 x 28 pixels; grey
        Varied: in training turned by up to 7 degrees; moved by up to 5 % of the side; enlarged \
or shrunk by up to 5 %; contrast changed by up to 10 %
    """
    changes = "; ".join(_changes(augmentation)) if augmentation else ""
    return (
        ("Scans", _taken(scans)),
        ("Prepared", "; ".join(_steps(scans))),
        ("Varied", f"in training {changes}" if changes else "no"),
    )


def preparation_warnings(augmentation: Augmentation | None) -> tuple[str, ...]:
    """Say where the study's flips make left and right, or up and down, the same to the model.

    Returns:
        One sentence of ASCII each; empty without flips.
    """
    if augmentation is None:
        return ()
    warnings = []
    if augmentation.flip_left_right:
        warnings.append(
            "flip_left_right mirrors about half of the training scans: the model learns that left "
            "and right are the same. Not for a chest, an abdomen or a label that depends on the "
            "side."
        )
    if augmentation.flip_up_down:
        warnings.append(
            "flip_up_down mirrors about half of the training scans top to bottom; set upright "
            "again, their left and right have changed places. Only where a picture has no upright "
            "position, as of skin or of tissue under a microscope."
        )
    return tuple(warnings)


def _taken(scans: Scans) -> str:
    modalities = f"modality {' or '.join(scans.modalities)}" if scans.modalities else "any modality"
    views = f"view {' or '.join(scans.views)}" if scans.views else "any view"
    whole = "each series is a scan, of its slices" if scans.series else "each file is a scan,"
    frames = "" if scans.series else " of several frames"
    return f"{modalities}, {views}; {whole}{frames} {_TAKE[scans.take]}"


def _steps(scans: Scans) -> Iterator[str]:
    """What is done to a picture, in its order."""
    yield f"grey levels by {_levels(scans)}"
    if scans.denoise != "none":
        yield _DENOISE[scans.denoise]
    if scans.crop != "none":
        yield _CROP[scans.crop]
    if scans.clahe_clip is not None:
        yield f"histogram equalised locally (CLAHE, clip limit {scans.clahe_clip:g})"
    size = f"{scans.size[0]} x {scans.size[1]} pixels"
    if scans.spacing_mm is None:
        yield f"resized to {size}"
    else:
        yield f"resampled to {scans.spacing_mm:g} mm per pixel, cropped or padded to {size}"
    yield "grey" if scans.channels == 1 else "colour"
    if (scans.mean, scans.std) != (0.0, 1.0):
        yield f"minus {scans.mean:g}, divided by {scans.std:g}"


def _levels(scans: Scans) -> str:
    if scans.window is not None:
        return f"a fixed window, centre {scans.window.center:g}, width {scans.window.width:g}"
    return {
        "window": "the header's window",
        "stored": "the range of the stored bits",
        "percentile": "the header's window, then 0.5 to 99.5 % of the scan's own values",
    }[scans.intensity]


def _changes(how: Augmentation) -> Iterator[str]:
    if how.flip_left_right:
        yield "mirrored left to right in about half of the draws"
    if how.flip_up_down:
        yield "mirrored top to bottom in about half of the draws"
    if how.rotate_degrees:
        yield f"turned by up to {how.rotate_degrees:g} degrees"
    if how.shift:
        yield f"moved by up to {100 * how.shift:g} % of the side"
    if how.scale:
        yield f"enlarged or shrunk by up to {100 * how.scale:g} %"
    if how.contrast:
        yield f"contrast changed by up to {100 * how.contrast:g} %"
    if how.noise:
        yield f"noise of {100 * how.noise:g} % of black to white added"
