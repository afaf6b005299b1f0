"""What table E.1-1 of DICOM PS3.15 says, and what may stay though the table does not name it.

The table lists some 650 attributes that can identify somebody. An attribute that it does not list
is not safe by that: a vendor's text, a link, a date of another year's edition. So of those only
what can hold no name stays: numbers, codes, and a short list of texts.

Source:
    DICOM PS3.15 annex E, table E.1-1 (edition 2026c, as in dicom-anonymizer); PS3.5 6.2 (value
    representations); PS3.6 (which attributes and UIDs there are).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Number
from types import ModuleType
from typing import Final

from pydicom.datadict import (
    dictionary_has_tag,
    dictionary_VR,
    tag_for_keyword,
)
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue
from pydicom.uid import UID

from medfed.common.errors import ConfigError

EDITION: Final = "2026c"
SHIFTED: Final = frozenset(
    tag_for_keyword(keyword)
    for keyword in (
        "StudyDate",
        "SeriesDate",
        "AcquisitionDate",
        "AcquisitionDateTime",
        "ContentDate",
        "InstanceCreationDate",
    )
)
"""Dates that the option "modified dates" keeps, moved; the time of day never stays."""
TEXTS_KEPT: Final = frozenset(
    tag_for_keyword(keyword)
    for keyword in (
        "Manufacturer",
        "ManufacturerModelName",
        "CodeValue",
        "CodeMeaning",
        "CodingSchemeDesignator",
        "CodingSchemeVersion",
        "ConvolutionKernel",
        "SequenceName",
        "PulseSequenceName",
        "ImagedNucleus",
        "FilterType",
        "PlateType",
        "PhosphorType",
        "AcquisitionMode",
        "ContrastBolusRoute",
        "ReconstructionMethod",
        "AttenuationCorrectionMethod",
        "ScatterCorrectionMethod",
        "RescaleType",
        "ModalityLUTType",
        "LUTExplanation",
        "WindowCenterWidthExplanation",
        "OpticalPathIdentifier",
        "StackID",
    )
)
"""Short texts outside the table that stay: how the picture was made and is to be shown."""

NUMBERS: Final = frozenset("US SS UL SL UV SV FL FD DS IS AT".split())
BULK: Final = frozenset("OB OW OF OD OL OV".split())
_CODE: Final = re.compile("[A-Z0-9 _]{0,16}")
PIXEL_DATA: Final = 0x7FE00010
_ICC_PROFILE: Final = 0x00282000


def actions() -> Mapping[int, str]:
    """The table: tag → X, Z, D, U or C. Overlays and curves are not in it: they always go.

    Raises:
        ConfigError: the extra ``deid`` is not installed.
    """
    table = _table()
    groups = {
        "X": table.X_TAGS,
        "Z": [*table.Z_TAGS, *table.X_Z_TAGS],
        "D": [*table.D_TAGS, *table.Z_D_TAGS, *table.X_D_TAGS, *table.X_Z_D_TAGS],
        "U": table.U_TAGS,
        "C": table.X_Z_U_STAR_TAGS,
    }
    single = {a: [t for t in tags if len(t) == 2] for a, tags in groups.items()}
    return {(t[0] << 16) + t[1]: action for action, tags in single.items() for t in tags}


def is_standard(uid: str) -> bool:
    """Whether a UID is one that the standard itself defines (PS3.6), not an object's."""
    return UID(uid).type != ""


def _table() -> ModuleType:
    try:
        from dicomanonymizer.dicom_anonymization_databases import (  # noqa: PLC0415  # an extra
            dicomfields_2026c,
        )
    except ImportError:
        raise ConfigError(
            "the table of the confidentiality profile is not installed.",
            advice="pip install 'medfed[deid]'",
        ) from None
    table: ModuleType = dicomfields_2026c
    return table


def known(element: DataElement) -> bool:
    """Whether the standard knows the element, of one value, as what the file says it is."""
    tag = int(element.tag)
    if not dictionary_has_tag(tag) or tag >> 16 < 0x0008:  # private, or of commands and file meta
        return False
    vr, meant = str(element.VR), dictionary_VR(tag).split(" or ")
    return vr in meant or (vr in NUMBERS and not NUMBERS.isdisjoint(meant))


def holds_no_name(element: DataElement) -> bool:
    """Whether a known element outside the table may stay, by its type and value.

    A number is one (where a file has a text in place of a number, pydicom hands on the text), a
    code is as PS3.5 6.2 writes it, bulk data is a table of colours or greys, or an ICC profile by
    its signature; a text is one of ``TEXTS_KEPT``.
    """
    tag, value = int(element.tag), element.value
    several = value if isinstance(value, MultiValue | list) else [value]
    filled = [one for one in several if one is not None and one != ""]
    if element.VR in NUMBERS:
        return all(isinstance(one, Number) for one in filled)
    if element.VR == "CS":
        return all(_CODE.fullmatch(str(one).strip()) for one in filled)
    if element.VR in BULK:
        profile = isinstance(value, bytes) and value[36:40] == b"acsp"
        return profile if tag == _ICC_PROFILE else tag >> 16 == 0x0028
    return tag in TEXTS_KEPT
