"""The study's tables of scans: what they take and refuse, and what the template says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medfed.common import study as study_module
from medfed.common.errors import ConfigError
from medfed.common.study import Study, parse_study, study_from_canonical
from medfed.common.study_scans import Augmentation, Scans
from tests.support.scans import study_of

TEMPLATE = (Path(study_module.__file__).parent / "study_template.toml").read_text()
SCANS, AUGMENTATION = TEMPLATE.split("[scans]\n")[1].split("[split]")[0].split("# [augmentation]")
OFFERED = re.findall(r"^# (\w+ = .*)", SCANS, re.MULTILINE)
FIXED = 'intensity = "fixed"\nwindow = {center = -600.0, width = 1500.0}\n'


def varied(line: str = "") -> Study:
    """A study with the default augmentation, but for one line."""
    return study_of(scans=f"[augmentation]\n{line}")


def refusal(scans: str) -> str:
    with pytest.raises(ConfigError) as caught:
        study_of(scans=scans)
    return str(caught.value)


# ---- the canonical form --------------------------------------------------------------------------
def test_every_value_of_scans_and_augmentation_is_part_of_the_digest() -> None:
    scans = [
        "",
        'modalities = ["DX"]',
        'modalities = ["DX", "CR"]',
        'views = ["PA"]',
        'take = "middle"',
        'take = "middle"\nseries = true',
        'intensity = "stored"',
        FIXED,
        FIXED.replace("-600", "-500"),
        FIXED.replace("1500", "1400"),
        'denoise = "median"',
        'crop = "lungs"',
        "clahe_clip = 0.01",
        "[augmentation]",
    ]
    changes = [
        "flip_left_right = true",
        "flip_up_down = true",
        "rotate_degrees = 8.0",
        "shift = 0.06",
        "scale = 0.06",
        "contrast = 0.2",
        "noise = 0.01",
    ]
    studies = [study_of(scans=text) for text in scans] + [varied(line) for line in changes]

    assert len({study.digest for study in studies}) == len(studies)
    for study in studies:
        assert study_from_canonical(study.canonical()) == study


def test_without_the_table_nothing_is_varied_and_the_empty_table_means_the_defaults() -> None:
    assert study_of().augmentation is None
    assert varied().augmentation == Augmentation()
    assert varied().digest == varied("shift = 0.05\nflip_left_right = false").digest


def test_the_defaults_do_not_mirror() -> None:
    assert not Augmentation().flip_left_right and not Augmentation().flip_up_down
    assert Augmentation().rotate_degrees < 10.0  # what a patient's pose does; not a quarter turn


# ---- the template --------------------------------------------------------------------------------
@pytest.mark.parametrize("line", OFFERED)
def test_each_line_that_the_template_offers_for_scans_can_be_uncommented(line: str) -> None:
    text = TEMPLATE.replace(f"# {line}", line)
    if line.startswith("window"):  # the line says so
        text = text.replace('intensity = "window"', 'intensity = "fixed"')
    if line.startswith("series"):  # else the first of several slices would be taken
        text = text.replace("# take =", "take =")

    key = line.split(" ")[0]
    assert getattr(parse_study(text).scans, key) != getattr(parse_study(TEMPLATE).scans, key)


def test_all_that_the_template_offers_for_scans_is_valid_together_and_leaves_no_key_out() -> None:
    text = TEMPLATE.replace('intensity = "window"', 'intensity = "fixed"')
    for line in OFFERED:
        text = text.replace(f"# {line}", line)

    assert parse_study(text).scans.model_fields_set == set(Scans.model_fields)


def test_the_templates_augmentation_is_the_default_and_names_every_key() -> None:
    table = f"# [augmentation]{AUGMENTATION}"

    study = parse_study(TEMPLATE.replace(table, re.sub("^# ", "", table, flags=re.MULTILINE)))

    assert parse_study(TEMPLATE).augmentation is None
    assert study.augmentation == Augmentation()
    assert study.augmentation.model_fields_set == set(Augmentation.model_fields)


# ---- refusals ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("scans", "says"),
    [
        ('modality = ["DX"]', "scans.modality: unknown key. Did you mean 'modalities'?"),
        ('modalities = "DX"', 'scans.modalities: found "DX"'),
        ('modalities = ["dx"]', 'scans.modalities.0: found "dx"'),
        ('views = ["PA\\u001b[2J"]', "scans.views.0: found"),
        ('take = "last"', "'first', 'middle', 'maximum' or 'mean'"),
        ("series = true", 'series = true takes "middle", "maximum" or "mean"'),
        ("series = 1", "scans.series: found 1"),
        ('intensity = "fixed"', 'intensity = "fixed" and a window go together'),
        (FIXED.replace("fixed", "stored"), 'intensity = "fixed" and a window go together'),
        (FIXED.replace("1500.0", "0.0"), "window.width: found 0.0"),
        (FIXED.replace("-600.0", "nan"), "window.center: found NaN"),
        ('modalities = ["CR", "CT"]', 'CT needs intensity = "fixed" and a window in Hounsfield'),
        ('denoise = "gaussian"', "'none', 'median' or 'non-local-means'"),
        ('crop = "heart"', "'none', 'foreground' or 'lungs'"),
        ("clahe_clip = 0.0", "scans.clahe_clip: found 0.0"),
        ("clahe_clip = 1.5", "scans.clahe_clip: found 1.5"),
        ("[augmentation]\nflip = true", "augmentation.flip: unknown key"),
        ("[augmentation]\nflip_left_right = 1", "augmentation.flip_left_right: found 1"),
        ("[augmentation]\nrotate_degrees = 181.0", "augmentation.rotate_degrees: found 181.0"),
        ("[augmentation]\nrotate_degrees = -7.0", "augmentation.rotate_degrees: found -7.0"),
        ("[augmentation]\nshift = 0.6", "augmentation.shift: found 0.6"),
        ("[augmentation]\nscale = 0.6", "augmentation.scale: found 0.6"),
        ("[augmentation]\ncontrast = 1.0", "augmentation.contrast: found 1.0"),
        ("[augmentation]\nnoise = 2.0", "augmentation.noise: found 2.0"),
        ("[augmentation]\nnoise = inf", "augmentation.noise: found Infinity"),
    ],
)
def test_what_cannot_be_is_refused_with_key_and_what_was_found(scans: str, says: str) -> None:
    assert says in refusal(scans)
