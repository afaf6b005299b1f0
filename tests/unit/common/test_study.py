"""The study file: what it takes, what it refuses and how it says so, and its canonical form."""

from __future__ import annotations

import datetime
import json
import math
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.common import study as study_module
from medfed.common.errors import ConfigError
from medfed.common.study import (
    Evaluation,
    Split,
    Study,
    load_study,
    parse_study,
    steps_per_round,
    study_from_canonical,
)

TEXT = """# line 1: a study of tests
[study]
name = "lungs"
purpose = "find pneumonia on chest films"
[task]
labels = ["normal", "pneumonia"]
[scans]
size = [28, 28]
channels = 1
[split]
rule = "hash"
test_fraction = 0.2
validation_fraction = 0.1
salt = "tests"
[network]
name = "medfed-small"
[training]
rounds = 5
local_epochs = 2
batch_size = 64
learning_rate = 0.5
class_weights = [1.0, 2.0]
[privacy]
mode = "dp-sgd"
unit = "patient"
neighbours = "add-or-remove-one"
clip_norm = 1.0
target_epsilon = 8.0
delta = 1e-4
scans_per_patient = 4
[strategy]
server_learning_rate = 1.0
[cohort]
quorum = 2
round_deadline_s = 60.0
[[site]]
name = "A"
declared_patients = 100
[[site]]
name = "B"
declared_patients = 30
"""


OLD_DIGEST = "07e13ab902d2bd6770e57bf59335ade43f362df97a7d660c916140aa5e9e32f1"

FOLLOWING = f"""serial = 2
supersedes = "{"0123456789abcdef" * 4}"
expires = 2027-12-31
"""
"""Lines of [study]: the second serial of a study, which ends."""


def changed(old: str, new: str) -> str:
    assert TEXT.count(old) == 1, old
    return TEXT.replace(old, new)


def line_of(start: str, text: str = TEXT) -> int:
    return next(n for n, line in enumerate(text.splitlines(), 1) if line.startswith(start))


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_study(text, source="lungs.toml")
    assert caught.value.exit_code == 10
    assert caught.value.advice
    return str(caught.value)


EVALUATION = """[evaluation]
bins = 10
every = 2
test = true
target_epsilon = 2.0
"""


def with_evaluation(old: str = "", new: str = "") -> str:
    text = changed("[strategy]", EVALUATION + "[strategy]")
    assert not old or text.count(old) == 1, old
    return text.replace(old, new) if old else text


# ---- the canonical form --------------------------------------------------------------------------
def test_comments_order_white_space_and_defaults_written_out_leave_the_digest() -> None:
    study = parse_study(TEXT)
    tables = re.split(r"\n(?=\[)", TEXT)
    reordered = "\n".join([*tables[:1], *reversed(tables[1:8]), *tables[8:]])
    rewritten = {
        "comments": TEXT.replace("\n", "  # a comment\n"),
        "the order of tables": reordered,
        "the order of keys": changed(
            "rounds = 5\nlocal_epochs = 2", "local_epochs = 2\nrounds = 5"
        ),
        "white space": TEXT.replace(" = ", "=").replace("\n", "\r\n"),
        "a default": changed("local_epochs = 2", 'local_epochs = 2\noptimizer = "sgd"\nl1 = 0.0'),
        "a whole number for a real one": changed("clip_norm = 1.0", "clip_norm = 1"),
        "a dotted key": changed('[network]\nname = "medfed-small"', "").replace(
            "[study]", 'network.name = "medfed-small"\n[study]'
        ),
    }

    assert reordered != TEXT
    for what, text in rewritten.items():
        assert parse_study(text).digest == study.digest, what


CHANGES = [
    ('name = "lungs"', 'name = "lung"'),
    ("chest films", "chest film"),
    ('["normal", "pneumonia"]', '["pneumonia", "normal"]'),
    ("channels = 1", "channels = 3"),
    ("size = [28, 28]", "size = [32, 32]"),
    ("test_fraction = 0.2", "test_fraction = 0.20000000000000004"),
    ('salt = "tests"', 'salt = "test"'),
    ("medfed-small", "scatter-small"),
    ("rounds = 5", "rounds = 6"),
    ("batch_size = 64", "batch_size = 65"),
    ("learning_rate = 0.5", "learning_rate = 0.25"),
    ("class_weights = [1.0, 2.0]", "class_weights = [2.0, 1.0]"),
    ("clip_norm = 1.0", "clip_norm = 1.5"),
    ("target_epsilon = 8.0", "noise_multiplier = 8.0"),
    ("delta = 1e-4", "delta = 1e-5"),
    ("scans_per_patient = 4", "scans_per_patient = 3"),
    ("quorum = 2", "quorum = 1"),
    ("round_deadline_s = 60.0", "round_deadline_s = 61.0"),
    ("declared_patients = 30", "declared_patients = 31"),
    ('name = "B"', 'name = "C"'),
]


def test_every_changed_value_gives_another_digest() -> None:
    texts = [TEXT, *(changed(old, new) for old, new in CHANGES)]

    evaluated = [
        ("bins = 10", "bins = 20"),
        ("test = true", "test = true\nthreshold = 0.119"),
        ("every = 2", "every = 3"),
        ("test = true", "test = false"),
        ("target_epsilon = 2.0", "target_epsilon = 2.5"),
        ("target_epsilon = 2.0", "noise_multiplier = 2.0"),
    ]
    texts += [with_evaluation(), *(with_evaluation(old, new) for old, new in evaluated)]

    assert len({parse_study(text).digest for text in texts}) == len(texts)


def test_every_key_of_the_schema_is_part_of_the_canonical_form() -> None:
    text = with_evaluation("[task]", FOLLOWING + "[task]")
    body = json.loads(parse_study(text).canonical().partition(b"\n")[2])

    assert set(body["evaluation"]) == set(Evaluation.model_fields)
    for table, field in Study.model_fields.items():
        assert table in body, field
    for table in ("study", "task", "scans", "split", "training", "privacy", "strategy", "cohort"):
        annotation = Study.model_fields[table].annotation
        assert annotation is not None
        assert set(body[table]) == set(annotation.model_fields), table


def test_a_study_without_the_two_optional_keys_keeps_the_digest_that_sites_approved() -> None:
    # Digest of TEXT by medfed before the keys existed: approvals are stored under it.
    assert parse_study(TEXT).digest == OLD_DIGEST
    assert b"expires" not in parse_study(TEXT).canonical()


@given(
    expires=st.one_of(st.none(), st.dates()),
    serial=st.integers(1, 1_000_000),
    before=st.text("0123456789abcdef", min_size=64, max_size=64),
)
def test_serial_expiry_and_what_it_follows_come_back_from_the_canonical_bytes(
    expires: datetime.date | None, serial: int, before: str
) -> None:
    lines = f"serial = {serial}\n" + (f'supersedes = "{before}"\n' if serial > 1 else "")
    lines += f"expires = {expires.isoformat()}\n" if expires else ""
    study = parse_study(changed("[task]", lines + "[task]"))

    assert study_from_canonical(study.canonical()) == study
    assert (study.study.serial, study.study.expires) == (serial, expires)


@pytest.mark.parametrize(
    ("at", "over"),
    [
        ("2027-01-31T23:59:59+00:00", False),  # the last day belongs to it
        ("2027-02-01T00:00:00+00:00", True),
        ("2027-02-01T00:30:00+01:00", False),  # by UTC it is still January
        ("2027-01-31T23:30:00-01:00", True),
    ],
)
def test_a_study_expires_when_its_last_day_is_over_in_utc(at: str, over: bool) -> None:
    study = parse_study(changed("[task]", "expires = 2027-01-31\n[task]"))

    assert study.study.has_expired(datetime.datetime.fromisoformat(at)) is over
    assert not parse_study(TEXT).study.has_expired(datetime.datetime.fromisoformat(at))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("expires = 2027-01-31T10:00:00", r"study\.expires.*2027-01-31 10:00:00.*valid date"),
        ("expires = 10:00:00", "valid date"),
        ("expires = 20270131", r"found 20270131\..*valid date"),
        ('expires = "31.1.2027"', "valid date"),
        ("serial = 2", "found serial 2 without supersedes"),
        (f'supersedes = "{"a" * 64}"', "found supersedes with serial 1"),
        (f'serial = 2\nsupersedes = "{"A" * 64}"', r"study\.supersedes: found"),
        (f'serial = 2\nsupersedes = "{"a" * 63}"', r"study\.supersedes: found"),
    ],
)
def test_serials_and_dates_that_mean_nothing_are_refused(lines: str, says: str) -> None:
    assert re.search(says, refusal(changed("[task]", lines + "\n[task]")))


@given(
    rounds=st.integers(1, 100_000),
    rate=st.floats(1e-300, 1000.0, exclude_min=True),
    delta=st.floats(1e-300, 0.0999),
    purpose=st.text(st.characters(codec="utf-8"), min_size=10, max_size=30),
    labels=st.lists(
        st.text(
            st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]),
            min_size=1,
            max_size=100,
        ),
        min_size=2,
        max_size=2,
        unique=True,
    ),
)
@settings(deadline=None, max_examples=50)
def test_canonical_bytes_come_back_as_the_same_study_and_the_same_bytes(
    rounds: int, rate: float, delta: float, purpose: str, labels: list[str]
) -> None:
    document = tomllib.loads(TEXT)
    document["study"]["purpose"] = purpose
    document["task"]["labels"] = labels
    document["training"] |= {"rounds": rounds, "learning_rate": rate}
    document["privacy"]["delta"] = delta
    study = Study.model_validate_json(json.dumps(document))

    again = study_from_canonical(study.canonical())

    assert again == study
    assert again.canonical() == study.canonical()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data + b" ",
        lambda data: data.replace(b"medfed-study-1", b"medfed-study-2"),
        lambda data: data.replace(b":", b": ", 1),
        lambda data: data.replace(b'"l1":0.0,', b""),  # a default left out
        lambda data: data.replace(b"{", b'{"extra":1,', 1),
        lambda data: data.replace(b'"rounds":5', b'"rounds":4,"rounds":5'),  # two values, one wins
        lambda data: data.replace(b'"rounds":5', b'"rounds":0'),
        lambda data: data.replace(b'"rounds":5', b'"rounds":NaN'),
        lambda data: b"medfed-study-1\n" + b"[" * 100_000,
        lambda data: b"",
        lambda data: b"\xff\xfe",
    ],
)
def test_bytes_in_any_other_form_are_no_study(spoil: object) -> None:
    assert callable(spoil)
    data = parse_study(TEXT).canonical()

    with pytest.raises(ConfigError, match="not in canonical form"):
        study_from_canonical(spoil(data))


def test_a_received_study_with_an_unknown_network_is_refused() -> None:
    data = parse_study(TEXT).canonical().replace(b"medfed-small", b"medfed-tiny!")

    with pytest.raises(ConfigError, match=r"the received study: network\.name.*'medfed-tiny!'"):
        study_from_canonical(data)


# ---- patients ------------------------------------------------------------------------------------
def test_the_hash_puts_the_stated_fractions_of_many_patients_into_each_part() -> None:
    split = Split(rule="hash", test_fraction=0.2, validation_fraction=0.1, salt="tests")
    keys = [f"patient-{number}" for number in range(20_000)]

    parts = [split.part_of(key) for key in keys]

    # Four standard deviations of a binomial share: 4 * sqrt(0.2 * 0.8 / 20000) = 0.0113.
    assert parts.count("test") / len(keys) == pytest.approx(0.2, abs=0.0113)
    assert parts.count("validation") / len(keys) == pytest.approx(0.1, abs=0.0085)
    assert parts == [split.part_of(key) for key in keys]


def test_another_salt_draws_the_test_patients_independently() -> None:
    first, second = (
        Split(rule="hash", test_fraction=0.5, validation_fraction=0.0, salt=salt) for salt in "ab"
    )
    keys = [str(number) for number in range(10_000)]

    both = sum(first.part_of(k) == second.part_of(k) == "test" for k in keys)

    assert both / len(keys) == pytest.approx(0.25, abs=0.018)  # 4 sqrt(0.25 * 0.75 / 10000)


def test_the_part_of_a_patient_never_changes_between_versions() -> None:
    split = Split(rule="hash", test_fraction=0.2, validation_fraction=0.1, salt="x")

    # The first 8 bytes of SHA-256("x|patient-1"), -3 and -5 over 2^64, by `sha256sum`:
    # 8f4697c7c180eeae -> 0.560 (training), 0.291 (validation) and 0.167 (test).
    parts = [split.part_of(f"patient-{number}") for number in (1, 3, 5)]
    assert parts == ["train", "validation", "test"]


def test_a_key_that_is_no_text_never_ends_up_in_an_error() -> None:
    split = Split(rule="hash", test_fraction=0.2, validation_fraction=0.1, salt="x")

    assert split.part_of("M\udcfcller") in ("train", "validation", "test")


def test_the_hash_is_not_asked_where_the_data_set_gives_the_parts() -> None:
    with pytest.raises(ValueError, match='rule = "hash"'):
        Split(rule="given").part_of("patient-1")


# ---- what follows from public numbers ------------------------------------------------------------
def test_steps_are_enough_for_the_epochs_of_declared_patients() -> None:
    study = parse_study(TEXT)

    # Two epochs: A 200 visits in lots of 64 -> 3.125 -> 4. B has 30 patients, so that a step
    # draws all of them: 2 steps, although 60 visits would fit into one lot of 64.
    assert [steps_per_round(study, site) for site in study.site] == [4, 2]
    fixed = parse_study(changed("local_epochs = 2", "local_steps = 7"))
    assert [steps_per_round(fixed, site) for site in fixed.site] == [7, 7]


@given(patients=st.integers(1, 10**9), epochs=st.integers(1, 10_000), batch=st.integers(1, 10**6))
@settings(deadline=None, max_examples=100)
def test_a_patient_is_drawn_at_least_the_epochs_times_and_less_than_one_step_more(
    patients: int, epochs: int, batch: int
) -> None:
    document = tomllib.loads(TEXT)
    document["training"] |= {"local_epochs": epochs, "batch_size": batch}
    document["site"][0]["declared_patients"] = patients
    study = Study.model_validate_json(json.dumps(document))

    visits = steps_per_round(study, study.site[0]) * min(batch, patients)

    assert epochs * patients <= visits < epochs * patients + min(batch, patients)


def test_properties_say_what_the_file_says() -> None:
    study = parse_study(TEXT)

    assert (study.name, study.classes, study.private, study.metric) == ("lungs", 2, True, "auroc")
    assert study.task.positive_index == 1
    first = parse_study(changed('["normal", "pneumonia"]', '["a", "b"]\npositive = "a"'))
    assert first.task.positive_index == 0
    three = changed('["normal", "pneumonia"]', '["a", "b", "c"]').replace(
        "class_weights = [1.0, 2.0]", ""
    )
    assert parse_study(three).metric == "macro_auroc"


def test_an_unlisted_site_is_refused_with_the_sites_that_are_listed() -> None:
    study = parse_study(TEXT)

    assert study.site_named("B").declared_patients == 30
    with pytest.raises(ConfigError, match="site 'D' is not in study 'lungs', which lists A, B"):
        study.site_named("D")


# ---- refusals: file, line or key, what was found, what is allowed --------------------------------
def test_a_typo_in_a_key_names_line_found_and_the_key_that_was_meant() -> None:
    text = changed("rounds = 5", "roundes = 5")

    message = refusal(text)

    line = line_of("roundes", text)
    assert (
        f"lungs.toml, line {line}: training.roundes: unknown key. Did you mean 'rounds'?" in message
    )
    assert "Allowed here: rounds, local_steps, local_epochs" in message
    assert f"line {line_of('[training]', text)}: training.rounds: missing" in message


def test_a_unit_that_is_not_the_keys_own_is_refused() -> None:
    message = refusal(changed("round_deadline_s = 60.0", 'round_deadline = "10 min"'))

    assert "cohort.round_deadline: unknown key. Did you mean 'round_deadline_s'?" in message
    assert '60"' not in message
    line = line_of("round_deadline_s")
    assert (
        f'lungs.toml, line {line}: cohort.round_deadline_s: found "10 min". Input should be a '
        "valid number"
    ) in refusal(changed("round_deadline_s = 60.0", 'round_deadline_s = "10 min"'))


@pytest.mark.parametrize("key", ["unit", "neighbours", "clip_norm", "delta", "scans_per_patient"])
def test_a_missing_privacy_limit_is_named_and_has_no_default(key: str) -> None:
    text = re.sub(rf"\n{key} = .*", "", TEXT)

    message = refusal(text)

    assert f"line {line_of('[privacy]', text)}: privacy: " in message
    assert f'mode = "dp-sgd" needs {key}: privacy limits have no default' in message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # wrong tables
        ("[cohort]", "[cohrt]", ["cohort: missing", "cohrt: unknown key. Did you mean 'cohort'?"]),
        ("# line 1", "surprise = 1 #", ["line 1: surprise: unknown key", "Allowed here: study,"]),
        ("[cohort]", "[a.b]\nc = 1\n[cohort]", ["a: unknown key"]),
        ("[network]", "network.extra = 1\n[network]", ["split.network: unknown key"]),
        ("[network]", "[network.more]\nx = 1\n[network]", ["network.more: unknown key"]),
        ('name = "B"', 'name = "B"\ncity = "X"', ["site.1.city: unknown key", "name, declared_"]),
        # wrong types, nothing is converted
        ("rounds = 5", "rounds = 5.0", ["training.rounds: found 5.0", "valid integer"]),
        ("rounds = 5", 'rounds = "5"', ['training.rounds: found "5"', "valid integer"]),
        ("rounds = 5", "rounds = true", ["training.rounds: found true", "valid integer"]),
        ("delta = 1e-4", 'delta = "1e-4"', ['privacy.delta: found "1e-4"', "valid number"]),
        ("size = [28, 28]", "size = 28", ["scans.size: found 28", "valid array"]),
        ('salt = "tests"', "salt = 2026-01-01", ["split.salt: found", "valid string"]),
        ("[cohort]\n", "[cohort]\nquorum.x = 1\n#", ["quorum"]),
        # out of range
        ("clip_norm = 1.0", "clip_norm = inf", ["privacy.clip_norm: found Infinity", "finite"]),
        ("clip_norm = 1.0", "clip_norm = nan", ["privacy.clip_norm: found NaN", "finite"]),
        ("clip_norm = 1.0", "clip_norm = 0.0", ["found 0.0", "greater than 0"]),
        ("target_epsilon = 8.0", "target_epsilon = -inf", ["privacy.target_epsilon", "finite"]),
        ("learning_rate = 0.5", "learning_rate = nan", ["training.learning_rate: found NaN"]),
        ("[1.0, 2.0]", "[1.0, inf]", ["training.class_weights.1: found Infinity"]),
        ("delta = 1e-4", "delta = 0.5", ["privacy.delta: found 0.5", "less than 0.1"]),
        ("rounds = 5", "rounds = 0", ["training.rounds: found 0", "greater than or equal to 1"]),
        ("rounds = 5", "rounds = " + "9" * 400, ["training.rounds: found 9", "to 100000"]),
        ("declared_patients = 30", "declared_patients = 0", ["site.1.declared_patients: found 0"]),
        ("declared_patients = 30", "declared_patients = 30000000000", ["1000000000"]),
        ('name = "B"', 'name = "B\\n"', ['site.1.name: found "B\\n"', "pattern"]),
        ('name = "B"', 'name = "../B"', ["site.1.name"]),
        ('"normal"', '""', ["task.labels.0"]),
        ('"normal"', '"a\\u0007"', ["task.labels.0"]),
        ('"normal"', '"a\\u009b31m"', ["task.labels.0"]),
        ('"normal"', '"a\\u202egpj"', ["task.labels.0"]),
        ('"normal"', '"a\\u200b"', ["task.labels.0"]),
        ('"normal"', '"a\\u2028b"', ["task.labels.0"]),
        ("channels = 1", 'channels = 1\ngroup_key = "\\u001b[2J"', ["scans.group_key"]),
        ("channels = 1", 'channels = 1\ngroup_key = "a b"', ["scans.group_key", "pattern"]),
        ("channels = 1", 'channels = 1\ngroup_key = ""', ["scans.group_key"]),
        ("channels = 1", "channels = 2", ["scans.channels: found 2", "1 or 3"]),
        ('mode = "dp-sgd"', 'mode = "dp"', ['found "dp"', "'dp-sgd' or 'none'"]),
        ('unit = "patient"', 'unit = "record"', ['found "record"', "'patient'"]),
        # contradictions
        ("size = [28, 28]", "size = [28, 32]", ["scans: found size [28, 32]", "square"]),
        ("local_epochs = 2", "", ["found neither; give one of local_steps and local_epochs"]),
        ("local_epochs = 2", "local_epochs = 2\nlocal_steps = 1", ["found both; give one"]),
        ("target_epsilon = 8.0", "", ["exactly one of target_epsilon and noise_multiplier"]),
        ("delta = 1e-4", "delta = 1e-4\nnoise_multiplier = 1.0", ["found both"]),
        ('mode = "dp-sgd"', 'mode = "none"', ['mode = "none" takes no limits', "clip_norm"]),
        ('rule = "hash"', 'rule = "given"', ['rule = "given" takes no fractions']),
        ('salt = "tests"', "", ['rule = "hash" needs test_fraction, validation_fraction and salt']),
        ("test_fraction = 0.2", "test_fraction = 0.95", ["must be below 1"]),
        ('"normal"', '"pneumonia"', ["labels must differ", "'pneumonia' twice"]),
        ('name = "B"', 'name = "a"', ["two sites have the same name, 'a'"]),
        ("quorum = 2", "quorum = 3", ["cohort.quorum is 3, above the 2 sites"]),
        ("[1.0, 2.0]", "[1.0]", ["training.class_weights has 1 values for 2 labels"]),
        ("medfed-small", "resnet-18", ["network.name", "'resnet-18': unknown. Did you mean"]),
        ("batch_size = 64", 'batch_size = 64\noptimizer = "adam"\nmomentum = 0.9', ["momentum"]),
        ('"pneumonia"]', '"pneumonia"]\npositive = "x"', ["positive is for two classes"]),
        # no TOML
        ("rounds = 5", "rounds = 5\nrounds = 6", ["not valid TOML", "overwrite", "line 19"]),
        ("rounds = 5", "rounds =", ["not valid TOML", "line 18"]),
        ("[cohort]", "[study]", ["not valid TOML", "line"]),
        ('[[site]]\nname = "A"', '[site]\nname = "A"', ["not valid TOML"]),
        ("rounds = 5", "rounds = " + "9" * 5000, ["not valid TOML", "5000 digits"]),
        ("rounds = 5", "rounds = " + "[" * 5000, ["not valid TOML"]),
    ],
)
def test_what_is_wrong_is_refused_with_place_found_and_allowed(
    old: str, new: str, expected: list[str]
) -> None:
    message = refusal(changed(old, new))

    assert message.startswith("lungs.toml")
    for words in expected:
        assert words in message
    assert len(message) < 3000


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("bins = 10\n", "", "evaluation.bins: missing; it has no default"),
        ("bins = 10", "bins = 4", "evaluation.bins: found 4"),
        ("bins = 10", "bins = 201", "evaluation.bins: found 201"),
        ("bins = 10", "bin = 10", "evaluation.bin: unknown key. Did you mean 'bins'?"),
        ("bins = 10", "bins = 25", "found threshold 0.5, which is no edge between two of 25 bins"),
        ("test = true", "threshold = 0.55", "take 0.5, or another number of bins"),
        ("every = 2", "every = 6", "evaluation.every is 6, above the 5 rounds of training"),
        ("every = 2\ntest = true\n", "", "ask for no histogram: leave the table out"),
        (
            "target_epsilon = 2.0\n",
            "",
            "exactly one of target_epsilon and noise_multiplier, found n",
        ),
        ("target_epsilon = 2.0", "target_epsilon = 2.0\nnoise_multiplier = 1.0", "found both"),
        (
            "target_epsilon = 2.0",
            "noise_multiplier = 0.0",
            "evaluation.noise_multiplier: found 0.0",
        ),
        ("validation_fraction = 0.1", "validation_fraction = 0.0", "needs validation patients"),
        ("test_fraction = 0.2", "test_fraction = 0.0", "evaluation.test needs test patients"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_with_what_is_allowed(
    old: str, new: str, expected: str
) -> None:
    assert expected in refusal(with_evaluation(old, new))


def test_without_privacy_no_histogram_is_asked_for() -> None:
    before, _, rest = with_evaluation().partition("[privacy]")
    after = rest.partition("[evaluation]")[2]

    message = refusal(f'{before}[privacy]\nmode = "none"\n[evaluation]{after}')

    assert 'evaluation needs privacy.mode = "dp-sgd"' in message


@pytest.mark.parametrize(
    ("every", "expected"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4]), (5, [5])]
)
def test_validation_patients_are_asked_after_every_so_many_rounds(
    every: int, expected: list[int]
) -> None:
    study = parse_study(with_evaluation("every = 2", f"every = {every}"))

    assert list(study.validation_rounds) == expected  # of 5 rounds
    assert list(parse_study(TEXT).validation_rounds) == []


def test_the_templates_evaluation_table_is_valid_once_it_is_uncommented() -> None:
    template = (Path(study_module.__file__).parent / "study_template.toml").read_text()
    begin = template.index("# [evaluation]")
    table, rest = template[begin:].split("[strategy]", 1)
    active = "\n".join(line.removeprefix("# ") for line in table.splitlines() if line[0] == "#")

    study = parse_study(f"{template[:begin]}{active}\n[strategy]{rest}")

    assert study.evaluation is not None
    assert set(study.evaluation.model_fields_set) == set(Evaluation.model_fields) - {
        "noise_multiplier"  # instead of target_epsilon
    }


def test_all_mistakes_are_told_at_once() -> None:
    message = refusal(changed("rounds = 5", "rounds = 0").replace("quorum = 2", "quorum = -1"))

    assert f"line {line_of('rounds')}: training.rounds: found 0" in message
    assert f"line {line_of('quorum')}: cohort.quorum: found -1" in message


def test_a_mistake_at_the_second_site_is_found_in_its_own_lines() -> None:
    text = TEXT.replace("declared_patients", '"declared_patients"', 1)
    text = text.replace("declared_patients = 30", "declared_patients = 3.5")

    assert f"line {line_of('declared_patients', text)}: site.1.declared_patients" in refusal(text)


def test_the_file_is_read_and_named(tmp_path: Path) -> None:
    path = tmp_path / "lungs.toml"
    path.write_text(TEXT)
    assert load_study(path) == parse_study(TEXT)

    path.write_text(changed("rounds = 5", "rounds = 0"))
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}, line 18: training.rounds"):
        load_study(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b""])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "lungs.toml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigError, match=re.escape(str(path))) as caught:
        load_study(path)
    assert "Traceback" not in str(caught.value)


@given(st.text(max_size=200))
@settings(deadline=None, max_examples=100)
def test_no_text_whatever_gives_another_error_than_a_config_error(noise: str) -> None:
    with pytest.raises(ConfigError):
        parse_study(noise + "\n[nothing]\n")


def test_a_study_cannot_be_changed_after_it_was_checked() -> None:
    study = parse_study(TEXT)

    with pytest.raises(ValueError, match="frozen"):
        study.privacy.clip_norm = math.inf  # type: ignore[misc]  # the point of the test
