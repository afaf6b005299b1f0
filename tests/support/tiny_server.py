"""A real server (hub, SuperLink, control service) whose rounds are ``tiny_bundle``'s.

Run as ``python tiny_server.py ROOT PORT CONTROL_PORT``; prints ``ready`` when it answers.
"""

import logging
import signal
import sys
import threading
from pathlib import Path

from medfed.server.data_root import DataRoot
from medfed.server.hub import serve

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    serve(
        DataRoot(Path(sys.argv[1]).absolute()),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        control_port=int(sys.argv[3]),
        names=[],
        stop=end,
        ready=lambda: print("ready", flush=True),  # noqa: T201 - the test reads it
        bundle=Path(__file__).with_name("tiny_bundle"),
    )
