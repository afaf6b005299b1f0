"""An archive over DIMSE: C-FIND to search, C-GET to fetch.

We are the one who asks (SCU) and open no port: with C-GET the archive sends its files back over
the association that we opened. Each transfer syntax is offered by itself, so that the archive
sends what it has stored and never compresses an image for us.

Source:
    DICOM PS3.4 sections C.4.1 (C-FIND), C.4.3 (C-GET), C.6.2 (Study Root); PS3.7 annex D.3.3.4
    (role selection); PS3.8 section 9.3.4 (why an association is rejected).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalXRayImageStorageForPresentation,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
)
from pynetdicom import build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from medfed.client.scans.guards import COMPRESSED, NATIVE
from medfed.client.scans.pacs.archive import (
    Ask,
    NotPulledError,
    Reason,
    Sink,
    broken_link,
    number_of,
    text_of,
)
from medfed.client.scans.pacs.association import ASKED_PDU_BYTES, Asker, BoundedSocket
from medfed.client.scans.pacs.plan import Instance, Study, is_uid, pixel_bytes
from medfed.client.scans.pacs.settings import DimseSettings, tls_context
from medfed.common.errors import MedfedError, TransportError, TrustError

FIND: Final = UID("1.2.840.10008.5.1.4.1.2.2.1")
"""Study Root Query/Retrieve Information Model - FIND."""
GET: Final = UID("1.2.840.10008.5.1.4.1.2.2.3")
"""Study Root Query/Retrieve Information Model - GET."""
MAX_ANSWERS_BYTES: Final = 256 << 20
"""Most that all answers to one search may take."""
_OVERHEAD_BYTES: Final = 1 << 20
_CONNECT_S, _ANSWER_S, _SILENCE_S = 10.0, 60.0, 90.0
_PENDING, _SUCCESS = (0xFF00, 0xFF01), 0x0000
_OTHER_OBJECT, _NO_ROOM = 0xA900, 0xA700  # what we answer to a file that is not wanted
_COMMON: Final = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForPresentation,
    CTImageStorage,
    MRImageStorage,
    UltrasoundImageStorage,
    SecondaryCaptureImageStorage,
)
"""What is offered where the archive does not tell the kind of an object."""


class DimseArchive:
    """See ``Archive``.

    Args:
        settings: Where it is and how the two prove who they are.
        ask: Called before every request.
    """

    def __init__(self, settings: DimseSettings, ask: Ask) -> None:
        host, _, port = settings.address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._settings, self._ask = settings, ask
        self._tls = None if settings.plain else tls_context(settings)
        self._open: tuple[Association, BoundedSocket] | None = None
        self._offered: frozenset[str] = frozenset()
        self._parcel: _Parcel | None = None

    def studies(self, keys: Mapping[str, str]) -> Iterator[Study]:
        """Search studies by DICOM keyword."""
        told = ("StudyInstanceUID", "StudyDate", "StudyDescription", "AccessionNumber")
        for answer in self._find("STUDY", told, keys):
            study = Study(*(_text(answer, keyword) for keyword in told))
            if is_uid(study.uid):
                yield study

    def instances(self, study: Study, wanted: Callable[[str], bool]) -> Iterator[Instance]:
        """The objects of a study, of those series whose modality is wanted."""
        within = {"StudyInstanceUID": study.uid}
        for answer in self._find("SERIES", ("SeriesInstanceUID", "Modality"), within):
            uid, modality = _text(answer, "SeriesInstanceUID"), _text(answer, "Modality")
            if is_uid(uid) and wanted(modality):
                yield from self._of_series(within | {"SeriesInstanceUID": uid}, modality)

    def fetch(self, instance: Instance, sink: Sink) -> None:
        """Write one object to the sink, as it is stored."""
        self._ask()
        association, line = self._associated(
            (instance.sop_class,) if instance.sop_class else _COMMON
        )
        self._check_offers(association, GET, "C-GET")
        line.allow(sink.limit_bytes + _OVERHEAD_BYTES)
        self._parcel = parcel = _Parcel(instance.uid, sink.limit_bytes)
        keys = _identifier(
            "IMAGE",
            {
                "StudyInstanceUID": instance.study,
                "SeriesInstanceUID": instance.series,
                "SOPInstanceUID": instance.uid,
            },
        )
        with self._conversation(association, line):
            for status, _ in association.send_c_get(keys, GET):
                if line.overflowed:
                    raise NotPulledError(Reason.TOO_LARGE)
                self._check_alive(status)
        sink.write(parcel.content())

    def hang_up(self) -> None:
        """Release the association."""
        if self._open is not None:
            association, line = self._open
            self._open = None
            if association.is_established:
                association.release()
            line.end()

    def _of_series(self, within: Mapping[str, str], modality: str) -> Iterator[Instance]:
        told = (
            "SOPInstanceUID",
            "SOPClassUID",
            "Rows",
            "Columns",
            "SamplesPerPixel",
            "BitsAllocated",
            "NumberOfFrames",
        )
        for answer in self._find("IMAGE", told, within):
            uid, sop_class, *size = (_text(answer, keyword) for keyword in told)
            rows, columns, samples, bits, frames = size
            if is_uid(uid):
                yield Instance(
                    study=within["StudyInstanceUID"],
                    series=within["SeriesInstanceUID"],
                    uid=uid,
                    sop_class=sop_class or None,
                    modality=modality,
                    size_bytes=pixel_bytes(
                        number_of(rows),
                        number_of(columns),
                        number_of(samples, 1),
                        number_of(bits),
                        number_of(frames, 1),
                    ),
                )

    def _find(self, level: str, told: tuple[str, ...], keys: Mapping[str, str]) -> list[Dataset]:
        """All answers to one search; afterwards the association is free for the next request."""
        self._ask()
        association, line = self._associated(())
        line.allow(MAX_ANSWERS_BYTES)
        self._check_offers(association, FIND, "C-FIND")
        asked = _identifier(level, dict.fromkeys(told, "") | dict(keys))
        answers = []
        with self._conversation(association, line):
            for status, answer in association.send_c_find(asked, FIND):
                code = self._check_alive(status)
                if code in _PENDING and answer is not None:
                    answers.append(answer)
                elif code not in (*_PENDING, _SUCCESS):
                    raise self._broken(f"ends a search with status 0x{code:04X}")
        return answers

    @contextlib.contextmanager
    def _conversation(self, association: Association, line: BoundedSocket) -> Iterator[None]:
        """Give up the association where a request ends before its last answer."""
        try:
            yield
        except BaseException:
            self._open = None
            line.end()  # the archive sees the connection close: nobody waits for its answer
            association.kill()
            raise

    def _receive(self, event: evt.Event) -> int:
        """Answer a file that the archive sends; in the thread of the one who asked for it."""
        return self._parcel.take(event) if self._parcel else _OTHER_OBJECT

    def _associated(self, classes: Collection[str]) -> tuple[Association, BoundedSocket]:
        """An open association for these classes; what is open is used if it will do."""
        if self._open and self._open[0].is_established and self._offered.issuperset(classes):
            return self._open
        self.hang_up()
        self._offered = frozenset(classes)
        asker = Asker(ae_title=self._settings.calling_ae)
        asker.connection_timeout, asker.acse_timeout = _CONNECT_S, _ANSWER_S
        asker.dimse_timeout = asker.network_timeout = _SILENCE_S
        try:
            association = asker.associate(
                self._host,
                self._port,
                contexts=_contexts(classes),
                ae_title=self._settings.called_ae,
                max_pdu=ASKED_PDU_BYTES,
                ext_neg=[build_role(uid, scp_role=True) for uid in classes],
                tls_args=(self._tls, self._host) if self._tls else None,
                evt_handlers=[(evt.EVT_C_STORE, self._receive)],
            )
        except OSError:  # the name is not known
            raise self._broken("cannot be reached") from None
        if not association.is_established:
            asker.line.end()
            raise self._refusal(association)
        self._open = association, asker.line
        return self._open

    def _check_alive(self, status: Dataset) -> int:
        code = status.get("Status")
        if code is None:
            raise self._broken("does not answer, breaks off, or sends more than it may")
        return int(code)

    def _check_offers(self, association: Association, service: Any, name: str) -> None:
        if not any(context.abstract_syntax == service for context in association.accepted_contexts):
            raise TrustError(
                f"the archive {self._settings.address} does not offer us {name}.",
                advice=f"ask its keepers to allow {name} to the AE title "
                f"{self._settings.calling_ae!r}.",
            )

    def _refusal(self, association: Association) -> MedfedError:
        if not association.is_rejected:
            return self._no_connection()
        answer = association.acceptor.primitive
        if answer is not None and getattr(answer, "result", None) == 2:  # transient
            return self._broken("is too busy for another association")
        return TrustError(
            f"the archive {self._settings.address} refuses the association.",
            advice=f"ask its keepers to admit the AE title {self._settings.calling_ae!r} and "
            f"whether theirs is {self._settings.called_ae!r}.",
        )

    def _no_connection(self) -> MedfedError:
        """Connect once more without DICOM, to tell a network fault from a certificate's."""
        try:
            with socket.create_connection((self._host, self._port), _CONNECT_S) as plain:
                if self._tls is not None:
                    with self._tls.wrap_socket(plain, server_hostname=self._host):
                        pass
        except ssl.SSLError:
            return TrustError(
                f"the archive {self._settings.address} and we do not trust each other's "
                "certificates, or it speaks no TLS.",
                advice="check ca, certificate and key in pacs.toml, and both clocks.",
            )
        except OSError:
            return self._broken("cannot be reached")
        return self._broken("breaks off the association; it may ask for a client certificate")

    def _broken(self, found: str) -> TransportError:
        return broken_link(self._settings.address, found)


class _Parcel:
    """The one file that a C-GET may bring."""

    def __init__(self, uid: str, limit_bytes: int) -> None:
        self._uid, self._limit = uid, limit_bytes
        self._content = b""
        self._refused: Reason | None = None

    def take(self, event: evt.Event) -> int:
        """Keep the file if it is the one that was asked for; the status to answer with."""
        uid = getattr(event.request, "AffectedSOPInstanceUID", None)
        if self._content or uid != self._uid:
            self._refused = Reason.OTHER_OBJECT
            return _OTHER_OBJECT
        content = event.encoded_dataset()
        if len(content) > self._limit:
            self._refused = Reason.TOO_LARGE
            return _NO_ROOM
        self._content = content
        return _SUCCESS

    def content(self) -> bytes:
        """The file.

        Raises:
            NotPulledError: it did not come, or another one did.
        """
        if self._refused or not self._content:
            raise NotPulledError(self._refused or Reason.NOT_SENT)
        return self._content


def _contexts(classes: Collection[str]) -> list[PresentationContext]:
    """Search and retrieval, and every class in every syntax by itself; at most 128 in all."""
    syntaxes = sorted(NATIVE | COMPRESSED)
    return [
        build_context(FIND),
        build_context(GET),
        *(build_context(uid, syntax) for uid in classes for syntax in syntaxes),
    ]


def _identifier(level: str, keys: Mapping[str, str]) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    if not "".join(keys.values()).isascii():
        identifier.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in keys.items():
        setattr(identifier, keyword, value or None)
    return identifier


def _text(answer: Dataset, keyword: str) -> str:
    try:
        return text_of(answer.get(keyword))
    except Exception:  # pydicom converts lazily; broken bytes raise whatever they run into
        return ""
