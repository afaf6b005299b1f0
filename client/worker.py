"""The site's worker: takes one task at a time from the node and runs *installed* code.

The stock node (``flower-supernode --isolation process``) hands out tasks on a loopback port
to whoever knows the secret of this start. The worker pulls a task, runs the app that medfed
built from this installation, and pushes the reply. The app bundle that the server shipped
with the task is pulled as bytes, because Flower sends it, and dropped: never written,
unpacked or imported. Of an exception only the class name and the exit code leave.

The worker is warm: scans, network and device stay loaded from task to task. It is told
nothing on its command line that is secret. Randomness that a seed decides cannot be
imported in it (architecture, rule 5).

Everything that is private in Flower and that the client uses is used in this file, for
exactly the version it was written against.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import httpx
import torch
import typer
from flwr.app import Context, Message
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from medfed.common.errors import ConfigError, MedfedError, TransportError, TrustError

FLOWER_VERSION = "1.41.0"
"""The one version whose private names this file uses."""

FORBIDDEN = ("medfed.simulations", "tests")
"""What a deployed worker cannot import: seeded randomness lives there and nowhere else."""

_POLL_S = 0.1
_NODE_AWAY_S = 0.5
_PARENT_LOOK_S = 0.5
_RETRY_LIMIT_S = 60.0
_KINDS = ("train", "evaluate", "query")
_ROUND = r"[0-9]{1,6}"
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"

_log = logging.getLogger("medfed.client.worker")  # __name__ is "__main__" in the worker itself


def run_worker(
    make_app: Callable[[], ClientApp],
    runtime: str,
    secret_file: Path,
    parent_pid: int,
    *,
    threads: int | None = None,
) -> None:
    """Run tasks until the process is ended or its parent is gone.

    Args:
        make_app: Builds the app that answers messages; called once.
        runtime: ``host:port`` of the node's local interface.
        secret_file: File with the secret shared with the node.
        parent_pid: The process to end with.
        threads: Threads of PyTorch; None: one per core that this process may use.

    Raises:
        ConfigError: another version of Flower is installed.
        TrustError: the node does not accept the secret.
        TransportError: the node stopped taking a reply half-way; it must be started again.
        MedfedError: whatever ``make_app`` raises.
    """
    check_flower_version()
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    _end_with(parent_pid)
    secret = secret_file.read_bytes()
    app = make_app()
    _log.info("worker.ready threads=%d", torch.get_num_threads())
    guard = SuperExecAuthHttpInterceptor(
        master_secret=secret, protected_methods=frozenset({_ACQUIRE})
    )
    with _client(runtime, guard) as node:
        while True:
            token = _acquire(node)
            if token:
                _run_task(app, runtime, token)


def check_flower_version() -> None:
    """Refuse any other Flower than the one whose private names this file uses.

    Raises:
        ConfigError: another version is installed.
    """
    found = importlib.metadata.version("flwr")
    if found != FLOWER_VERSION:
        raise ConfigError(
            f"Flower {found} is installed; this medfed works with exactly {FLOWER_VERSION}.",
            advice="install medfed again, in a fresh virtual environment.",
        )


def forbid_seeded_randomness() -> None:
    """Make everything that could seed the site's noise impossible to import.

    Raises:
        ConfigError: it was imported before.
    """
    for name in list(sys.modules):
        if name in FORBIDDEN or name.startswith(tuple(f"{root}." for root in FORBIDDEN)):
            raise ConfigError(
                f"{name} was imported in a deployed worker.",
                advice="this is a defect of medfed; please report it.",
            )
    for name in FORBIDDEN:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own sign for "never"


def reason_for(error: Exception) -> str:
    """What may leave of an exception: its class name and exit code, never its text.

    Example:
        >>> reason_for(FileNotFoundError("/scans/MUSTERMANN_ERIKA.dcm"))
        'FileNotFoundError 1'
    """
    name = re.sub(r"\W", "", type(error).__name__)[:64]
    return f"{name} {error.exit_code if isinstance(error, MedfedError) else 1}"


def _client(
    runtime: str, guard: SuperExecAuthHttpInterceptor | RuntimeTokenHttpInterceptor
) -> RuntimeHttpClient:
    """A connection to the node; transport errors are tried again for a minute."""
    return RuntimeHttpClient.from_server_address(
        server_address=runtime,
        insecure=True,  # loopback; each call is authenticated by the interceptor
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), guard],
        retry_invoker=RetryInvoker(
            wait_gen_factory=lambda: exponential(max_delay=2),
            recoverable_exceptions=(httpx.TransportError,),
            max_tries=None,
            max_time=_RETRY_LIMIT_S,
        ),
    )


def _acquire(node: RuntimeHttpClient) -> str:
    """The token of the next task; empty when there is none, after a short pause."""
    request = AcquireTaskRequest(supported_task_types=["flwr-clientapp"], agentapp_fab_hashes=[])
    try:
        answer = node.AcquireTask(request)
    except httpx.HTTPStatusError as error:
        if error.response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise TrustError(
                "the node on this machine does not accept the worker's secret.",
                advice="end other programs that use the node's local port, then start again.",
            ) from error
        time.sleep(_NODE_AWAY_S)
        return ""
    except httpx.TransportError:
        time.sleep(_NODE_AWAY_S)  # the node is being started again
        return ""
    if answer.HasField("task") and answer.token:
        return str(answer.token)
    time.sleep(_POLL_S)
    return ""


def _run_task(app: ClientApp, runtime: str, token: str) -> None:
    with _client(runtime, RuntimeTokenHttpInterceptor(token)) as node:
        heartbeat = HeartbeatSender(_heartbeat_of(node))
        heartbeat.start()
        try:
            message, context, _run, _bundle = pull_task_input(node)  # the bundle ends here
        except Exception as error:
            # No reply can be made without the message. Reporting the task as failed would make
            # the node wait for a reply for ever; its token expires instead, and it says so.
            _log.error("task.not_pulled %s", describe(error))
            heartbeat.stop()
            return
        try:
            _answer(app, node, message, context)
        finally:
            if heartbeat.is_running:
                heartbeat.stop()


def _answer(app: ClientApp, node: RuntimeHttpClient, message: Message, context: Context) -> None:
    began = time.monotonic()
    what = _named(message)
    _log.info("task.started %s", what)
    try:
        reply = app(message=message, context=context)
        status, reason = SubStatus.COMPLETED, ""
    except Exception as error:  # whatever it is, its text stays here
        status, reason = SubStatus.FAILED, reason_for(error)
        _log.error("task.error %s %s", what, describe(error))
        reply = Message(
            Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message
        )
    try:
        push_message(node, reply, context)
        push_task_output(client=node, context=context, sub_status=status, details=reason)
    except httpx.HTTPStatusError as error:
        _log.warning("task.unwanted %s status=%d", what, error.response.status_code)
    except httpx.TransportError as error:
        raise TransportError(
            f"the node on this machine stopped taking a reply ({type(error).__name__}).",
            advice="none; medfed starts it again.",
        ) from error
    else:
        end = "failed" if reason else "done"
        _log.info("task.%s %s seconds=%.1f", end, what, time.monotonic() - began)


def _named(message: Message) -> str:
    """A task for the log, of which the supervisor tells the admin: no word of the server's."""
    kind, round_ = message.metadata.message_type, message.metadata.group_id
    return (
        f"type={kind if kind in _KINDS else 'other'} "
        f"round={round_ if re.fullmatch(_ROUND, round_) else '-'}"
    )


def _heartbeat_of(node: RuntimeHttpClient) -> Callable[[], bool]:
    def beat() -> bool:
        try:
            node.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.HTTPError:
            _log.warning("task.heartbeat_lost")  # the node gave the task up; the push will tell
        return True

    return beat


def log_to_standard_output() -> None:
    """Send medfed's own log lines to the supervisor, whatever a library set up before."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    medfed = logging.getLogger("medfed")
    medfed.addHandler(handler)
    medfed.setLevel(logging.INFO)
    medfed.propagate = False


def describe(error: BaseException) -> str:
    """An exception for the site's own log: our messages in full, of others no text.

    Returns:
        For an error of medfed its message, which holds nothing private by its own rule; for
        any other its class and the lines of code it passed through.
    """
    if isinstance(error, MedfedError):
        return f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = (f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames)
    return "\n".join((type(error).__name__, *lines))


def _end_with(parent_pid: int) -> None:
    """End this process when its parent is gone; the keeper does so too, sooner."""

    def look() -> None:
        while Path(f"/proc/{parent_pid}").exists():
            time.sleep(_PARENT_LOOK_S)
        os._exit(1)

    threading.Thread(target=look, name="parent-watch", daemon=True).start()


cli = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@cli.command()
def main(
    root: Annotated[Path, typer.Option(help="The site's data root.")],
    runtime: Annotated[str, typer.Option(help="host:port of the node's local interface.")],
    secret: Annotated[Path, typer.Option(help="File with the secret shared with the node.")],
    parent: Annotated[int, typer.Option(help="Process id of the supervisor.")],
) -> None:
    """Start a site's worker. Started by ``medfed client``, not by hand."""
    forbid_seeded_randomness()
    log_to_standard_output()
    # Only now: nothing that these import can have brought seeded randomness with it.
    from medfed.client.flower_app import build_app, open_session  # noqa: PLC0415  see above

    try:
        run_worker(lambda: build_app(open_session(root)), runtime, secret, parent)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception as error:
        _log.error("worker.ended %s", describe(error))
        raise typer.Exit(error.exit_code if isinstance(error, MedfedError) else 1) from None


if __name__ == "__main__":
    cli()
