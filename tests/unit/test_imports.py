"""What must stay light: no heavy library comes in with what every command imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "flwr", "opacus")


def modules_of(folder: str) -> list[str]:
    return sorted(
        "medfed." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / folder).rglob("*.py")
    )


LIGHT = [
    name
    for name in modules_of("common")
    if not name.startswith("medfed.common.networks.") or name.endswith(".names")
]


def loaded_by(modules: list[str], watched: tuple[str, ...]) -> set[str]:
    """Which of the watched libraries a fresh interpreter holds after importing modules."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(done.stdout)) & set(watched)


def test_common_outside_the_networks_loads_no_heavy_library() -> None:
    assert "medfed.common" in LIGHT
    assert "medfed.common.privacy.clipping" in LIGHT
    assert loaded_by(LIGHT, (*HEAVY, "dp_accounting")) == set()


@pytest.mark.parametrize(
    "modules",
    [
        ["medfed.common.study", "medfed.common.errors"],
        ["medfed.common.networks", "medfed.common.networks.names"],
        ["medfed.deploy", "medfed.deploy.cli"],
        ["medfed.client.ledger", "medfed.client.release", "medfed.server.rounds"],
    ],
)
def test_what_every_command_touches_loads_no_heavy_library(modules: list[str]) -> None:
    assert loaded_by(modules, (*HEAVY, "dp_accounting", "pydicom", "sklearn")) == set()


def test_the_server_never_loads_what_reads_scans_and_the_client_no_server() -> None:
    deployed = ["medfed.server.run_study", "medfed.server.rounds", "medfed.server.aggregation"]

    assert loaded_by(deployed, ("opacus", "pydicom")) == set()


def test_the_check_sees_a_heavy_library() -> None:
    assert loaded_by(["medfed.common.networks.parameters"], HEAVY) == {"torch"}
