from __future__ import annotations

import csv
import os
import signal
import stat
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from medfed.client.scans import cached
from medfed.client.scans.cache import REFUSED
from medfed.client.scans.cache_index import TENSORS
from medfed.client.scans.cached import cached_scans, index_of, open_cache
from medfed.client.scans.import_reader import FileState, is_settled
from medfed.client.scans.importing import (
    Tally,
    import_scans,
    limits_for,
)
from medfed.client.scans.layouts.layout import Entry, Index
from medfed.client.scans.read import read_scans
from medfed.client.scans.recipe import recipe_of
from medfed.client.scans.scanset import ScanSet
from medfed.client.site_root import SiteRoot, open_site
from medfed.common.errors import ScanError
from medfed.common.findings import Findings
from medfed.common.study import Study
from tests.support.hostile_readers import changing_read, logging_read
from tests.support.misbehaving import let_children_import_tests
from tests.support.scans import HASH, mapping, random_pixels, study_of, write_list, write_scan
from tests.support.sites import make_site, write_scans

OLD = 1_500_000_000
STUDY = study_of(split=HASH)


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    let_children_import_tests(monkeypatch)


@pytest.fixture
def site(tmp_path: Path) -> SiteRoot:
    """Four scans of two patients, long settled; one broken file, one that is missing."""
    folder = tmp_path / "scans"
    folder.mkdir()
    names = [f"{number}.dcm" for number in range(4)]
    for number, name in enumerate(names):
        write_scan(folder / name, random_pixels(number), patient_id=f"P{number // 2}")
    (folder / "broken.dcm").write_bytes(b"nothing")
    settle(folder)
    write_list(
        folder,
        [(name, "opacity") for name in [*names, "broken.dcm", "gone.dcm"]],
        "file",
        "label",
    )
    return make_site(tmp_path, scans=folder, patient_array=None)


def settle(folder: Path) -> None:
    """Make all files look as if they had not been touched for long."""
    for path in folder.iterdir() if folder.is_dir() else [folder]:
        os.utime(path, (OLD, OLD))


def run(site: SiteRoot, study: Study = STUDY, **how: bool) -> tuple[Tally, list[str]]:
    """Import; give what it did and the files whose pixels were read."""
    log = site.scans / ".read"
    log.unlink(missing_ok=True)
    with open_cache(site, study.scans) as cache:
        tally = import_scans(
            index_of(site, study), study.scans, cache, make_read=logging_read, **how
        )
    return tally, sorted(log.read_text().split()) if log.exists() else []


def assert_same(cached: ScanSet, direct: ScanSet) -> None:
    assert np.array_equal(np.asarray(cached.images), direct.images)
    for name in ("labels", "patient", "part"):
        assert np.array_equal(getattr(cached, name), getattr(direct, name))
    assert (cached.unit, cached.refused) == (direct.unit, direct.refused)
    assert cached.pseudonyms == direct.pseudonyms


# ---- the same scans ------------------------------------------------------------------------------
def test_cached_scans_are_the_scans_to_the_bit(site: SiteRoot) -> None:
    def name_of(key: str) -> bytes:
        return key.encode().ljust(16)

    direct = read_scans(site.scans, STUDY, pseudonymise=name_of)

    assert direct.unit == "patient"
    assert_same(cached_scans(site, STUDY, pseudonymise=name_of), direct)
    assert_same(cached_scans(site, STUDY, pseudonymise=name_of), direct)  # from the cache


def test_an_import_follows_what_the_site_and_the_study_say_of_the_scans(site: SiteRoot) -> None:
    # It went by the folder's looks, and by labels as they are written, whatever site.toml said.
    (site.scans / "worklist.csv").write_text("file,diagnosis\n0.dcm,J18.9\n2.dcm,Z00\n")
    toml = site.folder / "site.toml"
    folder = f'folder = "{site.scans}"\n'
    toml.write_text(toml.read_text().replace(folder, f'{folder}label_column = "diagnosis"\n'))
    study = mapping(STUDY, Findings(means={"opacity": ("J18.9",)}, rest="normal"))

    scans = cached_scans(open_site(site.folder), study)

    assert scans.labels.tolist() == [1, 0]


def test_an_npz_is_imported_picture_by_picture(tmp_path: Path) -> None:
    site = make_site(tmp_path, scans=write_scans(tmp_path / "a.npz", patients=40))
    study = study_of(size=28, scans='group_key = "patient"', split=HASH, labels=("dark", "bright"))
    index = index_of(site, study)

    settle(tmp_path / "a.npz")
    assert limits_for(index).children == 1
    assert_same(cached_scans(site, study), read_scans(site.scans, study))
    with open_cache(site, study.scans) as cache:
        assert import_scans(index, study.scans, cache).unchanged == 40


def test_the_patient_is_the_tables_as_it_is_now_or_else_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    write_scan(folder / "a.dcm", random_pixels(1), patient_id="P1")
    write_list(folder, [("a.dcm", "opacity")], "file", "label")
    site = make_site(tmp_path, scans=folder, patient_array=None)
    entry = index_of(site, STUDY).entries[0]
    seen: list[str] = []

    def note(key: str) -> bytes:
        seen.append(key)
        return key.encode().ljust(16)

    for patient in ("of the table", None):
        index = Index("dicom-worklist", folder, [entry._replace(patient=patient)], {})
        with open_cache(site, STUDY.scans) as cache:
            import_scans(index, STUDY.scans, cache)
            cached._assembled(index, STUDY, cache, note)
    assert seen == ["of the table", "P1"]


# ---- only what is new ----------------------------------------------------------------------------
def test_a_second_import_opens_no_file(site: SiteRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    tally, read = run(site)
    assert (tally.listed, tally.imported, tally.unchanged) == (6, 4, 0)
    assert read == ["0.dcm", "1.dcm", "2.dcm", "3.dcm", "broken.dcm"]

    def no_children(*_: object) -> None:
        raise AssertionError("children were started")

    monkeypatch.setattr("medfed.client.scans.decoding._start", no_children)
    again, read = run(site)
    assert (again.listed, again.imported, again.unchanged, read) == (6, 0, 4, [])
    assert again.refused == tally.refused


def test_a_file_that_was_touched_moved_or_copied_is_hashed_and_not_decoded(site: SiteRoot) -> None:
    run(site)
    os.utime(site.scans / "0.dcm", (OLD + 9, OLD + 9))  # touched
    content = (site.scans / "1.dcm").read_bytes()
    (site.scans / "1.dcm").unlink()
    (site.scans / "1.dcm").write_bytes(content)  # restored
    settle(site.scans / "1.dcm")
    os.rename(site.scans / "2.dcm", site.scans / "gone.dcm")  # moved to where another is listed

    tally, read = run(site)
    assert (tally.same, tally.unchanged, tally.imported, read) == (3, 1, 0, [])
    tally, _ = run(site)
    assert tally.unchanged == 4


def test_a_changed_file_is_decoded_again(site: SiteRoot) -> None:
    before = np.asarray(cached_scans(site, STUDY).images)
    write_scan(site.scans / "2.dcm", random_pixels(77), patient_id="P1")
    settle(site.scans / "2.dcm")  # same size, time of modification, perhaps inode; other content

    tally, read = run(site)
    assert (tally.imported, tally.unchanged, read) == (1, 3, ["2.dcm"])
    after = np.asarray(cached_scans(site, STUDY).images)
    assert [np.array_equal(a, b) for a, b in zip(before, after, strict=True)] == [
        True,
        True,
        False,
        True,
    ]


def test_a_file_written_a_moment_ago_is_hashed_again(site: SiteRoot) -> None:
    (site.scans / "0.dcm").touch()
    run(site)

    tally, read = run(site)
    assert (tally.same, tally.unchanged, read) == (1, 3, [])


def test_a_file_that_changes_while_it_is_read_is_left_for_the_next_import(site: SiteRoot) -> None:
    with open_cache(site, STUDY.scans) as cache:
        tally = import_scans(index_of(site, STUDY), STUDY.scans, cache, make_read=changing_read)
    assert tally.imported == 3
    assert tally.refused["file changed while it was read"] == 1

    tally, read = run(site)
    assert (tally.imported, tally.unchanged, read) == (1, 3, ["0.dcm"])


def test_another_table_of_scans_has_a_cache_of_its_own(site: SiteRoot) -> None:
    run(site)
    tally, _ = run(site, study_of(size=16, split=HASH))

    assert tally.imported == 4
    assert run(site)[0].unchanged == 4


def test_refused_files_are_tried_again_only_when_asked(site: SiteRoot) -> None:
    run(site)
    assert run(site)[1] == []

    tally, read = run(site, again=True)
    assert (tally.unchanged, read) == (4, ["broken.dcm"])


# ---- what the admin gets -------------------------------------------------------------------------
def test_refused_files_are_counted_and_named_in_a_report_of_the_owners(site: SiteRoot) -> None:
    expected = {"not a DICOM file": 1, "file missing or unreadable": 1}

    for _ in range(2):  # the second import knows it from the cache
        tally, _ = run(site)
        with open_cache(site, STUDY.scans) as cache:
            report = cache.folder / REFUSED
        assert tally.refused == expected
        with report.open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert sorted((line["reason"], line["file"]) for line in lines) == [
            ("file missing or unreadable", "gone.dcm"),
            ("not a DICOM file", "broken.dcm"),
        ]
        assert stat.S_IMODE(report.stat().st_mode) == 0o600


def test_progress_counts_every_entry_once(site: SiteRoot) -> None:
    for _ in range(2):
        told: list[tuple[int, int]] = []
        with open_cache(site, STUDY.scans) as cache:
            import_scans(
                index_of(site, STUDY),
                STUDY.scans,
                cache,
                on_progress=lambda done, total, told=told: told.append((done, total)),
            )
        assert told == [(done, 6) for done in range(1, 7)]


# ---- damage and interruption ---------------------------------------------------------------------
def damage(site: SiteRoot, row: int) -> None:
    with open_cache(site, STUDY.scans) as cache:
        path = cache.folder / TENSORS
    size = recipe_of(STUDY.scans).form.record_bytes
    with path.open("r+b") as file:
        file.seek(row * size + size // 2)
        file.write(b"damaged")


def test_a_damaged_record_is_read_anew_from_its_file(site: SiteRoot) -> None:
    direct = read_scans(site.scans, STUDY)
    damage(site, 1)

    assert_same(cached_scans(site, STUDY), direct)
    assert run(site)[0].unchanged == 4


def test_verify_finds_damage_and_imports_anew(site: SiteRoot) -> None:
    run(site)
    damage(site, 2)

    assert run(site)[0].damaged == 0  # not looked for
    tally, read = run(site, verify=True)
    assert (tally.damaged, tally.imported, len(read)) == (1, 1, 1)


_KILLED = """
    import os, sys
    sys.path.append({root!r})
    from pathlib import Path
    from medfed.client.scans import importing
    from medfed.client.scans.cached import index_of, open_cache
    from medfed.client.scans.importing import import_scans
    from medfed.client.site_root import open_site
    from tests.support.scans import HASH, study_of

    importing.COMMIT_SCANS = 8
    study, site = study_of(split=HASH), open_site(Path({site!r}))
    with open_cache(site, study.scans) as cache:
        import_scans(index_of(site, study), study.scans, cache,
                     on_progress=lambda done, total: print(done, flush=True))
"""


@pytest.mark.parametrize(
    ("number", "after"),
    [(signal.SIGKILL, 1), (signal.SIGKILL, 9), (signal.SIGKILL, 50), (signal.SIGINT, 20)],
)
def test_an_import_that_was_ended_goes_on(
    tmp_path: Path, number: signal.Signals, after: int
) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    names = [f"{name}.dcm" for name in range(60)]
    for seed, name in enumerate(names):
        write_scan(folder / name, random_pixels(seed), patient_id=f"P{seed}")
    settle(folder)
    write_list(folder, [(name, "opacity") for name in names], "file", "label")
    site = make_site(tmp_path, scans=folder, patient_array=None)
    code = _KILLED.format(root=str(Path(__file__).parents[3]), site=str(site.folder))
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    with process, process.stdout:
        for line in process.stdout:
            if int(line) == after:
                process.send_signal(number)
                break
    kept = after - 8 if number == signal.SIGKILL else after  # a commit follows every 8

    tally, read = run(site)
    assert tally.unchanged >= max(0, kept)
    assert tally.unchanged + tally.imported == 60
    assert len(read) == tally.imported
    with open_cache(site, STUDY.scans) as cache:
        assert cache.damaged() == []
    assert_same(cached_scans(site, STUDY), read_scans(folder, STUDY))


def test_a_full_disk_is_an_error_and_loses_nothing(
    site: SiteRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("medfed.client.scans.cache_records.os.pwrite", full)
        with pytest.raises(ScanError, match="cache cannot be written"):
            run(site)
    assert run(site)[0].imported == 4


# ---- many files ----------------------------------------------------------------------------------
class _Endless(Sequence[Entry]):
    """A million entries that are made when they are asked for."""

    def __init__(self, files: int, entries: int) -> None:
        self._files, self._entries = files, entries

    def __len__(self) -> int:
        return self._entries

    def __getitem__(self, place: object) -> Entry:  # type: ignore[override]  # one at a time
        assert isinstance(place, int)
        if place >= self._entries:
            raise IndexError(place)
        return Entry(f"{place % self._files}.dcm", 0)


def test_memory_does_not_grow_with_the_number_of_files(site: SiteRoot) -> None:
    run(site)

    def peak(entries: int) -> int:
        index = Index("dicom-worklist", site.scans, _Endless(4, entries), {})
        tracemalloc.start()
        try:
            with open_cache(site, STUDY.scans) as cache:
                assert import_scans(index, STUDY.scans, cache).unchanged == entries
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few = peak(500)
    assert peak(20_000) < few + 100_000  # bytes: less than five for each entry more


# ---- times ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("age_s", "settled"),
    [(0.0, False), (1.9, False), (2.1, True), (1e9, True), (-60.0, False), (-1e5, True)],
)
def test_a_file_is_settled_once_its_time_cannot_stay_the_same(age_s: float, settled: bool) -> None:
    now = 2 * 10**18

    assert is_settled(FileState(1, now - int(age_s * 1e9), 1, 1), now) is settled


# ---- erasure -------------------------------------------------------------------------------------
@pytest.mark.parametrize("still_named", [False, True])
def test_what_the_folder_has_no_more_is_erased_on_request_and_nothing_else(
    site: SiteRoot, still_named: bool
) -> None:
    run(site)
    with open_cache(site, STUDY.scans) as cache:
        tensors = cache.folder / TENSORS
    before = tensors.read_bytes()
    (site.scans / "2.dcm").unlink()
    lines = (site.scans / "worklist.csv").read_text().splitlines()
    if not still_named:
        (site.scans / "worklist.csv").write_text("\n".join(x for x in lines if "2.dcm" not in x))

    assert run(site)[0].erased == 0
    assert tensors.read_bytes() == before

    tally, _ = run(site, prune=True)
    after = tensors.read_bytes()
    size = recipe_of(STUDY.scans).form.record_bytes
    places = [n for n in range(4) if not any(after[n * size : (n + 1) * size])]
    assert (tally.unchanged, tally.erased, len(places)) == (3, 1, 1)
    kept = [n for n in range(4) if n not in places]
    assert all(after[n * size : (n + 1) * size] == before[n * size : (n + 1) * size] for n in kept)
    assert len(cached_scans(site, STUDY)) == 3


def test_nothing_is_erased_where_the_whole_disk_is_missing(site: SiteRoot) -> None:
    run(site)
    for file in site.scans.glob("*.dcm"):
        file.rename(file.with_suffix(".away"))

    assert run(site, prune=True)[0].erased == 0

    for file in site.scans.glob("*.away"):
        file.rename(file.with_suffix(".dcm"))
    assert run(site)[1] == []  # no file's pixels are read again
