"""The commands of enrolment, from the coordinator's first to a renewed site."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from medfed.common.errors import ConfigError, MedfedError, TrustError
from medfed.deploy.cli import app as medfed_program
from medfed.deploy.cli.enrol import app
from tests.support.enrolling import SERVER, bare_site


def run(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, MedfedError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def facts(*words: object) -> Any:
    return json.loads(run(*words, "--format", "json"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    facts("init", "--server", SERVER, "--folder", tmp_path / "c")
    return tmp_path / "c"


def test_two_files_and_two_fingerprints_let_a_site_in(tmp_path: Path, folder: Path) -> None:
    root = bare_site(tmp_path)

    asked = facts("request", "--root", root)
    approved = facts("approve", asked["file"], "--folder", folder)
    accepted = facts(
        *("accept", approved["file"], "--root", root, "--fingerprint", approved["fingerprint"])
    )

    assert asked["fingerprint"] == approved["key_fingerprint"]
    assert accepted["expires"] == approved["expires"]
    assert [one["state"] for one in facts("list", "--folder", folder)] == ["good"]


def test_a_renewal_and_a_rotation_need_no_fingerprint(tmp_path: Path, folder: Path) -> None:
    root = bare_site(tmp_path)
    asked = facts("request", "--root", root)
    first = facts("approve", asked["file"], "--folder", folder)
    run("accept", first["file"], "--root", root, "--fingerprint", first["fingerprint"])

    (renewed,) = facts("rotate", "--folder", folder)["sites"]
    run("accept", renewed["file"], "--root", root)
    rotated = facts("rotate", "--root", "--folder", folder)
    accepted = facts("accept", rotated["sites"][0]["file"], "--root", root)

    assert accepted["fingerprint"] == rotated["fingerprint"] != first["fingerprint"]
    text = run("list", "--folder", folder)
    assert text.count(" good ") == 3  # the first, the renewed and the rotated one


def test_revoking_tells_what_goes_to_the_server(tmp_path: Path, folder: Path) -> None:
    asked = facts("request", "--root", bare_site(tmp_path))
    run("approve", asked["file"], "--folder", folder)

    done = facts("revoke", "A", "--folder", folder)
    made = facts("server-bundle", "--folder", folder)

    assert len(done["serials"]) == 1
    assert (Path(made["folder"]) / "revocations.json").exists()
    assert list((Path(made["folder"]) / "sites").iterdir()) == []


def test_a_role_gives_access(tmp_path: Path, folder: Path) -> None:
    to = tmp_path / "ada"

    run("role", "Ada", "--role", "coordinator", "--to", to, "--folder", folder)

    assert {path.name for path in to.iterdir()} == {"ca.pem", "client.pem", "client.key"}
    with pytest.raises(ConfigError, match="allowed are coordinator, observer"):
        run("role", "Eve", "--role", "king", "--to", to, "--folder", folder)


def test_a_wrong_fingerprint_ends_with_the_code_of_trust(tmp_path: Path, folder: Path) -> None:
    root = bare_site(tmp_path)
    approved = facts("approve", facts("request", "--root", root)["file"], "--folder", folder)

    with pytest.raises(TrustError) as caught:
        run("accept", approved["file"], "--root", root, "--fingerprint", "AAAA-AAAA-AAAA-AAAA")
    assert caught.value.exit_code == 15
    with pytest.raises(TrustError, match="ask the coordinator by phone for the fingerprint"):
        run("accept", approved["file"], "--root", root)


def test_two_ways_to_rotate_at_once_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--site cannot be given"):
        run("rotate", "--root", "--site", "A", "--folder", folder)


def test_every_command_has_help_with_an_example() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)

    assert set(group.commands) == {
        *("init", "request", "approve", "accept", "revoke", "rotate", "list"),
        *("server-bundle", "role"),
    }
    for name, command in group.commands.items():
        assert f"Example: medfed enrol {name}" in (command.help or "")


def test_nothing_heavy_is_loaded_before_a_command_runs() -> None:
    probe = (
        "import sys, medfed.deploy.cli.enrol; print({'pydantic', 'cryptography'} & {*sys.modules})"
    )

    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_a_public_key_goes_to_the_running_server_and_a_request_does_not(
    tmp_path: Path, folder: Path
) -> None:
    root = bare_site(tmp_path)
    key, request = root / "keys" / "node_key.pub", facts("request", "--root", root)["file"]

    with pytest.raises(ConfigError, match="no-access: is not a complete coordinator folder"):
        run("approve", key, "--site", "A", "--access", tmp_path / "no-access", "--folder", folder)
    assert facts("approve", request, "--access", tmp_path / "none", "--folder", folder)["site"]


def test_the_program_has_one_group_of_these_commands() -> None:
    program = typer.main.get_command(medfed_program)
    assert isinstance(program, click.Group)

    assert set(program.commands["enrol"].commands) == {  # type: ignore[attr-defined]  # a group
        command.name or command.callback.__name__.strip("_")  # type: ignore[union-attr]  # named
        for command in app.registered_commands
    }
