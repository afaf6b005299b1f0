"""Medfed's own rounds; what arrives from sites is noted before the rounds see it."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from medfed.server import flower_app

app = ServerApp()
client_app = ClientApp()


class RecordingGrid:
    """A grid that appends the round and the SHA-256 of all bytes that it pulls to a file."""

    def __init__(self, grid: Grid, file: Path) -> None:
        self._grid, self._file = grid, file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = list(self._grid.pull_messages(message_ids))
        for reply in replies:
            arrays = {} if reply.has_error() else reply.content.array_records
            for release in arrays.values():
                sha256 = hashlib.sha256(release["bytes"].numpy().tobytes()).hexdigest()
                with self._file.open("a") as file:
                    file.write(json.dumps([int(reply.metadata.group_id), sha256]) + "\n")
        return replies


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study."""
    root, run = Path(os.environ["MEDFED_SERVER_ROOT"]), str(context.run_config["medfed-run"])
    flower_app.main(RecordingGrid(grid, root / "runs" / run / "received.jsonl"), context)
