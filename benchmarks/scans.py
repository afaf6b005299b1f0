"""What do import and cache cost, beside what one would write without them?

``import_over_pydicom_loop``
    Scans per second of ``import_scans`` into an empty, encrypted cache, with two children, over
    those of one process that goes through the same files with pydicom and keeps the tensors: read,
    modality and VOI transform, scale to [0, 1], resize, save. The files are 1024 x 1024, 12 bits,
    as an archive has them: a quarter each uncompressed, JPEG-LS, JPEG 2000 and JPEG lossless, all
    without loss. The two take turns; the figure is the median of the ratios within a turn. Both are
    wall time, so it cannot be more than ``two_processes_over_one``: how much more work two
    processes get done here than one, which is 2 where two cores are free and 1 where none is.

``second_import_s``
    Seconds to find that nothing changed among 10,000 files: reading the worklist, and the import.

``batch_read_over_step``
    Time to read, decrypt and unpack a random batch of 32 scans of 64 x 64 over that of a plain
    SGD step (no privacy, the fastest there is) of ``medfed-small`` on it; CPU time of one thread.

``listed_bytes_per_file``
    By how much the peak memory of a process that lists a folder grows for each file more, from
    20,000 to a million: pictures in class folders, or lines of a worklist, whichever takes more.

    python benchmarks/scans.py [--quick] [--json PATH]
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pydicom
import typer
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLSLossless,
    SecondaryCaptureImageStorage,
)

from medfed.client.scans.cache import ScanCache, Source
from medfed.client.scans.cache_records import packed
from medfed.client.scans.decoders import plugin_for
from medfed.client.scans.decoding import DecodingLimits
from medfed.client.scans.import_reader import FileState
from medfed.client.scans.importing import Tally, import_scans
from medfed.client.scans.layouts.layout import SourceRules
from medfed.client.scans.read import index_scans
from medfed.client.scans.recipe import recipe_of
from medfed.common.study import Study, parse_study
from medfed.simulations.dicom_objects import derived_uid, image_object, write_object

KEY = bytes(32)
SIDE, PICTURES, BATCH = 1024, 6, 32
KINDS = ("uncompressed", "JPEG-LS", "JPEG 2000", "JPEG lossless")
SYNTAXES = {
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
    "JPEG lossless": JPEGLossless,
}
LINKS = 60_000
"""Names that one file gets; some file systems allow no more than 65,000."""

STUDY = """
[study]
name = "scans"
purpose = "Measure what import and cache cost."
[task]
labels = ["no", "yes"]
[scans]
size = [64, 64]
channels = 1
[split]
rule = "hash"
test_fraction = 0.1
validation_fraction = 0.1
salt = "x"
[network]
name = "medfed-small"
[training]
rounds = 1
local_steps = 1
batch_size = 32
learning_rate = 0.05
[privacy]
mode = "none"
[cohort]
quorum = 1
[[site]]
name = "A"
declared_patients = 100
"""


# --- files ---


def radiograph(number: int, side: int) -> NDArray[np.uint16]:
    """Smooth shapes of 12 bits with the noise of a detector."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    shape = np.sin(7 * rows + number) * np.cos(5 * columns) + np.exp(-8 * (rows - 0.5) ** 2)
    noise = np.random.default_rng(number).normal(0, 8, (side, side))
    return (1500 + 900 * shape + noise).clip(0, 4095).astype(np.uint16)


def compressed(pixels: NDArray[np.uint16], kind: str) -> bytes:
    """The pixels as a codestream."""
    if kind == "JPEG-LS":
        import jpeg_ls  # noqa: PLC0415  # an extra, and only the benchmark encodes

        return bytes(jpeg_ls.encode_array(pixels))
    if kind == "JPEG lossless":
        import imagecodecs  # noqa: PLC0415  # as above

        return bytes(imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=12))
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
    return stream.getvalue()


def write_files(folder: Path, kind: str, count: int, side: int) -> list[str]:
    """Write scans of one kind; they differ in their patient, and every few in their picture."""
    names = []
    pictures = [radiograph(number, side) for number in range(min(count, PICTURES))]
    streams = [compressed(p, kind) for p in pictures] if kind != KINDS[0] else []
    for number in range(count):
        name = f"{kind.replace(' ', '')}-{number:05}"
        dataset = image_object(
            pictures[number % PICTURES],
            sop_class=SecondaryCaptureImageStorage,
            instance=derived_uid(name),
            study=derived_uid(name, "study"),
            series=derived_uid(name, "series"),
            patient_id=name,
            bits_stored=12,
            colour_model="MONOCHROME2",
        )
        dataset.WindowCenter, dataset.WindowWidth = 2000, 3000
        if streams:
            dataset.file_meta.TransferSyntaxUID = SYNTAXES[kind]
            dataset.PixelData = encapsulate([streams[number % PICTURES]])
            dataset["PixelData"].VR = "OB"
        write_object(dataset, folder / f"{name}.dcm")
        os.utime(folder / f"{name}.dcm", (1e9, 1e9))
        names.append(f"{name}.dcm")
    return names


def write_worklist(folder: Path, names: Iterable[str]) -> None:
    """Name the files as scans."""
    with (folder / "worklist.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "label"), *((name, "no") for name in names)])


# --- import over a plain loop ---


def pydicom_loop(folder: Path, names: Sequence[str], target: Path) -> None:
    """What one would write without medfed."""
    tensors = []
    for name in names:
        dataset = pydicom.dcmread(folder / name)
        values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
        values = values.astype(np.float32) / (2**dataset.BitsStored - 1)
        picture = Image.fromarray(values).resize((64, 64), Image.Resampling.BILINEAR)
        tensors.append(np.asarray(picture, dtype=np.float32)[None])
    np.save(target, np.stack(tensors))


def run_import(folder: Path, study: Study, caches: Path) -> Tally:
    """Index the folder and import it."""
    index = index_scans(folder, study)
    with ScanCache(caches, KEY, recipe_of(study.scans)) as cache:
        return import_scans(index, study.scans, cache, limits=DecodingLimits(children=2))


def import_ratios(
    work: Path, study: Study, count: int, turns: int
) -> Iterator[tuple[float, float]]:
    """Ratios of scans per second, import over plain loop, and what is possible, turn by turn."""
    folder = work / "mixed"
    folder.mkdir()
    by_kind = {kind: write_files(folder, kind, count, SIDE) for kind in KINDS}
    names = [name for group in zip(*by_kind.values(), strict=True) for name in group]
    write_worklist(folder, names)
    for turn in range(turns):
        begin = time.perf_counter()
        pydicom_loop(folder, names, work / "tensors.npy")
        middle = time.perf_counter()
        tally = run_import(folder, study, work / f"caches-{turn}")
        end = time.perf_counter()
        assert tally.imported == len(names)
        plain, ours = len(names) / (middle - begin), len(names) / (end - middle)
        possible = two_processes_over_one()
        print(
            f"plain loop {plain:.1f} scans/s, import {ours:.1f} scans/s; "
            f"two processes get {possible:.2f} times as far as one"
        )
        yield ours / plain, possible


def spin(seconds: float) -> int:
    """Count as far as one gets."""
    end, count = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        count += 1
    return count


def two_processes_over_one(seconds: float = 1.0) -> float:
    """How much further two processes count than one."""
    with multiprocessing.get_context("forkserver").Pool(2) as pool:
        pool.map(spin, [0.1, 0.1])
        (one,) = pool.map(spin, [seconds])
        return sum(pool.map(spin, [seconds] * 2, chunksize=1)) / one


# --- a second import ---


def second_import(work: Path, study: Study, count: int, turns: int) -> list[float]:
    """Seconds of each import after the first."""
    folder = work / "many"
    folder.mkdir()
    write_worklist(folder, write_files(folder, KINDS[0], count, 32))
    begin = time.perf_counter()
    run_import(folder, study, work / "caches-many")
    print(f"first import of {count} small files: {time.perf_counter() - begin:.1f} s")
    times = []
    for _ in range(turns):
        begin = time.perf_counter()
        tally = run_import(folder, study, work / "caches-many")
        times.append(time.perf_counter() - begin)
        assert tally.unchanged == count
    return times


# --- reading a batch ---


def batch_reads(work: Path, study: Study, turns: int) -> dict[str, float]:
    """Medians of the CPU time of a batch's reading and of a step on it."""
    import torch  # noqa: PLC0415  # children of the import load this file too, and need no torch
    from torch.nn import functional  # noqa: PLC0415

    from medfed.common.networks.parameters import network_for  # noqa: PLC0415

    torch.set_num_threads(1)
    recipe, random = recipe_of(study.scans), np.random.default_rng(0)
    network = network_for(study)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    labels = torch.from_numpy(random.integers(0, 2, BATCH))
    reads, steps = [], []
    with ScanCache(work / "caches-batch", KEY, recipe) as cache:
        sources = [Source(Path(str(n)), FileState(n, n, n, n)) for n in range(4096)]
        for number, source in enumerate(sources):
            plain = packed(random.random(recipe.form.shape, dtype=np.float32), recipe.form)
            cache.add(source, number.to_bytes(32, "little"), "", "", plain)
        cache.commit()
        found = [scan for source in sources if (scan := cache.find(source))]
        with cache.tensors(found) as tensors:
            for _ in range(turns):
                begin = time.process_time()
                images = tensors.read(random.integers(0, len(tensors), BATCH))
                middle = time.process_time()
                optimizer.zero_grad(set_to_none=True)
                functional.cross_entropy(network(torch.from_numpy(images)), labels).backward()
                optimizer.step()
                reads.append(middle - begin)
                steps.append(time.process_time() - middle)
    return {"batch_read_s": statistics.median(reads), "step_s": statistics.median(steps)}


# --- listing a million files ---


def class_folders(folder: Path, count: int) -> None:
    """Names of empty pictures, two of each person, in two folders."""
    labels = ("no", "yes")
    for label in labels:
        (folder / label).mkdir(parents=True)
    for number in range(count):
        one = folder / f".{number // LINKS}"
        one.touch()
        os.link(one, folder / labels[number % 2] / f"person{number // 2:07}_scan_{number:07}.png")


def listing_peak(folder: Path) -> int:
    """Most memory, in bytes, that this process has had after listing a folder."""
    index_scans(folder, parse_study(STUDY), rules=SourceRules(patient=r"^person(\d+)_"))
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM"))


def listed_bytes(work: Path, few: int, many: int) -> float:
    """Bytes of memory for each file more, each peak that of a process of its own."""
    growths = []
    for kind in ("class folders", "worklist"):
        peaks = []
        for count in (few, many):
            folder = work / f"{kind}-{count}"
            if kind == "worklist":
                folder.mkdir()
                write_worklist(folder, (f"a{n // 1000:04}/IM{n:07}.dcm" for n in range(count)))
            else:
                class_folders(folder, count)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peaks.append(pool.apply(listing_peak, [folder]))
        growths.append((peaks[1] - peaks[0]) / (many - few))
        print(f"{kind}: {peaks[1] / 2**20:.0f} MiB for {many} files, {growths[-1]:.1f} bytes each")
    return max(growths)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer files and turns.")] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Print the figures."""
    study = parse_study(STUDY)
    plugin_for(JPEGLossless, 12)  # pydicom alone has no decoder for it; the loop gets ours
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        ratios = list(import_ratios(work, study, *((16, 3) if quick else (100, 3))))
        seconds = second_import(work, study, 2_000 if quick else 10_000, 5)
        figures = batch_reads(work, study, 50 if quick else 300)
        listed = listed_bytes(work, 20_000, 100_000 if quick else 1_000_000)
    figures["two_processes_over_one"] = statistics.median(possible for _, possible in ratios)
    figures["import_over_pydicom_loop"] = statistics.median(ratio for ratio, _ in ratios)
    figures["second_import_s"] = statistics.median(seconds)
    figures["batch_read_over_step"] = figures["batch_read_s"] / figures["step_s"]
    figures["listed_bytes_per_file"] = listed
    for figure, value in figures.items():
        print(f"{figure}: {value:.5f}")
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
