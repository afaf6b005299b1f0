"""The control service over real gRPC on loopback: who may ask, and how errors arrive."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from medfed.common.errors import (
    CohortError,
    ConfigError,
    MedfedError,
    TransportError,
    TrustError,
)
from medfed.common.processes import free_port
from medfed.common.trust.certificates import issue_client_certificate, new_authority
from medfed.server.control import ControlService
from medfed.server.control_client import ControlClient
from medfed.server.control_wire import status_from_wire, status_to_wire
from medfed.server.data_root import DataRoot
from medfed.server.journal import RunStatus

STATUS_METHOD = "/medfed.Control/Status"
STATUS = RunStatus(
    run="demo-12345678-1",
    study="demo",
    digest="12345678" * 8,
    state="running",
    round=0,
    rounds=5,
    sites={"A": "training", "B": "lost"},
    headline="läuft",
    exit_code=None,
    updated_at=1234.5,
    pid=None,
)


class Desk:
    """Answers from memory, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.error: Exception | None = None
        self.statuses = [STATUS]

    def _note(self, *what: object) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    def enrol(self, site: str, public_key: bytes, *, replace: bool) -> tuple[str, bool]:
        self._note("enrol", site, public_key, replace)
        return "SHA256:abc", True

    def launch(self, study: bytes) -> tuple[str, bool]:
        self._note("launch", study)
        return "demo-12345678-1", False

    def status(self, run: str) -> RunStatus:
        self._note("status", run)
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def stop(self, run: str) -> RunStatus:
        self._note("stop", run)
        return STATUS


@dataclasses.dataclass
class Running:
    desk: Desk
    root: DataRoot
    port: int
    client: ControlClient


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    desk, root, port = Desk(), DataRoot(tmp_path / "root"), free_port()
    root.prepare([], port)
    service = ControlService(desk, root, port)
    with ControlClient(root.coordinator) as client:
        yield Running(desk, root, port, client)
    service.close()


def test_every_question_arrives_and_is_answered(running: Running) -> None:
    client = running.client

    assert client.enrol("A", b"key", replace=True) == ("SHA256:abc", True)
    assert client.launch(b"study") == ("demo-12345678-1", False)
    assert client.status("r") == STATUS
    assert client.stop("r") == STATUS
    assert running.desk.asked == [
        ("enrol", "A", b"key", True),
        ("launch", b"study"),
        ("status", "r"),
        ("stop", "r"),
    ]


def test_watching_gives_each_change_once_and_ends_with_the_run(running: Running) -> None:
    second = dataclasses.replace(STATUS, round=1)
    last = dataclasses.replace(second, state="finished", exit_code=0)
    running.desk.statuses = [STATUS, STATUS, second, second, last]

    assert list(running.client.watch()) == [STATUS, second, last]


@pytest.mark.parametrize(
    "status",
    [STATUS, dataclasses.replace(STATUS, state="finished", exit_code=0, pid=7, sites={})],
)
def test_a_status_survives_the_wire(status: RunStatus) -> None:
    assert status_from_wire(status_to_wire(status)) == status


@pytest.mark.parametrize("kind", [ConfigError, TransportError, TrustError, CohortError])
def test_an_error_arrives_as_the_same_class_with_the_same_words(
    running: Running, kind: type[MedfedError]
) -> None:
    running.desk.error = kind("site 'Ä': found 1;\nallowed is 2.", advice="write 2.")

    with pytest.raises(MedfedError) as error:
        running.client.launch(b"")

    assert type(error.value) is kind
    assert str(error.value) == str(running.desk.error)


def test_an_error_while_watching_arrives_too(running: Running) -> None:
    running.desk.error = ConfigError("no run.", advice="launch one.")
    with pytest.raises(ConfigError, match="no run"):
        list(running.client.watch())


def test_a_defect_of_the_server_tells_the_caller_nothing_of_it(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.desk.error = RuntimeError("some inner secret")

    with pytest.raises(MedfedError) as error:
        running.client.launch(b"")

    assert error.value.exit_code == 1
    assert "secret" not in str(error.value)
    assert "some inner secret" in caplog.text  # the operator still sees it


def test_without_a_client_certificate_nothing_is_answered(running: Running) -> None:
    ca = (running.root.trust / "ca.pem").read_bytes()
    address = f"127.0.0.1:{running.port}"
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(ca)) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(STATUS_METHOD)
        with pytest.raises(grpc.RpcError) as error:
            call(b"", timeout=10)

    assert isinstance(error.value, grpc.Call)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    assert running.desk.asked == []


def test_without_tls_nothing_is_answered(running: Running) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(STATUS_METHOD)
        with pytest.raises(grpc.RpcError):
            call(b"", timeout=10)
    assert running.desk.asked == []


def test_a_coordinator_of_another_authority_is_refused(running: Running, tmp_path: Path) -> None:
    new_authority(tmp_path / "other")
    access = tmp_path / "stranger"
    issue_client_certificate(tmp_path / "other", access, "coordinator")
    for name in ("server.toml", "ca.pem"):
        (access / name).write_bytes((running.root.coordinator / name).read_bytes())

    with ControlClient(access) as client:
        with pytest.raises(TrustError, match="does not accept the certificate"):
            client.status()
    assert running.desk.asked == []


def test_a_certificate_of_ours_that_is_no_coordinators_is_refused(
    running: Running, tmp_path: Path
) -> None:
    access = tmp_path / "site"
    issue_client_certificate(running.root.trust, access, "site A")
    (access / "server.toml").write_bytes((running.root.coordinator / "server.toml").read_bytes())

    with ControlClient(access) as client:
        with pytest.raises(TrustError, match="no coordinator's"):
            client.status()
        with pytest.raises(TrustError, match="no coordinator's"):
            list(client.watch())
    assert running.desk.asked == []


def test_a_server_of_another_authority_is_recognised(running: Running, tmp_path: Path) -> None:
    other = DataRoot(tmp_path / "other")
    other.prepare([], running.port)

    with ControlClient(other.coordinator) as client:
        with pytest.raises(TrustError, match="shows a certificate that"):
            client.status()


def test_a_server_that_is_away_is_a_transport_error(tmp_path: Path) -> None:
    root, port = DataRoot(tmp_path), free_port()
    root.prepare([], port)

    with ControlClient(root.coordinator) as client:
        with pytest.raises(TransportError, match=f"does not answer at 127.0.0.1:{port}"):
            client.status()


def test_a_port_in_use_is_refused_by_number(tmp_path: Path) -> None:
    root = DataRoot(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        root.prepare([], port)
        with pytest.raises(TransportError, match=f"the control service: port {port}"):
            ControlService(Desk(), root, port)


def test_two_services_cannot_share_a_port(running: Running) -> None:
    with pytest.raises(TransportError, match=f"port {running.port}"):
        ControlService(Desk(), running.root, running.port)


def test_closing_the_service_ends_a_watch(tmp_path: Path) -> None:
    root, port = DataRoot(tmp_path), free_port()
    root.prepare([], port)
    service = ControlService(Desk(), root, port)
    with ControlClient(root.coordinator) as client:
        updates = client.watch()
        assert next(updates) == STATUS
        service.close()
        assert list(updates) == []


@pytest.mark.parametrize("missing", ["server.toml", "ca.pem", "client.pem", "client.key"])
def test_an_incomplete_coordinator_folder_is_refused(tmp_path: Path, missing: str) -> None:
    root = DataRoot(tmp_path)
    root.prepare([], 8444)
    (root.coordinator / missing).unlink()

    with pytest.raises(ConfigError, match="not a complete coordinator folder"):
        ControlClient(root.coordinator)
