"""Contact sheets: some scans as the network will see them, as pictures inside the page.

No picture carries a name, a number or a file's name.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medfed.client.scans.check.copies import Copies, Kind, Pictures
from medfed.client.scans.check.overview import Overview
from medfed.client.scans.check.tallies import Sample
from medfed.client.scans.check.wording import plural
from medfed.client.scans.facts import ScanFacts
from medfed.client.scans.scanset import PARTS, Part
from medfed.common.report.markup import safe
from medfed.common.report.words import clean
from medfed.common.study_scans import Scans

MOST_PICTURES: Final = 24
"""Pictures of a sheet."""
PAIRS: Final = 12
"""Pairs of a sheet of copies."""
IN_ALL: Final = 480
"""Pictures of a page by label and part; with many labels each sheet has fewer."""
FEWEST: Final = 4
TILE: Final = 160
"""Longest side of a picture, in pixels."""
COARSE: Final = 80
"""Pictures of fewer pixels are shown with hard edges, as they are."""


class Tile(NamedTuple):
    """One picture of a sheet. Private."""

    place: int
    caption: str

    def __repr__(self) -> str:
        return "Tile()"


class Sheet(NamedTuple):
    """Scans that are shown together. Private.

    Attributes:
        title: What they have in common.
        note: How they were chosen.
        tiles: Them.
        pairs: Whether two and two belong together.
    """

    title: str
    note: str
    tiles: Sequence[Tile]
    pairs: bool = False

    def __repr__(self) -> str:
        return "Sheet()"


def suspects(overview: Overview, copies: Copies) -> list[Sheet]:
    """The sheets of scans that somebody must look at."""
    sheets = [
        _sample_sheet("May have text in the picture", overview.risky, MOST_PICTURES),
        _sample_sheet("Show one even grey", overview.blank, MOST_PICTURES // 2),
    ]
    for kind in Kind:
        if count := copies.count(kind):
            sheets.append(_pair_sheet(overview, kind, count, copies))
    return [sheet for sheet in sheets if sheet.tiles]


def by_label(overview: Overview) -> Iterator[Sheet]:
    """The sheets of each label, part by part."""
    each = max(FEWEST, min(MOST_PICTURES, IN_ALL // max(1, len(overview.samples))))
    for part in Part:
        for label, name in enumerate(overview.study.task.labels):
            sample = overview.samples.get((label, part))
            if sample is not None:
                yield _sample_sheet(f"{clean(name)} · {part.name.lower()}", sample, each)


def drawn(sheet: Sheet, pictures: Pictures, scans: Scans) -> str:
    """Write a sheet as HTML with its pictures in it.

    Args:
        sheet: What to show.
        pictures: Gives the tensors.
        scans: How they were normalised.

    Returns:
        HTML that loads nothing. Private.
    """
    tensors = pictures([tile.place for tile in sheet.tiles])
    figures = [
        _figure(tile, tensor, scans, f"{sheet.title}, picture {number}")
        for number, (tile, tensor) in enumerate(zip(sheet.tiles, tensors, strict=True), 1)
    ]
    if sheet.pairs:
        two = zip(figures[::2], figures[1::2], strict=True)
        figures = [f'<li class="pair"><ul>{left}{right}</ul></li>' for left, right in two]
    return (
        f'<section class="sheet"><h3>{safe(sheet.title)}</h3><p class="soft">{safe(sheet.note)}</p>'
        f'<ul class="{"pairs" if sheet.pairs else "tiles-of-scans"}">{"".join(figures)}</ul>'
        "</section>\n"
    )


def shown(tensor: NDArray[np.float32], scans: Scans) -> NDArray[np.uint8]:
    """Turn a tensor back into a picture of 8 bits.

    Args:
        tensor: ``(channels, rows, columns)``, as the study normalises it.
        scans: With its mean and std.

    Returns:
        ``(rows, columns)``, or ``(rows, columns, 3)``; white is 255.
    """
    values = np.clip(tensor * scans.std + scans.mean, 0.0, 1.0)
    eight = np.rint(values * 255).astype(np.uint8)
    return eight[0] if len(eight) == 1 else np.ascontiguousarray(eight.transpose(1, 2, 0))


def _sample_sheet(title: str, sample: Sample, most: int) -> Sheet:
    """Show the first of a sample; what all captions say stands once, in the note."""
    scans = sample.scans()[:most]
    captions = [caption(scan.facts) for scan in scans]
    note = "The only scan" if sample.seen == 1 else f"All {plural(sample.seen, 'scan')}"
    if len(scans) < sample.seen:
        note = f"{len(scans)} of {plural(sample.seen, 'scan')}, drawn at random"
    alike = captions[0] if len(set(captions)) == 1 else ""
    if alike:
        note, captions = f"{note}; {alike}", [""] * len(captions)
    tiles = [Tile(scan.place, said) for scan, said in zip(scans, captions, strict=True)]
    return Sheet(title, f"{note}.", tiles)


def _pair_sheet(overview: Overview, kind: Kind, count: int, copies: Copies) -> Sheet:
    pairs = copies.of[kind].pairs[:PAIRS]
    marks, labels = overview.marks, [clean(name) for name in overview.study.task.labels]
    tiles = [
        Tile(place, f"{labels[marks.label[place]]} · {list(PARTS)[marks.part[place]]}")
        for place in pairs.reshape(-1).tolist()
    ]
    note = "The only case." if count == 1 else "All that were found."
    if count > len(pairs):
        note = f"{len(pairs)} of {'at least ' if copies.more else ''}{plural(count, 'case')}."
    title = kind.value
    if overview.unit == "image" and kind is Kind.PATIENTS:
        title = "same picture more than once"
    return Sheet(title[0].upper() + title[1:], note, tiles, pairs=True)


def caption(facts: ScanFacts) -> str:
    """Say of a scan how it was taken, in a few words and without saying of whom."""
    size = f"{facts.columns}×{facts.rows}" if facts.rows else ""
    kind = " ".join(filter(None, (facts.modality, facts.view, facts.laterality)))
    return " · ".join(filter(None, (kind, size)))


def _figure(tile: Tile, tensor: NDArray[np.float32], scans: Scans, spoken: str) -> str:
    picture = shown(tensor, scans)
    rows, columns = picture.shape[:2]
    coarse = ' class="coarse"' if max(rows, columns) < COARSE else ""
    lines = "".join(f"<b>{safe(line)}</b> " for line in tile.caption.split(" · "))
    words = f"<span>{lines}</span>" if tile.caption else ""
    return (
        f'<li><img{coarse} alt="{escape(spoken)}" width="{columns}" height="{rows}" '
        f'src="data:image/png;base64,{_png(picture)}">{words}</li>'
    )


def _png(picture: NDArray[np.uint8]) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((TILE, TILE), Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
