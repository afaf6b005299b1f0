"""How much slower is a simulation than the plain training loop that does the same work?

Both sides train ``medfed-small`` for 8 sites, 10 rounds, one local epoch, batch 64, without
privacy, one thread each, on the same random scans. The plain loop is what a researcher would
write without medfed: load the global weights, one epoch of SGD per site, average. The two
sides take turns, round about, and the ratio is that of their medians.

    python benchmarks/simulation_overhead.py [--json PATH]
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch.nn import functional

from medfed.client.scans.scanset import TRAIN, ScanSet
from medfed.common.networks.parameters import load_parameters, network_for, parameters_of
from medfed.common.study import Study, parse_study
from medfed.common.updates import Parameters
from medfed.simulations.simulate import Execution, simulate, use_threads

SITES, SCANS_PER_SITE, REPEATS = 8, 512, 5

STUDY = """
[study]
name = "overhead"
purpose = "Measure what the simulation adds to plain training."
[task]
labels = ["no", "yes"]
[scans]
size = [28, 28]
channels = 1
[split]
rule = "given"
[network]
name = "medfed-small"
[training]
rounds = 10
local_epochs = 1
batch_size = 64
learning_rate = 0.05
[privacy]
mode = "none"
[cohort]
quorum = 8
""" + "".join(
    f'[[site]]\nname = "S{number}"\ndeclared_patients = {SCANS_PER_SITE}\n'
    for number in range(SITES)
)


def random_site(number: int) -> ScanSet:
    """A site of random scans."""
    generator = np.random.default_rng(number)
    labels = generator.integers(0, 2, SCANS_PER_SITE)
    noise = generator.random((SCANS_PER_SITE, 1, 28, 28), dtype=np.float32)
    return ScanSet(
        images=noise + labels[:, None, None, None].astype(np.float32) * 0.1,
        labels=labels.astype(np.int64),
        patient=np.arange(SCANS_PER_SITE, dtype=np.int64),
        part=np.full(SCANS_PER_SITE, TRAIN, dtype=np.uint8),
        unit="patient",
    )


def plain_loop(study: Study, sites: dict[str, ScanSet]) -> Parameters:
    """Federated averaging as one would write it by hand."""
    training = study.training
    network = network_for(study)
    network.train()
    current = parameters_of(network)
    tensors = [
        (torch.from_numpy(scans.images), torch.from_numpy(scans.labels)) for scans in sites.values()
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(training.rounds):
        after = []
        for images, labels in tensors:
            load_parameters(network, current)
            optimizer = torch.optim.SGD(network.parameters(), lr=training.learning_rate)
            order = torch.randperm(len(labels), generator=generator)
            for rows in order.split(training.batch_size):
                optimizer.zero_grad(set_to_none=True)
                functional.cross_entropy(network(images[rows]), labels[rows]).backward()
                optimizer.step()
            after.append(parameters_of(network))
        current = {name: np.mean([p[name] for p in after], axis=0) for name in current}
    return current


def main(
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Print the ratio of wall times, simulation over plain loop."""
    use_threads(1)
    study = parse_study(STUDY)
    sites = {site.name: random_site(number) for number, site in enumerate(study.site)}
    plain_loop(study.model_copy(update={"training": _short(study)}), sites)  # warm up torch
    plain, simulated = [], []
    for repeat in range(REPEATS):
        begin = time.perf_counter()
        plain_loop(study, sites)
        middle = time.perf_counter()
        result = simulate(study, sites, Execution(seed=repeat, workers=1))
        end = time.perf_counter()
        assert result.state.outcome == "finished"
        plain.append(middle - begin)
        simulated.append(end - middle)
        print(f"plain {plain[-1]:.2f} s, simulation {simulated[-1]:.2f} s")
    figures = {
        "plain_loop_s": statistics.median(plain),
        "simulation_s": statistics.median(simulated),
        "simulation_over_plain_loop": statistics.median(simulated) / statistics.median(plain),
    }
    for name, value in figures.items():
        print(f"{name}: {value:.3f}")
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2), encoding="utf-8")


def _short(study: Study) -> object:
    return study.training.model_copy(update={"rounds": 1})


if __name__ == "__main__":
    typer.run(main)
