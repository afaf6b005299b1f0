"""A site whose worker is seeded, for the test that compares a deployment with a simulation.

It is ``medfed client`` but for the worker's command line, which only Python can hand over.

    python tests/support/seeded_client.py --root ROOT --seed 0
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from medfed.client.preflight import Notice
from medfed.client.site_root import open_site
from medfed.client.supervisor import Supervisor

WORKER = Path(__file__).with_name("seeded_worker.py")


def main(root: Annotated[Path, typer.Option()], seed: Annotated[int, typer.Option()]) -> None:
    worker = [sys.executable, str(WORKER), "--seed", str(seed), "--threads", "1"]
    Supervisor(open_site(root), say, worker=worker).run()


def say(notice: Notice) -> None:
    sys.stdout.write(f"{notice.text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    typer.run(main)
