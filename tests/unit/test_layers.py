"""Who may import whom, and through which file each framework comes in.

Read from the source with ``ast``, so that an import inside a function, under a condition or by
``importlib`` counts like one at the top.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MAY_IMPORT = {
    "common": {"common"},
    "server": {"server", "common"},
    "client": {"client", "common"},
    "simulations": {"simulations", "server", "client", "common"},
    "deploy": {"deploy", "simulations", "server", "client", "common"},
}
"""deploy -> simulations -> {server, client} -> common."""

ENTERS_THROUGH = {
    "flwr": {
        "server/flower_app.py",
        "server/hub.py",
        "client/flower_app.py",
        "client/worker.py",
        "simulations/grid.py",
        "simulations/ray.py",
    },
    "opacus": {"client/private_gradients.py", "client/bookkeeping.py"},
    "pydicom": {"client/scans/", "simulations/"},
    "pynetdicom": {"client/scans/pacs/dimse.py", "client/scans/pacs/association.py"},
    "dicomweb_client": {"client/scans/pacs/dicomweb.py"},
    "requests": {"client/scans/pacs/dicomweb.py"},
    "nibabel": {"client/scans/volumes.py"},
    "skimage": {"client/scans/enhance.py"},
    "imagecodecs": {"client/scans/decoders.py"},
    "jpeg_ls": {"client/scans/decoders.py"},
    "torch": {"common/networks/", "server/", "client/", "simulations/", "deploy/"},
}
"""Framework -> the files, or folders (ending in a slash), that may import it."""

NOWHERE = {
    "torchvision": "no version works with our torch",
    "gdcm": "pydicom with pylibjpeg reads the scans",
    "pickle": "it runs code; safetensors does not",
    "_pickle": "it runs code; safetensors does not",
    "cPickle": "it runs code; safetensors does not",
    "dill": "it runs code; safetensors does not",
    "cloudpickle": "it runs code; safetensors does not",
    "joblib": "its files are pickles",
    "shelve": "its files are pickles",
    "marshal": "it is no format for what comes from elsewhere",
    "tests": "the seeded randomness of tests must be out of a worker's reach",
}

RUNS_CODE = {"torch.load", "numpy.load", "torch.jit.load", "torch.hub.load"}
"""Calls that unpickle, or do so with one argument; `numpy.load` is fine without pickles."""


# ---- reading the source --------------------------------------------------------------------------
def imports_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a file imports, wherever the import stands.

    ``from a import b`` gives both ``a`` and ``a.b``: b may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module != "medfed":  # `from medfed import server` imports no more than the server
                yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            name = node.args[0] if node.args else None
            known = isinstance(name, ast.Constant) and isinstance(name.value, str)
            yield node.lineno, str(name.value) if known else "<computed>"  # type: ignore[union-attr]  # known


def calls_of(tree: ast.AST) -> Iterator[tuple[int, str, ast.Call]]:
    """Line and full name of every call of something that an import brought in."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            head, dot, rest = ast.unparse(node.func).partition(".")
            yield node.lineno, names.get(head, head) + dot + rest, node


def violations(root: Path) -> list[str]:
    """Every breach of the rules below the five folders of ``root``."""
    found = []
    for folder in MAY_IMPORT:
        for path in sorted((root / folder).rglob("*.py")):
            file = path.relative_to(root).as_posix()
            tree = ast.parse(path.read_text(), filename=str(path))
            found += [f"{file}:{line}: {why}" for line, why in _of_file(file, folder, tree)]
    return found


def _of_file(file: str, folder: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    for line, name in imports_of(tree):
        parts = name.split(".")
        if name.startswith("."):
            yield line, "relative import"
        elif name == "<computed>":
            yield line, "imports a name that is computed"
        elif parts[0] in MAY_IMPORT:
            yield line, f"bare import of {parts[0]}: write medfed.{parts[0]}"
        elif parts[0] == "medfed" and not MAY_IMPORT[folder] & set(parts[1:2]):
            yield line, f"{folder} imports {name}"
        elif parts[0] in NOWHERE:
            yield line, f"imports {parts[0]}: {NOWHERE[parts[0]]}"
        elif not _may_enter(parts[0], file):
            yield line, f"imports {parts[0]}, which enters elsewhere"
    for line, name, call in calls_of(tree):
        without_pickles = name == "numpy.load" and not any(
            word.arg in (None, "allow_pickle")
            and not (isinstance(word.value, ast.Constant) and word.value.value is False)
            for word in call.keywords
        )
        if name in RUNS_CODE and not without_pickles:
            yield line, f"calls {name}, which can run code from a file"


def _may_enter(framework: str, file: str) -> bool:
    places = ENTERS_THROUGH.get(framework)
    return places is None or any(
        file == place or (place.endswith("/") and file.startswith(place)) for place in places
    )


# ---- the tree as it is ---------------------------------------------------------------------------
def test_nothing_breaks_the_layers() -> None:
    assert violations(ROOT) == []


def test_every_folder_of_python_is_covered() -> None:
    beside = {path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*.py")}

    hidden = {name for name in beside if name.startswith(".")}
    assert beside - hidden <= {*MAY_IMPORT, "tests", "benchmarks", "docs", "build"}
    assert list(ROOT.glob("*.py")) == []


def test_the_doors_of_the_frameworks_are_still_there() -> None:
    def imports(file: str, framework: str) -> bool:
        tree = ast.parse((ROOT / file).read_text())
        return any(name.split(".")[0] == framework for _, name in imports_of(tree))

    # A rule for a file that is gone would allow the next file of that name.
    assert imports("client/private_gradients.py", "opacus")
    assert imports("server/flower_app.py", "flwr")
    assert imports("client/flower_app.py", "flwr")
    assert imports("client/worker.py", "flwr")
    assert imports("simulations/grid.py", "flwr")
    assert any(
        imports(f"client/scans/{p.name}", "pydicom") for p in (ROOT / "client/scans").glob("*.py")
    )


# ---- the test has teeth --------------------------------------------------------------------------
PLANTED = [
    ("server/a.py", "import medfed.client.ledger", "server imports medfed.client.ledger"),
    ("server/a.py", "from medfed import client", "server imports medfed.client"),
    ("server/deep/a.py", "from medfed.client import ledger", "server imports medfed.client"),
    ("client/a.py", "from medfed.server.rounds import begin", "client imports medfed.server"),
    ("client/a.py", "from medfed.simulations import seeded", "client imports medfed.simulations"),
    ("client/a.py", "from tests.support import seeded_worker", "imports tests"),
    ("client/a.py", "import medfed.deploy.cli", "client imports medfed.deploy"),
    ("common/a.py", "import medfed.server", "common imports medfed.server"),
    ("common/a.py", "import medfed", "common imports medfed"),
    ("simulations/a.py", "import medfed.deploy", "simulations imports medfed.deploy"),
    ("server/a.py", "def f():\n    from medfed.client import x", "server imports medfed.client"),
    ("server/a.py", "if True:\n    import client", "bare import of client"),
    ("server/a.py", "from . import rounds", "relative import"),
    ("server/a.py", "from ..client import ledger", "relative import"),
    ("server/a.py", "import importlib\nimportlib.import_module('medfed.client')", "server imports"),
    ("server/a.py", "x = 'client'\n__import__('medfed.' + x)", "name that is computed"),
    ("client/a.py", "import opacus", "imports opacus, which enters elsewhere"),
    ("client/a.py", "from opacus.accountants import PRVAccountant", "imports opacus"),
    ("server/a.py", "import pydicom", "imports pydicom, which enters elsewhere"),
    ("server/rounds.py", "from flwr.app import Message", "imports flwr, which enters elsewhere"),
    ("client/deep/flower_app.py", "import flwr", "imports flwr, which enters elsewhere"),
    ("common/study.py", "def f():\n    import torch", "imports torch, which enters elsewhere"),
    ("common/privacy/clipping.py", "import torch.nn", "imports torch, which enters elsewhere"),
    ("client/a.py", "import torchvision.models", "imports torchvision"),
    ("client/scans/a.py", "import gdcm", "imports gdcm"),
    ("server/a.py", "import pickle as p", "imports pickle"),
    ("server/a.py", "import torch\ntorch.load('x')", "calls torch.load"),
    ("server/a.py", "import torch as t\nt.load('x')", "calls torch.load"),
    ("server/a.py", "from torch import load as safe\nsafe('x')", "calls torch.load"),
    ("client/a.py", "import numpy as np\nnp.load('x', allow_pickle=True)", "calls numpy.load"),
    ("client/a.py", "import numpy as np\nnp.load('x', **{})", "calls numpy.load"),
]


@pytest.mark.parametrize(("file", "source", "expected"), PLANTED)
def test_a_planted_violation_is_found_in_its_line(
    tmp_path: Path, file: str, source: str, expected: str
) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source + "\n")

    found = violations(tmp_path)

    assert found, "the violation was not seen"
    line = len(source.splitlines())  # planted in the last one
    assert any(entry.startswith(f"{file}:{line}: ") and expected in entry for entry in found)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("deploy/a.py", "import medfed.server, medfed.client, medfed.simulations, medfed.common"),
        ("simulations/grid.py", "from flwr.serverapp import Grid\nfrom medfed.client import x"),
        ("server/a.py", "from medfed.common.networks import build\nimport torch"),
        ("client/a.py", "from medfed import common"),
        ("common/networks/deep/a.py", "import torch"),
        ("client/scans/deep/a.py", "import pydicom"),
        ("client/a.py", "import numpy as np\nnp.load('x')\nnp.load('y', allow_pickle=False)"),
        ("client/a.py", 'text = \'import pickle\'  # torch.load\n"""import opacus"""'),
    ],
)
def test_what_is_allowed_is_left_alone(tmp_path: Path, file: str, source: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source + "\n")

    assert violations(tmp_path) == []
