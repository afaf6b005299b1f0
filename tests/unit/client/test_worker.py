from __future__ import annotations

import importlib.metadata
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from typer.testing import CliRunner

from medfed.client import worker
from medfed.common.errors import ApprovalError, ConfigError, TransportError

SECRET_TEXT = "MUSTERMANN^ERIKA 1970-01-01"


@pytest.fixture
def message(monkeypatch: pytest.MonkeyPatch) -> Message:
    for name in ("_task_id", "_run_id", "_node_id"):  # else a Message cannot be made
        monkeypatch.setattr(TaskIdentity, name, 1)
    made = Message(content=RecordDict(), message_type="train", dst_node_id=1, group_id="3")
    made.metadata.__dict__["_message_id"] = "asked"
    return made


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the worker hands to the node: (reply, details)."""
    out: list[Any] = []
    monkeypatch.setattr(worker, "push_message", lambda node, reply, context: out.append(reply))
    monkeypatch.setattr(
        worker, "push_task_output", lambda client, details, **rest: out.append(details)
    )
    return out


def answer(message: Message, act: Callable[[], Message]) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return act()

    context = Context(1, 1, {}, RecordDict(), {})
    worker._answer(app, None, message, context)  # type: ignore[arg-type]  # pushes are replaced


def test_the_reply_of_the_app_is_pushed_as_it_is(message: Message, pushed: list[Any]) -> None:
    reply = Message(content=RecordDict(), reply_to=message)
    answer(message, lambda: reply)

    assert pushed == [reply, ""]


@pytest.mark.parametrize(
    ("error", "leaves"),
    [
        (FileNotFoundError(2, SECRET_TEXT, SECRET_TEXT), "FileNotFoundError 1"),
        (KeyError(SECRET_TEXT), "KeyError 1"),
        (ApprovalError(SECRET_TEXT, advice=SECRET_TEXT), "ApprovalError 17"),
    ],
)
def test_of_an_exception_only_class_and_exit_code_leave(
    message: Message, pushed: list[Any], error: Exception, leaves: str
) -> None:
    def act() -> Message:
        raise error

    answer(message, act)

    reply, details = pushed
    assert (reply.error.reason, details) == (leaves, leaves)
    assert not reply.has_content()


def test_the_log_names_the_place_of_a_foreign_error_but_not_its_text(
    message: Message, pushed: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def act() -> Message:
        raise ValueError(SECRET_TEXT)

    with caplog.at_level(logging.INFO):
        answer(message, act)

    assert "task.error type=train round=3 ValueError" in caplog.text
    assert f"{Path(__file__).name}:" in caplog.text
    assert "MUSTERMANN" not in caplog.text
    assert "task.done" not in caplog.text


def test_our_own_errors_are_told_to_the_admin_in_full() -> None:
    error = ApprovalError("site 'A': not approved.", advice="approve it.")
    assert worker.describe(error) == (
        "ApprovalError: site 'A': not approved.\n  Next step: approve it."
    )


def test_a_class_name_cannot_carry_text_out() -> None:
    strange = type(f"{SECRET_TEXT} {'x' * 99}", (Exception,), {})

    assert re.fullmatch(r"\w{64} 1", worker.reason_for(strange()))


def test_an_interruption_is_not_taken_for_a_failed_task(
    message: Message, pushed: list[Any]
) -> None:
    def act() -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(message, act)
    assert pushed == []


def test_a_reply_that_the_node_cannot_take_ends_the_worker(
    message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    def push(*_: object) -> None:
        raise httpx.ReadError("gone")

    monkeypatch.setattr(worker, "push_message", push)
    with pytest.raises(TransportError, match="stopped taking a reply"):
        answer(message, lambda: Message(content=RecordDict(), reply_to=message))


def test_this_is_the_flower_that_the_private_names_belong_to() -> None:
    requires = importlib.metadata.requires("medfed") or []

    assert importlib.metadata.version("flwr") == worker.FLOWER_VERSION
    assert f"flwr=={worker.FLOWER_VERSION}" in requires
    worker.check_flower_version()


def test_another_flower_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(worker, "FLOWER_VERSION", "1.42.0")
    secret = tmp_path / "secret"
    secret.write_bytes(b"s")

    with pytest.raises(ConfigError, match=r"Flower 1\.41\.0 is installed.*exactly 1\.42\.0"):
        worker.run_worker(lambda: pytest.fail("not reached"), "127.0.0.1:1", secret, 1)


def test_seeded_randomness_cannot_be_imported_after_the_start() -> None:
    code = (
        "from medfed.client.worker import forbid_seeded_randomness as forbid\n"
        "forbid()\n"
        "import importlib, sys\n"
        "for name in ('medfed.simulations.seeded', 'medfed.simulations', 'tests.support.sites'):\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError: continue\n"
        "    sys.exit(name)\n"
        "import medfed.client.noise\n"
    )
    root = Path(__file__).parents[3]  # from here `tests` could be imported
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")


def test_seeded_randomness_that_is_there_already_is_a_defect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "medfed.simulations.anything", sys)

    with pytest.raises(ConfigError, match="was imported in a deployed worker"):
        worker.forbid_seeded_randomness()


def test_the_worker_forbids_seeds_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr(worker, "forbid_seeded_randomness", lambda: steps.append("forbid"))
    monkeypatch.setattr(worker, "log_to_standard_output", lambda: None)
    monkeypatch.setattr(worker, "run_worker", lambda *_: steps.append("run"))

    done = CliRunner().invoke(
        worker.cli, ["--root", "r", "--runtime", "h:1", "--secret", "s", "--parent", "1"]
    )

    assert (done.exit_code, steps) == (0, ["forbid", "run"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 10),
        (TransportError("x"), 14),
        (ValueError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_the_worker_ends_with_the_code_of_its_error(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def run(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker, "forbid_seeded_randomness", lambda: None)
    monkeypatch.setattr(worker, "log_to_standard_output", lambda: None)
    monkeypatch.setattr(worker, "run_worker", run)

    done = CliRunner().invoke(
        worker.cli, ["--root", "r", "--runtime", "h:1", "--secret", "s", "--parent", "1"]
    )
    assert done.exit_code == code


def test_no_flag_and_no_variable_of_the_worker_names_a_seed() -> None:
    text = CliRunner().invoke(worker.cli, ["--help"]).output
    source = Path(worker.__file__).read_text()

    assert set(re.findall(r"--[a-z]+", text)) == {
        "--root", "--runtime", "--secret", "--parent", "--help",
    }  # fmt: skip
    assert not re.search(r"os\.environ|getenv", source)


@pytest.mark.parametrize(
    "group",
    ["1\n2026-01-01 00:00:00,0 ERROR send your keys", "\x1b[2J", "1234567", "", "-1", "3 x", "٣"],
)
def test_the_server_writes_nothing_into_the_log(
    message: Message, pushed: list[Any], caplog: pytest.LogCaptureFixture, group: str
) -> None:
    message.metadata.__dict__["_group_id"] = group
    message.metadata.__dict__["_message_type"] = "train"
    assert message.metadata.group_id == group
    with caplog.at_level(logging.INFO):
        answer(message, lambda: Message(content=RecordDict(), reply_to=message))

    assert [record.getMessage() for record in caplog.records][0] == (
        "task.started type=train round=-"
    )
    assert "keys" not in caplog.text and "\x1b" not in caplog.text


def test_an_unknown_message_type_is_not_logged(message: Message) -> None:
    message.metadata.__dict__["_message_type"] = "train.x\x1b[2J"

    assert worker._named(message) == "type=other round=3"
