"""What to pull: the question put to the archive, and what of its answer is wanted. Pure.

An archive may ignore a key that it does not support and answer with more than was asked. So
every study and series is held against the query once more here, and what is no image is left
out: no more reaches the disk than was asked for.

Patients are never asked for: neither their names nor their numbers are keys, and none is among
the attributes that the archive is asked to tell.

Source:
    DICOM PS3.4 section C.2.2.2 (attribute matching), C.6.2 (Study Root model); PS3.18 section
    8.3.4 (the same over the web).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Final, NamedTuple

from pydicom import uid as uids

from medfed.common.errors import ConfigError

MAX_ACCESSIONS_BYTES: Final = 16 << 20
"""Largest file of accession numbers."""
IMAGE_CLASSES: Final = frozenset(
    {
        uids.ComputedRadiographyImageStorage,
        uids.DigitalXRayImageStorageForPresentation,
        uids.DigitalXRayImageStorageForProcessing,
        uids.DigitalMammographyXRayImageStorageForPresentation,
        uids.DigitalMammographyXRayImageStorageForProcessing,
        uids.BreastTomosynthesisImageStorage,
        uids.CTImageStorage,
        uids.EnhancedCTImageStorage,
        uids.LegacyConvertedEnhancedCTImageStorage,
        uids.MRImageStorage,
        uids.EnhancedMRImageStorage,
        uids.LegacyConvertedEnhancedMRImageStorage,
        uids.PositronEmissionTomographyImageStorage,
        uids.EnhancedPETImageStorage,
        uids.NuclearMedicineImageStorage,
        uids.UltrasoundImageStorage,
        uids.UltrasoundMultiFrameImageStorage,
        uids.XRayAngiographicImageStorage,
        uids.XRayRadiofluoroscopicImageStorage,
        uids.OphthalmicPhotography8BitImageStorage,
        uids.OphthalmicPhotography16BitImageStorage,
        uids.OphthalmicTomographyImageStorage,
        uids.VLPhotographicImageStorage,
        uids.VLEndoscopicImageStorage,
        uids.VLMicroscopicImageStorage,
        uids.DermoscopicPhotographyImageStorage,
        uids.SecondaryCaptureImageStorage,
        uids.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        uids.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        uids.MultiFrameTrueColorSecondaryCaptureImageStorage,
    }
)
"""What is pulled. Reports, presentation states, segmentations and the like are not."""

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")


@dataclass(frozen=True)
class Query:
    """Which studies are wanted; every part that is given must hold.

    Attributes:
        modalities: Codes as in the header, ``CR``; empty: any.
        since: First study date; None: any.
        until: Last study date; None: any.
        description: Study description with the wildcards ``*`` and ``?``; None: any.
        accessions: Accession numbers; empty: any. Private: they name examinations of people.
    """

    modalities: tuple[str, ...] = ()
    since: date | None = None
    until: date | None = None
    description: str | None = None
    accessions: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Refuse a query that could mean the whole archive, or that is no query.

        Raises:
            ConfigError: what is wrong, and what is allowed.
        """
        for code in self.modalities:
            if not _CODE.fullmatch(code):
                raise _mistake(f"modality {code!r} is no DICOM code", "write it like CR, DX or MG")
        if self.since and self.until and self.since > self.until:
            raise _mistake(f"{self.since} to {self.until} is no range", "give the earlier first")
        text = self.description
        if text is not None and (not 0 < len(text) <= 64 or "\\" in text or not text.isprintable()):
            raise _mistake(
                "the study description must have 1 to 64 printable characters and no backslash",
                "shorten it; * stands for any text",
            )
        described = text is not None and text.strip("*? ") != ""
        if not (self.since or self.until or described or self.accessions):
            raise _mistake(
                "nothing narrows it down: that would pull the whole archive",
                "give dates, a study description or a file of accession numbers",
            )


class Study(NamedTuple):
    """One study as the archive describes it. Private; its repr shows nothing."""

    uid: str
    date: str
    description: str
    accession: str

    def __repr__(self) -> str:
        return "Study(private)"


class Instance(NamedTuple):
    """One object that may be pulled. Private; its repr shows nothing.

    Attributes:
        study: Study Instance UID.
        series: Series Instance UID.
        uid: SOP Instance UID.
        sop_class: What kind of object; None: the archive does not say.
        modality: As the series says.
        size_bytes: Size of its pixels without compression; None: the archive does not say.
    """

    study: str
    series: str
    uid: str
    sop_class: str | None
    modality: str
    size_bytes: int | None

    def __repr__(self) -> str:
        return f"Instance(modality={self.modality!r}, private)"


def study_keys(query: Query) -> Iterator[dict[str, str]]:
    """Give the keys of each search that the query needs, by DICOM keyword.

    One search per accession number, or else per modality: archives differ in whether they take
    a list. The same study may be an answer to several.

    Example:
        >>> list(study_keys(Query(("CR", "DX"), since=date(2025, 1, 1))))
        ... # doctest: +NORMALIZE_WHITESPACE
        [{'StudyDate': '20250101-', 'ModalitiesInStudy': 'CR'},
         {'StudyDate': '20250101-', 'ModalitiesInStudy': 'DX'}]
    """
    common: dict[str, str] = {}
    if query.since or query.until:
        common["StudyDate"] = f"{_day(query.since)}-{_day(query.until)}"
    if query.description is not None:
        common["StudyDescription"] = query.description
    if query.accessions:
        for number in query.accessions:
            yield common | {"AccessionNumber": number}
    elif query.modalities:
        for code in query.modalities:
            yield common | {"ModalitiesInStudy": code}
    else:
        yield common


def wants_study(query: Query, study: Study) -> bool:
    """Whether a study that the archive named fits the query; its modality is not looked at."""
    day = study.date.replace(".", "").strip()  # 2025.01.31 in very old objects
    if query.since and not _day(query.since) <= day[:8]:
        return False
    if query.until and not "0" < day[:8] <= _day(query.until):
        return False
    if query.description is not None and not _like(query.description, study.description):
        return False
    return not query.accessions or study.accession.strip() in query.accessions


def wants_series(query: Query, modality: str) -> bool:
    """Whether a series of this modality fits the query."""
    return not query.modalities or modality in query.modalities


def is_image(instance: Instance) -> bool:
    """Whether an object is an image, or of a kind that the archive does not tell."""
    return instance.sop_class is None or instance.sop_class in IMAGE_CLASSES


def is_uid(text: str) -> bool:
    """Whether a text is a unique identifier: safe in an address and in a query.

    Source:
        DICOM PS3.5 section 9.1; leading zeros are let pass, because archives hold them.
    """
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def pixel_bytes(rows: int, columns: int, samples: int, bits: int, frames: int) -> int | None:
    """Size of an image without compression, in bytes; None where a number is missing (0)."""
    values = (rows, columns, samples, bits, frames)
    return rows * columns * samples * frames * ((bits + 7) // 8) if min(values) > 0 else None


def read_accessions(path: Path) -> tuple[str, ...]:
    """Read accession numbers, one per line; empty lines and lines that begin with # are not read.

    Returns:
        Each number once, in the file's order. Private.

    Raises:
        ConfigError: it cannot be read, holds none, or a line is no accession number. A message
            names the line and never what stands there.
    """
    try:
        if path.stat().st_size > MAX_ACCESSIONS_BYTES:
            raise _of_file(path, f"is larger than {MAX_ACCESSIONS_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _of_file(path, f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise _of_file(path, "is not UTF-8 text") from None
    numbers = []
    for line, raw in enumerate(text.splitlines(), start=1):
        number = raw.strip()
        if not number or number.startswith("#"):
            continue
        if len(number) > 16 or not number.isprintable() or set(number) & set("\\*?"):
            raise _of_file(
                path, f"line {line} is no accession number (1 to 16 characters, no * ? \\)"
            )
        numbers.append(number)
    if not numbers:
        raise _of_file(path, "holds no accession number")
    return tuple(dict.fromkeys(numbers))


def _day(day: date | None) -> str:
    return day.strftime("%Y%m%d") if day else ""


def _like(pattern: str, text: str) -> bool:
    wild = re.escape(pattern.strip()).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(wild, text.strip(), re.IGNORECASE | re.DOTALL) is not None


def _mistake(found: str, advice: str) -> ConfigError:
    return ConfigError(f"the query: {found}.", advice=f"{advice}.")


def _of_file(path: Path, found: str) -> ConfigError:
    return ConfigError(
        f"{path}: the list of accession numbers {found}.", advice="one number per line, UTF-8."
    )
