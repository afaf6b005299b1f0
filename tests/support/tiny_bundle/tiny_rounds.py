"""Stands in for the rounds: counts to the study's number of rounds, without any site.

The study's name says how it behaves: ``counts`` ends well, ``waits`` goes on until it is
asked to stop, ``deaf`` hears nothing but SIGKILL, ``broken`` fails before its first status.
"""

import json
import os
import signal
import time
from pathlib import Path

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from medfed.common.study import study_from_canonical
from medfed.server.journal import Journal, RunStatus

app = ServerApp()
client_app = ClientApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Count."""
    root = Path(os.environ["MEDFED_SERVER_ROOT"])
    run = str(context.run_config["medfed-run"])
    study = study_from_canonical((root / "runs" / run / "study.json").read_bytes())
    if study.name == "broken":
        raise RuntimeError("broken on purpose")
    sites = {name: "ready" for name in json.loads((root / "sites" / "nodes.json").read_text())}
    with Journal(root / "journal.db") as journal:

        def note(state: str, round_: int, exit_code: int | None) -> None:
            journal.write(
                RunStatus(
                    run=run,
                    study=study.name,
                    digest=study.digest,
                    state=state,
                    round=round_,
                    rounds=study.training.rounds,
                    sites=sites,
                    headline=f"{state} in round {round_}",
                    exit_code=exit_code,
                    updated_at=time.time(),
                    pid=os.getpid(),
                )
            )

        if study.name == "deaf":
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
                signal.signal(number, signal.SIG_IGN)
            note("running", 1, None)
            time.sleep(3600)
        note("running", 1, None)
        while study.name == "waits" and not journal.stop_requested(run):
            time.sleep(0.05)
        if study.name == "waits":
            note("stopped", 1, 18)
            return
        for round_ in range(2, study.training.rounds + 1):
            note("running", round_, None)
        note("finished", study.training.rounds, 0)
