"""A deployed site: its policy is asked at every round, and a promise to patients is kept."""

from __future__ import annotations

import datetime
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from medfed.client.approvals import approve, withdraw
from medfed.client.flower_app import open_session, permitted_study, refuse, reply_content
from medfed.client.noise import SecretRandomness
from medfed.client.session import RoundRequest
from medfed.client.site_root import SiteRoot, open_ledger
from medfed.common.errors import (
    ApprovalError,
    LedgerMismatchError,
    NotNowError,
    ScanError,
    TrustError,
)
from medfed.common.networks.parameters import network_for, parameters_of
from medfed.common.trust.ledger_head import Head, HeadSigner
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


def test_scans_that_lost_their_patients_cannot_keep_a_promise_to_patients(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)
    with np.load(site.scans) as arrays:
        np.savez(site.scans, images=arrays["images"], labels=arrays["labels"])

    with pytest.raises(ScanError, match="patient"):
        open_session(site.folder)


def test_flowers_own_executor_is_refused() -> None:
    with pytest.raises(TrustError, match="only in the worker"):
        refuse(None, None)  # type: ignore[arg-type]  # never looked at


def message(round_: int = 1, *, purpose: str = "train", known: Head | None = None) -> RecordDict:
    content = RecordDict(
        {
            "round": ConfigRecord(
                {"digest": STUDY.digest, "run": "run-1", "round": round_, "purpose": purpose}
            ),
            "model": ArrayRecord({"bytes": Array(np.frombuffer(start(), np.uint8))}),
        }
    )
    if known is not None:
        content["head"] = ConfigRecord(known._asdict())
    return content


def test_a_message_becomes_a_reply(tmp_path: Path) -> None:
    session = open_session(make_ready_site(tmp_path).folder)

    reply = reply_content(session, message())

    update = reply.array_records["release"]["bytes"].numpy().tobytes()
    decode(update, shapes_of(parameters_of(network_for(STUDY))), who="site A")
    assert dict(reply.config_records["head"]) == session.ledger.head._asdict()
    assert list(reply.config_records) == ["head"] and list(reply.metric_records) == []


def test_a_head_that_the_server_sends_is_held_against_the_ledger(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)
    session = open_session(site.folder)
    known = session.ledger.head
    ahead = HeadSigner(site.node_key).sign(99, "a" * 64)

    assert "release" in reply_content(session, message(known=known)).array_records
    for head, code in ((known._replace(hash="x"), "wrong-message"), (ahead, "ledger-mismatch")):
        reply = reply_content(session, message(2, known=head))
        assert dict(reply.config_records["fact"]) == {"code": code}
        assert list(reply.array_records) == []


def test_what_the_admin_does_with_commands_holds_for_a_site_that_runs(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)
    session = open_session(site.folder)
    assert session.answer(ask()).payload is not None

    withdraw(site, STUDY.digest)  # as `medfed site withdraw` does, in another process

    assert session.answer(ask(2)).code == "not-approved"
    assert session.answer(ask()).code == "not-approved"  # nor are old bytes sent again


def test_a_site_whose_ledger_was_put_back_does_not_start(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)
    copy = {file.name: file.read_bytes() for file in site.folder.glob("ledger.db*")}
    open_session(site.folder).answer(ask())
    for file in site.folder.glob("ledger.db*"):
        file.unlink()
    for name, content in copy.items():
        (site.folder / name).write_bytes(content)

    with pytest.raises(LedgerMismatchError, match="put back from a backup"):
        open_session(site.folder)


# ---- the policy at every round -------------------------------------------------------------------
def edit(site: SiteRoot, old: str, new: str) -> None:
    settings = site.folder / "site.toml"
    assert old in settings.read_text()
    settings.write_text(settings.read_text().replace(old, new))


def test_a_pause_holds_from_the_next_round_on_and_ends_without_a_restart(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)
    session = open_session(site.folder)
    edit(site, "[policy]\n", "[policy]\npause = true\n")

    assert session.answer(ask()).code == "refused-by-policy"
    edit(site, "pause = true", "pause = false")
    assert session.answer(ask()).payload is not None


def test_a_site_that_pauses_starts_and_waits(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)
    edit(site, "[policy]\n", "[policy]\npause = true\n")

    session = open_session(site.folder)

    assert session.answer(ask()).code == "refused-by-policy"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("rounds_limit = 1", "not-approved"),
        ('studies = ["others"]', "not-approved"),
        ('networks = ["cnn28"]', "not-approved"),
        ("minimum_patients = 41", "not-approved"),  # 40 are declared
        ('rounds_limit = 2\nstudies = ["two_labels"]\nnetworks = ["medfed-small"]', None),
        ("minimum_patients = 40\ngpu = false\ncpu_threads = 1", None),
    ],
)
def test_every_limit_is_asked_at_every_round(tmp_path: Path, line: str, code: str | None) -> None:
    site = make_ready_site(tmp_path)
    session = open_session(site.folder)
    edit(site, "[policy]\n", f"[policy]\n{line}\n")

    assert session.answer(ask()).code == code


def test_hours_are_the_machines_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, noon = make_ready_site(tmp_path), datetime.datetime(2027, 7, 1, 12, tzinfo=datetime.UTC)
    edit(site, "[policy]\n", '[policy]\nhours = "20:00-06:00"\n')
    monkeypatch.setenv("TZ", "Asia/Tokyo")  # 12:00 UTC is 21:00 there

    try:
        time.tzset()
        assert permitted_study(site.folder, STUDY.digest, open_ledger(site), at=noon) == STUDY
        monkeypatch.setenv("TZ", "UTC")
        time.tzset()
        with pytest.raises(NotNowError, match="no round at 12:00"):
            permitted_study(site.folder, STUDY.digest, open_ledger(site), at=noon)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_approved_study_is_trained_until_its_last_day_is_over(tmp_path: Path) -> None:
    study = make_study(("[task]", "expires = 2099-12-31\n[task]"))
    site = make_ready_site(tmp_path, study)
    last = datetime.datetime(2099, 12, 31, 23, 59, tzinfo=datetime.UTC)

    assert permitted_study(site.folder, study.digest, open_ledger(site), at=last) == study
    with pytest.raises(ApprovalError, match="expired: its last day was 2099-12-31"):
        permitted_study(
            site.folder, study.digest, open_ledger(site), at=last + datetime.timedelta(minutes=1)
        )


def test_an_approved_study_is_not_trained_once_a_newer_serial_was_approved(tmp_path: Path) -> None:
    site = make_ready_site(tmp_path)
    session = open_session(site.folder)
    newer = make_study(("[task]", f'serial = 2\nsupersedes = "{STUDY.digest}"\n[task]'))
    approve(site, newer)

    assert session.answer(ask()).code == "not-approved"
    assert session.answer(replace(ask(), digest=newer.digest)).payload is not None
    withdraw(site, newer.digest)
    assert session.answer(ask(2)).code == "not-approved"  # a withdrawal does not bring it back


def test_threads_are_those_of_the_policy_from_the_next_round_on(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    site = make_ready_site(tmp_path)
    session = open_session(site.folder)
    try:
        edit(site, "[policy]\n", "[policy]\ncpu_threads = 1\n")
        session.answer(ask())
        assert torch.get_num_threads() == 1
        edit(site, "cpu_threads = 1\n", "")
        session.answer(ask(2))
        assert torch.get_num_threads() == len(os.sched_getaffinity(0))
    finally:
        torch.set_num_threads(before)


def test_a_gpu_that_may_not_be_used_any_more_is_left_and_scans_are_made_ready_anew(
    tmp_path: Path,
) -> None:
    site = make_ready_site(tmp_path)
    session = open_session(site.folder)
    assert session.prefer_device == "auto"
    ready = session._ready[STUDY.digest]  # what is warm cannot be seen from outside
    session.answer(ask())
    assert session._ready[STUDY.digest] is ready
    edit(site, "[policy]\n", "[policy]\ngpu = false\n")

    assert session.answer(ask(2)).payload is not None
    assert session.prefer_device == "cpu"
    assert session._ready[STUDY.digest] is not ready
