"""From a study and scans to a report: simulate, test, compare with each site alone.

Everything a researcher's command prints is made here, so that ``medfed demo``, ``medfed
simulate`` and the tests say the same.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from medfed.client.scans.scanset import TRAIN, ScanSet
from medfed.common.errors import ConfigError
from medfed.common.exact_metrics import figure, figure_with_interval
from medfed.common.files import write_atomically
from medfed.common.networks.build import describe_device, pick_device
from medfed.common.privacy.accounting import NEIGHBOURS, Spend
from medfed.common.privacy.image_level import patient_epsilon
from medfed.common.privacy.mechanism import epsilon_after, mechanism_for
from medfed.common.report.content import Interval, RunReport, SiteRow
from medfed.common.report.preparation import preparation, preparation_warnings
from medfed.common.report.words import epsilon_text
from medfed.common.study import Site, Study
from medfed.common.updates import Parameters, encode
from medfed.server.result import evaluations_of
from medfed.server.rounds import RoundRecord, headline
from medfed.server.run_study import RunResult
from medfed.simulations.evaluate import Judge
from medfed.simulations.simulate import Execution, simulate
from medfed.simulations.sources import Source

Progress = Callable[[str, int, int], None]
"""Told (what is being done, steps done, steps in all)."""


@dataclass(frozen=True)
class Plan:
    """What an experiment does beside the plain simulation.

    Attributes:
        seeds: One run for each.
        partition: How a pooled data set is dealt.
        curve: Test the global model after every round.
        alone: Train each site alone too, for comparison.
        execution: Threads and device.
    """

    seeds: tuple[int, ...] = (0,)
    partition: str = "iid"
    curve: bool = False
    alone: bool = False
    execution: Execution = field(default_factory=Execution)


def run_experiment(
    study: Study, source: Source, plan: Plan, *, out: Path, title: str, progress: Progress
) -> RunReport:
    """Simulate a study once per seed and report on the first, with the figures of all.

    Args:
        study: The study.
        source: Its scans.
        plan: What to do.
        out: Folder for ``model.safetensors``; made if needed.
        title: What the report is called.
        progress: Told about every round.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{out}: the results cannot be written there ({error.strerror}).",
            advice="choose a folder with --out.",
        ) from error
    device = pick_device(plan.execution.device)
    clock = Stopwatch()
    with clock.phase("preparing the test"):
        judge = Judge(study, source.test, device)
    runs: list[tuple[int, RunResult, float]] = []
    curve: list[tuple[int, float]] = []
    for seed in plan.seeds:
        first = not runs
        sites = source.for_sites(study, partition=plan.partition, seed=seed)

        def on_model(round_: int, model: Parameters, first: bool = first, seed: int = seed) -> None:
            if plan.curve and first:
                curve.append((round_, _figure(study, judge, model)))
            progress(f"seed {seed}", round_, study.training.rounds)

        with clock.phase("training"):
            result = simulate(study, sites, replace(plan.execution, seed=seed), on_model=on_model)
        runs.append((seed, result, _figure(study, judge, result.model)))
        if first:
            first_sites = sites
    _, result, _ = runs[0]
    write_atomically(out / "model.safetensors", encode(result.model))
    with clock.phase("testing"):
        pooled = figure_with_interval(judge.score(result.model), positive=study.task.positive_index)
    alone = {}
    if plan.alone:
        with clock.phase("training each site alone"):
            alone = models_alone(study, first_sites, plan, progress)
    with clock.phase("testing at each site"):
        models = Models(result.model, alone)
        history = result.state.history
        tests = {name: source.test_of(scans) for name, scans in first_sites.items()}
        rows = site_rows(study, first_sites, tests, history, models, plan.execution.device)
    return RunReport(
        title=title,
        headline=headline(result.state),
        outcome=result.state.outcome or "failed",
        study_name=study.name,
        study_digest=study.digest,
        purpose=study.study.purpose,
        metric=study.metric,
        network=study.network.name,
        device=describe_device(device),
        randomness=f"seeded (seed {plan.seeds[0]}): a simulation, never to be released",
        privacy_statement=privacy_statement(study, source.unit),
        sites=rows,
        model_path=str(out / "model.safetensors"),
        pooled=pooled,
        curve=tuple(curve),
        evaluations=evaluations_of(study, result),
        preparation=preparation(study.scans, study.augmentation),
        notes=tuple(source_notes(study, source, first_sites)),
        seconds=clock.seconds,
        seeds=tuple((seed, value) for seed, _, value in runs) if len(runs) > 1 else (),
    )


def figures(report: RunReport) -> dict[str, float]:
    """The ``name: value`` figures of an experiment; the mean over seeds comes last.

    Example:
        ``{"pneumonia_auroc_spread": 0.002, "pneumonia_auroc": 0.964}``
    """
    name = f"{report.study_name}_{report.metric}"
    noised = _noised_figures(report)
    if not report.seeds:
        return noised if report.pooled is None else {**noised, name: report.pooled.value}
    values = [value for _, value in report.seeds]
    each = {f"{name}_seed_{seed}": value for seed, value in report.seeds}
    spread = {f"{name}_spread": max(values) - min(values)}
    return {**noised, **each, **spread, name: statistics.fmean(values)}


def _noised_figures(report: RunReport) -> dict[str, float]:
    """What the sites' noised histograms of the test patients say of the first run's model."""
    return {
        f"{report.study_name}_{figure.name}": figure.interval.value
        for evaluation in report.evaluations
        if evaluation.part == "test"
        for figure in evaluation.figures
        if figure.interval is not None
    }


@dataclass(frozen=True)
class Models:
    """What is compared at each site.

    Attributes:
        shared: The model of the run.
        alone: Site -> a model trained there alone; may be empty.
    """

    shared: Parameters
    alone: Mapping[str, Parameters]


def site_rows(
    study: Study,
    site_scans: Mapping[str, ScanSet],
    tests: Mapping[str, ScanSet],
    history: Sequence[RoundRecord],
    models: Models,
    device: str,
) -> tuple[SiteRow, ...]:
    """One row per site, with exact counts and figures: for scans that may be seen here.

    Args:
        study: The study.
        site_scans: Site -> all its scans.
        tests: Site -> the scans to test on there.
        history: What became of each round.
        models: What to test.
        device: Where to compute.
    """
    return tuple(
        _site_row(study, site, site_scans[site.name], tests[site.name], history, models, device)
        for site in study.site
    )


def _site_row(
    study: Study,
    site: Site,
    scans: ScanSet,
    test: ScanSet,
    history: Sequence[RoundRecord],
    models: Models,
    device: str,
) -> SiteRow:
    done = sum(site.name in record.accepted for record in history)
    reasons = {r.missing[site.name] for r in history if site.name in r.missing}
    shared, alone = _tested_at(study, site, test, models, device)
    return SiteRow(
        site=site.name,
        patients=scans.patients,
        scans=len(scans),
        unit=scans.unit,
        auroc=shared,
        alone=alone,
        epsilon=epsilon_after(study, site, done) if study.private else None,
        delta=study.privacy.delta,
        rounds_done=done,
        missing="; ".join(sorted(reasons)),
    )


def _tested_at(
    study: Study, site: Site, test: ScanSet, models: Models, device: str
) -> tuple[Interval | None, Interval | None]:
    """The figure of the shared model and of the site's own, on the site's test scans."""
    if not len(test):
        return None, None
    judge = Judge(study, test, pick_device(device))
    positive = study.task.positive_index
    own = models.alone.get(site.name)
    return (
        figure_with_interval(judge.score(models.shared), positive=positive),
        None if own is None else figure_with_interval(judge.score(own), positive=positive),
    )


def models_alone(
    study: Study, site_scans: Mapping[str, ScanSet], plan: Plan, progress: Progress
) -> dict[str, Parameters]:
    """Train each site alone, by the same schedule and mechanism, as a study of one site.

    Args:
        study: The study.
        site_scans: Site -> all its scans.
        plan: Its first seed and its execution are used.
        progress: Told about every round.
    """
    models = {}
    for site in study.site:
        lone = study.model_copy(
            update={"site": (site,), "cohort": study.cohort.model_copy(update={"quorum": 1})}
        )

        def on_model(round_: int, model: Parameters, name: str = site.name) -> None:
            progress(f"site {name} alone", round_, study.training.rounds)

        result = simulate(
            lone,
            {site.name: site_scans[site.name]},
            replace(plan.execution, seed=plan.seeds[0]),
            on_model=on_model,
        )
        models[site.name] = result.model
    return models


def _figure(study: Study, judge: Judge, model: Parameters) -> float:
    return figure(judge.score(model), positive=study.task.positive_index)


def privacy_statement(study: Study, unit: str) -> str:
    """What was promised to whom, in one sentence.

    Args:
        study: The study.
        unit: What one privacy unit is in these scans.
    """
    privacy = study.privacy
    if not study.private:
        return 'Trained without privacy (privacy.mode = "none"): the model may remember scans.'
    rounds = study.training.rounds
    worst = epsilon_text(max(epsilon_after(study, site, rounds) for site in study.site))
    return (
        f"For every {unit}, the released updates of all {rounds} rounds are "
        f"differentially private with epsilon {worst} at delta {privacy.delta:g} "
        f"({NEIGHBOURS.replace('patient', unit)}), against anyone who sees them, the server "
        "included."
    )


def source_notes(study: Study, source: Source, site_scans: Mapping[str, ScanSet]) -> Iterator[str]:
    """What a reader must know about the scans and how they were varied.

    Args:
        study: The study.
        source: The scans of the simulation.
        site_scans: Site -> all its scans, as it trained on them.
    """
    if source.unit == "image":
        yield (
            "This data set has no patient ids: the privacy unit is the image, so that a patient "
            "with several images is protected less."
        )
    elif source.unit != "patient":
        yield f"The privacy unit is the group named {source.unit!r} in the data set."
    if study.private:
        yield from _image_level_note(study, source.unit, site_scans)
    if source.pooled is not None:
        yield "One data set was dealt to the sites: all are tested on its common test scans."
    if source.refused:
        yield f"{source.refused} files could not be read as scans and were left out."
    yield from preparation_warnings(study.augmentation)


_MOST_IMAGES = 1000


def _image_level_note(study: Study, unit: str, site_scans: Mapping[str, ScanSet]) -> Iterator[str]:
    """Say what an image-level claim would have hidden, of the patient with the most scans.

    What is compared is the usual way to train on the same scans: every image is sampled by a
    coin of its own and clipped by itself, with this site's sampling rate, noise and steps. It
    would state the same epsilon, as that of an image. *All* training scans of the patient count
    there: such a program knows no patients, so nothing holds it to ``scans_per_patient``. That
    cap is ours, and even with it other scans of the patient enter the next step.
    """
    site, images = _most_scans(study, site_scans)
    if images < 2:
        return
    mechanism = mechanism_for(study, site)
    spend = Spend(mechanism.noise_multiplier, mechanism.sampling_rate, mechanism.steps)
    stated = epsilon_after(study, site, study.training.rounds)
    hidden = patient_epsilon(spend, mechanism.delta, min(images, _MOST_IMAGES))
    least = "at least " if images > _MOST_IMAGES else ""
    yield (
        f"One {unit} here has {images} scans and is protected as one: clipping each image by "
        f"itself, with the same noise, would have stated the same epsilon {epsilon_text(stated)} "
        f"and given that {unit} "
        + (f"epsilon {least}{epsilon_text(hidden)}." if math.isfinite(hidden) else "no bound.")
    )


def _most_scans(study: Study, site_scans: Mapping[str, ScanSet]) -> tuple[Site, int]:
    """The site where one patient has the most training scans, and their number.

    Exact counts, which a simulation may see. Among equal counts, the site whose patients spend
    the most.
    """

    def rank(site: Site) -> tuple[int, float]:
        scans = site_scans[site.name]
        counts = np.bincount(scans.patient[scans.part == TRAIN], minlength=1)
        return int(counts.max()), epsilon_after(study, site, study.training.rounds)

    site = max(study.site, key=rank)
    return site, rank(site)[0]


class Stopwatch:
    """Adds up the wall time of named phases.

    Attributes:
        seconds: Phase -> wall time in s, in order of first appearance.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
