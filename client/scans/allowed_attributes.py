"""The door of the reader: of a DICOM header only what stands here gets in.

Training needs a picture, how its values are meant, and whose it is. A list of what is *allowed*
cannot forget an attribute: what nobody thought of, a vendor's private element or a text three
sequences deep, is gone before anything else looks at the file. What remains is a new data set that
holds no reference to the one that was parsed.

Source:
    DICOM PS3.3 C.7.6.3 (image pixel), C.11.1 and C.11.2 (look-up tables), C.7.6.16 (functional
    groups), C.8.5.5 (ultrasound regions), 10.7 (spacing), C.7.1.1 (patient).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from medfed.client.scans.guards import element
from medfed.client.scans.refusals import Reason, RefusedScanError

Allowed = Mapping[str, "Allowed"]
"""Keyword → what is allowed in the items of that sequence; empty for what is no sequence."""


def _values(*keywords: str) -> dict[str, Allowed]:
    return dict.fromkeys(keywords, {})


_TABLE = _values("LUTDescriptor", "LUTData")
_STEPS = _values("PixelSpacing", "SliceThickness", "SpacingBetweenSlices")
_RESCALE = _values("RescaleSlope", "RescaleIntercept", "RescaleType")
_WINDOW: dict[str, Allowed] = {
    **_values("WindowCenter", "WindowWidth", "VOILUTFunction"),
    "VOILUTSequence": _TABLE,
}
_GROUPS: dict[str, Allowed] = {
    "PixelMeasuresSequence": _STEPS,
    "PlanePositionSequence": _values("ImagePositionPatient"),
    "PlaneOrientationSequence": _values("ImageOrientationPatient"),
    "PixelValueTransformationSequence": _RESCALE,
    "FrameVOILUTSequence": _WINDOW,
}
_REGION = _values(
    "RegionSpatialFormat",
    "RegionDataType",
    "RegionLocationMinX0",
    "RegionLocationMinY0",
    "RegionLocationMaxX1",
    "RegionLocationMaxY1",
)

IDENTIFIERS: Final[Allowed] = _values(
    "SpecificCharacterSet",
    "PatientID",
    "IssuerOfPatientID",
    "AccessionNumber",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
)
"""To group scans by patient and to join labels, in memory only. Private."""

PICTURE: Final[Allowed] = {
    **_values("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    **_values("PlanarConfiguration", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit"),
    **_values("PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelData"),
    **{
        f"{colour}PaletteColorLookupTable{part}": {}
        for colour in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    },
    **{f"Segmented{c}PaletteColorLookupTableData": {} for c in ("Red", "Green", "Blue")},
    **_RESCALE,
    **_WINDOW,
    "ModalityLUTSequence": _TABLE,
    **_values("PresentationLUTShape", "LossyImageCompression"),
    **_STEPS,
    **_values("ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    **_values("ImagePositionPatient", "ImageOrientationPatient"),
    "SequenceOfUltrasoundRegions": _REGION,
    "SharedFunctionalGroupsSequence": _GROUPS,
    "PerFrameFunctionalGroupsSequence": _GROUPS,
}
"""What the stored values mean and where they lie."""

KIND: Final[Allowed] = _values(
    "SOPClassUID",
    "Modality",
    "ImageType",
    "PresentationIntentType",
    "BurnedInAnnotation",
    "Manufacturer",
    "ManufacturerModelName",
    "KVP",
    "BodyPartExamined",
    "ViewPosition",
    "Laterality",
    "ImageLaterality",
    "PatientSex",
    "PatientAge",
)
"""For what the admin is told, and for results by subgroup. An age is known by its decade only."""

ALLOWED: Final[Allowed] = {**IDENTIFIERS, **PICTURE, **KIND}
OLDEST_BAND: Final = 90
"""Ages from here on are one band, in years."""


def keep_allowed(dataset: Dataset) -> Dataset:
    """Copy what the reader may look at; the rest cannot be reached from the copy.

    Args:
        dataset: A parsed file. Private; left as it is.

    Returns:
        A new data set with the elements of ``ALLOWED``, in sequences only those allowed there;
        of the file meta information the transfer syntax alone. Private.

    Raises:
        RefusedScanError: an allowed sequence is no sequence.

    Guarantee:
        The copy holds no private element, no file name, no preamble and no reference to
        ``dataset``; pixel data is shared, not copied.
    """
    kept = _copied(dataset, ALLOWED)
    _hide_age(kept)
    kept.file_meta = FileMetaDataset()
    kept.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    return kept


def age_band(age: str) -> str | None:
    """The decade of an age: ``043Y`` becomes ``040Y``; days, weeks and months are ``000Y``.

    Returns:
        None where the text is no DICOM age string.

    Example:
        >>> age_band("043Y"), age_band("011M"), age_band("101Y"), age_band("John")
        ('040Y', '000Y', '090Y', None)
    """
    match = re.fullmatch(r"(\d{3})([DWMY])", age.strip())
    if match is None:
        return None
    years = int(match.group(1)) if match.group(2) == "Y" else 0
    return f"{min(years // 10 * 10, OLDEST_BAND):03}Y"


def _copied(dataset: Dataset, allowed: Allowed) -> Dataset:
    copy = Dataset()
    for keyword, inside in allowed.items():
        tag = tag_for_keyword(keyword)
        if tag is None or tag not in dataset:
            continue
        if not inside:
            copy[tag] = _value(dataset, tag)
            continue
        items = element(dataset, keyword)
        if not isinstance(items, Sequence | None):
            raise RefusedScanError(Reason.HEADER)
        copy.add_new(tag, "SQ", Sequence([_copied(item, inside) for item in items or ()]))
    return copy


def _value(dataset: Dataset, tag: int) -> DataElement | RawDataElement:
    """An element, converted where it stands: what it means can depend on the elements around it."""
    try:
        found = dataset[tag]
        return DataElement(found.tag, found.VR, found.value)
    except Exception:  # no value of its type: it stays as it is, and whoever asks for it refuses
        return dataset.get_item(tag)


def _hide_age(dataset: Dataset) -> None:
    try:
        age = age_band(str(element(dataset, "PatientAge") or ""))
    except RefusedScanError:
        age = None
    if age is not None:
        dataset.PatientAge = age
    elif "PatientAge" in dataset:
        del dataset["PatientAge"]
