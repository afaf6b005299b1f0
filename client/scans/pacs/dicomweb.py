"""An archive over the web: QIDO-RS to search, WADO-RS to fetch.

Searches go through dicomweb-client. Its retrieval parses every object and holds it in memory
several times over, so files are fetched through the same HTTP session but copied as they come,
byte for byte, in the transfer syntax they are stored in.

An answer is not trusted to be what was asked for: its size is bounded, compressed bodies and
redirects are refused, a UID that is none is dropped before it could become part of an address.

Source:
    DICOM PS3.18 sections 8.3 (query parameters), 10.4 (retrieve), 10.6 (search).
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import requests
import urllib3
from dicomweb_client.api import DICOMwebClient
from requests.auth import HTTPBasicAuth

from medfed.client.scans.pacs.archive import (
    Ask,
    NotPulledError,
    Reason,
    Sink,
    broken_link,
    number_of,
    text_of,
)
from medfed.client.scans.pacs.multipart import MultipartError, boundary_of, copy_single_part
from medfed.client.scans.pacs.plan import Instance, Study, is_uid, pixel_bytes
from medfed.client.scans.pacs.settings import Credentials, DicomWebSettings, check_files
from medfed.common.errors import MedfedError, TransportError, TrustError

PAGE: Final = 500
"""Answers asked for at a time; the archive may give fewer."""
MAX_PAGE_BYTES: Final = 64 << 20
"""Largest answer to a search."""
_PIECE_BYTES: Final = 256 << 10
_TIMEOUT_S: Final = (10.0, 60.0)  # to connect; between two pieces
_ACCEPT: Final = (
    'multipart/related; type="application/dicom"; transfer-syntax=*',
    'multipart/related; type="application/dicom"',
    "application/dicom; transfer-syntax=*",
    "application/dicom",
)
"""What a file is asked for as, until the archive accepts one (it answers 406 to the others)."""
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._~?-]+")
"""What an address must encode and some archives do not decode (Orthanc 1.10). It is asked for as
any text; what that brings in excess, the caller leaves out."""
_TOLD: Final = (
    "SOPClassUID",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "NumberOfFrames",
)

for _name in ("dicomweb_client", "urllib3"):  # their messages quote what was asked for
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)


class DicomWebArchive:
    """See ``Archive``.

    Args:
        settings: Where it is and how the two prove who they are.
        credentials: What it asks for; None: nothing.
        ask: Called before every request.
    """

    def __init__(
        self, settings: DicomWebSettings, credentials: Credentials | None, ask: Ask
    ) -> None:
        self._name = settings.url
        self._ask, self._accept = ask, 0
        self._session = _session(settings, credentials)
        self._client = DICOMwebClient(
            settings.url, session=self._session, permissive_uid=True, timeout=_TIMEOUT_S
        )
        self._client.set_http_retry_params(retry=False)

    def studies(self, keys: Mapping[str, str]) -> Iterator[Study]:
        """Search studies by DICOM keyword."""
        told = ("StudyDate", "StudyDescription", "AccessionNumber")
        keys = {keyword: _UNSAFE.sub("*", value) for keyword, value in keys.items()}
        for entry in self._pages(self._client.search_for_studies, keys, told, "0020000D"):
            yield Study(
                uid=_value(entry, "0020000D"),
                date=_value(entry, "00080020"),
                description=_value(entry, "00081030"),
                accession=_value(entry, "00080050"),
            )

    def instances(self, study: Study, wanted: Callable[[str], bool]) -> Iterator[Instance]:
        """The objects of a study, of those series whose modality is wanted."""

        def series(**page: Any) -> list[dict[str, Any]]:
            return self._client.search_for_series(study.uid, **page)

        for entry in self._pages(series, {}, ("Modality",), "0020000E"):
            uid, modality = _value(entry, "0020000E"), _value(entry, "00080060")
            if wanted(modality):
                yield from self._of_series(study.uid, uid, modality)

    def fetch(self, instance: Instance, sink: Sink) -> None:
        """Write one object to the sink, as it is stored."""
        url = (
            f"{self._name}/studies/{instance.study}/series/{instance.series}"
            f"/instances/{instance.uid}"
        )
        while True:
            self._ask()
            with self._failures(), contextlib.closing(self._get_file(url)) as response:
                if response.status_code == 406 and self._accept + 1 < len(_ACCEPT):
                    self._accept += 1
                    continue
                if response.status_code in (404, 410):
                    raise NotPulledError(Reason.GONE)
                response.raise_for_status()
                self._copy(response, sink)
                return

    def hang_up(self) -> None:
        """Close what connections there are."""
        self._session.close()

    def _of_series(self, study: str, series: str, modality: str) -> Iterator[Instance]:
        def instances(**page: Any) -> list[dict[str, Any]]:
            return self._client.search_for_instances(study, series, **page)

        for entry in self._pages(instances, {}, _TOLD, "00080018"):
            yield Instance(
                study=study,
                series=series,
                uid=_value(entry, "00080018"),
                sop_class=_value(entry, "00080016") or None,
                modality=modality,
                size_bytes=pixel_bytes(
                    number_of(_value(entry, "00280010")),
                    number_of(_value(entry, "00280011")),
                    number_of(_value(entry, "00280002"), 1),
                    number_of(_value(entry, "00280100")),
                    number_of(_value(entry, "00280008"), 1),
                ),
            )

    def _pages(
        self,
        search: Callable[..., list[dict[str, Any]]],
        keys: Mapping[str, str],
        told: tuple[str, ...],
        identifier: str,
    ) -> Iterator[dict[str, Any]]:
        """All answers, each once; an archive that ignores ``offset`` cannot make this endless."""
        seen: set[str] = set()
        offset = 0
        while True:
            self._ask()
            with self._failures():
                page = search(
                    search_filters=dict(keys),
                    fields=[name for name in told if name not in keys],
                    limit=PAGE,
                    offset=offset,
                )
                new = {_value(entry, identifier): entry for entry in page}
            fresh = [uid for uid in new if uid not in seen]
            yield from (new[uid] for uid in fresh if is_uid(uid))
            if not fresh:
                return
            seen.update(fresh)
            offset += len(page)

    def _get_file(self, url: str) -> requests.Response:
        headers = {"Accept": _ACCEPT[self._accept]}
        return self._session.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S)

    def _copy(self, response: requests.Response, sink: Sink) -> None:
        pieces = _pieces(response)
        boundary = boundary_of(response.headers.get("Content-Type", ""))
        if boundary is not None:
            copy_single_part(pieces, boundary, sink.write)
            return
        stated, written = response.headers.get("Content-Length"), 0
        for piece in pieces:
            sink.write(piece)
            written += len(piece)
        if stated is not None and written != number_of(stated, -1):
            raise MultipartError("it ends too early")

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Tell by the error tree what went wrong; no message quotes the archive's answer."""
        try:
            yield
        except requests.RequestException as error:
            raise self._explained(error) from None
        except urllib3.exceptions.HTTPError:
            raise self._broken("breaks off its answer") from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise self._broken("does not answer as DICOMweb") from None

    def _explained(self, error: requests.RequestException) -> MedfedError:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            return TrustError(
                f"the archive {self._name} refuses us (HTTP {status}).",
                advice="check the credentials file, and what this user may do at the archive.",
            )
        if status is not None:
            return self._broken(f"answers with HTTP {status}")
        if isinstance(error, requests.exceptions.SSLError):
            return TrustError(
                f"the archive {self._name} and we do not trust each other's certificates.",
                advice="check ca, certificate and key in pacs.toml, and both clocks.",
            )
        if isinstance(error, requests.TooManyRedirects):
            return self._broken("sends us to another address")
        if isinstance(error, (ValueError, requests.exceptions.InvalidJSONError)):
            return self._broken("does not answer as DICOMweb")
        if isinstance(error, requests.ConnectionError):
            return self._broken("cannot be reached, or breaks off")
        return self._broken("does not answer in time")

    def _broken(self, found: str) -> TransportError:
        return broken_link(self._name, found)


class _Session(requests.Session):
    """Requests with bounded answers, no redirects and nothing from the environment."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.headers["Accept-Encoding"] = "identity"

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Follow nowhere: what an archive may ask for, and ours to ask, stands in pacs.toml."""
        if resp.is_redirect:
            resp.close()
            raise requests.TooManyRedirects

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """As ``requests.Session.send``; what is not streamed is read here, up to the limit."""
        # Both may stand in an address as they are, and some archives know them only so.
        request.url = (request.url or "").replace("%2A", "*").replace("%3F", "?")
        request.headers.pop("Host", None)  # dicomweb-client leaves out the port
        streamed = kwargs.get("stream", False)
        response = super().send(request, **(kwargs | {"stream": True}))
        try:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise requests.exceptions.InvalidHeader
            if not streamed:
                response.raw = io.BytesIO(_bounded(response))
        except BaseException:
            response.close()
            raise
        return response


def _bounded(response: requests.Response) -> bytes:
    content = bytearray()
    for piece in _pieces(response):
        content += piece
        if len(content) > MAX_PAGE_BYTES:
            raise requests.exceptions.InvalidJSONError
    return bytes(content)


def _session(settings: DicomWebSettings, credentials: Credentials | None) -> requests.Session:
    check_files(settings)
    session = _Session()
    if settings.ca:
        session.verify = settings.ca
    if settings.certificate and settings.key:
        session.cert = (settings.certificate, settings.key)
    if credentials and credentials.user is not None:
        session.auth = HTTPBasicAuth(credentials.user.encode(), credentials.secret.encode())
    elif credentials:
        session.headers["Authorization"] = f"Bearer {credentials.secret}"
    return session


def _pieces(response: requests.Response) -> Iterator[bytes]:
    while piece := response.raw.read(_PIECE_BYTES, decode_content=False):
        yield piece


def _value(entry: Mapping[str, Any], tag: str) -> str:
    """The first value of an element in DICOM JSON; "" where there is none."""
    return text_of(entry.get(tag, {}).get("Value"))
