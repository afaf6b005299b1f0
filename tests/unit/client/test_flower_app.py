"""A deployed site: its policy is asked at every round, and a promise to patients is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from medfed.client.approvals import approve
from medfed.client.flower_app import open_session, refuse, reply_content
from medfed.client.noise import SecretRandomness
from medfed.client.session import RoundRequest
from medfed.common.errors import ScanError, TrustError
from medfed.common.networks.parameters import network_for, parameters_of
from medfed.common.updates import decode, encode, shapes_of
from tests.support.sites import make_ready_site, make_site, make_study

STUDY = make_study()


def start() -> bytes:
    return encode(parameters_of(network_for(STUDY)))


def ask(round_: int = 1) -> RoundRequest:
    return RoundRequest(STUDY.digest, "run-1", round_, start())


def test_a_deployed_site_trains_with_secret_randomness_and_a_durable_ledger(
    tmp_path: Path,
) -> None:
    site = make_ready_site(tmp_path)
    session = open_session(site.folder)

    released = session.answer(ask())

    assert released.payload is not None
    assert type(session.randomness_for(None)) is SecretRandomness  # type: ignore[arg-type]  # ignores its key
    on_disk = sum(f.stat().st_size for f in site.folder.glob("ledger.db*"))  # SQLite's log too
    assert on_disk > len(released.payload)
    assert open_session(site.folder).answer(ask()).payload == released.payload


@pytest.mark.parametrize(
    "narrowed",
    [("epsilon_limit = 50.0", "epsilon_limit = 0.1"), ("delta_limit = 1e-2", "delta_limit = 1e-9")],
)
def test_limits_that_were_narrowed_after_the_approval_hold_at_once(
    tmp_path: Path, narrowed: tuple[str, str]
) -> None:
    # Found by an attack: the policy was asked when a study was approved and never again.
    site = make_ready_site(tmp_path)
    session = open_session(site.folder)
    assert session.answer(ask()).payload is not None
    settings = site.folder / "site.toml"
    settings.write_text(settings.read_text().replace(*narrowed))

    assert session.answer(ask(2)).code == "not-approved"


def test_withdrawn_leave_to_train_without_privacy_holds_at_once(tmp_path: Path) -> None:
    study = make_study(
        (
            '"dp-sgd"\nunit = "patient"\nneighbours = "add-or-remove-one"\nclip_norm = 1.0\n'
            "noise_multiplier = 1.0\ndelta = 1e-3\nscans_per_patient = 1",
            '"none"',
        )
    )
    site = make_site(tmp_path, limits="")
    settings = site.folder / "site.toml"
    settings.write_text(settings.read_text().replace("no_privacy = false", "no_privacy = true"))
    approve(replace(site, settings=replace_policy(site.settings)), study)
    session = open_session(site.folder)
    request = RoundRequest(study.digest, "run-1", 1, start())
    assert session.answer(request).payload is not None
    settings.write_text(settings.read_text().replace("no_privacy = true", "no_privacy = false"))

    assert session.answer(replace(request, round=2)).code == "not-approved"


def replace_policy(settings):  # type: ignore[no-untyped-def]  # a pydantic copy
    policy = settings.policy.model_copy(update={"allow_no_privacy": True})
    return settings.model_copy(update={"policy": policy})


def test_scans_without_patients_cannot_keep_a_promise_to_patients(tmp_path: Path) -> None:
    # Found by an attack: each image was protected, and the admin was told each patient was.
    study = make_study(('group_key = "patient"\n', ""))
    site = make_ready_site(tmp_path, study)

    with pytest.raises(ScanError, match="protects patients"):
        open_session(site.folder)


def test_flowers_own_executor_is_refused() -> None:
    with pytest.raises(TrustError, match="only in the worker"):
        refuse(None, None)  # type: ignore[arg-type]  # never looked at


def test_a_message_becomes_a_reply(tmp_path: Path) -> None:

    content = RecordDict(
        {
            "round": ConfigRecord({"digest": STUDY.digest, "run": "run-1", "round": 1}),
            "model": ArrayRecord({"bytes": Array(np.frombuffer(start(), np.uint8))}),
        }
    )

    reply = reply_content(open_session(make_ready_site(tmp_path).folder), content)

    update = reply.array_records["update"]["bytes"].numpy().tobytes()
    decode(update, shapes_of(parameters_of(network_for(STUDY))), who="site A")
    assert list(reply.config_records) == [] and list(reply.metric_records) == []
