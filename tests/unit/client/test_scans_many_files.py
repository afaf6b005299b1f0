"""Indexes of very many files: the same as the plain way gives, in a fraction of its memory."""

from __future__ import annotations

import os
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.client.scans.layouts import collector as collecting
from medfed.client.scans.layouts import packed
from medfed.client.scans.layouts.collector import Collector, pack_entries
from medfed.client.scans.layouts.files import Inside, Named, walk
from medfed.client.scans.layouts.layout import Entry, Index, LineReason, SourceRules
from medfed.client.scans.layouts.lookup import Lookup
from medfed.client.scans.layouts.packed import SortedNames
from medfed.client.scans.layouts.tables import Table
from medfed.client.scans.read import index_scans
from medfed.client.scans.scanset import TEST, TRAIN, VALIDATION
from medfed.common.errors import ScanError
from tests.support.many_files import linked_files, write_long_list
from tests.support.scans import GIVEN, HASH, random_pixels, study_of, write_list, write_scan

STUDY = study_of(split=HASH)
NAMES = st.text(st.characters(), max_size=20)  # surrogates among them: names that are not UTF-8
ENTRIES = st.builds(
    Entry,
    st.sampled_from(["a.png", "b/a.png", "\udcff.png", "ü", "\ud800\udc00"]),
    st.integers(0, 1),
    st.sampled_from([None, "", "P1", "\udc80"]),
    st.sampled_from([None, 0, 2]),
    st.sampled_from([None, 0, 1]),
    st.just("PA"),
    st.just(""),
    st.sampled_from([(), ("c",), ("c", "d")]),
)


# ---- lists ---------------------------------------------------------------------------------------
@given(st.lists(ENTRIES, max_size=12), st.integers(1, 5))
def test_packed_entries_are_the_entries(entries: list[Entry], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "BLOCK", block)
        kept = pack_entries(entries)

        assert list(kept) == entries
        assert all(type(entry) is Entry and type(entry.others) is tuple for entry in kept)
        assert [kept[at] for at in range(len(kept))] == entries
        assert [kept[at] for at in reversed(range(len(kept)))] == entries[::-1]
        assert kept[1:5] == entries[1:5]
        assert not entries or kept[-1] == entries[-1]
        with pytest.raises(IndexError):
            kept[len(entries)]


def test_two_may_go_through_packed_entries_at_a_time() -> None:
    entries = [Entry(f"{number}.png", 0) for number in range(1000)]  # some blocks
    kept = pack_entries(entries)

    assert list(zip(kept, reversed(kept), strict=True)) == list(
        zip(entries, reversed(entries), strict=True)
    )


@given(st.lists(NAMES), st.integers(1, 4))
def test_names_come_in_order(names: list[str], run: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "RUN", run)
        patch.setattr(packed, "BLOCK", 2)
        kept = SortedNames()
        for name in names:
            kept.add(name)

        assert list(kept) == sorted(names)


@given(st.lists(st.tuples(NAMES, st.integers(-(2**31), 2**31 - 1))), st.lists(NAMES))
def test_what_is_looked_up_was_said_first(said: list[tuple[str, int]], others: list[str]) -> None:
    lookup = Lookup(said)

    names = {name for name, _ in said}
    places = set()
    for name in names:
        values = [value for other, value in said if other == name]
        found = lookup.find(name)
        assert found is not None
        assert found[1:] == (values[0], len(set(values)) == 1)
        places.add(found.place)
    assert places == set(range(len(names))) == set(range(len(lookup)))
    assert all(lookup.find(name) is None for name in others if name not in names)
    assert lookup.contradictions == sum(
        len({value for other, value in said if other == name}) > 1 for name in names
    )


def test_texts_whose_hashes_begin_alike_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def half_known(_: Lookup, text: str) -> bytes:
        return bytes(8) + text.encode().ljust(8)  # the first half is that of all texts

    monkeypatch.setattr(Lookup, "_hash", half_known)
    lookup = Lookup([("b", 1), ("a", 2), ("c", 3)])

    found = [lookup.find(text) for text in ("a", "b", "c", "d")]
    assert [said and said.value for said in found] == [2, 1, 3, None]


def test_lists_in_little_memory_show_nothing() -> None:
    entry = Entry("Doe.png", 0, "Doe")
    lookup = Lookup([("Doe", 1)])

    shown = f"{pack_entries([entry])} {lookup} {lookup.find('Doe')} {pack_entries([entry])[:]}"
    assert "Doe" not in shown


# ---- entries that stand more than once -----------------------------------------------------------
def plainly(entries: list[Entry]) -> tuple[list[Entry], Counter[str]]:
    """The entries without those that repeat or contradict each other, as a dict finds them."""
    kept: dict[tuple[str, int | None], Entry] = {}
    contradicted: set[tuple[str, int | None]] = set()
    refused: Counter[str] = Counter()
    for entry in entries:
        place = (entry.file, entry.frame)
        if place in contradicted:
            refused[LineReason.CONTRADICTION.value] += 1
        elif place not in kept:
            kept[place] = entry
        elif kept[place] == entry:
            refused[LineReason.REPEATED.value] += 1
        else:
            contradicted.add(place)
            del kept[place]
            refused[LineReason.CONTRADICTION.value] += 2
    return list(kept.values()), refused


def collected(entries: list[Entry]) -> tuple[list[Entry], Counter[str]]:
    collector = Collector("dicom-worklist", Path("scans"), STUDY)
    for entry in entries:
        collector.add(entry)
    dropped = collector.settle()
    assert (dropped, collector.settle()) == (sum(collector.refused.values()), 0)
    try:
        return list(collector.index().entries), collector.refused
    except ScanError:
        return [], collector.refused


@settings(max_examples=300)
@given(st.lists(ENTRIES, max_size=12))
def test_entries_are_sorted_out_as_a_dict_does(entries: list[Entry]) -> None:
    assert collected(entries) == plainly(entries)


@given(st.lists(ENTRIES, max_size=12))
def test_names_of_the_same_hash_are_told_apart(entries: list[Entry]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collecting, "hash", lambda place: 7, raising=False)

        assert collected(entries) == plainly(entries)


# ---- files ---------------------------------------------------------------------------------------
def walked_plainly(root: Path, below: str = "") -> Iterator[str]:
    """All files, a folder's own before those of the folders in it."""
    names = sorted(os.listdir(root / below))
    paths = [f"{below}/{name}" if below else name for name in names if not name.startswith(".")]
    yield from (path for path in paths if (root / path).is_file())
    for path in paths:
        if (root / path).is_dir():
            yield from walked_plainly(root, path)


def test_files_are_found_in_the_same_order_however_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "RUN", 3)
    monkeypatch.setattr(packed, "BLOCK", 2)
    for number in range(50):
        folder = tmp_path / "/".join(str(number * step % 7) for step in range(1, 1 + number % 4))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number * 37 % 50}.png").touch()

    found = list(walk(tmp_path))

    assert found == list(walked_plainly(tmp_path))
    assert len(found) == 50


def test_a_folder_that_is_gone_is_left_out_while_the_others_are_listed(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()

    files = walk(tmp_path)
    assert next(files) == "a/1.png"
    (tmp_path / "b/1.png").unlink()
    (tmp_path / "b").rmdir()

    assert list(files) == ["c/1.png"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A scans folder with files, folders, and links of all kinds."""
    root = tmp_path / "scans"
    (root / "a/b").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for name in ("1.dcm", "a/2.dcm", "a/b/3.dcm", "a/C:x", "a/back\\slash"):
        (root / name).touch()
    for link, target in {
        "same.dcm": "a/2.dcm",
        "folder": "a/b",
        "out": "../outside",
        "out.dcm": "../outside/1.dcm",
        "round": "round",
        "a/up": "..",
    }.items():
        (root / link).symlink_to(target)
    return root.resolve()


ABOVE = ("", "a/", "a//", "./", "a/../", "folder/", "out/", "round/", "a/up/", "../", "../scans/")
LAST = ("1.dcm", "2.dcm", "same.dcm", "out.dcm", "round", "C:x", "..", ".", "", "none", "a")


def found_plainly(root: Path, name: str) -> str | LineReason:
    """Where a named file is by its whole path, every link in it followed."""
    if not name:
        return LineReason.LINE
    if PureWindowsPath(name).drive:
        return LineReason.OUTSIDE
    if not os.path.lexists(root / name):
        name = name.replace("\\", "/")
    try:
        file = (root / name).resolve()
    except RuntimeError:
        return LineReason.NOT_THERE
    if not file.is_relative_to(root) or file == root:
        return LineReason.OUTSIDE
    return file.relative_to(root).as_posix()


@pytest.mark.parametrize("above", [*ABOVE, "none/", "1.dcm/", "/", "//", "a/b/../", "\\", "a\\"])
def test_a_named_file_is_where_its_whole_path_leads(tree: Path, above: str) -> None:
    inside = Inside(tree)

    for last in (*LAST, "x" * 300, "back\\slash", "a\\2.dcm", "..\\1.dcm"):
        name = above + last
        expected = found_plainly(tree, name)
        for _ in range(2):  # the second time its folder is known
            assert (name, inside.find(name)) == (name, expected)


def test_a_file_is_found_by_its_name_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/c/3.png", "b/2.png", "4.png", "5.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    files = Named(tmp_path, [".png"])

    assert files.find("1.png") == "a/1.png"
    assert files.find("none", "3.png") == "b/c/3.png"
    assert files.find("4.png") == "4.png"
    assert files.find("2.png") is LineReason.SAME_NAME
    assert files.find("1.png", "3.png") is LineReason.SAME_NAME
    assert files.find("5.txt") is LineReason.NOT_THERE


# ---- tables --------------------------------------------------------------------------------------
def test_a_table_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "worklist.csv"
    path.write_text("file,label\na,b\n")
    table = Table(path)
    path.write_text("label,file\nb,a\n")

    with pytest.raises(ScanError, match="changed while it was read"):
        list(table.lines())


def test_what_is_no_utf8_far_down_a_table_is_refused_and_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "worklist.csv"
    path.write_bytes(b"file,label\n" + b"a.dcm,normal\n" * 10_000 + b"Doe\xff,normal\n")

    with pytest.raises(ScanError, match=r"cannot be read \(UnicodeDecodeError\)") as caught:
        index_scans(tmp_path, STUDY)

    assert "Doe" not in str(caught.value)


def test_a_table_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "worklist.csv").symlink_to("/dev/zero")

    with pytest.raises(ScanError, match="cannot be read"):
        index_scans(tmp_path, STUDY)


@pytest.mark.parametrize("split", [GIVEN, HASH])
def test_lines_matched_by_header_give_label_and_part_or_none(tmp_path: Path, split: str) -> None:
    for number, name in enumerate(("train", "validation", "test")):
        write_scan(tmp_path / name, random_pixels(number), patient_id=name)
    rows = [("train", "normal", "train"), ("validation", "opacity", "validation")]
    rows += [("test", "opacity", "test")]
    write_list(tmp_path, rows, "patient_id", "label", "split")

    entries = index_scans(tmp_path, study_of(split=split)).entries

    assert [entry.file for entry in entries] == ["test", "train", "validation"]
    assert [entry.label for entry in entries] == [1, 0, 1]
    expected = [TEST, TRAIN, VALIDATION] if split == GIVEN else [None] * 3
    assert [entry.part for entry in entries] == expected


# ---- memory --------------------------------------------------------------------------------------
def peak_bytes(make: Callable[[], Index]) -> tuple[int, int]:
    """The most memory that making an index took, and the number of its entries."""
    tracemalloc.start()
    try:
        index = make()
        return tracemalloc.get_traced_memory()[1], len(index.entries)
    finally:
        tracemalloc.stop()


MOST_BYTES = 64
"""For each file more. Plain objects take 400 (folders) to 900 (tables). A name, of which only
what differs from its neighbours is kept, is most of it; 8 bytes are its hash, 8 more its sorting,
and arrays that grow are a quarter larger than what is in them."""


def test_a_worklist_takes_little_memory_for_each_line(tmp_path: Path) -> None:
    peaks = []
    for files in (100, 10_000, 30_000):  # the first: what is imported once is no matter
        folder = tmp_path / str(files)
        folder.mkdir()
        write_long_list(folder, files)
        peak, entries = peak_bytes(lambda folder=folder: index_scans(folder, STUDY))  # type: ignore[misc]  # mypy: default of a lambda
        assert entries == files
        peaks.append(peak)

    assert (peaks[2] - peaks[1]) / 20_000 < MOST_BYTES


def test_class_folders_take_little_memory_for_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "RUN", 2048)
    rules = SourceRules(patient=r"^person(\d+)_")
    peaks = []
    for files in (10_000, 30_000):
        linked_files(tmp_path / str(files), files)
        peak, entries = peak_bytes(
            lambda files=files: index_scans(tmp_path / str(files), STUDY, rules=rules)  # type: ignore[misc]  # mypy: default of a lambda
        )
        assert entries == files
        peaks.append(peak)

    assert (peaks[1] - peaks[0]) / 20_000 < MOST_BYTES
