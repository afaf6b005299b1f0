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
    Mechanism,
    epsilon_after,
    mechanism_for,
    study_epsilon,
)
from medfed.common.study import parse_study, study_from_canonical

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
