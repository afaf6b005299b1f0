"""De-identify DICOM files: a folder of them in, a folder of clean ones out.

Only pictures are taken: what is no DICOM image is counted and left out, and so is a file that
itself says there is text burned into its picture. Pictures are not looked at: what is written in
them, and a face that could be rebuilt from a head scan, stays. The new files are named by their
new identifiers, because the old names often are the patient's. The labels of a worklist go with
them (``clean_labels.py``).

Source:
    DICOM PS3.15 annex E; PS3.10 7.1 (preamble and file meta information).
"""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from medfed.client.scans.bare_pixels import bare_pixels
from medfed.client.scans.clean_labels import CleanLabels
from medfed.client.scans.confidentiality import Profile
from medfed.client.scans.confidentiality_table import is_standard
from medfed.client.scans.export_names import ExportNames, open_names
from medfed.client.scans.guards import element, open_scan
from medfed.client.scans.label_safety import Identity, identity_of
from medfed.client.scans.layouts.dicom_worklist import WORKLIST
from medfed.client.scans.refusals import RefusedScanError
from medfed.common.errors import ConfigError, ScanError
from medfed.common.files import write_atomically
from medfed.common.trust.private_files import private_folder

IMPLEMENTATION: Final = UID("2.25.134218571983450124087632198451209311207")
"""Implementation Class UID of what this module writes, from a random UUID drawn once."""
RISKY_MODALITIES: Final = frozenset({"US", "OT", "XC", "ES", "SC", "GM", "SM", "IVUS"})
"""Where text is often part of the picture."""


class LeftOut(StrEnum):
    """Why a readable image is not written; the value is what the admin reads."""

    BURNED_IN = "says that text is burned into its picture"
    SOP_CLASS = "of no standard SOP class, or without identifiers"
    UNWRITABLE = "cannot be written as valid DICOM"
    THERE = "already in the target, or a second copy"
    LINK = "a link, not a file"


@dataclass(frozen=True)
class CleanFile:
    """One file de-identified. Private until someone has looked at its picture.

    Attributes:
        patient: The patient's new name.
        name: The object's new UID.
        content: The bytes of the file.
        may_show_text: Whether it is of a kind that often has text in the picture.
        was: What the file said of itself.
    """

    patient: str
    name: str
    content: bytes = field(repr=False)
    may_show_text: bool
    was: Identity = field(repr=False)

    @property
    def place(self) -> str:
        """Its path below the target folder, with ``/``."""
        return f"{self.patient}/{self.name}.dcm"


@dataclass(frozen=True)
class Outcome:
    """What became of a folder. For the site's admin.

    Attributes:
        written: Files written.
        patients: Patients they are of.
        may_show_text: How many of them may have text in the picture.
        left_out: Reason → number of files that were not written.
        labelled: Lines of the ``worklist.csv`` that was written; None: the source has none.
        label_notes: Reason → number of files, lines or labels that are not in it.
    """

    written: int
    patients: int
    may_show_text: int
    left_out: Mapping[str, int]
    labelled: int | None
    label_notes: Mapping[str, int]


def deidentify_folder(
    source: Path,
    target: Path,
    key_file: Path,
    *,
    shift_dates: bool = False,
    resume: bool = False,
    label_column: str = "label",
    seen: Callable[[int, int], None] = lambda _looked_at, _total: None,
) -> Outcome:
    """De-identify all DICOM images below a folder, and the labels of its worklist.

    Args:
        source: Folder; only read. Links in it are not followed.
        target: Folder for the result, ``PATIENT/OBJECT.dcm`` by new names: made here, or empty.
        key_file: Secret key of the new names; made where there is none. The same key gives the
            same names. Outside ``source`` and ``target``.
        shift_dates: Keep some dates, moved by a number of days that the patient's name fixes.
        resume: Whether ``target`` may hold files of an earlier run; they are left as they are,
            and lines are added to their worklist.
        label_column: What the column of labels in ``worklist.csv`` is called.
        seen: Told after each file how many were looked at, and how many there are.

    Returns:
        What was written and what was not, with the reason.

    Raises:
        ConfigError: a folder or the key is not as said above, or the extra ``deid`` is missing.
        ScanError: no file could be written, the worklist is no table, or the target's disk
            failed.

    Guarantee:
        Nothing is written outside ``target`` but the key, no image that is there is changed,
        and a file is written whole or not at all. The worklist comes last: a run that was ended
        earlier leaves images without labels.
    """
    source, target, key_file = source.resolve(), target.resolve(), key_file.resolve()
    _check_places(source, target, key_file, resume=resume)
    names = open_names(key_file)
    profile = Profile(names, shift_dates=shift_dates)
    target = private_folder(target)
    labels = CleanLabels(source, target, label_column)
    _sweep(target)
    left_out: Counter[str] = Counter()
    patients: set[str] = set()
    written = risky = 0
    total = sum(1 for _ in _files(source))
    for count, path in enumerate(_files(source), start=1):
        clean = _clean_or_reason(path, profile, names)
        if isinstance(clean, CleanFile):
            labels.take(path, clean.was, clean.place)
        if isinstance(clean, CleanFile) and not _write(clean, target):
            clean = LeftOut.THERE.value
        if isinstance(clean, CleanFile):
            patients.add(clean.patient)
            written, risky = written + 1, risky + clean.may_show_text
        else:
            left_out[clean] += 1
        seen(count, total)
    if not written and not left_out[LeftOut.THERE]:
        raise _nothing(source, left_out)
    labelled = _write_labels(labels.content(), target) if (source / WORKLIST).is_file() else None
    notes = {note: count for note, count in labels.notes.items() if count}
    return Outcome(written, len(patients), risky, dict(left_out), labelled, notes)


def deidentify_file(path: Path, profile: Profile, names: ExportNames) -> CleanFile | LeftOut:
    """De-identify one file.

    Args:
        path: A file; its content is not trusted.
        profile: What becomes of its header.
        names: Of the same key.

    Returns:
        The clean file, or why there is none.

    Raises:
        RefusedScanError: it is no image that medfed reads.

    Guarantee:
        The pixel data decodes to the same values and keeps its transfer syntax.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's quote the file
        dataset, header = open_scan(path)
        if _text(dataset, "BurnedInAnnotation").upper() == "YES":
            return LeftOut.BURNED_IN
        instance = _text(dataset, "SOPInstanceUID")
        if not is_standard(_text(dataset, "SOPClassUID")) or not instance:
            return LeftOut.SOP_CLASS
        patient = _new_name(dataset, names, instance)
        pixels = bare_pixels(dataset, header)
        try:
            clean = profile.apply(dataset, patient=patient)
            clean["PixelData"].value = pixels
            content = _bytes(clean, UID(dataset.file_meta.TransferSyntaxUID))
        except Exception:  # an odd value that pydicom read and cannot write raises anything
            return LeftOut.UNWRITABLE
        shows_text, was = _may_show_text(dataset), identity_of(dataset)
        return CleanFile(patient, names.uid(instance), content, shows_text, was)


def _clean_or_reason(path: Path, profile: Profile, names: ExportNames) -> CleanFile | str:
    if path.is_symlink():
        return LeftOut.LINK.value
    try:
        clean = deidentify_file(path, profile, names)
    except RefusedScanError as error:
        return error.reason.value
    return clean if isinstance(clean, CleanFile) else clean.value


def _new_name(dataset: Dataset, names: ExportNames, instance: str) -> str:
    """The patient's new name; without a PatientID the examination stands for the patient."""
    patient_id = _text(dataset, "PatientID")
    if patient_id:
        return names.patient(patient_id, _text(dataset, "IssuerOfPatientID"))
    return names.patient("", "no id: " + (_text(dataset, "StudyInstanceUID") or instance))


def _bytes(clean: Dataset, syntax: UID) -> bytes:
    """The file: empty preamble, file meta information made anew."""
    clean.file_meta = FileMetaDataset()
    clean.file_meta.MediaStorageSOPClassUID = clean.SOPClassUID
    clean.file_meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    clean.file_meta.TransferSyntaxUID = syntax
    clean.file_meta.ImplementationClassUID = IMPLEMENTATION
    clean.preamble = bytes(128)
    buffer = io.BytesIO()
    clean.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _may_show_text(dataset: Dataset) -> bool:
    kind = _text(dataset, "ImageType").upper()
    drawn = "SECONDARY" in kind or "SCREEN SAVE" in kind
    return drawn or _text(dataset, "Modality").upper() in RISKY_MODALITIES


def _text(dataset: Dataset, keyword: str) -> str:
    return str(element(dataset, keyword) or "").strip()


def _files(source: Path) -> Iterator[Path]:
    """Every file below a folder but its worklist, folder by folder in order of name."""
    for folder, below, files in os.walk(source):
        below.sort()
        paths = (Path(folder) / name for name in sorted(files))
        yield from (path for path in paths if path != source / WORKLIST)


def _write(clean: CleanFile, target: Path) -> bool:
    """Write a file unless one of its name is there."""
    path = target / clean.place
    if path.exists():
        return False
    with _disk(target):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, clean.content)
    return True


def _write_labels(content: bytes | None, target: Path) -> int:
    """Write the worklist, if there is one; give the number of its lines."""
    if content is None:
        return 0
    with _disk(target):
        write_atomically(target / WORKLIST, content)
    return content.count(b"\n") - 1


def _sweep(target: Path) -> None:
    """Remove what a run that was killed has not finished writing."""
    for pattern in ("*/.*.dcm.*.part", f".{WORKLIST}.*.part"):
        for path in target.glob(pattern):
            path.unlink(missing_ok=True)


@contextmanager
def _disk(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ScanError(
            f"{target}: a file cannot be written ({error.strerror}).",
            advice="make room, or give another folder; go on with --resume.",
        ) from None


def _check_places(source: Path, target: Path, key_file: Path, *, resume: bool) -> None:
    if not source.is_dir():
        raise ConfigError(f"{source}: no folder.", advice="give the folder of the DICOM files.")
    if source.is_relative_to(target) or target.is_relative_to(source):
        raise ConfigError(
            f"{target}: the target lies in the source or around it.",
            advice="give a folder of its own, so that originals and clean files do not mix.",
        )
    if key_file.is_relative_to(source) or key_file.is_relative_to(target):
        raise ConfigError(
            f"{key_file}: the key would lie among the files.",
            advice="keep it elsewhere: with it the new names can be traced back.",
        )
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: exists and is no folder.", advice="give another name.")
    if target.is_dir() and any(target.iterdir()) and not resume:
        raise ConfigError(
            f"{target}: is not empty; nothing in it is overwritten.",
            advice="give a new folder, or --resume to go on with a run that was interrupted.",
        )


def _nothing(source: Path, left_out: Counter[str]) -> ScanError:
    counts = "; ".join(f"{reason}: {count}" for reason, count in sorted(left_out.items()))
    return ScanError(
        f"{source}: no file could be de-identified ({counts or 'the folder is empty'}).",
        advice="give a folder that holds DICOM images.",
    )
