"""The mechanism is a function of the study alone, and its whole schedule keeps the target."""

from __future__ import annotations

import dataclasses
import inspect
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.common.errors import ConfigError
from medfed.common.privacy import mechanism as module
from medfed.common.privacy.accounting import epsilon
from medfed.common.privacy.mechanism import (
    EvaluatedPart,
    Mechanism,
    epsilon_after,
    evaluation_epsilon,
    histogram_mechanism,
    histograms_of,
    mechanism_for,
    study_epsilon,
)
from medfed.common.study import Study, parse_study, study_from_canonical

TEXT = """
[study]
name = "lungs"
purpose = "find pneumonia on chest films"
[task]
labels = ["normal", "pneumonia"]
[scans]
size = [28, 28]
channels = 1
[split]
rule = "given"
[network]
name = "medfed-small"
[training]
rounds = 5
local_epochs = 2
batch_size = 64
learning_rate = 0.5
[privacy]
mode = "dp-sgd"
unit = "patient"
neighbours = "add-or-remove-one"
clip_norm = 1.5
noise_multiplier = 1.25
delta = 1e-4
scans_per_patient = 4
[cohort]
quorum = 1
[[site]]
name = "A"
declared_patients = 640
[[site]]
name = "B"
declared_patients = 30
"""


def test_every_number_comes_from_the_study() -> None:
    study = parse_study(TEXT)

    # 64 of 640 declared patients a step; two epochs are 20 steps.
    assert mechanism_for(study, study.site_named("A")) == Mechanism(
        sampling_rate=0.1,
        lot=64,
        clip_norm=1.5,
        noise_multiplier=1.25,
        steps_per_round=20,
        rounds=5,
        delta=1e-4,
        scans_per_patient=4,
    )
    assert mechanism_for(study, study.site_named("A")).steps == 100


def test_a_lot_larger_than_the_site_is_the_whole_site_in_every_step() -> None:
    study = parse_study(TEXT)

    small = mechanism_for(study, study.site_named("B"))

    assert (small.sampling_rate, small.lot, small.steps_per_round) == (1.0, 30, 2)


def test_nothing_but_the_study_and_the_sites_entry_goes_in() -> None:
    assert list(inspect.signature(mechanism_for).parameters) == ["study", "site"]
    names = {field.name for field in dataclasses.fields(Mechanism)}
    assert not names & {"patients", "scans", "dataset", "count", "seed"}
    assert "client" not in inspect.getsource(module)


def test_server_site_and_auditor_compute_the_same_numbers() -> None:
    study = parse_study(TEXT.replace("noise_multiplier = 1.25", "target_epsilon = 3.0"))
    received = study_from_canonical(study.canonical())

    for site in study.site:
        assert mechanism_for(received, received.site_named(site.name)) == mechanism_for(study, site)


@pytest.mark.parametrize("site", ["A", "B"])
def test_the_whole_schedule_and_not_one_round_keeps_the_target(site: str) -> None:
    study = parse_study(TEXT.replace("noise_multiplier = 1.25", "target_epsilon = 3.0"))
    member = study.site_named(site)

    m = mechanism_for(study, member)

    assert study_epsilon(study, member) <= 3.0
    assert study_epsilon(study, member) == epsilon(
        m.noise_multiplier, m.sampling_rate, m.steps_per_round * 5, 1e-4
    )
    looser = epsilon(m.noise_multiplier - 0.001, m.sampling_rate, m.steps, m.delta)
    assert looser > 3.0


def test_epsilon_grows_with_the_rounds_from_nothing_to_the_whole_schedule() -> None:
    study = parse_study(TEXT)
    site = study.site_named("A")

    spent = [epsilon_after(study, site, rounds) for rounds in range(6)]

    assert spent[0] == 0.0
    assert spent == sorted(set(spent))
    assert spent[5] == study_epsilon(study, site)


def test_without_privacy_there_is_no_mechanism_and_epsilon_is_infinite() -> None:
    before, _, rest = TEXT.partition("[privacy]")
    plain = parse_study(
        f'{before}[privacy]\nmode = "none"\n[cohort]{rest.partition("[cohort]")[2]}'
    )
    site = plain.site_named("A")

    assert study_epsilon(plain, site) == math.inf
    assert epsilon_after(plain, site, 0) == 0.0
    with pytest.raises(ConfigError, match=r"'lungs' has privacy\.mode = 'none'"):
        mechanism_for(plain, site)


@given(declared=st.integers(1, 10**9), batch=st.integers(1, 10**6), steps=st.integers(1, 1000))
@settings(deadline=None, max_examples=100)
def test_rate_times_declared_patients_is_the_lot(declared: int, batch: int, steps: int) -> None:
    text = TEXT.replace("declared_patients = 640", f"declared_patients = {declared}")
    text = text.replace("batch_size = 64", f"batch_size = {batch}")
    study = parse_study(text.replace("local_epochs = 2", f"local_steps = {steps}"))

    m = mechanism_for(study, study.site_named("A"))

    assert 0.0 < m.sampling_rate <= 1.0
    assert m.sampling_rate * declared == pytest.approx(m.lot, rel=1e-12)
    assert m.steps_per_round == steps


# ---- the score histograms ------------------------------------------------------------------------
def evaluated(
    strength: str, *, every: int = 2, test: bool = True, labels: str = '"normal", "pneumonia"'
) -> Study:
    table = f"bins = 10\nevery = {every}\ntest = {str(test).lower()}\n{strength}\n"
    text = TEXT.replace('"normal", "pneumonia"', labels)
    return parse_study(text.replace("[cohort]", f"[evaluation]\n{table}[cohort]"))


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("labels", ['"a", "b"', '"a", "b", "c"'])
def test_all_histograms_of_a_part_together_keep_the_target(
    part: EvaluatedPart, labels: str
) -> None:
    study = evaluated("target_epsilon = 2.0", labels=labels)

    mechanism = histogram_mechanism(study, part)

    assert evaluation_epsilon(study, part) <= 2.0
    looser = epsilon(mechanism.noise_multiplier - 0.001, 1.0, mechanism.histograms, 1e-4)
    assert looser > 2.0


def test_a_histogram_costs_what_a_gaussian_mechanism_costs() -> None:
    study = evaluated("noise_multiplier = 1.735")

    # Balle and Wang 2018, theorem 8, solved for epsilon at sigma 1.735 and delta 1e-4: 1.9998.
    assert evaluation_epsilon(study, "test") == pytest.approx(exact_gaussian(1.735), rel=1e-3)
    # Two histograms of one noise are one with noise 1.735 / sqrt(2).
    assert evaluation_epsilon(study, "validation") == pytest.approx(
        exact_gaussian(1.735 / math.sqrt(2)), rel=1e-3
    )


def exact_gaussian(sigma: float, delta: float = 1e-4) -> float:
    """Epsilon of one Gaussian mechanism of sensitivity 1, by bisection of the exact formula.

    Balle, Wang. Improving the Gaussian Mechanism for Differential Privacy. ICML 2018 (theorem 8).
    """

    def normal(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        spent = normal(0.5 / sigma - middle * sigma)
        spent -= math.exp(middle) * normal(-0.5 / sigma - middle * sigma)
        low, high = (middle, high) if spent > delta else (low, middle)
    return high


def test_each_part_pays_for_its_own_histograms_only() -> None:
    both = evaluated("target_epsilon = 2.0")
    only_test = evaluated("target_epsilon = 2.0", every=0)
    only_validation = evaluated("target_epsilon = 2.0", test=False)
    nothing = parse_study(TEXT)

    assert [histograms_of(both, part) for part in ("validation", "test")] == [2, 1]
    assert evaluation_epsilon(only_test, "validation") == 0.0
    assert evaluation_epsilon(only_validation, "test") == 0.0
    assert evaluation_epsilon(nothing, "test") == 0.0
    site = both.site_named("A")
    assert study_epsilon(both, site) == study_epsilon(nothing, nothing.site_named("A"))
    # Two releases need more noise than one for the same epsilon.
    assert (
        histogram_mechanism(both, "validation").noise_multiplier
        > histogram_mechanism(both, "test").noise_multiplier
    )


def test_two_classes_need_one_histogram_and_more_one_each() -> None:
    two = histogram_mechanism(evaluated("noise_multiplier = 2.0"), "test")
    three = histogram_mechanism(evaluated("noise_multiplier = 2.0", labels='"a", "b", "c"'), "test")

    assert (two.targets, two.shape, two.sensitivity, two.noise_std) == ((1,), (1, 2, 10), 1.0, 2.0)
    assert (three.targets, three.shape) == ((0, 1, 2), (3, 2, 10))
    assert three.noise_std == pytest.approx(2.0 * math.sqrt(3))  # one patient is in three
    other = evaluated("noise_multiplier = 2.0", labels='"a", "b"]\npositive = "a"  #')
    assert histogram_mechanism(other, "test").targets == (0,)
    assert two.spend == (2.0, 1.0, 1)
    assert two.spend == three.spend


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_histogram_that_nobody_asked_for_has_no_mechanism(part: EvaluatedPart) -> None:
    with pytest.raises(ConfigError, match=f"'lungs' asks for no score histogram of {part}"):
        histogram_mechanism(parse_study(TEXT), part)
