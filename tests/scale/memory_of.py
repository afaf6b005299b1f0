"""Run as a program: do one thing with a scans folder, and say the most memory that it took.

python -m tests.scale.memory_of index|import FOLDER CACHES
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from medfed.client.scans.cache import ScanCache
from medfed.client.scans.importing import import_scans
from medfed.client.scans.layouts.layout import SourceRules
from medfed.client.scans.read import index_scans
from medfed.client.scans.recipe import recipe_of
from tests.support.scans import HASH, study_of

RULES = SourceRules(patient=r"^person(\d+)_")


def peak_bytes() -> int:
    """The most memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main(what: str, folder: Path, caches: Path) -> None:
    """Do it; write what became of it as JSON."""
    study = study_of(split=HASH)
    index = index_scans(folder, study, rules=RULES)
    said = {"entries": len(index.entries), "imported": 0, "refused": 0, "unchanged": 0}
    if what == "import":
        with ScanCache(caches, bytes(32), recipe_of(study.scans)) as cache:
            tally = import_scans(index, study.scans, cache)
        said |= {
            "imported": tally.imported,
            "refused": tally.refused.total(),
            "unchanged": tally.unchanged,
        }
    sys.stdout.write(json.dumps(said | {"peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
