"""Series through the cache: a series is known by all of its files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from medfed.client.scans.cached import cached_scans, index_of, open_cache
from medfed.client.scans.decoding import DecodingLimits
from medfed.client.scans.entries import EntryReader
from medfed.client.scans.import_reader import state_of, state_of_entry
from medfed.client.scans.importing import SLICE_S, Tally, import_scans, limits_for
from medfed.client.scans.layouts.layout import Entry, Index
from medfed.client.scans.read import read_scans
from medfed.client.scans.refusals import Reason, RefusedScanError
from medfed.client.site_root import SiteRoot
from medfed.simulations.dicom_objects import write_object
from tests.support.misbehaving import let_children_import_tests
from tests.support.scans import HASH, study_of, write_list
from tests.support.series import CT, ct_slice, hounsfield, write_series
from tests.support.sites import make_site

OLD = 1_500_000_000
STUDY = study_of(size=8, scans=CT + 'series = true\ntake = "maximum"', split=HASH)


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    let_children_import_tests(monkeypatch)


@pytest.fixture
def site(tmp_path: Path) -> SiteRoot:
    """Two series of three slices, of a patient each, long settled."""
    folder = tmp_path / "scans"
    folder.mkdir()
    write_series(folder / "a", [0.0, 1.0, 2.0], [10, 20, 30], series="1", PatientID="P1")
    write_series(folder / "b", [0.0, 1.0, 2.0], [40, 50, 60], series="2", PatientID="P2")
    settle(folder)
    files = [f"{name}/{number:03}.dcm" for name in "ab" for number in range(3)]
    write_list(folder, [(file, "normal") for file in files], "file", "label")
    return make_site(tmp_path, scans=folder, patient_array=None)


def settle(folder: Path) -> None:
    for path in folder.rglob("*.dcm"):
        os.utime(path, (OLD, OLD))


def run(site: SiteRoot) -> Tally:
    with open_cache(site, STUDY.scans) as cache:
        return import_scans(index_of(site, STUDY), STUDY.scans, cache)


def test_cached_series_are_those_that_are_read_from_files(site: SiteRoot) -> None:
    direct = read_scans(site.scans, STUDY)

    for cached in (cached_scans(site, STUDY), cached_scans(site, STUDY)):
        assert np.array_equal(np.asarray(cached.images[np.arange(2)]), direct.images)
        assert np.array_equal(cached.patient, direct.patient)
    assert len(direct) == 2


def test_a_series_is_imported_once_until_one_of_its_slices_changes(site: SiteRoot) -> None:
    first, second = run(site), run(site)
    assert (first.imported, second.imported, second.unchanged) == (2, 0, 2)

    changed = ct_slice(hounsfield(999), 1.0, series="1", number=2, PatientID="P1")
    write_object(changed, site.scans / "a" / "001.dcm")
    os.utime(site.scans / "a" / "001.dcm", (OLD, OLD))

    third = run(site)
    assert (third.imported, third.unchanged) == (1, 1)
    scans = cached_scans(site, STUDY)
    # The brightest is now 999 HU: (x + 0.5) / 2000 + 0.5
    assert scans.images[np.asarray([0])].max() == pytest.approx(0.99975, abs=1e-5)


def test_a_slice_that_is_gone_is_missed(site: SiteRoot) -> None:
    run(site)
    (site.scans / "a" / "002.dcm").unlink()

    # The worklist still names it, without a header that says its series.
    tally = run(site)

    assert (tally.imported, tally.unchanged) == (1, 1)  # the rest is another series
    assert tally.refused == {Reason.MISSING.value: 1}


def test_a_series_that_was_moved_is_not_decoded_again(site: SiteRoot) -> None:
    run(site)
    # Other names, in another order: the same slices.
    for number, name in enumerate(("z", "y", "x")):
        (site.scans / "a" / f"{number:03}.dcm").rename(site.scans / "a" / f"{name}.dcm")
    files = [*(f"a/{name}.dcm" for name in "xyz"), *(f"b/{n:03}.dcm" for n in range(3))]
    write_list(site.scans, [(file, "normal") for file in files], "file", "label")

    tally = run(site)

    assert (tally.imported, tally.same, tally.unchanged) == (0, 1, 1)


def test_a_series_with_a_slice_that_may_still_change_is_looked_at_again(site: SiteRoot) -> None:
    now = time.time()
    for number, ahead_s in enumerate((7200, 60)):  # a clock that is wrong, and one that is not
        os.utime(site.scans / "a" / f"{number:03}.dcm", (now + ahead_s, now + ahead_s))

    first, second = run(site), run(site)

    assert first.imported == 2
    assert (second.same, second.unchanged) == (1, 1)


def test_a_slice_that_takes_another_s_place_shows_in_the_state(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "last"):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (OLD, OLD))

    one, other = (
        state_of_entry(tmp_path, Entry("a", 0, others=(name, "last"))) for name in ("b", "c")
    )

    assert one is not None and other is not None
    assert one[:3] == other[:3]  # size and times are the same
    assert one != other


def test_the_state_of_a_series_changes_with_any_of_its_files(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    for name in names:
        (tmp_path / name).write_bytes(name.encode() * 10)
        os.utime(tmp_path / name, (OLD, OLD))
    entry = Entry("a", 0, others=("b", "c"))
    seen = {state_of_entry(tmp_path, entry), state_of_entry(tmp_path, entry)}
    assert len(seen) == 1

    seen.add(state_of_entry(tmp_path, entry._replace(others=("b",))))
    for name in names:
        (tmp_path / name).write_bytes(b"other" * 6)
        os.utime(tmp_path / name, (OLD, OLD))
        seen.add(state_of_entry(tmp_path, entry))
    assert len(seen) == 5
    assert all(state is not None and 0 <= state.inode < 1 << 63 for state in seen)

    (tmp_path / "b").unlink()
    assert state_of_entry(tmp_path, entry) is None
    assert state_of_entry(tmp_path, Entry("a", 0)) == state_of(tmp_path / "a")


def test_a_long_series_may_take_longer_than_a_file() -> None:
    one, long = Entry("a", 0), Entry("b", 0, others=tuple("cdefghijkl"))

    def time_s(*entries: Entry) -> float:
        return limits_for(Index("dicom-worklist", Path(), entries, {})).time_s

    assert time_s() == time_s(one) == DecodingLimits().time_s
    assert time_s(long, one) == DecodingLimits().time_s + 10 * SLICE_S


@pytest.mark.parametrize("file", ["a.png", "a.jpg", "a.npz"])
def test_pictures_have_no_units_for_a_fixed_window(tmp_path: Path, file: str) -> None:
    reader = EntryReader(Index("class-folders", tmp_path, (), {}), study_of(scans=CT).scans)

    with pytest.raises(RefusedScanError) as caught:
        reader.read(Entry(file, 0, frame=0 if file.endswith("npz") else None))

    assert caught.value.reason is Reason.NO_UNITS
