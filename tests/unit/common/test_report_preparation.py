"""What a study does to scans is said in words, and flips are warned of."""

from __future__ import annotations

from typing import Any

import pytest

from medfed.common.report.preparation import preparation, preparation_warnings
from medfed.common.study_scans import Augmentation, Scans, Window

OTHER: dict[str, Any] = {
    "modalities": ("CR", "DX"),
    "views": ("PA",),
    "series": True,
    "take": "maximum",
    "intensity": "fixed",
    "window": Window(center=-600.0, width=1500.0),
    "denoise": "median",
    "crop": "lungs",
    "clahe_clip": 0.02,
    "spacing_mm": 0.5,
    "mean": 0.25,
    "std": 0.125,
    "size": (56, 56),
    "channels": 3,
}
"""Every key of ``[scans]`` with a value that is not its default; `group_key` is about patients."""


def scans_with(**keys: Any) -> Scans:
    return Scans(**({"size": (28, 28), "channels": 1} | keys))


def said(scans: Scans, augmentation: Augmentation | None = None) -> str:
    return "\n".join(f"{name}: {line}" for name, line in preparation(scans, augmentation))


@pytest.mark.parametrize("key", [key for key in OTHER if key not in ("series", "intensity")])
def test_every_key_of_scans_changes_what_is_said(key: str) -> None:
    fixed = {"intensity": "fixed"} if key == "window" else {}

    assert said(scans_with(**{key: OTHER[key]}, **fixed)) != said(scans_with())
    assert said(scans_with(series=True, take="mean")) != said(scans_with(take="mean"))
    assert set(OTHER) | {"group_key"} == set(Scans.model_fields)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("flip_left_right", True),
        ("flip_up_down", True),
        ("rotate_degrees", 12.5),
        ("shift", 0.1),
        ("scale", 0.1),
        ("contrast", 0.25),
        ("noise", 0.02),
    ],
)
def test_every_key_of_augmentation_changes_what_is_said(key: str, value: Any) -> None:
    assert said(scans_with(), Augmentation(**{key: value})) != said(scans_with(), Augmentation())


def test_a_study_that_chooses_everything_is_told_whole() -> None:
    how = Augmentation(flip_left_right=True, rotate_degrees=10.0, noise=0.02)

    assert said(Scans(**OTHER), how) == (
        "Scans: modality CR or DX, view PA; each series is a scan, of its slices the brightest "
        "value along them\n"
        "Prepared: grey levels by a fixed window, centre -600, width 1500; denoised by the median "
        "of 3 x 3 pixels; cropped to the lungs; histogram equalised locally (CLAHE, clip limit "
        "0.02); resampled to 0.5 mm per pixel, cropped or padded to 56 x 56 pixels; colour; minus "
        "0.25, divided by 0.125\n"
        "Varied: in training mirrored left to right in about half of the draws; turned by up to "
        "10 degrees; moved by up to 5 % of the side; enlarged or shrunk by up to 5 %; contrast "
        "changed by up to 10 %; noise of 2 % of black to white added"
    )


def test_no_table_and_a_table_that_asks_for_nothing_are_both_told_as_no_variation() -> None:
    nothing = Augmentation(rotate_degrees=0.0, shift=0.0, scale=0.0, contrast=0.0)

    for how in (None, nothing):
        assert said(scans_with(), how).endswith("\nVaried: no")


def test_flips_are_warned_of_and_the_defaults_are_not() -> None:
    assert preparation_warnings(None) == preparation_warnings(Augmentation()) == ()
    (left_right,) = preparation_warnings(Augmentation(flip_left_right=True))
    (up_down,) = preparation_warnings(Augmentation(flip_up_down=True))

    assert left_right.startswith("flip_left_right mirrors") and "Not for a chest" in left_right
    assert up_down.startswith("flip_up_down mirrors") and "no upright position" in up_down
    both = Augmentation(flip_left_right=True, flip_up_down=True)
    assert preparation_warnings(both) == (left_right, up_down)


def test_only_ascii_is_said() -> None:
    both = Augmentation(flip_left_right=True, flip_up_down=True)

    assert "".join([said(Scans(**OTHER), both), *preparation_warnings(both)]).isascii()
