"""What a scan's header says of how it was taken: for the site's admin, and for results by subgroup.

Header texts come from outside and may hold anything, so only short printable ones are kept. None
of it is a name, a number of a patient or a date; an age is known by its decade.

``look_of`` sums a picture up in 64 bits, so that nearly equal pictures can be found among many.

Source:
    DICOM PS3.3 C.7.6.1.1.2 (Image Type), C.7.6.1 (Burned In Annotation), C.7.3.1.1.1 (modalities).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from medfed.client.scans.allowed_attributes import age_band
from medfed.client.scans.guards import ImageHeader, element
from medfed.client.scans.refusals import RefusedScanError

MAX_TEXT: Final = 64
"""Characters of a header text that are kept; a DICOM LO value has no more."""
TEXT_RISK_MODALITIES: Final = frozenset({"SC", "OT", "US", "XC", "ES"})
"""Kinds of picture into which text is often drawn."""
SEXES: Final = frozenset({"F", "M", "O"})
"""PS3.3 C.7.1.1: another text in that place could be a name."""
SIDES: Final = frozenset({"L", "R", "B", "U"})
"""PS3.3 C.7.3.1 and C.7.6.1: left, right, both, unpaired."""
LOOK_SIDE: Final = 8
"""A look has this many bits across, and down."""
STEP: Final = 0.1
"""What counts as brighter, in standard deviations: in even regions noise must not decide."""
_READ: Final = 16 * MAX_TEXT  # characters of a text that are looked at at all

BurnedIn = Literal["yes", "no", ""]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ScanFacts:
    """How one scan was taken, as far as anything says so. Private; it shows nothing of itself.

    Attributes:
        modality: ``CR``, ``CT`` …; empty, as all texts here, where nothing says it.
        manufacturer: Of the device.
        model: Of the device.
        view: ``PA``, ``MLO`` …
        laterality: ``L`` or ``R``, of the image or of the series.
        sex: ``F``, ``M`` or ``O``.
        age_band: The decade of an age, as ``allowed_attributes.age_band`` gives it.
        body_part: As the device writes it.
        burned_in: Whether the header says that text is burned into the picture.
        text_risk: Whether the picture is of a kind that often has text in it.
        rows: Of the stored picture; 0 where it is not known.
        columns: Likewise.
        frames: Pictures in the file, or in the series.
        bits: Per sample, as stored.

    Raises:
        ValueError: a text is too long or holds what is not printable, or a number is negative.
    """

    modality: str = ""
    manufacturer: str = ""
    model: str = ""
    view: str = ""
    laterality: str = ""
    sex: str = ""
    age_band: str = ""
    body_part: str = ""
    burned_in: BurnedIn = ""
    text_risk: bool = False
    rows: int = 0
    columns: int = 0
    frames: int = 1
    bits: int = 0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if type(value) is not type(item.default):
                raise ValueError(f"{item.name}: not of its type")
            if isinstance(value, str) and (len(value) > MAX_TEXT or not value.isprintable()):
                raise ValueError(f"{item.name}: not a short printable text")
            if isinstance(value, int) and not 0 <= value < 1 << 31:
                raise ValueError(f"{item.name}: out of range")
        if self.burned_in not in ("yes", "no", ""):
            raise ValueError('burned_in: not "yes", "no" or empty')

    def __repr__(self) -> str:
        return "ScanFacts()"

    @property
    def device(self) -> str:
        """Manufacturer and model as one text; empty where neither is said."""
        named = self.model.casefold().startswith(self.manufacturer.casefold())
        return self.model if named else f"{self.manufacturer} {self.model}".strip()

    def as_json(self) -> str:
        """Write it as one line of ASCII. Private."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ScanFacts:
        """Read what ``as_json`` wrote.

        Raises:
            ValueError: it is anything else; the message quotes none of it.
        """
        try:
            values: Any = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict) or set(values) != {item.name for item in fields(cls)}:
            raise ValueError("the text is not the facts of a scan") from None
        return cls(**values)


class LookedAt(NamedTuple):
    """One usable scan, as a check of a site's scans sees it. Private."""

    file: str
    """Path below the folder of the index."""
    label: int
    part: int
    patient: bytes
    """Pseudonym of the privacy unit."""
    facts: ScanFacts
    content: bytes
    """Keyed name of the file's content and of the picture in it: equal ones are the same picture,
    but one picture may have two, in files that differ elsewhere."""
    look: int
    """As ``look_of`` gives it."""
    frame: int | None = None
    """Which picture of the file, where it holds several scans."""

    def __repr__(self) -> str:
        return "LookedAt()"


def about_scan(facts: ScanFacts, look: int) -> str:
    """Write facts and look as one line of ASCII; ``scan_about`` reads it. Private."""
    return f"{look:016x}{facts.as_json()}"


def scan_about(text: str) -> tuple[ScanFacts, int]:
    """Read what ``about_scan`` wrote.

    Raises:
        ValueError: it is anything else; the message quotes none of it.
    """
    return ScanFacts.from_json(text[16:]), int(text[:16], 16)


def facts_of(dataset: Dataset, header: ImageHeader) -> ScanFacts:
    """Gather what a DICOM header says.

    Args:
        dataset: As ``keep_allowed`` gives it. Private.
        header: Its checked image header.

    Guarantee:
        It never refuses: an element that cannot be read counts as absent.
    """
    modality = _code(dataset, "Modality")
    burned_in = _code(dataset, "BurnedInAnnotation")
    return ScanFacts(
        modality=modality,
        manufacturer=_text(dataset, "Manufacturer"),
        model=_text(dataset, "ManufacturerModelName"),
        view=_code(dataset, "ViewPosition"),
        laterality=_one_of(SIDES, _code(dataset, "ImageLaterality"))
        or _one_of(SIDES, _code(dataset, "Laterality")),
        sex=_one_of(SEXES, _code(dataset, "PatientSex")),
        age_band=age_band(_text(dataset, "PatientAge")) or "",
        body_part=_code(dataset, "BodyPartExamined"),
        burned_in="yes" if burned_in == "YES" else "no" if burned_in == "NO" else "",
        text_risk=burned_in == "YES"
        or modality in TEXT_RISK_MODALITIES
        or _drawn(_values(dataset, "ImageType")),
        rows=header.rows,
        columns=header.columns,
        frames=header.frames,
        bits=header.bits_stored,
    )


def facts_of_picture(
    rows: int, columns: int, bits: int, entry_view: str = "", entry_modality: str = ""
) -> ScanFacts:
    """Gather what is known of a picture or volume that has no DICOM header.

    Args:
        rows: Of the stored picture.
        columns: Likewise.
        bits: Per sample.
        entry_view: What the data set's table says.
        entry_modality: Likewise.
    """
    modality = _upper(entry_modality)
    return ScanFacts(
        modality=modality,
        view=_upper(entry_view),
        text_risk=modality in TEXT_RISK_MODALITIES,
        rows=rows,
        columns=columns,
        bits=bits,
    )


def look_of(tensor: NDArray[np.float32]) -> int:
    """Sum a picture up in 64 bits that survive another brightness, contrast, size or compression.

    Each bit says whether, between two rows and two columns of an area-averaged 9 x 9 picture, the
    brightness of one diagonal clearly exceeds that of the other. The plain difference hash compares
    neighbours in a row; in scans of one kind these are mostly the anatomy that all have in common
    (measured on chest radiographs of 28 x 28: of 17 million pairs of different scans 4,000 lie
    within two bits; of these bits it is 6).

    Args:
        tensor: ``(channels, rows, columns)``, finite. Private.

    Returns:
        A number below 2**64; private. 0 where the picture is flat.
    """
    grey = np.ascontiguousarray(tensor.mean(axis=0), dtype=np.float32)
    side = (LOOK_SIDE + 1, LOOK_SIDE + 1)
    small = np.asarray(Image.fromarray(grey).resize(side, Image.Resampling.BOX), np.float64)
    small = np.round(small, 6)  # so that what is flat but for rounding counts as flat
    steps = small[1:, 1:] + small[:-1, :-1] - small[1:, :-1] - small[:-1, 1:]
    bits = steps > STEP * steps.std()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _drawn(image_type: Sequence[str]) -> bool:
    """Whether an Image Type says that the picture was made from another, or off a screen."""
    return any("SECONDARY" in value or "SCREEN SAVE" in value for value in image_type)


def _one_of(allowed: frozenset[str], code: str) -> str:
    return code if code in allowed else ""


def _code(dataset: Dataset, keyword: str) -> str:
    return _upper(_text(dataset, keyword))


def _upper(text: str) -> str:
    return _short(text.upper())  # cut again: capitals may be longer


def _text(dataset: Dataset, keyword: str) -> str:
    """The first value of an element, short and printable."""
    values = _values(dataset, keyword)
    return values[0] if values else ""


def _values(dataset: Dataset, keyword: str) -> list[str]:
    """The first values of an element, each short and printable."""
    try:
        found = element(dataset, keyword)
    except RefusedScanError:
        return []
    if found is None:
        return []
    several = isinstance(found, Sequence) and not isinstance(found, str | bytes)
    return [_short(value) for value in (found[:16] if several else [found])]


def _short(value: object) -> str:
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception:  # a value of a header; what its class does with broken ones is not known
        return ""
    spaced = "".join(" " if c.isspace() else c for c in text[:_READ])
    return " ".join("".join(filter(str.isprintable, spaced)).split())[:MAX_TEXT].strip()
