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
    NO_PIXELS = "no integer pixel data"
    HEADER = "image header incomplete or contradictory"
    PIXEL_LIMIT = "more than 100 megapixels"
    CODESTREAM = "compressed size differs from the header"
    DECODE = "pixel data does not decode"
    COLOUR = "colour model not supported"
    GREY_SCALE = "modality or VOI transform not valid"
    SPACING = "pixel spacing missing or out of range"


class RefusedScanError(ScanError):
    """One file cannot be used as a scan; the others can.

    Attributes:
        reason: Which rule it breaks.
    """

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        super().__init__(
            f"a file was refused as a scan: {reason.value}.",
            advice="repair or export it again, or take it off the worklist.",
        )
