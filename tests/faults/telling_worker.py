"""A deployed worker that tells the phases of each round, as datagrams ``PHASE PROCESS-ID``."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path
from typing import Annotated

import typer
from flwr.clientapp import ClientApp
from phases import Phase, tell_phases  # its neighbour: only its own folder is on its path

from medfed.client.flower_app import build_app, open_session
from medfed.client.worker import log_to_standard_output, run_worker


class WhenDone(logging.Handler):
    """Tells that the node has taken a reply."""

    def __init__(self, teller: Teller) -> None:
        super().__init__()
        self._teller = teller

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("task.done"):
            self._teller.tell("acknowledgement")


class Teller:
    """Sends datagrams to whoever listens on a socket in the file system, if anybody does."""

    def __init__(self, path: Path) -> None:
        self._path, self._socket = str(path), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(5.0)

    def tell(self, phase: Phase) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendto(f"{phase} {os.getpid()}".encode(), self._path)


def main(
    root: Annotated[Path, typer.Option()],
    runtime: Annotated[str, typer.Option()],
    secret: Annotated[Path, typer.Option()],
    parent: Annotated[int, typer.Option()],
    tell: Annotated[Path, typer.Option()],
) -> None:
    teller = Teller(tell)

    def make_app() -> ClientApp:
        session = open_session(root)
        tell_phases(session, teller.tell)
        return build_app(session)

    log_to_standard_output()
    logging.getLogger("medfed.client.worker").addHandler(WhenDone(teller))
    run_worker(make_app, runtime, secret, parent, threads=1)


if __name__ == "__main__":
    cli = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    cli.command()(main)
    cli()
