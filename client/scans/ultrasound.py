"""Where an ultrasound picture shows the patient, and not a name, a scale or a curve.

Source:
    DICOM PS3.3 C.8.5.5 (US region calibration): corners are pixels, counted from 0, and belong to
    the region; Region Spatial Format 1 is a 2D picture (tissue or flow).
"""

from __future__ import annotations

from typing import Final

from pydicom.dataset import Dataset

from medfed.client.scans.guards import ImageHeader, element, integer

TWO_DIMENSIONS: Final = 1
_CORNERS: Final = ("MinX0", "MinY0", "MaxX1", "MaxY1")


def shown_region(dataset: Dataset, header: ImageHeader) -> tuple[slice, slice]:
    """Give the rows and columns that hold all 2D regions; all of them where the file has none.

    A region that does not lie inside the picture counts as none: the picture was cut or made
    smaller after the regions were drawn. One more than the last row or column, as some devices
    write, is taken as the last.

    Raises:
        RefusedScanError: a corner is no number.
    """
    boxes = [
        [integer(region, f"RegionLocation{corner}", -1) for corner in _CORNERS]
        for region in element(dataset, "SequenceOfUltrasoundRegions") or ()
        if integer(region, "RegionSpatialFormat", 0) == TWO_DIMENSIONS
    ]
    inside = [
        (left, top, right, bottom)
        for left, top, right, bottom in boxes
        if 0 <= left < right <= header.columns and 0 <= top < bottom <= header.rows
    ]
    if not inside:
        return slice(0, header.rows), slice(0, header.columns)
    lefts, tops, rights, bottoms = zip(*inside, strict=True)
    return (
        slice(min(tops), min(max(bottoms) + 1, header.rows)),
        slice(min(lefts), min(max(rights) + 1, header.columns)),
    )
