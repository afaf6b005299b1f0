"""Sites, studies and scans that tests make in a folder of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medfed.client.approvals import approve
from medfed.client.site_root import SiteRoot, create_site, open_site
from medfed.common.study import Study, parse_study
from medfed.common.trust.certificates import new_authority

STUDY = """
[study]
name = "two_labels"
purpose = "A study of tests: bright images against dark ones."
[task]
labels = ["dark", "bright"]
[scans]
size = [28, 28]
channels = 1
group_key = "patient"
[split]
rule = "hash"
test_fraction = 0.2
validation_fraction = 0.0
salt = "tests"
[network]
name = "medfed-small"
[training]
rounds = 2
local_steps = 2
batch_size = 8
learning_rate = 0.1
[privacy]
mode = "dp-sgd"
unit = "patient"
neighbours = "add-or-remove-one"
clip_norm = 1.0
noise_multiplier = 1.0
delta = 1e-3
scans_per_patient = 1
[cohort]
quorum = 1
[[site]]
name = "A"
declared_patients = 40
[[site]]
name = "B"
declared_patients = 40
"""

WITHOUT_PRIVACY = (
    STUDY[STUDY.index("[privacy]") : STUDY.index("[cohort]")],
    '[privacy]\nmode = "none"\n',
)
"""For `make_study`: the same study without privacy."""


def make_study(*changes: tuple[str, str]) -> Study:
    """The study of these tests, with pieces of its text replaced."""
    text = STUDY
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return parse_study(text)


def write_scans(path: Path, *, patients: int = 60, labels: tuple[int, ...] = (0, 1)) -> Path:
    """An npz of one 28 x 28 scan per patient; a bright scan has label 1."""
    rng = np.random.default_rng(0)
    label = np.array([labels[i % len(labels)] for i in range(patients)], dtype=np.int64)
    images = rng.integers(0, 100, (patients, 28, 28)) + 100 * label[:, None, None]
    np.savez(path, images=images.astype(np.uint8), labels=label, patient=np.arange(patients))
    return path


def make_site(
    folder: Path,
    *,
    name: str = "A",
    server: str = "127.0.0.1:1",
    ca: Path | None = None,
    scans: Path | None = None,
    limits: str = "epsilon_limit = 50.0\ndelta_limit = 1e-2\n",
    patient_array: str | None = "patient",
) -> SiteRoot:
    """A site with written limits; its server is at a port where nothing is."""
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / f"site-{name}"
    create_site(
        root,
        name=name,
        scans=scans or write_scans(folder / f"{name}.npz"),
        server=server,
        ca=ca or new_authority(folder / f"trust-{name}"),
        patient_array=patient_array,
    )
    with (root / "site.toml").open("a") as file:
        file.write(limits)
    return open_site(root)


def make_ready_site(folder: Path, study: Study | None = None, **how: object) -> SiteRoot:
    """A site that has approved a study."""
    site = make_site(folder, **how)  # type: ignore[arg-type]  # passed through
    approve(site, study or make_study())
    return site
