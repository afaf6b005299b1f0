"""The command line: one file per person. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import os
import signal
import sys

import click
import typer

from medfed.common.errors import MedfedError
from medfed.common.interruption import interrupt_once
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
        code = app(standalone_mode=False)
    except MedfedError as error:
        # A message may quote a file or a server: no control character reaches the terminal.
        from medfed.common.report.words import clean

        print("\n".join(clean(line) for line in f"medfed: {error}".split("\n")), file=sys.stderr)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt):
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # pressed again, it changes nothing
            print("medfed: interrupted", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(INTERRUPTED)  # threads that are inside a training step are not waited for
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
