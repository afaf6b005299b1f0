"""The one door to a site's scans, whatever their layout."""

from __future__ import annotations

import os
from pathlib import Path

from medfed.client.scans.dicom_tree import read_dicom_tree
from medfed.client.scans.npz import read_npz
from medfed.client.scans.patients import Pseudonymise
from medfed.client.scans.scanset import ScanSet
from medfed.common.errors import ScanError
from medfed.common.study import Study


def read_scans(source: Path, study: Study, *, pseudonymise: Pseudonymise | None = None) -> ScanSet:
    """Read the scans of a site as the study says.

    Args:
        source: An ``.npz`` file, or a folder of DICOM files with a ``worklist.csv``.
        study: Labels, split, privacy unit and how a scan becomes a tensor.
        pseudonymise: How the ledger names patients; None: it does not (simulation).

    Returns:
        The scans, grouped by patient and split. All of it is private but ``unit``.

    Raises:
        ScanError: the source cannot be read, holds no usable scan, or contradicts the study.
            The message is for the site's admin: it may name paths and counts, never a
            patient, a label or a pixel.

    Guarantee:
        The result does not depend on the order of files on disk, and the same files give the
        same bits with the same libraries. A patient is never in two parts.
    """
    if source.suffix.lower() == ".npz":
        return read_npz(source, study, pseudonymise)
    if os.path.isfile(source):  # False also where this user may not look
        raise ScanError(
            f"{source}: a file that is no .npz; allowed are an .npz file, or a folder of DICOM "
            "files with a worklist.csv.",
            advice="give the folder that holds the worklist.",
        )
    return read_dicom_tree(source, study, pseudonymise)
