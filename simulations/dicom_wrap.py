"""Wrap the pictures of an ``.npz`` data set as DICOM files.

Run as ``python -m medfed.simulations.dicom_wrap NPZ FOLDER --study STUDY``.

Shows that the two layouts give the same tensors, patients and parts, to the bit. A picture
becomes a Secondary Capture object of 8 bits without window or rescale; its PatientID is its
group, and stays empty where the data set knows no patients.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from medfed.client.scans.npz import Pictures, load_pictures
from medfed.client.scans.scanset import Part
from medfed.common.errors import ConfigError, MedfedError
from medfed.common.study import Study, load_study
from medfed.simulations.dicom_objects import (
    derived_uid,
    drop_worklist,
    image_object,
    write_object,
    write_worklist,
)


def wrap_npz(npz: Path, folder: Path, study: Study) -> None:
    """Write each picture of an ``.npz`` as a DICOM file, and the worklist last.

    Args:
        npz: A data set that ``client/scans/npz.py`` reads.
        folder: Made if missing; files of the same names are replaced.
        study: Names the labels and the group key.

    Raises:
        ScanError: the data set cannot be read, or contradicts the study.
        ConfigError: the folder cannot be written, or a group is no PatientID.

    Guarantee:
        ``read_scans`` of the folder gives the images, labels, unit, patient grouping and parts
        of ``read_scans`` of the ``.npz``, bit for bit (the parts under ``rule = "hash"`` only
        where the data set has groups). The same arguments write the same bytes.
    """
    pictures = load_pictures(npz, study)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drop_worklist(folder)
        _write_all(pictures, folder, study)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder}: the pictures of {npz} cannot be written as DICOM ({type(error).__name__}).",
            advice="check that the folder can be written and that each group is a text of at "
            "most 64 characters without a backslash.",
        ) from error


def _write_all(pictures: Pictures, folder: Path, study: Study) -> None:
    width = len(str(len(pictures.images) - 1))
    rows = []
    for number, image in enumerate(pictures.images):
        name = f"{number:0{width}d}.dcm"
        patient_id = "" if pictures.unit == "image" else pictures.keys[number]
        write_object(_wrapped(image, patient_id, number, study), folder / name)
        row = {"file": name, "label": study.task.labels[pictures.labels[number]]}
        if pictures.parts is not None:
            row["split"] = Part(pictures.parts[number]).name.lower()
        rows.append(row)
    write_worklist(folder, rows, list(rows[0]))


def _wrapped(image: NDArray[np.uint8], patient_id: str, number: int, study: Study) -> Dataset:
    dataset = image_object(
        image,
        sop_class=SecondaryCaptureImageStorage,
        instance=derived_uid("wrap", study.name, number, image.tobytes().hex()),
        study=derived_uid("wrap", study.name, "study", patient_id or number),
        series=derived_uid("wrap", study.name, "series", patient_id or number),
        patient_id=patient_id,
        bits_stored=8,
        colour_model="RGB" if image.ndim == 3 else "MONOCHROME2",
    )
    dataset.Modality = "OT"
    dataset.ConversionType = "WSD"
    return dataset


def main(
    npz: Annotated[Path, typer.Argument(help="The data set to wrap.")],
    folder: Annotated[Path, typer.Argument(help="Where the DICOM files go.")],
    study: Annotated[Path, typer.Option(help="The study that the data set is for.")],
) -> None:
    """Write each picture of NPZ as a DICOM file under FOLDER, with a worklist.

    Example: python -m medfed.simulations.dicom_wrap xrays.npz xrays --study pneumonia.toml
    """
    try:
        wrap_npz(npz, folder, load_study(study))
    except MedfedError as error:
        typer.echo(str(error), err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    typer.run(main)
