"""``medfed client`` whose worker tells the phases of each round, for tests that kill it.

python tests/faults/telling_client.py --root ROOT --tell SOCKET
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from medfed.client.preflight import Notice
from medfed.client.site_root import open_site
from medfed.client.supervisor import Supervisor

WORKER = Path(__file__).with_name("telling_worker.py")


def main(root: Annotated[Path, typer.Option()], tell: Annotated[Path, typer.Option()]) -> None:
    worker = [sys.executable, str(WORKER), "--tell", str(tell)]
    Supervisor(open_site(root), say, worker=worker).run()


def say(notice: Notice) -> None:
    sys.stdout.write(f"{notice.text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    typer.run(main)
