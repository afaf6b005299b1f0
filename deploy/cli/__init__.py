"""The command line: one file per person. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import click
import typer

from medfed.common.errors import MedfedError
from medfed.common.interruption import interrupt_once, was_interrupted
from medfed.deploy.cli import coordinator, researcher, scans, site

INTERRUPTED = 130

app = typer.Typer(
    name="medfed",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Hospitals train one diagnostic CNN together, and no scan leaves any of them.",
)
for person in (researcher, coordinator, site, scans):
    person.register(app)


def main() -> None:
    """Run a command; end with the exit code of the error tree, never with a traceback of ours.

    An error raised on purpose prints what happened and the next step. Anything else is a
    defect: it keeps its traceback and exits with 1.
    """
    interrupt_once()
    try:
        sys.exit(_exit_code())
    except SystemExit:
        raise
    except BaseException as error:
        if was_interrupted() or isinstance(error, click.exceptions.Abort | KeyboardInterrupt):
            _end_interrupted()
        raise


def _exit_code() -> int:
    try:
        code = app(standalone_mode=False)
    except MedfedError as error:
        # A message may quote a file or a server: no control character reaches the terminal.
        from medfed.common.report.words import clean

        print("\n".join(clean(line) for line in f"medfed: {error}".split("\n")), file=sys.stderr)
        return error.exit_code
    except click.exceptions.Abort:
        raise
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return code if isinstance(code, int) else 0


def _end_interrupted() -> NoReturn:
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # pressed again, it changes nothing
        print("medfed: interrupted", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(INTERRUPTED)  # threads that are inside a training step are not waited for
