"""Start programs so that they can always be ended, with everything they started.

Both sides run stock Flower programs as children. Each child lives in a session of its
own under a keeper (``process_keeper.py``): a Ctrl-C in the terminal reaches only medfed,
which then ends its children in order, and the death of medfed, even by SIGKILL, ends
them too. Needs Linux, as the whole deployment does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from medfed.common.errors import ConfigError, TransportError
from medfed.common.trust.private_files import private_folder

_KEEPER = Path(__file__).with_name("process_keeper.py")
_ORPHAN_GRACE_S = 4.0
_LAST_RESORT_S = 1.5


_KEPT = frozenset(
    "PATH HOME USER LOGNAME LANG LANGUAGE TZ TMPDIR SSL_CERT_FILE SSL_CERT_DIR "
    "CUDA_VISIBLE_DEVICES HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY "
    "http_proxy https_proxy all_proxy no_proxy".split()
)
"""What a Flower program and the worker may inherit."""


class Child:
    """A running program and everything below it.

    Attributes:
        name: What to call it in messages.
        pid: Process id of its keeper, which is also its session and process group.
        output: Its standard output and error, when they were asked for as a pipe.
    """

    def __init__(self, name: str, keeper: subprocess.Popen[bytes]) -> None:
        self.name = name
        self._keeper = keeper
        self.pid: int = keeper.pid
        self.output: IO[bytes] | None = keeper.stdout

    def exit_code(self) -> int | None:
        """The program's exit code; None while anything of it runs; negative: the signal."""
        return self._keeper.poll()

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the end; the exit code, or None after ``timeout_s`` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._keeper.wait(max(timeout_s, 0.0))
        return None

    def signal(self, number: signal.Signals) -> None:
        """Send SIGINT or SIGTERM to the program, or SIGQUIT: kill all of it now."""
        if self._keeper.poll() is None:
            self._keeper.send_signal(number)

    def end(self, limit_s: float = 8.0) -> int:
        """End the program and everything below it.

        SIGINT first (Flower's node signs off on it), SIGTERM after half the limit, and
        at the limit SIGKILL to all of it.

        Args:
            limit_s: Seconds until all is killed.

        Returns:
            The exit code.

        Guarantee:
            When this returns nothing of it runs, whatever sessions it opened; within
            ``limit_s`` plus 1.5 seconds.
        """
        return end_children([self], limit_s)[0]


def start_child(
    command: Sequence[str],
    *,
    name: str,
    environment: Mapping[str, str] | None = None,
    output: Path | None = None,
    folder: Path | None = None,
) -> Child:
    """Start a program in a session of its own, under a keeper.

    Args:
        command: The program (a path, or a name that is found as ``program`` finds it) and
            its arguments. Arguments are visible to other users of the machine: no secrets.
        name: What to call it in messages.
        environment: All its variables; None: those of this process.
        output: File to append its output to (mode 0600); None: a pipe, ``Child.output``,
            which the caller reads to the end.
        folder: Its working directory; None: this one.

    Returns:
        The child. Nothing reads its standard input; files it makes are for its owner only.

    Raises:
        ConfigError: there is no such program.
    """
    path = command[0] if os.path.isabs(command[0]) else program(command[0])
    keeper = [sys.executable, "-I", "-S", str(_KEEPER), str(os.getpid()), str(_ORPHAN_GRACE_S)]
    with contextlib.ExitStack() as stack:
        sink: IO[bytes] | int = subprocess.PIPE
        if output is not None:
            handle = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            sink = stack.enter_context(os.fdopen(handle, "ab"))
        started = subprocess.Popen(
            [*keeper, path, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            cwd=folder,
            start_new_session=True,
        )
    return Child(name, started)


def end_children(children: Sequence[Child], limit_s: float = 8.0) -> list[int]:
    """End several children at once, as ``Child.end`` does with one.

    Returns:
        Their exit codes, in order.
    """
    began = time.monotonic()
    for number, until in (
        (signal.SIGINT, limit_s / 2),
        (signal.SIGTERM, limit_s),
        (signal.SIGQUIT, limit_s + _LAST_RESORT_S),
    ):
        for child in children:
            child.signal(number)
        for child in children:
            child.wait(began + until - time.monotonic())
    for child in children:
        if child.exit_code() is None:  # the keeper itself hangs
            os.killpg(child.pid, signal.SIGKILL)
    codes = [child.wait(_LAST_RESORT_S) for child in children]
    for child in children:
        if child.output is not None:
            child.output.close()
    return [-signal.SIGKILL if code is None else code for code in codes]


def program(name: str) -> str:
    """Find a program that was installed with medfed, beside its Python.

    Returns:
        Its absolute path.

    Raises:
        ConfigError: it is not there.
    """
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=str(beside)) or shutil.which(name)
    if found is None:
        raise ConfigError(
            f"the program {name!r} is not installed beside {sys.executable}.",
            advice="install medfed again, in a fresh virtual environment.",
        )
    return os.path.abspath(found)


def flower_environment(flower_home: Path) -> dict[str, str]:
    """Build the variables under which a Flower program runs.

    Args:
        flower_home: Flower's own folder (``FLWR_HOME``), one per process; made if
            missing, mode 0700.

    Returns:
        A closed list of this process's variables (home, language, proxies, devices: none
        that brings code or settings along, such as LD_PRELOAD or PYTHONPATH), and: no
        telemetry, no update check, no installing of dependencies, loopback around any
        proxy, and the programs beside this Python first on the path (Flower starts its
        helpers by bare name).
    """
    kept = {k: v for k, v in os.environ.items() if k in _KEPT or k.startswith("LC_")}
    written = kept.get("no_proxy") or kept.get("NO_PROXY", "")  # small letters win, as for urllib
    no_proxy = ",".join(filter(None, ("127.0.0.1,localhost", written)))
    return kept | {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), kept.get("PATH", os.defpath))),
        "FLWR_HOME": str(private_folder(flower_home)),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
        "PYTHONUNBUFFERED": "1",
    }


def free_port(host: str = "127.0.0.1") -> int:
    """Find a TCP port that nothing listens on now.

    Another process may take it before its user does: retry with a new one then.
    """
    with socket.create_server((host, 0), family=_family(host)) as probe:
        return int(probe.getsockname()[1])


def require_free_port(host: str, port: int, *, purpose: str) -> None:
    """Check that a port can be listened on, before anything is started.

    Args:
        host: The address to listen on.
        port: The port.
        purpose: Who wants it, for the message.

    Raises:
        TransportError: it is in use, not allowed, or not an address of this machine.
    """
    try:
        with socket.create_server((host, port), family=_family(host)):
            return
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise TransportError(
            f"{purpose}: port {port} on {host} cannot be used ({why}).",
            advice="end the program that uses it, or choose another port.",
        ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
