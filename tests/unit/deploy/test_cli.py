"""The command line as a whole: help, exit codes, messages without tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer

from medfed.deploy.cli import app
from tests.support.sites import STUDY, write_scans

MEDFED = (sys.executable, "-m", "medfed.deploy.cli")
HEAVY = ("torch", "flwr", "opacus", "pydicom", "numpy", "grpc", "sklearn", "pydantic")


def medfed(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MEDFED, *arguments], capture_output=True, text=True, timeout=240, cwd=cwd
    )


def commands() -> list[tuple[str, ...]]:
    """The words of every command there is."""

    def below(command: click.Command, words: tuple[str, ...]) -> list[tuple[str, ...]]:
        if not isinstance(command, click.Group):
            return [words]
        return [w for n, c in command.commands.items() for w in below(c, (*words, n))]

    return below(typer.main.get_command(app), ())


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    probe = (
        "import sys; sys.argv = ['medfed', '--help']\n"
        "from medfed.deploy.cli import main\n"
        "try: main()\n"
        f"finally: print('LOADED', [m for m in {HEAVY} if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)

    assert "LOADED []" in done.stdout, done.stdout + done.stderr
    for words in commands():
        assert words[0] in done.stdout


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_has_help_with_an_example(words: tuple[str, ...]) -> None:
    command = typer.main.get_command(app)
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]

    assert "Example:" in (command.help or ""), words
    assert " ".join(["medfed", *words]) in (command.help or "").replace("\n", " ")


def test_the_readme_names_only_commands_that_exist() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    known = {" ".join(["medfed", *words]) for words in commands()}
    lines = [line.strip() for line in readme.splitlines() if line.startswith("medfed ")]

    assert lines
    for line in lines:
        assert any(line.startswith(command) for command in known), line


def test_a_wrong_option_is_usage_and_exits_2() -> None:
    done = medfed("simulate", "--no-such-option")

    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("rounds = 2", "ruonds = 2"), ("ruonds", "Did you mean 'rounds'")),
        (("delta = 1e-3\n", ""), ("delta", "no default")),
        (('unit = "patient"', 'unit = "scan"'), ("privacy.unit", '"scan"', "patient")),
        (("rounds = 2", 'rounds = "two"'), ("training.rounds", '"two"')),
    ],
)
def test_a_wrong_study_exits_10_and_names_file_line_found_and_allowed(
    tmp_path: Path, change: tuple[str, str], says: tuple[str, ...]
) -> None:
    assert change[0] in STUDY
    study = tmp_path / "study.toml"
    study.write_text(STUDY.replace(*change))

    done = medfed("study", "show", str(study))

    assert done.returncode == 10
    for text in (*says, "study.toml", "Next step:"):
        assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hostile_study_cannot_write_into_the_terminal(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(STUDY.replace('"dark"', '"dark\\u009b2J\\u202e"'))

    done = medfed("study", "show", str(study))

    assert done.returncode == 10
    assert "\x9b" not in done.stderr and "\u202e" not in done.stderr


def test_unreadable_and_empty_scans_exit_16(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(STUDY)
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.npz").write_bytes(b"no scans")

    for data, says in [("empty", "empty"), ("no.npz", "cannot be read"), ("away", "cannot")]:
        done = medfed("simulate", str(study), "--data", data, cwd=tmp_path)
        assert done.returncode == 16, (data, done.stderr)
        assert says in done.stderr and "Next step:" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "medfed-results").exists()


def test_simulate_prints_its_figures_last_and_writes_model_and_page(tmp_path: Path) -> None:
    study, scans = tmp_path / "study.toml", write_scans(tmp_path / "scans.npz")
    study.write_text(STUDY)

    done = medfed("simulate", str(study), "--data", str(scans), "--seeds", "2", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    name, value = done.stdout.strip().splitlines()[-1].split(": ")
    assert name == "two_labels_auroc" and 0.0 <= float(value) <= 1.0
    written = tmp_path / "medfed-results" / "two_labels"
    assert {p.name for p in written.iterdir()} == {"model.safetensors", "report.html"}
    assert "never to be released" in (written / "report.html").read_text()


def test_results_that_cannot_be_written_exit_10(tmp_path: Path) -> None:
    study, scans = tmp_path / "study.toml", write_scans(tmp_path / "scans.npz")
    study.write_text(STUDY)

    done = medfed("simulate", str(study), "--data", str(scans), "--out", str(scans))

    assert done.returncode == 10 and "--out" in done.stderr and "Traceback" not in done.stderr


def test_a_key_without_a_sites_name_is_not_enrolled_under_its_file_name(tmp_path: Path) -> None:
    # Found by a stranger: `enrol approve site-A/keys/node_key.pub` enrolled a site "node_key".
    done = medfed("enrol", "approve", str(tmp_path / "node_key.pub"))

    assert done.returncode == 10 and "--site NAME" in done.stderr


def test_json_output_is_json(tmp_path: Path) -> None:
    study, scans = tmp_path / "study.toml", write_scans(tmp_path / "scans.npz")
    study.write_text(STUDY)

    simulated = medfed(
        "simulate", str(study), "--data", str(scans), "--format", "json", cwd=tmp_path
    )
    shown = medfed("study", "show", str(study), "--format", "json")

    assert json.loads(simulated.stdout)["outcome"] == "finished"
    assert len(json.loads(shown.stdout)["digest"]) == 64


def test_a_shown_study_says_what_becomes_of_scans_and_warns_of_flips(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(STUDY)
    plain = medfed("study", "show", str(study))
    study.write_text(f"{STUDY}[augmentation]\nflip_left_right = true\n")

    flipped = medfed("study", "show", str(study))
    as_json = medfed("study", "show", str(study), "--format", "json")

    assert "  scans    any modality, any view; each file is a scan" in plain.stdout
    assert "  varied   no\n" in plain.stdout and "Warning" not in plain.stdout
    assert "  prepared grey levels by the header's window; resized to" in flipped.stdout
    assert "  varied   in training mirrored left to right" in flipped.stdout
    assert "  Warning: flip_left_right mirrors about half" in flipped.stdout
    (warning,) = json.loads(as_json.stdout)["warnings"]
    assert warning in flipped.stdout


def test_a_new_study_is_valid_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "new.toml"

    assert medfed("study", "new", str(path)).returncode == 0
    assert medfed("study", "show", str(path)).returncode == 0
    path.write_text("mine")
    again = medfed("study", "new", str(path))
    assert again.returncode == 10 and path.read_text() == "mine"


def test_a_folder_that_may_not_be_read_exits_16(tmp_path: Path) -> None:
    """Root may read everything, so root becomes nobody first."""
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "worklist.csv").write_text("file,label\n")
    scans.chmod(0)
    probe = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from medfed.client.scans.read import read_scans\n"
        "from medfed.common.errors import ScanError\n"
        "from medfed.common.study import parse_study\n"
        "study = parse_study(sys.argv[2])\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: read_scans(Path(sys.argv[1]), study)\n"
        "except ScanError as error: print(error); sys.exit(error.exit_code)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", probe, str(scans), STUDY], capture_output=True, text=True
    )

    assert done.returncode == 16, done.stderr
    assert "cannot be read" in done.stdout and "Next step:" in done.stdout
