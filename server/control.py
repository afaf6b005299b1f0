"""The control service: what a coordinator may ask of the server, over gRPC and mutual TLS.

It listens on loopback only. Whoever asks must show a certificate that ``control_access.py``
admits to what is asked; nothing is answered to anyone else.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import NoReturn, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from medfed.common.errors import ConfigError, MedfedError, TransportError
from medfed.common.processes import require_free_port
from medfed.server.control_access import Access, ByName
from medfed.server.control_pb2 import (
    EnrolReply,
    EnrolRequest,
    LaunchReply,
    LaunchRequest,
    RunReply,
    RunRequest,
)
from medfed.server.control_wire import SERVICE, error_to_metadata, status_to_wire
from medfed.server.data_root import DataRoot
from medfed.server.journal import RunStatus

log = logging.getLogger(__name__)

_THREADS = 32
_WATCHERS = 24  # the rest stays free for short calls
_LARGEST_REQUEST_BYTES = 4 * 2**20
_LOOK_S = 0.2
_GRACE_S = 0.5

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply")


class Desk(Protocol):
    """Who does what is asked: the hub."""

    def enrol(self, site: str, public_key: bytes, *, replace: bool) -> tuple[str, bool]:
        """Let a site in; its key's fingerprint, and whether it was in already."""

    def launch(self, study: bytes) -> tuple[str, bool]:
        """Start a study in canonical form; the run, and whether it was going on already."""

    def status(self, run: str) -> RunStatus:
        """Where a run stands; the newest if ``run`` is empty."""

    def stop(self, run: str) -> RunStatus:
        """Stop a run; where it stands then."""


class ControlService:
    """A running control service.

    Args:
        desk: Who does what is asked.
        root: The data root, for the certificates.
        port: Port on 127.0.0.1.
        access: Who may ask; None: the coordinator that the root's own authority named.

    Raises:
        TransportError: the port is in use.
    """

    def __init__(self, desk: Desk, root: DataRoot, port: int, access: Access | None = None) -> None:
        self._desk, self._access = desk, access or ByName(root.trust)
        self._closing = threading.Event()
        self._watchers = threading.Semaphore(_WATCHERS)
        require_free_port("127.0.0.1", port, purpose="the control service")
        self._server = grpc.server(
            futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="control"),
            options=(
                ("grpc.so_reuseport", 0),  # else two servers could share the port
                ("grpc.max_receive_message_length", _LARGEST_REQUEST_BYTES),
            ),
        )
        credentials = self._access.credentials()
        self._server.add_generic_rpc_handlers((self._handlers(),))
        if self._server.add_secure_port(f"127.0.0.1:{port}", credentials) != port:
            raise TransportError(
                f"the control service: port {port} on 127.0.0.1 cannot be used.",
                advice="end the program that uses it, or choose another port.",
            )
        self._server.start()

    def close(self) -> None:
        """Stop answering; open calls end within half a second."""
        self._closing.set()
        self._server.stop(_GRACE_S).wait()

    def _handlers(self) -> grpc.GenericRpcHandler:
        def single(
            request: type[Request], act: Callable[[Request], Message], *, looks_only: bool = False
        ) -> grpc.RpcMethodHandler[Request, Message]:
            return grpc.unary_unary_rpc_method_handler(
                lambda asked, context: self._answer(act, asked, context, looks_only=looks_only),
                request_deserializer=request.FromString,
                response_serializer=_bytes_of,
            )

        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Enrol": single(EnrolRequest, self._enrol),
                "Launch": single(LaunchRequest, self._launch),
                "Status": single(RunRequest, self._status, looks_only=True),
                "Stop": single(RunRequest, self._stop),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self._watch,
                    request_deserializer=RunRequest.FromString,
                    response_serializer=_bytes_of,
                ),
            },
        )

    def _answer(
        self,
        act: Callable[[Request], Reply],
        asked: Request,
        context: grpc.ServicerContext,
        *,
        looks_only: bool,
    ) -> Reply:
        """Act for who may ask; an error of ours travels to the caller in its own words."""
        try:
            self._access.admit(context, looks_only=looks_only)
            return act(asked)
        except MedfedError as error:
            _abort(context, error)
        except Exception:
            log.exception("control.defect request=%s", type(asked).__name__)
            _abort(
                context,
                MedfedError("the server failed to answer.", advice="read the server's own output."),
            )

    def _enrol(self, asked: EnrolRequest) -> EnrolReply:
        fingerprint, was_enrolled = self._desk.enrol(
            asked.site, asked.public_key, replace=asked.replace
        )
        return EnrolReply(fingerprint=fingerprint, was_enrolled=was_enrolled)

    def _launch(self, asked: LaunchRequest) -> LaunchReply:
        run, was_running = self._desk.launch(asked.study)
        return LaunchReply(run=run, was_running=was_running)

    def _status(self, asked: RunRequest) -> RunReply:
        return status_to_wire(self._desk.status(asked.run))

    def _stop(self, asked: RunRequest) -> RunReply:
        return status_to_wire(self._desk.stop(asked.run))

    def _watch(self, asked: RunRequest, context: grpc.ServicerContext) -> Iterator[RunReply]:
        def look(run: str) -> RunStatus:  # asks again whether the caller may: revoked meanwhile?
            return self._answer(
                lambda request: self._desk.status(request.run),
                RunRequest(run=run),
                context,
                looks_only=True,
            )

        status = look(asked.run)
        if not self._watchers.acquire(blocking=False):
            error = TransportError(
                f"the server has {_WATCHERS} watchers already.", advice="use `medfed status`."
            )
            _abort(context, error)
        try:
            yield status_to_wire(status)
            while not status.ended and context.is_active() and not self._closing.wait(_LOOK_S):
                before, status = status, look(status.run)
                if status != before:
                    yield status_to_wire(status)
        finally:
            self._watchers.release()


def _abort(context: grpc.ServicerContext, error: MedfedError) -> NoReturn:
    context.set_trailing_metadata(error_to_metadata(error))
    code = (
        grpc.StatusCode.INVALID_ARGUMENT
        if isinstance(error, ConfigError)
        else grpc.StatusCode.FAILED_PRECONDITION
    )
    context.abort(code, type(error).__name__)


def _bytes_of(message: Message) -> bytes:
    return message.SerializeToString()
