"""Synthetic hospitals: chest radiographs of patients who never lived, as real DICOM files.

A phantom is drawn in millimetres: body outline, two lungs, ribs, spine, heart, diaphragm,
vessels. The label ``opacity`` adds one or more soft, irregular shadows inside a lung; ``normal``
has none. A patient's scans share the anatomy and differ in positioning, exposure and noise. Each
hospital has its own scanner: matrix, bit depth, polarity, tone curve, window and noise differ,
the field of view is the same.

Everything follows from the seed. Nothing is copied from a person, and nothing
learned from these pictures is medicine: they exist so that a demo runs on files that hospitals
really have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
)

from medfed.simulations.dicom_objects import (
    derived_uid,
    drop_worklist,
    image_object,
    write_object,
    write_worklist,
)
from medfed.simulations.thorax import Pose, Thorax, draw

LABELS: Final = ("normal", "opacity")
FIELD_MM: Final = 330.0
"""Side of the square field of view, the same at every scanner."""
SCANS_PER_PATIENT: Final = (0.4, 0.3, 0.2, 0.1)
"""Probability of 1, 2, 3 and 4 scans of a patient: 2 on average."""


@dataclass(frozen=True)
class Scanner:
    """How one hospital's machine writes a picture.

    Attributes:
        matrix: Rows and columns.
        bits_stored: Bits used of the 16 allocated.
        inverted: Whether high stored values are dark (MONOCHROME1).
        sop_class: Computed Radiography, or Digital X-Ray for presentation.
        levels: Stored value of black and of white (of white and of black where inverted).
        rescale: Slope and intercept; (1, 0) unless Computed Radiography.
        gamma: Exponent of the tone curve.
        noise: Standard deviation of the noise where the picture is black, in [0, 1].
        opacity_share: Fraction of patients with the label ``opacity``.
    """

    matrix: int
    bits_stored: int
    inverted: bool
    sop_class: UID
    levels: tuple[int, int]
    rescale: tuple[float, float]
    gamma: float
    noise: float
    opacity_share: float


SCANNERS: Final = (
    Scanner(
        matrix=96,
        bits_stored=12,
        inverted=False,
        sop_class=DigitalXRayImageStorageForPresentation,
        levels=(300, 3700),
        rescale=(1.0, 0.0),
        gamma=1.0,
        noise=0.03,
        opacity_share=0.5,
    ),
    Scanner(
        matrix=72,
        bits_stored=10,
        inverted=True,
        sop_class=ComputedRadiographyImageStorage,
        levels=(60, 960),
        rescale=(2.0, -100.0),
        gamma=1.25,
        noise=0.05,
        opacity_share=0.4,
    ),
    Scanner(
        matrix=120,
        bits_stored=16,
        inverted=True,
        sop_class=DigitalXRayImageStorageForPresentation,
        levels=(8000, 52000),
        rescale=(1.0, 0.0),
        gamma=0.85,
        noise=0.04,
        opacity_share=0.6,
    ),
)
"""One per hospital, in order; a fourth hospital has the first scanner again."""


def write_hospitals(
    folder: Path,
    *,
    sites: Sequence[str] = ("A", "B", "C"),
    seed: int = 0,
    patients_per_site: int | Sequence[int] = 150,
) -> None:
    """Write synthetic hospitals: per site a folder of DICOM files and its ``worklist.csv``.

    Args:
        folder: Gets one folder per site; made if missing. Files of the same names are
            replaced.
        sites: Names of the hospitals.
        seed: Public. Another seed is other patients.
        patients_per_site: Patients of every hospital, or of each in turn.

    Raises:
        ValueError: as many numbers as sites are needed, each at least 1.
        OSError: the folder cannot be written.

    Guarantee:
        The same arguments write the same bytes, with the same libraries on the same kind of
        processor (numpy's last bit may differ between two kinds). A site's files depend on the
        seed, its position among the sites and its own number of patients, not on the others'.
        The worklist comes last: a folder left half-written has none.
    """
    given = patients_per_site
    counts = [given] * len(sites) if isinstance(given, int) else list(given)
    if len(counts) != len(sites) or min(counts, default=0) < 1:
        raise ValueError(f"patients_per_site: {len(sites)} numbers above 0 are needed")
    for position, (site, patients) in enumerate(zip(sites, counts, strict=True)):
        _write_hospital(folder / site, site, position, patients, seed)


def _write_hospital(folder: Path, site: str, position: int, patients: int, seed: int) -> None:
    scanner = SCANNERS[position % len(SCANNERS)]
    folder.mkdir(parents=True, exist_ok=True)
    drop_worklist(folder)
    rows = []
    labels = _labels(patients, scanner, np.random.default_rng([seed, position]))
    for number, label in enumerate(labels):
        random = np.random.default_rng([seed, position, number])
        thorax = Thorax.of(random, opacity=label == "opacity")
        for scan in range(int(random.choice(len(SCANS_PER_PATIENT), p=SCANS_PER_PATIENT)) + 1):
            stored = acquire(thorax, scanner, random)
            identity = (seed, position, number)
            name = f"{number + 1:04d}_{scan + 1}.dcm"
            patient_id = f"{site}-{number + 1:04d}"
            write_object(_radiograph(stored, scanner, identity, scan, patient_id), folder / name)
            rows.append({"file": name, "label": label})
    write_worklist(folder, rows, ["file", "label"])


def _labels(patients: int, scanner: Scanner, random: np.random.Generator) -> list[str]:
    """Labels in random order, in the scanner's shares as exactly as whole patients allow."""
    with_opacity = round(patients * scanner.opacity_share)
    flags = random.permutation(np.arange(patients) < with_opacity)
    return [LABELS[int(flag)] for flag in flags]


def acquire(thorax: Thorax, scanner: Scanner, random: np.random.Generator) -> NDArray[np.uint16]:
    """Take one radiograph: position the patient, expose, add noise, quantise.

    Returns:
        Stored values, ``(matrix, matrix)``, within the scanner's bits.
    """
    picture = draw(thorax, Pose.of(random), scanner.matrix, FIELD_MM)
    exposure, base = random.normal(1.0, 0.06), random.normal(0.0, 0.02)
    toned = np.clip(picture * exposure + base, 0.0, 1.0) ** scanner.gamma
    grain = random.normal(0.0, scanner.noise, picture.shape) * np.sqrt(1.0 - 0.6 * toned)
    shown = 1.0 - (toned + grain) if scanner.inverted else toned + grain
    low, high = scanner.levels
    stored = np.rint(low + shown * (high - low))
    return np.clip(stored, 0, (1 << scanner.bits_stored) - 1).astype(np.uint16)


def _radiograph(
    stored: NDArray[np.uint16],
    scanner: Scanner,
    identity: tuple[int, int, int],
    scan: int,
    patient_id: str,
) -> Dataset:
    """The DICOM object of one radiograph, with what its kind of image requires."""
    dataset = image_object(
        stored,
        sop_class=scanner.sop_class,
        instance=derived_uid("phantom", "instance", *identity, scan),
        study=derived_uid("phantom", "study", *identity, scan),
        series=derived_uid("phantom", "series", *identity, scan),
        patient_id=patient_id,
        bits_stored=scanner.bits_stored,
        colour_model="MONOCHROME1" if scanner.inverted else "MONOCHROME2",
    )
    dataset.Manufacturer = "synthetic"
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.BodyPartExamined, dataset.ViewPosition = "CHEST", "PA"
    dataset.PatientOrientation = ["L", "F"]
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    spacing = FIELD_MM / scanner.matrix
    dataset.ImagerPixelSpacing = [spacing, spacing]
    slope, intercept = scanner.rescale
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = slope, intercept, "US"
    low, high = (level * slope + intercept for level in scanner.levels)
    dataset.WindowCenter, dataset.WindowWidth = (low + high) / 2, high - low
    if scanner.sop_class == ComputedRadiographyImageStorage:
        dataset.Modality = "CR"
    else:
        _add_digital_x_ray(dataset, scanner)
    return dataset


def _add_digital_x_ray(dataset: Dataset, scanner: Scanner) -> None:
    """What a Digital X-Ray object needs beyond Computed Radiography.

    Source:
        DICOM PS3.3 C.8.11.1 (DX Series), C.8.11.2 (DX Anatomy Imaged), C.8.11.3 (DX Image),
        C.8.11.4 (DX Detector).
    """
    dataset.Modality, dataset.PresentationIntentType = "DX", "FOR PRESENTATION"
    dataset.ImageLaterality = "U"
    dataset.AnatomicRegionSequence = []
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = 1 if scanner.inverted else -1
    dataset.PresentationLUTShape = "INVERSE" if scanner.inverted else "IDENTITY"
    dataset.DetectorType = ""
    dataset.AcquisitionContextSequence = []


def contact_sheet(path: Path, *, seed: int = 0, patients: int = 6, scale: int = 2) -> None:
    """Write a PNG of some phantoms as their scanners show them, to look at.

    One row per scanner and label; each picture is another patient, at 96 pixels times
    ``scale``.
    """
    rows = []
    for position, scanner in enumerate(SCANNERS):
        for label in LABELS:
            row = []
            for number in range(patients):
                random = np.random.default_rng([seed, position, number])
                thorax = Thorax.of(random, opacity=label == "opacity")
                low, high = scanner.levels
                stored = acquire(thorax, scanner, random).astype(np.float64)
                shown = np.clip((stored - low) / (high - low), 0.0, 1.0)
                shown = 1.0 - shown if scanner.inverted else shown
                side = (96 * scale, 96 * scale)
                row.append(
                    np.asarray(
                        Image.fromarray(shown.astype(np.float32)).resize(
                            side, Image.Resampling.BILINEAR
                        )
                    )
                )
            rows.append(np.hstack(row))
    sheet = np.rint(np.vstack(rows) * 255.0).astype(np.uint8)
    Image.fromarray(sheet).save(path)
