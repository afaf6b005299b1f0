"""The guard's process: ``python -I -m medfed.server.guard --config FILE``, started by the hub.

It writes where it listens as its first line, and what it refuses as lines after that. SIGTERM or
SIGINT ends it; so does a list of revoked certificates that cannot be trusted at the start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from medfed.common.errors import MedfedError
from medfed.server.guard.door import Guard
from medfed.server.guard.settings import GuardSettings, read_settings
from medfed.server.guard.site_messages import Listener
from medfed.server.revocations import Revocations

log = logging.getLogger("medfed.server.guard")

_SPARE_FILES: Final = 256

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cli.command()
def main(
    config: Annotated[Path, typer.Option(help="File that the server wrote for its guard.")],
) -> None:
    """Start a server's guard. Started by ``medfed server``, not by hand."""
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
    try:
        settings = read_settings(config)
        _allow_files(settings)
        asyncio.run(_serve(settings))
    except MedfedError as error:
        log.error("guard.ended %s", " ".join(str(error).split()))
        raise typer.Exit(error.exit_code) from None


async def _serve(settings: GuardSettings) -> None:
    revoked = Revocations(
        settings.revocations,
        lambda error: _line("guard.revocations", reason=" ".join(str(error).split())),
    )
    guard = Guard(settings, revoked=revoked, audit=_line, desk=Listener())
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await guard.start()
    ((host, port),) = guard.listeners()
    log.info("guard.listening host=%s port=%d", host, port)
    try:
        await ended.wait()
    finally:
        await guard.close()


def _line(event: str, **fields: int | str) -> None:
    """Write a line of the audit log to standard output."""
    log.info("%s %s", event, " ".join(f"{name}={value}" for name, value in fields.items()))


def _allow_files(settings: GuardSettings) -> None:
    """Allow as many open files as the limits on connections can need: two for each, and some."""
    limits = settings.limits
    wanted = 2 * limits.connections + limits.half_open + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


if __name__ == "__main__":
    cli()
