"""What makes a tensor of a scan: the study's ``[scans]`` table, and the code that reads files.

Two tensors of one file are the same when both are the same, so their digest names a cache. The
code's part is the text of the reader's own modules and the versions of the libraries that decode:
nobody has to remember to raise a number when the reader changes, and a site that gets another
decoder imports again rather than mixing two.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from medfed.client.scans.cache_records import TensorForm
from medfed.common.study_scans import Scans

FORMAT: Final = 2
"""Of the cache's files; raised when they are laid out anew."""
LIBRARIES: Final = (
    "numpy",
    "pydicom",
    "pillow",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "pyjpegls",
    "imagecodecs",
    "highdicom",
    "nibabel",
    "scikit-image",
    "scipy",
)
"""Distributions whose version can change a tensor, or whether there is one."""
NO_PART_OF_IT: Final = (
    "__init__.py",
    "bare_pixels.py",
    "cache.py",
    "cache_index.py",
    "cache_records.py",
    "cached.py",
    "clean_labels.py",
    "confidentiality.py",
    "decoding.py",
    "deidentify.py",
    "export_names.py",
    "importing.py",
    "label_safety.py",
    "patients.py",
    "read.py",
    "recipe.py",
    "scanset.py",
)
"""Modules beside this one that make no tensors. One that is forgotten here costs an import after
it was edited; one that is left out of the digest by mistake could give stale tensors."""


class Recipe(NamedTuple):
    """How tensors are made. Public.

    Attributes:
        form: What they look like.
        digest: SHA-256 over everything that decides their values, 64 digits.
    """

    form: TensorForm
    digest: str


def recipe_of(scans: Scans) -> Recipe:
    """Give the recipe of a study's ``[scans]`` table with the reader that is installed.

    ``group_key`` is left out: it says whose a scan is and not what it looks like.
    """
    table = scans.model_dump(mode="json", exclude={"group_key"})
    text = json.dumps({"format": FORMAT, "scans": table, "reader": _reader()}, sort_keys=True)
    form = TensorForm(
        (scans.channels, *scans.size),
        (0.0 - scans.mean) / scans.std,
        (1.0 - scans.mean) / scans.std,
    )
    return Recipe(form, hashlib.sha256(text.encode()).hexdigest())


@cache
def _reader() -> dict[str, str]:
    """Module or library -> digest of its text, or its version."""
    parts = {name: _version(name) for name in LIBRARIES}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name not in NO_PART_OF_IT:
            parts[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return parts


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""
