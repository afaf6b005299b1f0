"""Which DICOM files are scans of the kind that a study takes.

Looked at before a pixel is decoded. Some files are no scan in any study: the localizer by which
a CT or MR series was planned, the detector's raw values beside the picture made from them, and what
was computed from scans and lies beside them: segmentations and doses.

Source:
    DICOM PS3.3 C.7.3.1.1.1 (modality), C.7.6.1.1.2 and C.8.2.1.1.1 (image type; LOCALIZER),
    C.8.11.1 (presentation intent), C.8.7.1 and C.8.11.5 (view position).
"""

from __future__ import annotations

from typing import Final

from pydicom import uid as uids
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from medfed.client.scans.guards import element
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.common.study_scans import Scans

CT_CLASSES: Final = (
    uids.CTImageStorage,
    uids.EnhancedCTImageStorage,
    uids.LegacyConvertedEnhancedCTImageStorage,
)
COMPUTED: Final = ("SEG", "RTDOSE")
"""Modalities of objects that have pixels and are no scans."""


def check_suited(dataset: Dataset, scans: Scans) -> None:
    """Check that a study takes a file.

    Args:
        dataset: As ``keep_allowed`` gives it. Private.
        scans: What the study asks for.

    Raises:
        RefusedScanError: it is of another modality or view than the study's, or of none where
            the study chooses; a localizer of CT or MR; not meant for presentation; a
            segmentation or dose; or CT where the study fixes no window.
    """
    modality = _code(dataset, "Modality")
    if scans.modalities is not None and modality not in scans.modalities:
        raise RefusedScanError(Reason.MODALITY)
    if scans.views is not None and _code(dataset, "ViewPosition") not in scans.views:
        raise RefusedScanError(Reason.VIEW)
    if (modality in ("CT", "MR") or is_ct(dataset)) and "LOCALIZER" in _image_type(dataset):
        raise RefusedScanError(Reason.LOCALIZER)
    if modality in COMPUTED:
        raise RefusedScanError(Reason.NO_SCAN)
    if _code(dataset, "PresentationIntentType") == "FOR PROCESSING":
        raise RefusedScanError(Reason.FOR_PROCESSING)
    if is_ct(dataset) and scans.intensity != "fixed":
        raise RefusedScanError(Reason.CT_WINDOW)


def is_ct(dataset: Dataset) -> bool:
    """Whether a file is CT, by its modality or its class."""
    return _code(dataset, "Modality") == "CT" or element(dataset, "SOPClassUID") in CT_CLASSES


def _code(dataset: Dataset, keyword: str) -> str:
    return str(element(dataset, keyword) or "").strip().upper()


def _image_type(dataset: Dataset) -> list[str]:
    value = element(dataset, "ImageType")
    values = value if isinstance(value, MultiValue) else [value]
    return [str(part).strip().upper() for part in values]
