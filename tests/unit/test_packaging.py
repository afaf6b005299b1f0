"""What is on disk is in the package: a forgotten folder is missing from a wheel without a word."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("common", "server", "client", "simulations", "deploy")

NOT_DATA = {".py", ".pyi", ".pyc", ".typed", ".proto"}
"""Endings of what is listed elsewhere, or not read when medfed runs."""


def packages_on_disk(root: Path) -> set[str]:
    return {
        "medfed." + ".".join(init.parent.relative_to(root).parts)
        for folder in FOLDERS
        for init in (root / folder).rglob("__init__.py")
    }


def folders_without_init(root: Path) -> set[str]:
    """Folders with Python in them or below them that are no package."""
    missing = set()
    for folder in FOLDERS:
        for file in (root / folder).rglob("*.py"):
            for parent in file.relative_to(root).parents:
                if parent != Path(".") and not (root / parent / "__init__.py").exists():
                    missing.add(parent.as_posix())
    return missing


def unlisted_data(root: Path, listed: dict[str, list[str]]) -> set[str]:
    """Files that are no Python and that no pattern of the package data takes."""
    found = set()
    for folder in FOLDERS:
        for file in (root / folder).rglob("*"):
            if not file.is_file() or file.suffix in NOT_DATA or "__pycache__" in file.parts:
                continue
            taken = any(
                file in (root / package.removeprefix("medfed.").replace(".", "/")).glob(pattern)
                for package, patterns in listed.items()
                if package != "*"
                for pattern in patterns
            )
            if not taken:
                found.add(file.relative_to(root).as_posix())
    return found


@pytest.fixture(scope="module")
def setuptools() -> dict[str, object]:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    settings: dict[str, object] = config["tool"]["setuptools"]
    return settings


def test_every_package_is_listed_in_pyproject(setuptools: dict[str, object]) -> None:
    listed = setuptools["packages"]

    assert isinstance(listed, list)
    assert set(listed) == packages_on_disk(ROOT)
    assert len(listed) == len(set(listed))


def test_every_folder_with_python_is_a_package() -> None:
    assert folders_without_init(ROOT) == set()


def test_each_of_the_five_folders_says_that_it_is_typed(setuptools: dict[str, object]) -> None:
    assert all((ROOT / folder / "py.typed").exists() for folder in FOLDERS)
    data = setuptools["package-data"]
    assert isinstance(data, dict)
    assert "py.typed" in data["*"]


def test_each_folder_imports_below_medfed(setuptools: dict[str, object]) -> None:
    assert setuptools["package-dir"] == {f"medfed.{folder}": folder for folder in FOLDERS}


def test_every_file_that_is_no_python_is_package_data(setuptools: dict[str, object]) -> None:
    data = setuptools["package-data"]

    assert isinstance(data, dict)
    assert unlisted_data(ROOT, data) == set()


def test_no_module_has_a_name_of_the_standard_library() -> None:
    names = {path.stem for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}

    # deploy/cli has one file per person who types commands; one of them is the site's.
    assert names & sys.stdlib_module_names <= {"__main__", "site"}


def test_what_is_forgotten_is_found(tmp_path: Path) -> None:
    for folder in ("server", "server/audit", "client", "client/scans/deep", "common/report"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("server/__init__.py", "server/audit/__init__.py", "client/__init__.py"):
        (tmp_path / file).touch()
    (tmp_path / "client/scans/deep/a.py").touch()
    (tmp_path / "common/report/page.html").touch()
    (tmp_path / "server/audit/table.toml").touch()

    assert packages_on_disk(tmp_path) == {"medfed.server", "medfed.server.audit", "medfed.client"}
    assert folders_without_init(tmp_path) == {"client/scans", "client/scans/deep"}
    assert unlisted_data(tmp_path, {"medfed.server.audit": ["*.toml"], "*": ["*.html"]}) == {
        "common/report/page.html"
    }
