"""The study file: one strict TOML from a researcher's laptop to the hospital.

Everything that all parties must agree on stands in it: the task and its labels, how a
scan becomes a tensor, the network, the training schedule, the privacy mechanism, the
strategy, the sites and their *declared* numbers. All of it is public; nothing in it is
computed from a patient. A study is identified by the digest of its canonical form, so
that a changed comment is the same study and a changed number is another one.

Strict means: no unknown key, no wrong type, no privacy limit filled in by default.
This module imports neither torch nor flwr.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medfed.common.errors import ConfigError
from medfed.common.findings import Findings
from medfed.common.networks.names import check_network
from medfed.common.privacy.score_bins import bin_from, inner_edges
from medfed.common.strict_toml import StrictTable, read_strict
from medfed.common.study_about import About
from medfed.common.study_scans import Augmentation, Scans

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Label = Annotated[str, Field(pattern=r"^[^\p{C}\p{Zl}\p{Zp}]{1,100}$")]
"""Printable: no control, direction, other format or unassigned character (Unicode C*)."""
SiteName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")]


class Task(StrictTable):
    """What the model decides."""

    labels: Annotated[tuple[Label, ...], Field(min_length=2, max_length=1000)]
    """Class names; their position is the class index."""
    positive: str | None = None
    """With two classes: the one whose probability is the score. Default: the second."""
    findings: Findings = Findings()
    """Which findings of a data source mean which label, where they are not the labels' own text."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(
                f"labels must differ from each other, found {_repeated(self.labels)} twice"
            )
        if self.positive is not None and (
            len(self.labels) != 2 or self.positive not in self.labels
        ):
            raise ValueError("positive is for two classes and must be one of the labels")
        try:
            self.findings.rule_for(self.labels)
        except ConfigError as error:
            raise ValueError(str(error.args[0])) from error
        return self

    @property
    def positive_index(self) -> int:
        """Index of the positive class in a two-class task."""
        return 1 if self.positive is None else self.labels.index(self.positive)


class Split(StrictTable):
    """Which patients train, which validate and which test: by patient, without a stored list."""

    rule: Literal["given", "hash"]
    """``given``: the data set says it. ``hash``: SHA-256 of salt and patient key decides."""
    test_fraction: Fraction | None = None
    validation_fraction: Fraction | None = None
    salt: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        fields = (self.test_fraction, self.validation_fraction, self.salt)
        if self.rule == "given" and any(value is not None for value in fields):
            raise ValueError('rule = "given" takes no fractions and no salt')
        if self.rule == "hash":
            if any(value is None for value in fields):
                raise ValueError('rule = "hash" needs test_fraction, validation_fraction and salt')
            if (self.test_fraction or 0.0) + (self.validation_fraction or 0.0) >= 1.0:
                raise ValueError("test_fraction + validation_fraction must be below 1")
        return self

    def part_of(self, patient_key: str) -> Literal["train", "validation", "test"]:
        """Say where a patient belongs under ``rule = "hash"``.

        Args:
            patient_key: The patient's key at its site; private, used and forgotten.

        Returns:
            ``test`` for the lowest ``test_fraction`` of the hash range, ``validation`` for
            the next ``validation_fraction``, else ``train``.

        Raises:
            ValueError: the rule is ``given``: the data set says it, not the key.

        Example:
            >>> split = Split(rule="hash", test_fraction=0.2, validation_fraction=0.1, salt="x")
            >>> [split.part_of(f"patient-{number}") for number in (1, 3, 5)]
            ['train', 'validation', 'test']
        """
        if self.rule != "hash":
            raise ValueError('part_of is for rule = "hash"')
        # surrogatepass: a key that is no proper text must not end up in an encoding error
        text = f"{self.salt}|{patient_key}".encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(text).digest()
        position = int.from_bytes(digest[:8], "big") / 2.0**64
        test, validation = self.test_fraction or 0.0, self.validation_fraction or 0.0
        if position < test:
            return "test"
        return "validation" if position < test + validation else "train"


def _repeated(names: Sequence[str]) -> str:
    return repr(next(name for name in names if names.count(name) > 1))


class NetworkChoice(StrictTable):
    """Which network of the registry."""

    name: str


class Training(StrictTable):
    """The schedule at a site and over the rounds; fixed before the first round."""

    rounds: Annotated[int, Field(ge=1, le=100_000)]
    local_steps: Annotated[int, Field(ge=1, le=100_000)] | None = None
    local_epochs: Annotated[int, Field(ge=1, le=10_000)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)]
    """With DP-SGD the lot: the expected number of patients per step, and the divisor of their
    summed gradients. Without privacy: scans per step."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0.0, le=1000.0)]
    momentum: Fraction = 0.0
    l1: Annotated[float, Field(ge=0.0)] = 0.0
    l2: Annotated[float, Field(ge=0.0)] = 0.0
    """Penalties ``l1·Σ|w| + l2/2·Σw²``; they depend on no data and act after the noise."""
    class_weights: tuple[Annotated[float, Field(gt=0.0)], ...] | None = None
    precision: Literal["float32", "bf16"] = "float32"
    """``bf16``: autocast on CUDA."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.local_steps is None) == (self.local_epochs is None):
            found = "neither" if self.local_steps is None else "both"
            raise ValueError(f"found {found}; give one of local_steps and local_epochs")
        if self.optimizer == "adam" and self.momentum:
            raise ValueError("momentum belongs to sgd; adam has its own")
        return self


class Privacy(StrictTable):
    """The privacy mechanism. No limit has a default; ``mode = "none"`` must be written out."""

    mode: Literal["dp-sgd", "none"]
    unit: Literal["patient"] | None = None
    neighbours: Literal["add-or-remove-one"] | None = None
    clip_norm: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    """S: the L2 bound on one patient's gradient."""
    target_epsilon: Annotated[float, Field(gt=0.0, le=1000.0)] | None = None
    noise_multiplier: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    """sigma / S, dimensionless."""
    delta: Annotated[float, Field(gt=0.0, lt=0.1)] | None = None
    scans_per_patient: Annotated[int, Field(ge=1, le=1000)] | None = None
    """At most this many scans of one patient enter a step."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        limits = ("unit", "neighbours", "clip_norm", "delta", "scans_per_patient")
        strengths = ("target_epsilon", "noise_multiplier")
        given = [key for key in (*limits, *strengths) if getattr(self, key) is not None]
        if self.mode == "none":
            if given:
                raise ValueError(f'mode = "none" takes no limits, found {", ".join(given)}')
            return self
        missing = [key for key in limits if key not in given]
        if missing:
            raise ValueError(
                f'mode = "dp-sgd" needs {", ".join(missing)}: privacy limits have no default'
            )
        found = [key for key in strengths if key in given]
        if len(found) != 1:
            raise ValueError(
                "privacy limits have no default: give exactly one of target_epsilon and "
                f"noise_multiplier, found {'both' if found else 'neither'}"
            )
        return self


class Evaluation(StrictTable):
    """Which noised score histograms the sites report, and what they may cost a patient.

    Training, validation and test patients are different people: each part has its own epsilon,
    at ``privacy.delta`` and for the neighbours of ``[privacy]``.
    """

    bins: Annotated[int, Field(ge=5, le=200)]
    """Score bins, equally wide in log-odds. The noise on a sum over bins grows with the square
    root of their number: 10 to 20 suit some hundred patients."""
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Sensitivity and specificity are those of ``score >= threshold``; an edge of a bin, written
    with three digits. 0.5 is one for every even number of bins."""
    every: Annotated[int, Field(ge=0, le=100_000)] = 0
    """After every so many rounds a histogram of the validation patients; 0: never."""
    test: bool = False
    """One histogram of the test patients, for the final model."""
    target_epsilon: Annotated[float, Field(gt=0.0, le=1000.0)] | None = None
    """What a validation patient spends over all histograms, and a test patient on the one."""
    noise_multiplier: Annotated[float, Field(gt=0.0, le=1e4)] | None = None
    """Noise of one histogram over its sensitivity, dimensionless; instead of a target."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            found = "neither" if self.target_epsilon is None else "both"
            raise ValueError(
                "privacy limits have no default: give exactly one of target_epsilon and "
                f"noise_multiplier, found {found}"
            )
        if not (self.every or self.test):
            raise ValueError("every = 0 and test = false ask for no histogram: leave the table out")
        if bin_from(self.threshold, self.bins) is None:
            edges = inner_edges(self.bins)
            near = round(min((abs(edge - self.threshold), edge) for edge in edges)[1], 3)
            raise ValueError(
                f"found threshold {self.threshold}, which is no edge between two of {self.bins} "
                f"bins; take {near!r}, or another number of bins"
            )
        return self


class Strategy(StrictTable):
    """How the server makes the next global model from the updates."""

    name: Literal["fed_avg"] = "fed_avg"
    server_learning_rate: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    server_momentum: Fraction = 0.0
    update_norm_bound: Annotated[float, Field(gt=0.0)] | None = None
    """Scale an update whose L2 norm is larger down to it; unset: no bound."""
    average_decay: Fraction = 0.0
    """Above 0: the released model is the exponential moving average of the global models."""


class Cohort(StrictTable):
    """How many sites a round needs, and how long it waits for them."""

    quorum: Annotated[int, Field(ge=1)]
    round_deadline_s: Annotated[float, Field(gt=0.0, le=7 * 86400.0)] = 3600.0


class Site(StrictTable):
    """One hospital. Its numbers are declared, rounded and public; they are never counted."""

    name: SiteName
    declared_patients: Annotated[int, Field(ge=1, le=1_000_000_000)]


class Study(StrictTable):
    """One study, checked. Every field is public."""

    study: About
    task: Task
    scans: Scans
    augmentation: Augmentation | None = None
    split: Split
    network: NetworkChoice
    training: Training
    privacy: Privacy
    evaluation: Evaluation | None = None
    strategy: Strategy = Strategy()
    cohort: Cohort
    site: Annotated[tuple[Site, ...], Field(min_length=1, max_length=10_000)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [site.name.casefold() for site in self.site]
        if len(set(names)) != len(names):
            raise ValueError(f"site: two sites have the same name, {_repeated(names)}")
        if self.cohort.quorum > len(self.site):
            raise ValueError(
                f"cohort.quorum is {self.cohort.quorum}, above the {len(self.site)} sites listed"
            )
        weights = self.training.class_weights
        if weights is not None and len(weights) != self.classes:
            raise ValueError(
                f"training.class_weights has {len(weights)} values for {self.classes} labels"
            )
        self._check_evaluation()
        return self

    def _check_evaluation(self) -> None:
        if self.evaluation is None:
            return
        if not self.private:
            raise ValueError(
                'evaluation needs privacy.mode = "dp-sgd": a histogram leaves a site only for a '
                "model that is itself a private release"
            )
        every, rounds = self.evaluation.every, self.training.rounds
        if every > rounds:
            raise ValueError(f"evaluation.every is {every}, above the {rounds} rounds of training")
        if self.split.rule == "hash":
            if every and not self.split.validation_fraction:
                raise ValueError(
                    "evaluation.every needs validation patients; split.validation_fraction is 0"
                )
            if self.evaluation.test and not self.split.test_fraction:
                raise ValueError("evaluation.test needs test patients; split.test_fraction is 0")

    @property
    def name(self) -> str:
        """The study's name, as figures and files carry it."""
        return self.study.name

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.task.labels)

    @property
    def private(self) -> bool:
        """Whether training is differentially private."""
        return self.privacy.mode == "dp-sgd"

    @property
    def validation_rounds(self) -> range:
        """Rounds after which each site reports a histogram of its validation patients."""
        every = 0 if self.evaluation is None else self.evaluation.every
        return range(every, self.training.rounds + 1, every) if every else range(0)

    @property
    def metric(self) -> Literal["auroc", "macro_auroc"]:
        """The figure a run of this study ends with."""
        return "auroc" if self.classes == 2 else "macro_auroc"

    def site_named(self, name: str) -> Site:
        """Find a site of this study.

        Raises:
            ConfigError: the study has no site of that name.
        """
        for site in self.site:
            if site.name == name:
                return site
        listed = ", ".join(site.name for site in self.site)
        raise ConfigError(
            f"site {name!r} is not in study {self.name!r}, which lists {listed}.",
            advice="use a site name of the study, or ask the coordinator to add yours.",
        )

    def canonical(self) -> bytes:
        """Give the study as the bytes that are digested and signed.

        Guarantee:
            Equal for two files that differ only in comments, in the order of tables and keys,
            in white space or in writing a default out; different as soon as one value differs.
            The order of labels, of class weights and of sites is a value.
        """
        content = json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True
        )
        return b"medfed-study-1\n" + content.encode("ascii")

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical form, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical()).hexdigest()


def load_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or breaks a rule. The message
            names the file, the line or key, what was found and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: the study file cannot be read ({type(error).__name__}).",
            advice="give the path of a study TOML; `medfed study new` writes one.",
        ) from error
    return parse_study(text, source=str(path))


def parse_study(text: str, *, source: str = "study") -> Study:
    """Check the text of a study file.

    Args:
        text: TOML.
        source: What to call it in messages.

    Raises:
        ConfigError: as ``load_study``.
    """
    study = read_strict(
        text,
        Study,
        source=source,
        next_step="; `medfed study new` writes a file with every key explained.",
    )
    _check_network_fits(study, source)
    return study


def study_from_canonical(data: bytes) -> Study:
    """Rebuild a study from ``Study.canonical`` bytes, as they travel and are stored.

    Raises:
        ConfigError: the bytes are not a canonical study.

    Guarantee:
        ``study_from_canonical(data).canonical() == data``: a digest of the bytes is the study's.
    """
    head, _, body = data.partition(b"\n")
    try:
        if head != b"medfed-study-1":
            raise ValueError("not a medfed study")
        study = Study.model_validate_json(body)
        if study.canonical() != data:
            raise ValueError("another form of the same study")
    except ValueError as error:
        raise ConfigError(
            "the received study is not in canonical form.",
            advice="use the same medfed version on both sides.",
        ) from error
    _check_network_fits(study, "the received study")
    return study


def _check_network_fits(study: Study, source: str) -> None:
    try:
        check_network(
            study.network.name,
            channels=study.scans.channels,
            size=study.scans.size[0],
            classes=study.classes,
        )
    except ConfigError as error:
        raise ConfigError(f"{source}: network.name: {error.args[0]}", advice=error.advice) from None


def steps_per_round(study: Study, site: Site) -> int:
    """Count the steps of one round at a site, from public numbers only.

    Returns:
        ``local_steps`` if the study gives them; else enough steps for each patient to be drawn
        ``local_epochs`` times in expectation: with 100 declared patients, two epochs are 4 steps
        of a lot of 64, or 2 steps of a lot of 100 or more.
    """
    training = study.training
    if training.local_steps is not None:
        return training.local_steps
    lot = min(training.batch_size, site.declared_patients)
    return -(-(training.local_epochs or 1) * site.declared_patients // lot)  # rounded up
