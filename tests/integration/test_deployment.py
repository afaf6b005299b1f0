"""A deployment and a simulation of the same study give the same model, bit for bit.

Real processes on loopback: ``medfed server`` with a stock SuperLink, three sites with stock
SuperNodes. Only the sites' randomness is that of ``tests/support``, which this test starts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from medfed.client.approvals import approve
from medfed.client.site_root import create_site, open_site
from medfed.common.processes import Child, end_children, free_port, start_child
from medfed.common.study import Study
from medfed.common.trust.keys import read_public_key
from medfed.common.updates import encode
from medfed.deploy.demo import demo_study
from medfed.server.control_client import ControlClient
from medfed.server.data_root import DataRoot
from medfed.simulations.phantoms import write_hospitals
from medfed.simulations.simulate import Execution, simulate, use_threads
from medfed.simulations.sources import open_source
from tests.support.flower_hub import wait_until

pytestmark = [pytest.mark.network, pytest.mark.slow]

CLIENT = Path(__file__).parents[1] / "support" / "seeded_client.py"
MEDFED = (sys.executable, "-m", "medfed.deploy.cli")
SEED = 0


@pytest.fixture
def study() -> Study:
    """The demo's study with two rounds: three sites, patient-level DP, the scattering network."""
    study = demo_study()
    training = study.training.model_copy(update={"rounds": 2, "batch_size": 20})
    sites = tuple(s.model_copy(update={"declared_patients": 20}) for s in study.site)
    cohort = study.cohort.model_copy(update={"quorum": 3})
    return study.model_copy(update={"training": training, "site": sites, "cohort": cohort})


def test_a_deployment_and_a_simulation_give_the_same_model_bit_for_bit(
    tmp_path: Path, study: Study
) -> None:
    hospitals = tmp_path / "hospitals"
    write_hospitals(hospitals, patients_per_site=24)

    deployed = deploy(tmp_path, study, hospitals)

    use_threads(1)
    scans = open_source(hospitals, study).for_sites(study, partition="iid", seed=SEED)
    simulated = simulate(study, scans, Execution(seed=SEED))
    assert deployed == encode(simulated.model)
    other = simulate(study, scans, Execution(seed=SEED + 1))
    assert deployed != encode(other.model)  # equality above is not that of untrained models


def deploy(tmp_path: Path, study: Study, hospitals: Path) -> bytes:
    """Run the study with real processes; the released model in wire form."""
    log, root = tmp_path / "server.log", DataRoot(tmp_path / "server")
    address, children = f"127.0.0.1:{free_port()}", []
    try:
        children.append(start_server(log, root, address))
        with ControlClient(root.coordinator) as control:
            for site in study.site:
                folder = make_site(tmp_path, study, site.name, hospitals, address, root)
                key = read_public_key(folder / "keys" / "node_key.pub")
                control.enrol(site.name, key)
                children.append(start_site(tmp_path, site.name, folder))
            run, _ = control.launch(study.canonical())
            last = list(control.watch(run))[-1]
        assert last.state == "finished", (last.headline, sites_said(tmp_path))
        result = json.loads((root.run_folder(run) / "result.json").read_bytes())
        assert [record["accepted"] for record in result["rounds"]] == [["A", "B", "C"]] * 2
        return (root.run_folder(run) / "model.safetensors").read_bytes()
    finally:
        end_children(children)


def start_server(log: Path, root: DataRoot, address: str) -> Child:
    ports = ["--port", address.rpartition(":")[2], "--control-port", str(free_port())]
    command = [*MEDFED, "server", "--root", str(root.path), *ports]
    server = start_child(command, name="server", output=log)
    wait_until(
        lambda: server.exit_code() is not None or "The server answers" in log.read_text(),
        "the server answers",
        limit_s=120.0,
    )
    assert server.exit_code() is None, log.read_text()
    return server


def make_site(
    tmp_path: Path, study: Study, name: str, hospitals: Path, address: str, server: DataRoot
) -> Path:
    folder = tmp_path / f"site-{name}"
    ca = server.trust / "ca.pem"
    create_site(folder, name=name, scans=hospitals / name, server=address, ca=ca)
    settings = folder / "site.toml"
    limits = "[policy]\nepsilon_limit = 50.0\ndelta_limit = 0.01\n"
    settings.write_text(settings.read_text().replace("[policy]\n", limits, 1))
    approve(open_site(folder), study)
    return folder


def start_site(tmp_path: Path, name: str, folder: Path) -> Child:
    command = [sys.executable, str(CLIENT), "--root", str(folder), "--seed", str(SEED)]
    repository = Path(__file__).parents[2]
    output = tmp_path / f"client-{name}.log"
    return start_child(command, name=f"site {name}", output=output, folder=repository)


def sites_said(tmp_path: Path) -> str:
    logs = [*tmp_path.glob("client-*.log"), *tmp_path.glob("site-*/log/*.log")]
    return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in logs)
