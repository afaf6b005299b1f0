"""Archives that answer with something else: too much, another protocol, another address."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from medfed.client.scans.pacs import dicomweb
from medfed.client.scans.pacs.archive import NotPulledError, Reason
from medfed.client.scans.pacs.dicomweb import DicomWebArchive
from medfed.client.scans.pacs.dimse import DimseArchive
from medfed.client.scans.pacs.settings import Credentials, DicomWebSettings, DimseSettings
from medfed.common.errors import TransportError, TrustError
from tests.support.memory_archive import instance

pytestmark = pytest.mark.network
ONE = {"0020000D": {"vr": "UI", "Value": ["1.2"]}}
MULTIPART = "multipart/related; boundary=b1"
SOUND = b"--b1\r\n\r\nfile\r\n--b1--"


class Answers:
    """What a web server answers, and what it was asked.

    Attributes:
        body: Of every answer; a function of the request gives it instead.
    """

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {"Content-Type": "application/dicom+json"}
        self.body: bytes | Callable[[BaseHTTPRequestHandler], bytes] = b"[]"
        self.asked: list[BaseHTTPRequestHandler] = []
        self.port = 0

    def archive(self) -> DicomWebArchive:
        settings = DicomWebSettings(url=f"http://127.0.0.1:{self.port}/d", plain=True)
        return DicomWebArchive(settings, Credentials("me", "secret"), lambda: None)


@pytest.fixture
def web() -> Iterator[Answers]:
    answers = Answers()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.asked.append(self)
            body = answers.body(self) if callable(answers.body) else answers.body
            self.send_response(answers.status)
            for name, value in ({"Content-Length": str(len(body))} | answers.headers).items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client hangs up, as it should
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    answers.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield answers
    server.shutdown()
    thread.join()
    server.server_close()


class Sink:
    """Takes a little."""

    limit_bytes = 100_000

    def __init__(self) -> None:
        self.content = b""

    def write(self, piece: bytes) -> None:
        self.content += piece
        if len(self.content) > self.limit_bytes:
            raise NotPulledError(Reason.TOO_LARGE)


def found(web: Answers) -> list[str]:
    archive = web.archive()
    try:
        return [study.uid for study in archive.studies({"AccessionNumber": "A1"})]
    finally:
        archive.hang_up()


def fetched(web: Answers) -> bytes:
    archive, sink = web.archive(), Sink()
    try:
        archive.fetch(instance("1.2.3"), sink)
        return sink.content
    finally:
        archive.hang_up()


# ---- searches ------------------------------------------------------------------------------------
def test_an_archive_that_ignores_the_offset_does_not_keep_us_for_ever(web: Answers) -> None:
    web.body = json.dumps([ONE, ONE]).encode()

    assert found(web) == ["1.2"]
    assert len(web.asked) == 2  # the second page brought nothing new


def test_pages_are_asked_for_until_one_is_empty(web: Answers) -> None:
    def page(request: BaseHTTPRequestHandler) -> bytes:
        offset = int(request.path.split("offset=")[1].split("&")[0])
        return json.dumps([{"0020000D": {"Value": [f"1.{offset}"]}}] if offset < 3 else []).encode()

    web.body = page

    assert found(web) == ["1.0", "1.1", "1.2"]  # an archive that gives one at a time


@pytest.mark.parametrize("uid", ["../../admin", "1.2?x=1", "", 5, None, ["1.2"], "1" * 65])
def test_what_is_no_uid_is_dropped(web: Answers, uid: Any) -> None:
    web.body = json.dumps([{"0020000D": {"Value": [uid]}}, ONE]).encode()

    assert [each for each in found(web) if each != "5"] == ["1.2"]


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"5", b'["text"]', b'[{"0020000D": 5}]', b"[" * 100_000, b"\xff\xfe", b'{"a": '],
)
def test_an_answer_that_is_no_dicom_json_is_refused(web: Answers, body: bytes) -> None:
    web.body = body

    with pytest.raises(TransportError, match="does not answer as DICOMweb"):
        found(web)


def test_an_answer_that_is_too_long_is_not_read_to_its_end(
    web: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicomweb, "MAX_PAGE_BYTES", 1000)
    web.body = b"[" + b" " * 2000 + b"]"

    with pytest.raises(TransportError):
        found(web)


def test_a_compressed_answer_is_refused_before_it_is_inflated(web: Answers) -> None:
    web.body = gzip.compress(b"[" + b" " * 10_000_000 + b"]")
    web.headers["Content-Encoding"] = "gzip"

    with pytest.raises(TransportError):
        found(web)
    assert web.asked[0].headers["Accept-Encoding"] == "identity"


def test_we_do_not_follow_to_another_address(web: Answers) -> None:
    web.status = 302
    web.headers["Location"] = f"http://localhost:{web.port}/elsewhere"

    with pytest.raises(TransportError, match="another address"):
        found(web)
    assert len(web.asked) == 1


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (401, TrustError, "refuses us"),
        (403, TrustError, "refuses us"),
        (404, TransportError, "HTTP 404"),
        (500, TransportError, "HTTP 500"),
        (503, TransportError, "HTTP 503"),
    ],
)
def test_a_refusal_is_told_by_its_remedy_and_not_in_the_archives_words(
    web: Answers, status: int, error: type[Exception], text: str
) -> None:
    web.status, web.body = status, b"PATIENT DOE"

    with pytest.raises(error, match=text) as refusal:
        found(web)
    assert "DOE" not in str(refusal.value) and "A1" not in str(refusal.value)
    assert len(web.asked) == 1  # whether to ask again is for the job to decide


def test_nothing_comes_from_the_environment(web: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    assert found(web) == []


# ---- files ---------------------------------------------------------------------------------------
def test_a_file_is_taken_as_one_part_or_by_itself(web: Answers) -> None:
    web.headers["Content-Type"], web.body = MULTIPART, SOUND
    assert fetched(web) == b"file"

    web.headers["Content-Type"], web.body = "application/dicom", b"file"
    assert fetched(web) == b"file"


def test_another_form_is_asked_for_where_one_is_not_acceptable(web: Answers) -> None:
    asked = []

    def body(request: BaseHTTPRequestHandler) -> bytes:
        asked.append(request.headers["Accept"])
        web.status = 406 if "multipart" in asked[-1] else 200
        return b"file"

    web.headers["Content-Type"], web.body = "application/dicom", body

    assert fetched(web) == b"file"
    assert asked[-1] == "application/dicom; transfer-syntax=*"
    assert asked[0] == 'multipart/related; type="application/dicom"; transfer-syntax=*'


def test_a_file_without_end_is_left_at_the_limit(web: Answers) -> None:
    web.headers["Content-Type"], web.body = MULTIPART, SOUND[:8] + bytes(5_000_000)

    with pytest.raises(NotPulledError) as refusal:
        fetched(web)
    assert refusal.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize(
    ("content_type", "body", "length"),
    [
        (MULTIPART, SOUND[:-9], None),
        (MULTIPART, SOUND, 1000),
        ("application/dicom", b"file", 1000),
        ("multipart/related", SOUND, None),
    ],
)
def test_a_file_that_ends_too_early_is_no_file(
    web: Answers, content_type: str, body: bytes, length: int | None
) -> None:
    web.headers["Content-Type"], web.body = content_type, body
    if length is not None:
        web.headers["Content-Length"] = str(length)

    if content_type == MULTIPART and length:
        assert fetched(web) == b"file"  # whole: its end was seen
        return
    with pytest.raises(TransportError):
        fetched(web)


def test_a_compressed_file_is_refused_as_such(web: Answers) -> None:
    web.headers |= {"Content-Type": "application/dicom", "Content-Encoding": "gzip"}
    web.body = gzip.compress(b"file")

    with pytest.raises(TransportError):
        fetched(web)


@pytest.mark.parametrize("status", [404, 410])
def test_a_file_that_is_gone_is_told_from_a_link_that_failed(web: Answers, status: int) -> None:
    web.status = status

    with pytest.raises(NotPulledError) as refusal:
        fetched(web)
    assert refusal.value.reason is Reason.GONE


# ---- DIMSE ---------------------------------------------------------------------------------------
class Peer:
    """Takes one connection, reads the request to associate, and answers with bytes."""

    def __init__(self, answer: bytes, flood_bytes: int = 0) -> None:
        self._answer, self._flood = answer, flood_bytes
        self.taken_bytes = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Peer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(20)
        self._server.close()

    def _serve(self) -> None:
        with self._server.accept()[0] as connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            connection.recv(1 << 16)
            connection.sendall(self._answer)
            while self.taken_bytes < self._flood:
                self.taken_bytes += connection.send(bytes(1 << 16))

    def archive(self) -> DimseArchive:
        settings = DimseSettings(
            address=f"127.0.0.1:{self.port}", called_ae="A", calling_ae="B", plain=True
        )
        return DimseArchive(settings, lambda: None)


@pytest.mark.parametrize("kind", [2, 4])  # A-ASSOCIATE-AC, P-DATA-TF
def test_a_header_that_announces_gigabytes_is_not_believed(kind: int) -> None:
    with Peer(bytes([kind, 0]) + b"\xff" * 4, flood_bytes=200 << 20) as peer:
        with pytest.raises(TransportError):
            list(peer.archive().studies({"AccessionNumber": "A1"}))

    # pynetdicom by itself reads all of it into memory; the sockets' buffers hold some megabytes.
    assert peer.taken_bytes < 32 << 20


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x07\0\0\0\0\4\0\0\2\1"]
)
def test_a_peer_that_speaks_no_dicom_is_a_matter_of_the_link(answer: bytes) -> None:
    with Peer(answer) as peer, pytest.raises(TransportError):
        list(peer.archive().studies({"AccessionNumber": "A1"}))


@pytest.mark.parametrize(("result", "error"), [(1, TrustError), (2, TransportError)])
def test_a_rejection_for_now_is_told_from_one_for_good(result: int, error: type[Exception]) -> None:
    # A-ASSOCIATE-RJ, PS3.8 table 9-21: result 1 permanent, 2 transient; source 1, reason 1
    with Peer(bytes([3, 0, 0, 0, 0, 4, 0, result, 1, 1])) as peer, pytest.raises(error):
        list(peer.archive().studies({"AccessionNumber": "A1"}))
