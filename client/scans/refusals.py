"""Why one file is not used as a scan.

The reasons are an enumeration so that they can be counted and shown to the site's admin
without a word of the file's content in them.
"""

from __future__ import annotations

from enum import StrEnum

from medfed.common.errors import ScanError


class Reason(StrEnum):
    """One reason per remedy; the value is what the admin reads."""

    MISSING = "file missing or unreadable"
    TOO_LARGE = "file larger than 512 MiB, as stored or inflated"
    OVERHEAD = "more than 4 MiB of elements that are not its pixels"
    NOT_DICOM = "not a DICOM file"
    NOT_PICTURE = "not a PNG or JPEG picture"
    NOT_NIFTI = "not a NIfTI volume"
    SYNTAX = "transfer syntax unknown"
    NO_DECODER = "no decoder for its transfer syntax"
    NO_JPEG_2000 = "no decoder for JPEG 2000: pip install 'medfed[dicom]'"
    NO_JPEG_LS = "no decoder for JPEG-LS: pip install 'medfed[dicom]'"
    NO_JPEG_LOSSLESS = "no decoder for JPEG lossless: pip install 'medfed[codecs]'"
    NO_JPEG_12_BIT = "no decoder for 12-bit JPEG: pip install 'medfed[codecs]'"
    NO_PIXELS = "no integer pixel data"
    HEADER = "image header incomplete or contradictory"
    PIXEL_LIMIT = "more than 100 megapixels"
    CODESTREAM = "compressed size differs from the header"
    DECODE = "pixel data does not decode"
    COLOUR = "colour model not supported"
    GREY_SCALE = "modality or VOI transform not valid"
    SPACING = "pixel spacing missing or out of range"
    MODALITY = "of a modality that the study does not take, or of none"
    VIEW = "of a view that the study does not take, or of none"
    LOCALIZER = "localizer of a CT or MR series"
    NO_SCAN = "segmentation or dose, not a scan"
    FOR_PROCESSING = "raw detector values (FOR PROCESSING), not made for presentation"
    CT_WINDOW = 'CT, which only a study with intensity = "fixed" takes'
    NO_UNITS = "values without units, to which the study's fixed window does not apply"
    POSITION = "slice without a valid position or orientation in the patient"
    MIXED_SERIES = "files of a series differ in patient, orientation, size or spacing"
    SAME_POSITION = "two slices of a series at one position"
    SLICE_MISSING = "a slice of the series is missing, or they are not evenly spaced"
    SERIES_LIMIT = "series of more than 500 megapixels or 10,000 slices"


class RefusedScanError(ScanError):
    """One file cannot be used as a scan; the others can.

    Attributes:
        reason: Which rule it breaks.
    """

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        missing = reason.value.startswith("no decoder")
        super().__init__(
            f"a file was refused as a scan: {reason.value}.",
            advice="install what is missing and import again."
            if missing
            else "repair or export it again, or take it off the worklist.",
        )
