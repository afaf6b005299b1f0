from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfed.client.scans import recipe
from medfed.client.scans.cache import (
    FileState,
    Found,
    KnownContents,
    ScanCache,
    Source,
    content_name,
)
from medfed.client.scans.cache_index import INDEX, TENSORS, load_key
from medfed.client.scans.cache_records import DamagedRecordsError, Packed, TensorForm, packed
from medfed.client.scans.recipe import Recipe, recipe_of
from medfed.common.errors import ConfigError, ScanError
from tests.support.scans import study_of

FORM = TensorForm((1, 8, 8), 0.0, 1.0)
RECIPE = Recipe(FORM, "0123456789abcdef" * 4)
KEY = bytes(range(32))
STATE = FileState(1, 2, 3, 4)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ScanCache]:
    with ScanCache(tmp_path, KEY, RECIPE) as cache:
        yield cache


def tensor_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(FORM.shape, dtype=np.float32)


def source_of(number: int) -> Source:
    return Source(Path(f"/scans/{number}.dcm"), STATE)


def add(cache: ScanCache, number: int) -> None:
    """Take a scan, of which all follows from its number."""
    content = content_name(cache.content_key, bytes([number]))
    cache.add(
        source_of(number), content, f"P{number}", f"about {number}", packed(tensor_of(number), FORM)
    )


def find(cache: ScanCache, number: int) -> Found:
    found = cache.find(source_of(number))
    assert found is not None
    return found


def unpacked(plain: bytes, form: TensorForm = FORM) -> np.ndarray:
    out = np.empty(form.shape, dtype=np.float32)
    Packed(form).unpack(bytearray(plain), out)
    return out


# ---- tensors -------------------------------------------------------------------------------------
@given(st.integers(0, 2**32 - 1), st.floats(-10, 10), st.floats(0.01, 10))
def test_a_packed_tensor_is_within_half_a_step(seed: int, mean: float, std: float) -> None:
    form = TensorForm((1, 8, 8), (0 - mean) / std, (1 - mean) / std)
    tensor = ((tensor_of(seed) - np.float32(mean)) / np.float32(std)).astype(np.float32)

    step = (form.white - form.black) / 65535
    rounding = 1e-6 * max(abs(form.black), abs(form.white))  # float32 has 2**-24 of each
    error = np.abs(unpacked(packed(tensor, form), form).astype(np.float64) - tensor)
    assert error.max() <= step / 2 + rounding


@pytest.mark.parametrize("bits", [8, 16])
def test_pictures_of_8_and_16_bits_come_back_to_the_bit(bits: int) -> None:
    form = TensorForm((1, 256, 256), 0.0, 1.0)
    stored = np.arange(65536).reshape(form.shape) % (1 << bits)
    tensor = (stored / float((1 << bits) - 1)).astype(np.float32)  # as tensors.py divides

    assert np.array_equal(unpacked(packed(tensor, form), form), tensor)


@pytest.mark.parametrize("low", [-3.0, 0.5])
@pytest.mark.parametrize("high", [0.5, 700.0])
def test_a_tensor_beyond_the_usual_bounds_brings_its_own(low: float, high: float) -> None:
    tensor = np.linspace(low, max(low, high), 64, dtype=np.float32).reshape(FORM.shape)

    step = max(1.0, high - low) / 65535
    assert np.abs(unpacked(packed(tensor, FORM)) - tensor).max() <= step


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_not_finite_is_not_stored(bad: float) -> None:
    tensor = tensor_of(0)
    tensor[0, 3, 3] = bad

    with pytest.raises(ValueError, match="cannot be stored"):
        packed(tensor, FORM)


# ---- the cache -----------------------------------------------------------------------------------
def test_what_was_added_is_found_and_read_in_any_order(cache: ScanCache) -> None:
    for number in range(20):
        add(cache, number)
    cache.commit()

    with cache.tensors(find(cache, number) for number in range(20)) as tensors:
        images = tensors.read([7, 0, 19, 7])
    assert images.dtype == np.float32
    for image, number in zip(images, [7, 0, 19, 7], strict=True):
        assert np.abs(image - tensor_of(number)).max() <= 0.5 / 65535 + 1e-7
    assert [find(cache, number).patient for number in (0, 19)] == ["P0", "P19"]


def test_it_is_there_after_reopening_and_grows_on(tmp_path: Path) -> None:
    for number in range(3):
        with ScanCache(tmp_path, KEY, RECIPE) as cache:
            add(cache, number)

    with ScanCache(tmp_path, KEY, RECIPE) as cache:
        found = [find(cache, number) for number in range(3)]
        assert [scan.row for scan in found] == [0, 1, 2]
        with cache.tensors(found) as tensors:
            assert np.abs(tensors.read([2])[0] - tensor_of(2)).max() < 1e-5


@pytest.mark.parametrize("field", ["size", "mtime_ns", "ctime_ns", "inode"])
def test_a_file_in_another_state_is_not_known(cache: ScanCache, field: str) -> None:
    add(cache, 0)
    other = source_of(0)._replace(state=STATE._replace(**{field: 99}))

    assert cache.find(source_of(0)) is not None
    assert cache.find(other) is None
    assert cache.find(source_of(0)._replace(path=Path("/scans/other.dcm"))) is None
    assert cache.find(source_of(0)._replace(frame=0)) is None


def test_a_file_that_was_unsettled_is_known_only_to_who_just_read_it(cache: ScanCache) -> None:
    content = content_name(cache.content_key, b"x")
    unsettled = source_of(0)._replace(settled=False)
    cache.add(unsettled, content, "", "", packed(tensor_of(0), FORM))

    assert cache.find(unsettled) is not None
    assert cache.find(source_of(0)) is None


def test_a_refusal_is_remembered_until_it_is_forgotten(cache: ScanCache) -> None:
    cache.refuse(source_of(0), None, "why")
    cache.refuse(source_of(1), content_name(cache.content_key, b"x"), "why not")
    assert (find(cache, 0).refused, find(cache, 1).refused) == ("why", "why not")
    assert find(cache, 0).row is None

    cache.forget_refused()
    assert cache.find(source_of(0)) is cache.find(source_of(1)) is None


def test_contents_are_known_to_other_processes_once_committed(cache: ScanCache) -> None:
    add(cache, 0)
    known = KnownContents(cache.folder, cache.content_key)
    place = (known.name(bytes([0])), None)
    assert place not in known

    cache.commit()
    assert place in known
    assert (known.name(bytes([0])), 0) not in known
    assert (known.name(bytes([1])), None) not in known


def test_any_patient_key_comes_back(cache: ScanCache) -> None:
    plain, content = packed(tensor_of(0), FORM), content_name(cache.content_key, b"x")

    @given(st.text(st.characters(exclude_categories=()), max_size=200))  # lone surrogates too
    def check(patient: str) -> None:
        cache.add(source_of(0), content, patient, patient, plain)
        found = find(cache, 0)
        assert found.patient == patient and cache.about(found) == patient

    check()


# ---- what it gives away --------------------------------------------------------------------------
def test_nothing_on_disk_says_whose_or_what(tmp_path: Path) -> None:
    flat = np.full(FORM.shape, 0.5, dtype=np.float32)
    with ScanCache(tmp_path, KEY, RECIPE) as cache:
        sha256 = bytes(range(100, 132))
        source = Source(Path("/scans/MEIER_ANNA.dcm"), STATE)
        content = content_name(cache.content_key, sha256)
        cache.add(source, content, "PATIENT-4711", "SCANNER-0815", packed(flat, FORM))
        cache.commit()
        whole = b"".join(path.read_bytes() for path in cache.folder.iterdir())

    for secret in (b"MEIER", b"4711", b"0815", sha256, packed(flat, FORM)[16:48], KEY):
        assert secret not in whole


def test_folder_and_files_are_for_the_owner_only(tmp_path: Path) -> None:
    with ScanCache(tmp_path / "cache", KEY, RECIPE) as cache:
        add(cache, 0)
        cache.commit()
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in cache.folder.iterdir()}

        assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
        assert set(modes.values()) == {0o600}, modes


def test_the_same_tensor_never_gives_the_same_record(cache: ScanCache) -> None:
    size = FORM.record_bytes
    for number in range(50):
        content = content_name(cache.content_key, bytes([number]))
        cache.add(source_of(number), content, "", "", packed(tensor_of(0), FORM))
    cache.commit()

    stored = (cache.folder / TENSORS).read_bytes()
    records = [stored[start : start + size] for start in range(0, len(stored), size)]
    assert len({record[:12] for record in records}) == 50  # nonces
    assert len({record[12:] for record in records}) == 50


def test_representations_show_nothing(cache: ScanCache) -> None:
    add(cache, 0)
    shown = repr((find(cache, 0), source_of(0)))

    assert "P0" not in shown
    assert "dcm" not in shown


# ---- damage --------------------------------------------------------------------------------------
@pytest.mark.parametrize("offset", [0, 5, 12, 100, FORM.record_bytes - 1])
def test_a_changed_bit_anywhere_in_a_record_is_found(cache: ScanCache, offset: int) -> None:
    for number in range(3):
        add(cache, number)
    cache.commit()
    with (cache.folder / TENSORS).open("r+b") as file:
        file.seek(FORM.record_bytes + offset)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))

    assert cache.damaged() == [1]
    with cache.tensors(find(cache, number) for number in range(3)) as tensors:
        tensors.read([0, 2])
        with pytest.raises(DamagedRecordsError, match="1 cached scans") as caught:
            tensors.read([0, 1, 2])
    assert caught.value.rows == (1,)


def test_records_that_changed_places_are_found(cache: ScanCache) -> None:
    for number in range(2):
        add(cache, number)
    cache.commit()
    size = FORM.record_bytes
    stored = (cache.folder / TENSORS).read_bytes()
    (cache.folder / TENSORS).write_bytes(stored[size:] + stored[:size])

    assert cache.damaged() == [0, 1]


@pytest.mark.parametrize("left", [0, 1, FORM.record_bytes, 2 * FORM.record_bytes - 1])
def test_a_file_that_was_cut_is_found(cache: ScanCache, left: int) -> None:
    for number in range(2):
        add(cache, number)
    cache.commit()
    os.truncate(cache.folder / TENSORS, left)

    assert cache.damaged() == ([0, 1] if left < FORM.record_bytes else [1])


def test_a_forgotten_scan_is_unknown_and_its_place_is_not_used_again(cache: ScanCache) -> None:
    for number in range(2):
        add(cache, number)

    assert cache.forget([1]) == 1
    assert cache.find(source_of(1)) is None
    add(cache, 1)
    assert find(cache, 1).row == 2


def test_what_was_written_but_not_committed_is_written_over(tmp_path: Path) -> None:
    cache = ScanCache(tmp_path, KEY, RECIPE)
    add(cache, 0)
    cache.commit()
    add(cache, 1)  # as a process that is killed here
    cache._index.rollback()
    cache.close()

    with ScanCache(tmp_path, KEY, RECIPE) as cache:
        assert cache.find(source_of(1)) is None
        add(cache, 2)
        assert find(cache, 2).row == 1
        cache.commit()
        assert cache.damaged() == []


@pytest.mark.parametrize("damage", ["key", "index", "patient"])
def test_a_cache_that_does_not_fit_begins_anew(tmp_path: Path, damage: str) -> None:
    with ScanCache(tmp_path, KEY, RECIPE) as cache:
        add(cache, 0)
        if damage == "patient":
            cache._index.execute("UPDATE scans SET patient = zeroblob(92)")
    if damage == "index":
        (cache.folder / INDEX).write_bytes(b"no database" * 1000)

    with ScanCache(tmp_path, bytes(32) if damage == "key" else KEY, RECIPE) as cache:
        assert cache.find(source_of(0)) is None
        add(cache, 0)
        cache.commit()
        assert cache.damaged() == []


def test_only_one_process_may_have_it(cache: ScanCache, tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="another process is importing"):
        ScanCache(tmp_path, KEY, RECIPE)


# ---- key and recipe ------------------------------------------------------------------------------
def test_a_key_is_made_once_and_for_the_owner_only(tmp_path: Path) -> None:
    key = load_key(tmp_path / "cache.key")

    assert len(key) == 32
    assert load_key(tmp_path / "cache.key") == key
    assert stat.S_IMODE((tmp_path / "cache.key").stat().st_mode) == 0o600
    assert load_key(tmp_path / "other.key") != key


def test_a_key_that_others_may_read_or_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache.key"
    load_key(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="mode 0640, allowed: 0600"):
        load_key(path)

    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(ConfigError, match="has 5 bytes, not 32"):
        load_key(path)


def test_a_recipe_changes_with_the_table_and_not_with_the_group_key() -> None:
    plain = recipe_of(study_of().scans)

    assert recipe_of(study_of(scans='group_key = "field"').scans) == plain
    others = [
        study_of(size=33),
        study_of(channels=3),
        study_of(scans='intensity = "stored"'),
        study_of(scans="std = 2.0"),
        study_of(scans="spacing_mm = 1.0"),
    ]
    assert len({recipe_of(other.scans).digest for other in others} | {plain.digest}) == 6
    assert recipe_of(study_of(scans="mean = 0.5\nstd = 2.0").scans).form[1:] == (-0.25, 0.25)


@pytest.mark.parametrize("changed", ["pixels.py", "pydicom"])
def test_a_recipe_changes_with_the_reader(monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    parts = recipe._reader()
    assert changed in parts
    before = recipe_of(study_of().scans)

    monkeypatch.setattr(recipe, "_reader", lambda: parts | {changed: "another"})
    assert recipe_of(study_of().scans).digest != before.digest


def test_every_module_that_makes_tensors_is_in_the_recipe() -> None:
    made_of = {"entries.py", "greyscale.py", "guards.py", "pictures.py", "tensors.py"}

    assert made_of <= recipe._reader().keys()
    folder = Path(recipe.__file__).parent
    assert all((folder / name).exists() for name in recipe.NO_PART_OF_IT)
