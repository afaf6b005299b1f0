"""What do per-patient clipped gradients cost, in time and memory, beside SGD and stock Opacus?

For every network of the registry one training step is taken four ways: plain SGD without
privacy (*plain*), ours (*medfed*), and stock Opacus with ``grad_sample_mode`` *hooks* and
*ghost*. All have momentum 0.9 and the same rows. ``batch`` counts patients; with 4 scans per
patient a step has 4 times as many rows, for plain SGD too. Opacus knows no patients: its unit is
the row. Noise is left out of the steps (multiplier 0); what ours costs is printed beside, as
``secure_noise_over_step``: drawing and adding it, over our step without it.

Small networks see 28 x 28 pixels, the others 64 x 64, or what they insist on. A fixed front
end is applied before, as in training.

Time: CPU time of one thread (on CUDA: wall time between synchronisations), because a shared
machine disturbs wall time more. The four take turns round about in one process; ratios are the
medians of the ratios within a round. Memory: one fresh process per way; by how much its resident
memory (on CUDA: what torch allocated) grows at most in three steps, network and scans being
there already. There, what is freed goes back to the system at once, so that the peak is what was
in use, not how luckily the heap was cut. A way that asks for more than ``--memory-gib`` is "out
of memory".

    python benchmarks/private_gradients.py [--quick] [--networks a,b] [--json PATH]

Figures are for a batch of 32 with one scan per patient; ``_4_scans`` and ``_batch_128`` say
otherwise.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from medfed.client.noise import SecretRandomness
from medfed.client.private_gradients import PatientBatch, PrivateSteps
from medfed.common.networks.build import autocast, build_network, describe_device, pick_device
from medfed.common.networks.names import NETWORKS
from medfed.common.networks.network import loss_per_scan

WAYS = ("plain", "medfed", "hooks", "ghost")
SMALL = ("cnn28", "medfed-small", "scatter-small")
QUICK = ("medfed-small", "scatter-small", "resnet18")
CLIP_NORM = 1.0
OUT_OF_MEMORY = "out of memory"
_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES = -3, 1 << 16  # glibc's mallopt: larger pieces are not pooled
_OUT_OF_MEMORY_SIGNALS = (-6, -9)  # abort by std::bad_alloc; killed by the system

Step = Callable[[], None]
Work = Callable[..., object]


class Cell(NamedTuple):
    """One line of the table."""

    network: str
    batch: int
    scans: int
    device: str
    precision: str

    @property
    def rows(self) -> int:
        """Scans in a step."""
        return self.batch * self.scans

    @property
    def name(self) -> str:
        """What its figures are called."""
        batch = "" if self.batch == 32 else f"_batch_{self.batch}"
        return self.network + batch + ("" if self.scans == 1 else f"_{self.scans}_scans")


class MeanLoss(nn.Module):
    """The loss in the form Opacus wants, which switches ``reduction`` on it."""

    reduction = "mean"

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Give the loss of each row, or their mean."""
        rows = loss_per_scan(logits, labels)
        return rows.mean() if self.reduction == "mean" else rows


# --- one step, four ways ---


def body_and_batch(cell: Cell, rows: int | None = None) -> tuple[nn.Module, PatientBatch]:
    """The network's trained part and random scans as it takes them."""
    spec = NETWORKS[cell.network]
    wish = 28 if cell.network in SMALL else 64
    size = wish if spec.takes_size(wish) else spec.size
    network = build_network(
        cell.network, channels=spec.channels, size=size, classes=spec.classes, seed=0
    ).to(cell.device)
    count = cell.rows if rows is None else rows
    generator = torch.Generator().manual_seed(0)
    scans = torch.rand(count, spec.channels, size, size, generator=generator).to(cell.device)
    labels = torch.randint(0, spec.classes, (count,), generator=generator).to(cell.device)
    if network.front is not None:
        with torch.no_grad():
            scans = network.front(scans)
    unit = torch.arange(count, device=cell.device) // cell.scans
    return network.body, PatientBatch(scans, labels, unit, int(unit[-1]) + 1)


def sgd(body: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all ways."""
    return torch.optim.SGD(body.parameters(), lr=1e-3, momentum=0.9)


def make_step(way: str, body: nn.Module, batch: PatientBatch, cell: Cell) -> Step:
    """What takes one step in one of the ways."""
    device = torch.device(cell.device)
    inputs, labels = batch.inputs, batch.labels
    if way == "medfed":
        steps = private_steps(body, noise_multiplier=0.0, scans=cell.scans)

        def ours() -> None:
            with autocast(device, cell.precision):
                steps.step([batch])

        return ours

    optimizer, criterion = sgd(body), MeanLoss()
    if way != "plain":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body, optimizer, *rest = PrivacyEngine(accountant="rdp").make_private(
                module=body,
                optimizer=optimizer,
                criterion=criterion,
                data_loader=DataLoader(TensorDataset(inputs, labels), batch_size=len(labels)),
                noise_multiplier=0.0,
                max_grad_norm=CLIP_NORM,
                poisson_sampling=False,
                grad_sample_mode=way,
            )
            criterion = rest[0] if way == "ghost" else criterion

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, cell.precision):
            loss = criterion(body(inputs), labels)
        loss.backward()
        optimizer.step()

    return step


def private_steps(body: nn.Module, *, noise_multiplier: float, scans: int) -> PrivateSteps:
    """Ours."""
    return PrivateSteps(
        body,
        sgd(body),
        loss_per_scan,
        clip_norm=CLIP_NORM,
        noise_multiplier=noise_multiplier,
        lot=32,
        randomness=SecretRandomness(),
        scans_per_patient=scans,
    )


# --- what it costs; these run in processes of their own ---


def peak_growth(way: str, cell: Cell) -> float:
    """By how many bytes memory grows at most in three steps of one way."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES)
    small, few = body_and_batch(cell, rows=cell.scans)  # loads the code that a step needs
    make_step(way, small, few, cell)()
    body, batch = body_and_batch(cell)
    step = make_step(way, body, batch, cell)
    del small, few
    gc.collect()
    if cell.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            step()
        return torch.cuda.max_memory_allocated() - before
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak
    before = resident("VmRSS")
    for _ in range(3):
        step()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """A field of this process's memory status, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])


def step_times(ways: tuple[str, ...], cell: Cell, seconds: float) -> dict[str, list[float]]:
    """Seconds per step; entry i of every list is from round i."""
    steps: dict[str, Step] = {}
    for way in ways:
        body, batch = body_and_batch(cell)
        steps[way] = make_step(way, body, batch, cell)
        steps[way]()
    if "medfed" in ways:
        body = body_and_batch(cell, rows=1)[0]
        for name, sigma in (("noise", 1.0), ("no noise", 0.0)):
            nobody = private_steps(body, noise_multiplier=sigma, scans=cell.scans)
            steps[name] = lambda nobody=nobody: nobody.step([])
            steps[name]()
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["plain"]) < 3:
        for name, step in steps.items():
            times[name].append(timed(step, cell.device))
    return times


def timed(step: Step, device: str) -> float:
    """Seconds of one step."""
    if device == "cpu":
        begin = time.process_time()
        step()
        return time.process_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def child(send: Connection, limit_bytes: int, work: Work, *args: object) -> None:
    """Do one piece of work in this fresh process; send its result, or why there is none."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if limit_bytes:
        room = resident("VmSize") + limit_bytes
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
    try:
        send.send(work(*args))
    except (MemoryError, RuntimeError) as error:
        send.send(OUT_OF_MEMORY if is_out_of_memory(error) else f"failed: {error}"[:200])


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is short; torch has no class for it on the CPU."""
    words = ("allocate memory", "out of memory", "bad_alloc", "could not create a memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


# --- the table; this runs in the parent, which computes nothing itself ---


def in_child(limit_gib: float, work: Work, *args: object) -> Any:
    """Run in a fresh process; returns its result, or in words why there is none."""
    context = multiprocessing.get_context("forkserver")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(send, int(limit_gib * 2**30), work, *args))
    process.start()
    send.close()
    try:
        result = receive.recv()
    except EOFError:
        result = None
    process.join()
    if result is None:
        killed = process.exitcode in _OUT_OF_MEMORY_SIGNALS
        result = OUT_OF_MEMORY if killed else f"failed: exit code {process.exitcode}"
    return result


def measure(cell: Cell, memory_gib: float, seconds: float) -> dict[str, float | str]:
    """All figures of a line, or words in their place."""
    figures: dict[str, float | str] = {}
    limit = memory_gib if cell.device == "cpu" else 0.0
    peak = {way: in_child(limit, peak_growth, way, cell) for way in WAYS}
    figures |= {f"{way}_memory_mib": words_or(peak[way], lambda b: b / 2**20) for way in WAYS}
    fit = tuple(way for way in WAYS if not isinstance(peak[way], str))
    if "plain" not in fit:
        return figures
    times = in_child(0.0, step_times, fit, cell, seconds)
    if isinstance(times, str):
        return figures | {"plain_step_s": times}
    figures["plain_step_s"] = statistics.median(times["plain"])
    for way in WAYS[1:]:
        if way in fit:
            figures[f"{way}_memory_ratio"] = peak[way] / peak["plain"]
            figures[f"{way}_time_ratio"] = median_ratio(times[way], times["plain"])
    if "medfed" in fit:
        for way in ("hooks", "ghost"):
            if way in fit:
                figures[f"{way}_over_medfed"] = median_ratio(times[way], times["medfed"])
        noise = statistics.median(times["noise"]) - statistics.median(times["no noise"])
        figures["secure_noise_over_step"] = noise / statistics.median(times["medfed"])
    return figures


def words_or(value: float | str, convert: Callable[[float], float]) -> float | str:
    """Convert a figure; leave words."""
    return value if isinstance(value, str) else convert(value)


def median_ratio(times: list[float], others: list[float]) -> float:
    """The median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


COLUMNS = (
    ("plain_step_s", "plain s"),
    *((f"{way}_time_ratio", f"{way} time") for way in WAYS[1:]),
    ("plain_memory_mib", "plain MiB"),
    *((f"{way}_memory_ratio", f"{way} mem") for way in WAYS[1:]),
    ("secure_noise_over_step", "noise"),
)


def line(cell: Cell, figures: dict[str, float | str]) -> str:
    """A line of the table."""

    def shown(key: str) -> str:
        value = figures.get(key)
        if value is None:
            way = key.split("_")[0]
            words = figures.get(f"{way}_memory_mib")
            return ("OOM" if words == OUT_OF_MEMORY else "failed") if words else "-"
        if isinstance(value, str):
            return "OOM" if value == OUT_OF_MEMORY else "failed"
        return f"{value:.0f}" if key.endswith("mib") else f"{value:.3f}"

    cells = "".join(f"{shown(key):>11}" for key, _ in COLUMNS)
    return f"{cell.network:14}{cell.batch:5}{cell.scans:6}{cells}"


def headline(cell: Cell, figures: dict[str, float | str]) -> Iterator[tuple[str, float | str]]:
    """The figures of a line that are printed by name."""
    for kind in ("time", "memory"):
        key = f"medfed_{kind}_ratio"
        why = figures.get("medfed_memory_mib", OUT_OF_MEMORY)
        yield f"{cell.name}_{kind}_ratio", figures.get(key, why)
    for way in ("hooks", "ghost"):
        why = figures[f"{way}_memory_mib"]
        yield f"{cell.name}_opacus_{way}_over_ours", figures.get(f"{way}_over_medfed", why)
    if "secure_noise_over_step" in figures:
        yield f"{cell.name}_secure_noise_over_step", figures["secure_noise_over_step"]


def main(
    networks: Annotated[str, typer.Option(help="Names with commas; default: all.")] = "",
    batches: Annotated[str, typer.Option(help="Patients per step.")] = "32,128",
    scans: Annotated[str, typer.Option(help="Scans per patient.")] = "1,4",
    quick: Annotated[bool, typer.Option(help="Three networks, batch 32 only.")] = False,
    memory_gib: Annotated[float, typer.Option(help="Limit of one way's process (CPU).")] = 8.0,
    seconds: Annotated[float, typer.Option(help="Time per line; at least 3 rounds.")] = 20.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32 or bf16; default: bf16 on CUDA.")] = "",
    json_path: Annotated[Path | None, typer.Option("--json", help="All figures.")] = None,
) -> None:
    """Print the table, then ``name: value`` lines."""
    multiprocessing.set_forkserver_preload(["medfed.client.private_gradients", "opacus"])
    where = in_child(0.0, find_device, device)
    precision = precision or ("float32" if where["device"] == "cpu" else "bf16")
    names = networks.split(",") if networks else QUICK if quick else tuple(NETWORKS)
    sizes = [32] if quick else [int(size) for size in batches.split(",")]
    clock = "CPU time" if where["device"] == "cpu" else "wall time"
    print(
        f"{where['words']}, {precision}; {clock}; "
        f"ratios to plain SGD; memory limit {memory_gib} GiB"
    )
    print(f"{'network':14}batch scans" + "".join(f"{title:>11}" for _, title in COLUMNS))
    figures: dict[str, float | str] = {}
    table = []
    for network, batch, count in product(names, sizes, [int(count) for count in scans.split(",")]):
        cell = Cell(network, batch, count, where["device"], precision)
        measured = measure(cell, memory_gib, seconds)
        print(line(cell, measured), flush=True)
        table.append(cell._asdict() | measured)
        figures |= dict(headline(cell, measured))
    if "resnet18_secure_noise_over_step" in figures:
        figures["secure_noise_over_step"] = figures["resnet18_secure_noise_over_step"]
    for name, value in figures.items():
        print(f"{name}: {value}" if isinstance(value, str) else f"{name}: {value:.3f}")
    if json_path is not None:
        content = figures | {"table": table}
        json_path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def find_device(wish: str) -> dict[str, str]:
    """Where to compute. Asked in a child, because CUDA does not survive a fork."""
    device = pick_device(wish)
    return {"device": str(device), "words": describe_device(device)}


if __name__ == "__main__":
    typer.run(main)
