"""A chest as a radiograph shows it, drawn from a few dozen numbers in millimetres.

Brightness is attenuation: air is 0, bone and overlapping soft tissue approach 1. x grows to the
right of the picture (the patient's left), y downwards, the origin is the centre of the field.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float64]

OPACITY_CONTRAST: Final = (0.20, 0.40)
"""Range of the brightness that an opacity adds to the lung, before ``OPACITY_CAP``."""
OPACITY_CAP: Final = 0.40
"""What overlapping opacities tend to: a lung without air is as bright as soft tissue."""
RIBS: Final = 9


class Blob(NamedTuple):
    """A Gaussian shadow: centre and width in mm, peak brightness."""

    x: float
    y: float
    sigma_x: float
    sigma_y: float
    peak: float


class Thorax(NamedTuple):
    """One patient's anatomy; lengths in mm."""

    half_width: float
    lung_x: float
    lung_half_width: float
    lung_half_height: float
    lung_y: float
    heart_size: float
    heart_x: float
    diaphragm_y: float
    rib_spacing: float
    rib_slope: float
    tissue: float
    lung_depth: float
    vessels: tuple[Blob, ...]
    opacities: tuple[Blob, ...]

    @classmethod
    def of(cls, random: np.random.Generator, *, opacity: bool) -> Self:
        """Draw a patient.

        Args:
            random: Where every number comes from.
            opacity: Whether a lung has shadows that do not belong there.
        """
        size = random.normal(1.0, 0.05)
        anatomy = cls(
            half_width=size * random.normal(142.0, 6.0),
            lung_x=size * random.normal(65.0, 2.5),
            lung_half_width=size * random.normal(52.0, 2.5),
            lung_half_height=size * random.normal(104.0, 6.0),
            lung_y=random.normal(-14.0, 4.0),
            heart_size=size * random.normal(50.0, 4.0),
            heart_x=random.normal(16.0, 3.0),
            diaphragm_y=size * random.normal(72.0, 6.0),
            rib_spacing=size * random.normal(23.0, 1.2),
            rib_slope=random.normal(0.28, 0.05),
            tissue=random.normal(0.60, 0.03),
            lung_depth=random.normal(0.44, 0.03),
            vessels=(),
            opacities=(),
        )
        return anatomy._replace(
            vessels=_vessels(anatomy, random),
            opacities=_opacities(anatomy, random) if opacity else (),
        )


class Pose(NamedTuple):
    """How the patient stood: shift in mm, turn in radians, magnification."""

    shift_x: float
    shift_y: float
    turn: float
    magnification: float

    @classmethod
    def of(cls, random: np.random.Generator) -> Self:
        """Draw a pose."""
        return cls(
            random.normal(0.0, 6.0),
            random.normal(0.0, 7.0),
            random.normal(0.0, 0.03),
            random.normal(1.0, 0.03),
        )


def draw(thorax: Thorax, pose: Pose, matrix: int, field_mm: float) -> Plane:
    """Draw a chest without noise.

    Args:
        thorax: The patient.
        pose: How the patient stood.
        matrix: Rows and columns.
        field_mm: Side of the field of view.

    Returns:
        ``(matrix, matrix)``, in [0, 1], 0 air.
    """
    axis: Plane = (np.arange(matrix, dtype=np.float64) + 0.5) * (field_mm / matrix) - field_mm / 2
    x, y = _patient_coordinates(pose, axis)
    body = _body(thorax, x, y)
    lungs, heart = _lungs(thorax, x, y), _heart(thorax, x, y)
    opacity = OPACITY_CAP * (1.0 - np.exp(-_sum_of(thorax.opacities, pose, axis) / OPACITY_CAP))
    shadow = _sum_of(thorax.vessels, pose, axis) + opacity
    picture = thorax.tissue * body - thorax.lung_depth * lungs
    picture += 0.30 * heart * lungs + 0.13 * _mediastinum(x, y) * body
    picture += (
        0.055 * _ribs(thorax, x, y) * body * (0.3 + 0.7 * lungs)
        + 0.08 * _collar_bones(thorax, x, y) * body
    )
    picture += shadow * lungs * (1.0 - 0.75 * heart)
    return np.clip(picture, 0.0, 1.0)


def _patient_coordinates(pose: Pose, axis: Plane) -> tuple[Plane, Plane]:
    """Where each pixel's centre lies in the patient, in mm; ``axis``: on the detector."""
    across, down = np.meshgrid(axis - pose.shift_x, axis - pose.shift_y)
    cosine, sine = np.cos(pose.turn), np.sin(pose.turn)
    x = (across * cosine + down * sine) / pose.magnification
    y = (down * cosine - across * sine) / pose.magnification
    return x, y


def _soft(distance_mm: Plane, blur_mm: float) -> Plane:
    """1 well inside (negative distance), 0 well outside, soft in between."""
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(distance_mm / blur_mm, -50.0, 50.0))))


def _body(thorax: Thorax, x: Plane, y: Plane) -> Plane:
    """Trunk, shoulders and neck; thicker in the middle than at the rim."""
    shoulder = thorax.lung_y - thorax.lung_half_height - 12.0 + 0.0016 * x * x
    trunk = _soft(np.abs(x) - thorax.half_width - 0.05 * y, 4.0) * _soft(shoulder - y, 5.0)
    neck = _soft(np.abs(x) - 44.0, 4.0)
    rim = np.clip(1.0 - (np.abs(x) / (thorax.half_width * 1.25)) ** 4, 0.0, 1.0)
    return np.maximum(trunk * (0.75 + 0.25 * rim), 0.85 * neck * _soft(y - shoulder - 20.0, 8.0))


def _lungs(thorax: Thorax, x: Plane, y: Plane) -> Plane:
    """Two fields, narrow at the apex, wide at the base, cut off by the diaphragm's domes."""
    down = (y - thorax.lung_y) / thorax.lung_half_height
    taper = np.clip(0.80 + 0.28 * down, 0.3, 1.1)
    fields = np.zeros_like(x)
    for side in (-1.0, 1.0):
        across = (side * x - thorax.lung_x) / (thorax.lung_half_width * taper)
        radius = np.abs(across) ** 2.4 + np.abs(down) ** 3.0
        dome = thorax.diaphragm_y + 5.0 * side + 0.008 * (side * x - thorax.lung_x + 8.0) ** 2
        field = _soft((radius - 1.0) * 24.0, 3.5) * _soft(y - dome, 3.5)
        fields = np.maximum(fields, field)
    return fields


def _heart(thorax: Thorax, x: Plane, y: Plane) -> Plane:
    across, down = x - thorax.heart_x, y - (thorax.diaphragm_y - 0.72 * thorax.heart_size)
    along = 0.85 * across + 0.45 * down
    over = 0.85 * down - 0.45 * across
    radius = np.hypot(along / (1.22 * thorax.heart_size), over / (0.88 * thorax.heart_size))
    return _soft((radius - 1.0) * thorax.heart_size, 4.0)


def _mediastinum(x: Plane, y: Plane) -> Plane:
    """The band of vessels and spine in the middle; vertebrae show as slow waves."""
    band = _soft(np.abs(x) - 21.0 - 0.04 * (y + 20.0), 5.0)
    return band * (1.0 + 0.18 * np.cos(2.0 * np.pi * y / 24.0))


def _ribs(thorax: Thorax, x: Plane, y: Plane) -> Plane:
    """Bows from the spine out and down, brightest at their rims."""
    reach = np.abs(x)
    bow = thorax.rib_slope * reach - 0.0030 * (reach - 55.0) ** 2 + 9.0
    phase = (y - bow - (thorax.lung_y - thorax.lung_half_height)) / thorax.rib_spacing
    within = _soft(-phase * 10.0, 1.0) * _soft((phase - RIBS) * 10.0, 1.0)
    chest = _soft(reach - 0.88 * thorax.half_width, 4.0)
    wave = np.cos(2.0 * np.pi * phase)
    return np.clip((wave - 0.15) / 0.85, 0.0, 1.0) * within * chest


def _collar_bones(thorax: Thorax, x: Plane, y: Plane) -> Plane:
    reach = np.abs(x)
    height = thorax.lung_y - 0.80 * thorax.lung_half_height + 0.10 * (70.0 - reach)
    height = height - 6.0 * np.sin(np.clip(reach, 0.0, 120.0) / 120.0 * np.pi)
    return _soft(np.abs(y - height) - 4.0, 1.5) * _soft(14.0 - reach, 4.0) * _soft(reach - 118, 5.0)


def _sum_of(blobs: tuple[Blob, ...], pose: Pose, axis: Plane) -> Plane:
    """Shadows of all blobs on the detector, a product of one factor per row and per column.

    The few degrees of turn move a blob's centre; its own outline stays upright.
    """
    if not blobs:
        return np.zeros((len(axis), len(axis)))
    x, y, sigma_x, sigma_y, peak = np.asarray(blobs).T[:, :, None]
    cosine, sine = np.cos(pose.turn), np.sin(pose.turn)
    across = pose.magnification * (x * cosine - y * sine) + pose.shift_x
    down = pose.magnification * (x * sine + y * cosine) + pose.shift_y
    columns = np.exp(-0.5 * ((axis - across) / (sigma_x * pose.magnification)) ** 2)
    rows = np.exp(-0.5 * ((axis - down) / (sigma_y * pose.magnification)) ** 2)
    return np.asarray((peak * rows).T @ columns)


def _vessels(thorax: Thorax, random: np.random.Generator) -> tuple[Blob, ...]:
    """Small shadows around each hilum, fewer further out: every lung has them."""
    blobs = []
    for _ in range(26):
        side = random.choice((-1.0, 1.0))
        out = random.gamma(2.0, 11.0)
        angle = random.uniform(-np.pi / 2, np.pi / 2)
        x = side * (32.0 + out * np.cos(angle))
        y = thorax.lung_y + 12.0 + 1.5 * out * np.sin(angle)
        width = random.uniform(3.0, 8.0)
        blobs.append(
            Blob(x, y, width, width * random.uniform(0.8, 1.6), random.uniform(0.02, 0.08))
        )
    return tuple(blobs)


def _opacities(thorax: Thorax, random: np.random.Generator) -> tuple[Blob, ...]:
    """One to three shadows, most in one lung; each a cluster, so that its rim is irregular."""
    blobs: list[Blob] = []
    side = random.choice((-1.0, 1.0))
    for _ in range(1 + int(random.binomial(2, 0.4))):
        side = -side if random.random() < 0.2 else side
        x = side * (thorax.lung_x + 0.45 * thorax.lung_half_width * random.uniform(-1.0, 1.0))
        y = thorax.lung_y + thorax.lung_half_height * random.uniform(-0.45, 0.60)
        size = random.uniform(16.0, 30.0)
        peak = random.uniform(*OPACITY_CONTRAST)
        for _ in range(6):
            width = size * random.uniform(0.45, 0.8)
            blobs.append(
                Blob(
                    x + random.normal(0.0, 0.5 * size),
                    y + random.normal(0.0, 0.5 * size),
                    width,
                    width * random.uniform(0.7, 1.4),
                    peak * random.uniform(0.35, 0.65),
                )
            )
    return tuple(blobs)
