"""Which layout a scans folder has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from medfed.client.scans.layouts.chestxray14 import CHESTXRAY14
from medfed.client.scans.layouts.chexpert import CHEXPERT
from medfed.client.scans.layouts.class_folders import CLASS_FOLDERS
from medfed.client.scans.layouts.dicom_worklist import DICOM_WORKLIST
from medfed.client.scans.layouts.files import ARRAYS, has_ending
from medfed.client.scans.layouts.isic import ISIC
from medfed.client.scans.layouts.layout import Layout, LayoutName
from medfed.client.scans.layouts.medmnist import MEDMNIST
from medfed.client.scans.layouts.nifti import NIFTI
from medfed.client.scans.layouts.rsna import RSNA
from medfed.common.errors import ScanError

LAYOUTS: Final = (
    DICOM_WORKLIST,
    CHESTXRAY14,
    CHEXPERT,
    RSNA,
    ISIC,
    NIFTI,
    MEDMNIST,
    CLASS_FOLDERS,
)
"""All layouts. The first is what somebody wrote for medfed, and the last the vaguest."""


def layout_of(source: Path, name: LayoutName | None = None) -> Layout:
    """Say which layout the scans have, by what lies there.

    Args:
        source: A folder, or an ``.npz`` file. Only names are looked at, and one table's first
            line.
        name: What ``site.toml`` says; it is not checked against what lies there.

    Returns:
        The named layout; else the worklist's if there is a worklist; else the one that fits.

    Raises:
        ScanError: the folder cannot be read or is empty, no layout fits, or several do. The
            message lists what was looked for.
    """
    if name is not None:
        return next(layout for layout in LAYOUTS if layout.name == name)
    if has_ending(source.name, ARRAYS):
        return MEDMNIST
    if os.path.isfile(source):  # False also where this user may not look
        raise ScanError(
            f"{source}: a file that is no .npz; allowed are an .npz file, or a folder of DICOM "
            "files with a worklist.csv.",
            advice="give the folder that holds the worklist.",
        )
    fitting = _fitting(source)
    if DICOM_WORKLIST in fitting or len(fitting) == 1:
        return fitting[0]
    if not fitting:
        others = "; ".join(layout.sign for layout in LAYOUTS[1:])
        raise ScanError(
            f"{source}: the scans folder holds no worklist.csv beside DICOM files, and nothing "
            f"else that medfed knows: {others}.",
            advice="put worklist.csv (columns file, label) and the DICOM files into it, or name "
            "its layout in site.toml: [scans] layout.",
        )
    raise ScanError(
        f"{source}: fits several layouts: {', '.join(layout.name for layout in fitting)}.",
        advice="name the right one in site.toml: [scans] layout.",
    )


def _fitting(source: Path) -> list[Layout]:
    try:
        names = frozenset(item.name for item in source.iterdir())
        fitting = [layout for layout in LAYOUTS[:-1] if layout.fits(source, names)]
    except OSError as error:
        raise ScanError(
            f"{source}: the scans folder cannot be read ({type(error).__name__}).",
            advice="check the path, and that this user may read it.",
        ) from None
    if not names:
        raise ScanError(
            f"{source}: the scans folder is empty.",
            advice="put worklist.csv (columns file, label) and the DICOM files into it.",
        )
    if fitting:
        return fitting
    return [layout for layout in LAYOUTS[-1:] if layout.fits(source, names)]
