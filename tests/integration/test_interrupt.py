"""Ctrl-C on the commands that do long work: everything ends, nothing is half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medfed.common.networks.parameters import network_for, parameters_of
from medfed.common.updates import decode, shapes_of
from medfed.deploy.demo import PATIENTS_PER_SITE, demo_study
from medfed.simulations.phantoms import write_hospitals
from tests.support.flower_hub import wait_until
from tests.support.sites import STUDY, write_scans

pytestmark = [pytest.mark.network, pytest.mark.slow]

MEDFED = (sys.executable, "-m", "medfed.deploy.cli")


def start(folder: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
    """A command in a terminal's foreground: its own process group, output in a file."""
    said = folder / "said.txt"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [*MEDFED, *arguments], cwd=folder, stdout=output, stderr=output, start_new_session=True
        )
    return process, said


def interrupt_after(process: subprocess.Popen[bytes], said: Path, text: str) -> None:
    wait_until(
        lambda: text in said.read_text() or process.poll() is not None,
        f"{text!r} is said",
        limit_s=120.0,
    )
    assert process.poll() is None, said.read_text()
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    assert process.wait(30.0) == 130, said.read_text()
    assert "Traceback" not in said.read_text()


def left_over(folder: Path) -> list[str]:
    """Processes that name the folder in their command line or their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in text:
            found.append(text[:300].decode(errors="replace"))
    return found


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_on_simulate_ends_it_in_the_middle_of_a_round(tmp_path: Path, workers: str) -> None:
    (tmp_path / "study.toml").write_text(STUDY.replace("rounds = 2", "rounds = 100000"))
    write_scans(tmp_path / "scans.npz", patients=200)

    process, said = start(
        tmp_path, "simulate", "study.toml", "--data", "scans.npz", "--workers", workers
    )
    interrupt_after(process, said, "seed 0: 1/")

    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".part"]


def test_ctrl_c_on_the_demo_leaves_nothing_half_written(tmp_path: Path) -> None:
    process, said = start(tmp_path, "demo", "--folder", "demo")

    interrupt_after(process, said, "writing DICOM files of three hospitals: 0/1")

    there = {path.name for path in (tmp_path / "demo").glob("*")}
    assert there <= {"hospitals"}  # whole or not at all
    if "hospitals" in there:
        assert (tmp_path / "demo" / "hospitals" / "made-of.json").is_file()


def small_hospitals(folder: Path) -> None:
    """What the demo takes for the hospitals of an earlier demo, with few patients."""
    write_hospitals(folder, patients_per_site=20)
    made_of = {"seed": 0, "sites": ["A", "B", "C"], "patients": PATIENTS_PER_SITE, "version": 1}
    (folder / "made-of.json").write_text(json.dumps(made_of))


def test_ctrl_c_on_the_deployed_demo_ends_every_process(tmp_path: Path) -> None:
    small_hospitals(tmp_path / "demo" / "hospitals")
    process, said = start(tmp_path, "demo", "--deploy", "--folder", str(tmp_path / "demo"))

    interrupt_after(process, said, "training at three hospitals: 0/")

    assert "writing DICOM" not in said.read_text()
    wait_until(lambda: not left_over(tmp_path), "every process ended", limit_s=10.0)
    for model in tmp_path.rglob("model.safetensors"):  # whole, if there is one
        shapes = shapes_of(parameters_of(network_for(demo_study())))
        decode(model.read_bytes(), shapes, who="the demo")
    assert not list(tmp_path.rglob("*.part"))
