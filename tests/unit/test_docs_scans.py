"""The pages about scans say what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import get_args

import click
import pytest
import typer
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION

from medfed.client.scans import clean_labels, guards
from medfed.client.scans.confidentiality_table import EDITION, SHIFTED
from medfed.client.scans.decoders import DECODERS
from medfed.client.scans.decoding import DecodingFailure, DecodingLimits
from medfed.client.scans.deidentify import IMPLEMENTATION
from medfed.client.scans.export_names import MAX_SHIFT_DAYS
from medfed.client.scans.guards import COLOUR_MODELS, COMPRESSED, NATIVE
from medfed.client.scans.import_reader import Unsteady
from medfed.client.scans.layouts.detect import layout_of
from medfed.client.scans.layouts.layout import LayoutName, LineReason, SourceRules
from medfed.client.scans.pacs import association, dicomweb, dimse, settings
from medfed.client.scans.pacs.plan import IMAGE_CLASSES, Query, Study, study_keys
from medfed.client.scans.pacs.pull import RETRY_AFTER_S
from medfed.client.scans.read import index_scans
from medfed.client.scans.refusals import Reason
from medfed.common.findings import Unlabelled
from medfed.deploy.cli import app
from tests.support.scans import HASH, study_of

ROOT = Path(__file__).parents[2]
SCANS = (ROOT / "docs" / "scans.md").read_text()
CONFORMANCE = (ROOT / "docs" / "dicom-conformance.md").read_text()


def part(page: str, heading: str) -> str:
    """What stands under a heading, up to the next of its rank or above."""
    start = re.search(rf"^(#+) {re.escape(heading)}", page, re.MULTILINE)
    assert start, heading
    rest = page[start.end() :]
    end = re.search(rf"^#{{1,{len(start.group(1))}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> list[list[str]]:
    """Cells of the lines of all tables in a text, without heads."""
    tables = re.findall(r"^\|.*\|\n\|[-| ]+\|\n((?:\|.*\|\n)*)", text, re.MULTILINE)
    lines = "".join(tables).splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


# ---- scans.md ------------------------------------------------------------------------------------
def test_every_reason_stands_in_the_table_once_with_a_remedy() -> None:
    kinds: tuple[type[StrEnum], ...] = (Reason, DecodingFailure, Unsteady, LineReason, Unlabelled)
    table = rows(part(SCANS, "What is left out, and what to do"))

    assert [row[0] for row in table] == [reason.value for kind in kinds for reason in kind]
    assert all(len(row) == 2 and row[1] for row in table)


def examples() -> Iterator[tuple[str, str, str]]:
    """Layout, name of its table, and its text; for a layout without one a list of files."""
    for name in get_args(LayoutName):
        text = part(SCANS, f"`{name}`")
        for kind, file, content in re.findall(r"```(csv|tsv|files) ?(\S*)\n(.*?)```", text, re.S):
            yield name, file if kind != "files" else "", content


LABELS: Mapping[str, tuple[str, ...]] = {
    "dicom-worklist": ("normal", "opacity"),
    "class-folders": ("normal", "opacity"),
    "chestxray14": ("No Finding", "Pneumonia"),
    "chexpert": ("No Finding", "Pneumonia"),
    "rsna": ("0", "1"),
    "isic": ("nevus", "melanoma"),
    "nifti": ("control", "tumour"),
}
FILES: Mapping[str, tuple[str, ...]] = {
    "chestxray14": ("images/00000001_000.png", "images/00000002_000.png"),
    "chexpert": (
        "train/patient00001/study1/view1_frontal.jpg",
        "train/patient00002/study1/view1_frontal.jpg",
    ),
    "rsna": ("images/0004cfab.dcm", "images/00436515.dcm"),
    "isic": ("ISIC_2637011.jpg", "ISIC_0015719.jpg"),
    "nifti": ("sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii"),
}
"""What lies beside the tables, as their data sets have it."""


@pytest.mark.parametrize(("layout", "table", "text"), list(examples()))
def test_the_example_of_a_layout_is_taken_for_it_and_gives_all_its_scans(
    tmp_path: Path, layout: str, table: str, text: str
) -> None:
    files = FILES.get(layout, () if table else text.split())
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    if table:
        (tmp_path / table).write_text(text)
    patient = r"^person(\d+)_" if layout == "class-folders" else None

    index = index_scans(
        tmp_path, study_of(labels=LABELS[layout], split=HASH), rules=SourceRules(patient=patient)
    )

    assert layout_of(tmp_path).name == layout
    assert len(index.entries) == (len(text.split("\n")) - 2 if table else len(files))
    assert index.refused == {}


def test_every_layout_with_a_table_has_an_example() -> None:
    assert {layout for layout, *_ in examples()} == set(get_args(LayoutName)) - {"medmnist"}


def test_the_patient_rule_on_the_page_is_one() -> None:
    (rule,) = re.findall(r"patient = '(.*?)'", SCANS)

    assert SourceRules(patient=rule).patient == r"^person(\d+)_"


def test_the_numbers_on_the_page_are_the_code_s() -> None:
    limits = DecodingLimits()
    assert f"memory ({limits.memory_bytes >> 30} GiB) and time ({limits.time_s:.0f} s" in SCANS
    assert f"at most {clean_labels.MAX_LABELS} different ones" in SCANS


@pytest.mark.parametrize("page", [SCANS, CONFORMANCE])
def test_every_command_on_the_pages_is_there(page: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    pieces = re.findall(r"```\n(.*?)```|`([^`\n]+)`", page, re.S)
    code = "\n".join(block or inline for block, inline in pieces)
    commands = set(re.findall(r"^medfed (\w+) (\w+)", code, re.MULTILINE))
    assert len(commands) > 2
    for first, second in commands:
        below = group.commands.get(first)
        assert isinstance(below, click.Group) and second in below.commands, (first, second)


@pytest.mark.parametrize("page", [SCANS, CONFORMANCE])
def test_every_option_on_the_pages_is_one_of_a_command(page: str) -> None:
    options = set()
    waiting = [typer.main.get_command(app)]
    while waiting:
        command = waiting.pop()
        waiting += command.commands.values() if isinstance(command, click.Group) else []
        options |= {name for parameter in command.params for name in parameter.opts}

    assert set(re.findall(r"(?<![\w-])--[a-z]+[a-z-]*", page)) <= options


# ---- dicom-conformance.md ------------------------------------------------------------------------
EXTRAS = {
    Reason.NO_DECODER: "none",
    Reason.NO_JPEG_2000: "`dicom`",
    Reason.NO_JPEG_LS: "`dicom`",
    Reason.NO_JPEG_LOSSLESS: "`codecs`",
    Reason.NO_JPEG_12_BIT: "`codecs`; 8-bit streams: none",
}


def test_the_transfer_syntaxes_are_those_that_are_read() -> None:
    table = rows(part(CONFORMANCE, "5.1 Transfer syntaxes"))

    expected = {uid: "none" for uid in NATIVE}
    expected |= {uid: EXTRAS[DECODERS[uid].missing] for uid in COMPRESSED}
    assert {uid.strip("`"): extra for _, uid, extra in table} == expected
    assert len(table) == len(expected)
    for name, uid, _ in table:
        assert UID(uid.strip("`")).name == name


def test_the_sop_classes_are_those_that_are_pulled() -> None:
    table = rows(part(CONFORMANCE, "5.2 SOP classes"))

    assert sorted(uid.strip("`") for _, uid in table) == sorted(IMAGE_CLASSES)
    assert all(UID(uid.strip("`")).name == name for name, uid in table)
    assert all(model in CONFORMANCE for model in COLOUR_MODELS)


def test_the_roles_are_those_of_one_who_asks() -> None:
    table = rows(part(CONFORMANCE, "3.2 Presentation contexts proposed"))

    assert table[0][:3] == [dimse.FIND.name, f"`{dimse.FIND}`", "SCU"]
    assert table[1][:3] == [dimse.GET.name, f"`{dimse.GET}`", "SCU"]
    contexts = dimse._contexts(["1.2"])
    assert [context.abstract_syntax for context in contexts[:3]] == [dimse.FIND, dimse.GET, "1.2"]
    assert [UID(s).name for s in contexts[0].transfer_syntax] == [
        "Implicit VR Little Endian",
        "Explicit VR Little Endian",
        "Deflated Explicit VR Little Endian",
        "Explicit VR Big Endian",
    ]
    offered = [context.transfer_syntax for context in contexts[2:]]
    assert sorted(offered) == [[syntax] for syntax in sorted(NATIVE | COMPRESSED)]
    assert len(dimse._COMMON) == 7  # as the page says, in words


def test_nothing_of_ours_listens_and_no_other_service_is_used() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "client" / "scans").rglob("*.py"))

    for word in ("start_server", "add_supported_context", ".listen(", ".bind(", "send_c_move",
                 "send_c_store", "send_c_echo", "store_instances", "Verification"):  # fmt: skip
        assert word not in sources, word


class Asked(dimse.DimseArchive):
    """Remembers what it would ask, and answers with one study and one series."""

    def __init__(self) -> None:
        table = {"address": "h:1", "called_ae": "B", "calling_ae": "A", "plain": True}
        super().__init__(settings.DimseSettings.model_validate(table), lambda: None)
        self.asked: dict[str, tuple[set[str], set[str]]] = {}

    def _find(self, level: str, told: tuple[str, ...], keys: Mapping[str, str]) -> list[Dataset]:
        self.asked[level] = (set(keys), set(told))
        answer = Dataset()
        answer.StudyInstanceUID = answer.SeriesInstanceUID = "1.2"
        return [answer]


def test_the_keys_of_a_search_are_those_that_are_asked_for_and_none_is_the_patient_s() -> None:
    archive = Asked()
    query = Query(("CR",), date(2025, 1, 1), None, "CHEST*", ())
    numbers = Query(since=date(2025, 1, 1), accessions=("A1",))
    matched = {key for q in (query, numbers) for keys in study_keys(q) for key in keys}
    list(archive.studies(dict.fromkeys(matched, "x")))
    list(archive.instances(Study("1.2", "", "", ""), lambda _modality: True))

    for level, keys, told in rows(part(CONFORMANCE, "3.3 C-FIND")):
        said = set(re.sub(r" \(\w+\)", "", keys).split(", ")), set(told.split(", "))
        assert said == archive.asked.pop(level)
        assert not any(word.startswith("Patient") for words in said for word in words)
    assert archive.asked == {}


def test_the_limits_on_the_page_are_the_code_s() -> None:
    stated = [
        f"{association.ASKED_PDU_BYTES:,} bytes; a PDU of more than {association.MAX_PDU_BYTES:,}",
        f"All answers to one search may take {dimse.MAX_ANSWERS_BYTES >> 20} MiB",
        f"`limit` {dicomweb.PAGE} and",
        f"| {dicomweb.MAX_PAGE_BYTES >> 20} MiB, `max_object_mib` |",
        f"At most {guards.MAX_FILE_BYTES >> 20} MiB per file",
        f"{guards.MAX_OVERHEAD_BYTES >> 20} MiB of elements",
        f"{guards.MAX_PIXELS // 1_000_000} megapixels",
        f"{dimse._CONNECT_S:.0f} s to connect, {dimse._ANSWER_S:.0f} s for the answer",
        f"{dimse._SILENCE_S:.0f} s of silence",
        f"10 s to connect, {dicomweb._TIMEOUT_S[1]:.0f} s between two pieces",
        "tried again after {:.0f} s and after {:.0f} s".format(*RETRY_AFTER_S),
        f"`{IMPLEMENTATION}`",
        f"table E.1-1 of edition {EDITION}",
        f"moved by 1 to {MAX_SHIFT_DAYS} days",
    ]
    page = " ".join(CONFORMANCE.split())
    assert [text for text in stated if text not in page] == []
    assert len(SHIFTED) == 6  # as the page says, in words
    assert {0xA900, 0xA700} == {dimse._OTHER_OBJECT, dimse._NO_ROOM}
    for accepted in dicomweb._ACCEPT[::2]:
        assert f"`{accepted}`" in page


def test_the_codes_of_de_identification_are_the_standard_s() -> None:
    coded = [getattr(codes.cid7050, name) for name in dir(codes.cid7050)]
    meanings = {code.value: code.meaning for code in coded if isinstance(code, Code)}
    table = rows(part(CONFORMANCE, "8 De-identification"))

    assert {code for cell, *_ in table for code in cell.split(", ")} == set(meanings)
    for code in ("113100", "113107"):
        assert [meanings[code]] == [meaning for cell, meaning, _ in table if cell == code]


def test_every_identifier_on_the_page_is_one_of_those_tested_above() -> None:
    known = {*NATIVE, *COMPRESSED, *IMAGE_CLASSES, dimse.FIND, dimse.GET, IMPLEMENTATION}
    own = {"1.2.840.10008.3.1.1.1"}  # DICOM Application Context Name, PS3.7 A.2.1
    found = set(re.findall(r"`(\d+(?:\.\d+){2,})`", CONFORMANCE))
    assert found == known | own | {PYNETDICOM_IMPLEMENTATION_UID}
    assert f"`{PYNETDICOM_IMPLEMENTATION_VERSION}`" in CONFORMANCE
