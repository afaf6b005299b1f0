"""The study's ``[scans]`` and ``[augmentation]`` tables: how a scan becomes a tensor.

The same at every site, and no constant in it comes from private data. What a tensor is made of
happens in this order, and every step but the first and the last is the study's choice::

    frame or series -> modality transform -> window -> denoise -> crop -> CLAHE
    -> spacing or size -> normalise          (and, while training: augmentation)
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medfed.common.strict_toml import StrictTable

ArrayName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Code = Annotated[str, Field(pattern=r"^[A-Z0-9_ ]{1,16}$")]
"""A DICOM code string (CS)."""


class Window(StrictTable):
    """A grey-scale window that the study fixes, in the units of the modality transform.

    For CT these are Hounsfield units. Usual ones: lung -600 / 1500, soft tissue 40 / 400, brain
    40 / 80, bone 500 / 2000.
    """

    center: Annotated[float, Field(ge=-1e6, le=1e6)]
    width: Annotated[float, Field(gt=0.0, le=1e6)]


class Scans(StrictTable):
    """How a scan becomes a tensor. The same at every site; no constant comes from private data."""

    size: Annotated[tuple[int, int], Field()]
    """(rows, columns) of the tensor, in pixels; square."""
    channels: Literal[1, 3]
    modalities: tuple[Code, ...] | None = None
    """DICOM modalities that the study takes, ``["CR", "DX"]``; unset: any. Files that are no
    DICOM say none and are taken."""
    views: tuple[Code, ...] | None = None
    """View positions that the study takes, ``["PA", "AP"]``; unset: any. A scan whose view is not
    said is left out where the study chooses."""
    series: bool = False
    """Whether a scan is a whole series (CT, MR): its slices are put in order by their position,
    and a series with a slice missing is refused. Else each file is a scan."""
    take: Literal["first", "middle", "maximum", "mean"] = "first"
    """What of several frames, or of the slices of a series, becomes the picture: one of them, or
    the brightest or mean value along them."""
    intensity: Literal["window", "stored", "percentile", "fixed"] = "window"
    """``window``: the header's VOI window or LUT, else the stored range. ``stored``: the range of
    the stored bits. ``percentile``: after the window, 0.5 to 99.5 % of the scan's own values.
    ``fixed``: the study's ``window``; the only one that takes CT."""
    window: Window | None = None
    """With ``intensity = "fixed"``."""
    denoise: Literal["none", "median", "non-local-means"] = "none"
    """``median``: of 3 x 3 pixels."""
    crop: Literal["none", "foreground", "lungs"] = "none"
    """Cut out what a mask finds, with a margin: what is not empty background, or the lungs."""
    clahe_clip: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Contrast-limited adaptive histogram equalisation with this clip limit; unset: none. 0.01 is
    usual."""
    spacing_mm: Annotated[float, Field(gt=0.0, le=100.0)] | None = None
    """Resample to this pixel spacing, then crop or pad to ``size``; unset: resize to ``size``."""
    mean: Annotated[float, Field(ge=-10.0, le=10.0)] = 0.0
    std: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    """The tensor is ``(value in [0, 1] - mean) / std``: public constants, not site statistics."""
    group_key: ArrayName | None = None
    """In an ``.npz`` data set: the array that says which scans belong to one privacy unit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        rows, columns = self.size
        if rows != columns or not 8 <= rows <= 1024:
            raise ValueError(
                f"found size [{rows}, {columns}]; it must be square, [n, n], with n between 8 and "
                "1024 pixels"
            )
        if (self.window is None) == (self.intensity == "fixed"):
            raise ValueError('intensity = "fixed" and a window go together: give both or neither')
        if "CT" in (self.modalities or ()) and self.intensity != "fixed":
            raise ValueError(
                'CT needs intensity = "fixed" and a window in Hounsfield units: the windows in '
                "headers are what somebody happened to look at"
            )
        if self.series and self.take == "first":
            raise ValueError('series = true takes "middle", "maximum" or "mean"')
        return self


class Augmentation(StrictTable):
    """How training scans are varied, anew each time one is drawn; at random within these bounds.

    The defaults hold where left and right, and up and down, mean something, as they do in a
    chest or an abdomen: small turns and shifts, and no flips. Without the table there is no
    augmentation at all. Validation and test scans are never varied.
    """

    flip_left_right: bool = False
    """Mirror every other scan. Not where the side matters: a heart on the right is a finding."""
    flip_up_down: bool = False
    rotate_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = 7.0
    """Turn by up to this angle, either way."""
    shift: Annotated[float, Field(ge=0.0, le=0.5)] = 0.05
    """Move by up to this fraction of the side, along both axes."""
    scale: Annotated[float, Field(ge=0.0, le=0.5)] = 0.05
    """Enlarge or shrink by up to this fraction."""
    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Multiply the distance from mid-grey by up to 1 plus or minus this."""
    noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Standard deviation of Gaussian noise, in units of black to white."""
