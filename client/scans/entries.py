"""From an entry of an index to its tensor, whatever kind of file it is in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medfed.client.scans.facts import ScanFacts, facts_of_picture
from medfed.client.scans.layouts.files import ARRAYS, PICTURES, VOLUMES, has_ending
from medfed.client.scans.layouts.layout import Entry, Index
from medfed.client.scans.npz import load_images
from medfed.client.scans.pictures import read_picture, stored_size
from medfed.client.scans.pixels import read_dicom
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.client.scans.series import read_series
from medfed.client.scans.tensors import tensor_of
from medfed.client.scans.volumes import read_volume
from medfed.common.study_scans import Scans


class ScanRead(NamedTuple):
    """One scan. Private."""

    tensor: NDArray[np.float32]
    """``(channels, rows, columns)``, normalised as the study says."""
    patient: str
    """Key of the privacy unit; empty where nothing says whose the scan is."""
    facts: ScanFacts = ScanFacts()
    """How it was taken."""

    def __repr__(self) -> str:
        return f"ScanRead(tensor={self.tensor.shape})"

    def key(self, entry: Entry) -> str:
        """The key to group by: the patient's, or the scan's own."""
        return self.patient or own_key(entry)


def own_key(entry: Entry) -> str:
    """The key of a scan without a patient, which no patient id equals. Private."""
    return f"no id: \\{entry.file}"  # a backslash cannot stand in an LO value


class EntryReader:
    """Reads the entries of one index.

    The pictures of an ``.npz`` are kept in memory from the first one on, as long as the reader.

    Args:
        index: Its folder is what the entries' paths are relative to.
        scans: What the study asks for.
    """

    def __init__(self, index: Index, scans: Scans) -> None:
        self._folder, self._scans = index.folder, scans
        self._arrays: tuple[str, NDArray[np.uint8]] | None = None

    def read(self, entry: Entry) -> ScanRead:
        """Read one scan.

        Raises:
            RefusedScanError: its file cannot be used as a scan; the others can.
            ScanError: the data set cannot be read, or a package is missing.

        Guarantee:
            A refusal carries nothing of the file, not as its cause either.
        """
        try:
            return self._read(entry)
        except RefusedScanError as error:
            reason = error.reason
        raise RefusedScanError(reason)  # a new one: what the decoders raised quotes the file

    def _read(self, entry: Entry) -> ScanRead:
        path, known = self._folder / entry.file, entry.patient or ""
        if self._scans.intensity == "fixed" and has_ending(entry.file, (*PICTURES, *ARRAYS)):
            raise RefusedScanError(Reason.NO_UNITS)
        said = entry.view, entry.modality
        if has_ending(entry.file, PICTURES):
            tensor = read_picture(path, self._scans)
            return ScanRead(tensor, known, facts_of_picture(*stored_size(path), *said))
        if has_ending(entry.file, VOLUMES):
            tensor = read_volume(path, self._scans, entry.frame)
            return ScanRead(tensor, known, facts_of_picture(0, 0, 0, *said))
        if has_ending(entry.file, ARRAYS) and entry.frame is not None:
            picture = self._pictures(entry.file)[entry.frame]
            facts = facts_of_picture(picture.shape[0], picture.shape[1], 8, *said)
            return ScanRead(tensor_of(picture / 255.0, self._scans), known, facts)
        if self._scans.series:
            others = [self._folder / other for other in entry.others]
            scan = read_series([path, *others], self._scans)
        else:
            scan = read_dicom(path, self._scans)
        return ScanRead(scan.tensor, known or scan.patient_id, scan.facts)

    def _pictures(self, file: str) -> NDArray[np.uint8]:
        if self._arrays is None or self._arrays[0] != file:
            self._arrays = (file, load_images(self._folder / file))
        return self._arrays[1]
