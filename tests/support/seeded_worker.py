"""A worker whose noise a seed decides: the only door to seeded randomness in a deployment.

Only a test starts it, by handing ``Supervisor(worker=...)`` its command line in Python. It is
not part of what is installed, and ``medfed client`` has no way to reach it.

    python tests/support/seeded_worker.py --seed 0 --threads 1  (and the worker's own options)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from flwr.clientapp import ClientApp

from medfed.client.flower_app import build_app, open_session
from medfed.client.worker import log_to_standard_output, run_worker
from medfed.simulations.simulate import seeded_for


def main(
    root: Annotated[Path, typer.Option()],
    runtime: Annotated[str, typer.Option()],
    secret: Annotated[Path, typer.Option()],
    parent: Annotated[int, typer.Option()],
    seed: Annotated[int, typer.Option()] = 0,
    threads: Annotated[int, typer.Option()] = 1,
) -> None:
    def make_app() -> ClientApp:
        session = open_session(root)
        return build_app(
            dataclasses.replace(
                session, randomness_for=lambda key: seeded_for(seed, session.site, key)
            )
        )

    log_to_standard_output()
    run_worker(make_app, runtime, secret, parent, threads=threads)


if __name__ == "__main__":
    cli = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    cli.command()(main)
    cli()
