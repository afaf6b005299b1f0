"""Imports of some hundred files that are ended again and again, and lose nothing."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import numpy as np
import pytest

from medfed.client.scans.recipe import recipe_of
from tests.support.interrupted_import import (
    caches,
    end_import,
    images_of,
    import_to_the_end,
    records_bytes,
    rows_of,
    site_of_files,
)
from tests.support.scans import HASH, study_of, study_text

pytestmark = pytest.mark.slow

STUDY = study_of(split=HASH)
GOOD, BROKEN = 190, 10
INT, KILL = signal.SIGINT, signal.SIGKILL


@pytest.mark.parametrize(
    ("seed", "ends"),
    [
        (1, [(INT,), (INT,)]),
        (2, [(KILL,), (INT, INT)]),
        (3, [(INT, INT, INT), (KILL,)]),
    ],
)
def test_an_import_that_is_ended_again_and_again_imports_every_file_once(
    tmp_path: Path, seed: int, ends: list[tuple[signal.Signals, ...]]
) -> None:
    site = site_of_files(tmp_path, good=GOOD, broken=BROKEN)
    study_file = tmp_path / "study.toml"
    study_file.write_text(study_text(split=HASH))
    moments = sorted(random.Random(seed).sample(range(1, GOOD), len(ends)))

    kept: list[int] = []
    for moment, numbers in zip(moments, ends, strict=True):
        ended = end_import(site, study_file, moment, *numbers)
        before, kept = kept, rows_of(site)
        assert set(before) <= set(kept)  # nothing that was there is lost, or read again
        if KILL in numbers:
            assert ended.code == -KILL
        else:
            assert ended.code == 130, ended.said
            assert len(kept) >= ended.done - BROKEN  # all that it said was done
            assert "Traceback" not in ended.said
            assert not list(site.folder.rglob("*.part"))

    tally = import_to_the_end(site, study_file)
    assert len(caches(site)) == 1
    assert tally["listed"] == GOOD + BROKEN
    assert (tally["unchanged"], tally["imported"]) == (len(kept), GOOD - len(kept))
    assert tally["refused"] == {"not a DICOM file": BROKEN}
    assert rows_of(site) == list(range(GOOD))  # each has one record, and none is wasted
    assert records_bytes(site) == GOOD * recipe_of(STUDY.scans).form.record_bytes
    assert not list(site.folder.rglob("*.part"))

    other = site_of_files(tmp_path / "uninterrupted", good=GOOD, broken=BROKEN)
    assert np.array_equal(images_of(site, STUDY), images_of(other, STUDY))
