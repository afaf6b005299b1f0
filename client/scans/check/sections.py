"""The parts of the page of a check, from the sentence at its head to how it was made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final

from medfed.client.scans.check import measures
from medfed.client.scans.check.charts import FULL, HALF, SLIM, bars_svg, brightness_svg
from medfed.client.scans.check.copies import Pictures
from medfed.client.scans.check.examine import Examination
from medfed.client.scans.check.overview import Overview
from medfed.client.scans.check.remark import Remark, Severity
from medfed.client.scans.check.sheets import Sheet, by_label, drawn, suspects
from medfed.client.scans.check.tables import (
    attribute_tables,
    devices_table,
    labels_table,
    reasons_table,
    single_values,
)
from medfed.client.scans.check.wording import plural, share
from medfed.common.report.markup import chart, paragraphs, safe, section, terms

PRIVATE: Final = "These numbers are for you; none of them leaves the site."
_VERDICTS: Final = {
    Severity.STOP: ("✕", "Put right first"),
    Severity.LOOK: ("!", "Look first"),
    Severity.FINE: ("✓", "Ready"),
}
_AGES: Final = f"Scans by the patient's age; {measures.UNSAID} where no header says it."
_MARKS: Final = {Severity.STOP: "put right", Severity.LOOK: "look"}


def banner(found: Examination) -> str:
    """Say at the head of the page whether the folder is ready."""
    icon, verdict = _VERDICTS[found.severity]
    about = f"medfed scans check · {found.overview.study.study.purpose}"
    head = (
        f'<header class="{found.severity}">'
        f'<p class="outcome"><span class="icon" aria-hidden="true">{icon}</span>{verdict}</p>'
        f'<h1>{safe(found.headline)}</h1><p class="soft">{safe(about)}</p></header>\n'
    )
    keep = f"<strong>{safe(PRIVATE)}</strong> Keep this page where your scans are."
    return head + paragraphs([keep], "notice")


def tiles(overview: Overview) -> str:
    """Show the few figures that most readers come for."""
    scans = plural(overview.total, "scan")
    train, validation, test = (int(number) for number in overview.patients_of_part)
    small = " · ".join(
        f"{number:,} {name}"
        for number, name in ((train, "train"), (validation, "validation"), (test, "test"))
        if number
    )
    refused = sum(overview.refused.values())
    listed = refused + overview.total
    shown = [
        (overview.units.capitalize(), f"{overview.patients_in_all:,}", small),
        ("Scans", f"{overview.total:,}", _per_unit(overview)),
        (
            "Labels",
            f"{int(overview.scans.any(axis=1).sum())} of {overview.study.classes}",
            "of the study's occur here",
        ),
        (
            "Refused",
            f"{refused:,}",
            f"{share(refused, listed)} of what is listed" if refused else f"all of {scans} read",
        ),
    ]
    items = (
        f"<li><span>{safe(name)}</span><strong>{safe(value)}</strong><small>{safe(words)}</small>"
        "</li>"
        for name, value, words in shown
    )
    return f'<ul class="tiles">{"".join(items)}</ul>\n'


def findings(remarks: Iterable[Remark]) -> str:
    """List what needs care, then what was looked for and not found."""
    remarks = list(remarks)
    open_ = [remark for remark in remarks if remark.severity is not Severity.FINE]
    items = "".join(
        f'<li class="{remark.severity}"><span class="mark">{_MARKS[remark.severity]}</span>'
        f'<p>{safe(remark.text)}</p><p class="soft">{safe(remark.next_step)}</p></li>'
        for remark in open_
    )
    listed = f'<ul class="remarks">{items}</ul>' if items else "<p>Nothing needs care.</p>"
    fine = "".join(f"<li>{safe(r.text)}</li>" for r in remarks if r.severity is Severity.FINE)
    passed = (
        f'<section><h3>Looked for, and in order</h3><ul class="passed">{fine}</ul></section>'
        if fine
        else ""
    )
    return section("What needs care", listed + passed)


def labels(overview: Overview) -> str:
    """Show how many of each label there are in each part."""
    words = (
        f"Large: {overview.units} with such a scan. Small: their scans, and the label's share of "
        "the part's scans."
    )
    return section("Labels and parts", labels_table(overview) + paragraphs([safe(words)], "soft"))


def how_taken(overview: Overview) -> str:
    """Show modality, device and what else the headers say."""
    alike = single_values(overview)
    tables = "".join(attribute_tables(overview))
    beside = f'<div class="columns">{tables}</div>' if tables else ""
    if overview.by["device"].values():
        first = devices_table(overview)
    else:
        first = paragraphs(["No file says by what device it was taken."], "soft")
    all_ = terms([(name, f"{safe(value)}, all scans") for name, value in alike]) if alike else ""
    return section("How they were taken", first + beside + all_)


def left_out(overview: Overview) -> str:
    """Show what was refused and left out, by reason; empty where nothing was."""
    tables = [
        reasons_table("Refused files", "files", overview.refused),
        reasons_table("Left out of the index", "scans or lines", overview.left_out),
    ]
    if not any(tables):
        return ""
    words = "The names of refused files stand in refused.csv in the site's cache, not here."
    return section(
        "What is not used",
        f'<div class="columns">{"".join(tables)}</div>' + paragraphs([words], "soft"),
    )


def distributions(overview: Overview, pictures: Pictures) -> str:
    """Draw brightness, age, size and scans per patient."""
    names = overview.study.task.labels
    levels = measures.brightness(overview, pictures)
    drawn_ = _both(
        lambda width: brightness_svg(levels, names, width),
        FULL,
        "Brightness as the network sees it, from black to white, of at most "
        f"{measures.MEASURED} scans of each label. Shapes that differ much between labels may come "
        "from devices and not from patients.",
    )
    small = [
        _half(
            measures.scans_per_patient(overview.per_patient),
            f"scans of one {overview.unit}",
            f"{overview.units.capitalize()} by their number of scans.",
        )
        if overview.unit != "image"
        else "",
        _half(measures.sides(overview.sides), "longer side, pixels", "Scans by size as stored."),
        _half(measures.ages(overview.by["age_band"]), "age, years", _AGES),
    ]
    beside = "".join(small)
    return section(
        "Distributions", drawn_ + (f'<div class="charts">{beside}</div>' if beside else "")
    )


def sheets(found: Examination, pictures: Pictures) -> str:
    """Show scans: first those that somebody must look at, then some of each label."""
    overview = found.overview
    rows, columns = overview.study.scans.size
    words = (
        f"As the network will see them: {rows} × {columns} pixels, prepared as the study says. "
        "The choice is random, and the same each time for the same scans."
    )
    return _sheets("Look at these", suspects(overview, found.copies), pictures, overview) + _sheets(
        "Some of each label", by_label(overview), pictures, overview, words
    )


def making(overview: Overview, when: datetime) -> str:
    """Say how the page was made."""
    study = overview.study
    entries = [
        ("Study", f"{safe(study.name)}, digest <code>{safe(study.digest[:16])}</code>"),
        ("Labels", safe(", ".join(study.task.labels))),
        ("Made", safe(when.strftime("%Y-%m-%d %H:%M"))),
    ]
    return section("How this page was made", terms(entries))


def _per_unit(overview: Overview) -> str:
    if overview.unit == "image" or not overview.patients_in_all:
        return "nothing says whose each is" if overview.unit == "image" else ""
    each = overview.total / overview.patients_in_all
    return f"{each:.1f} per {overview.unit}, at most {max(overview.per_patient)}"


def _sheets(
    title: str, some: Iterable[Sheet], pictures: Pictures, overview: Overview, words: str = ""
) -> str:
    inner = "".join(drawn(sheet, pictures, overview.study.scans) for sheet in some)
    return (
        section(title, paragraphs([safe(words)] if words else [], "soft") + inner) if inner else ""
    )


def _both(draw: Callable[[int], str], width: int, caption: str) -> str:
    full = draw(width)
    return chart(full, draw(SLIM), caption) if full else ""


def _half(bars: measures.Bars, axis: str, caption: str) -> str:
    if len(bars) < 2:  # one bar is a number, and stands in a table or a tile
        return ""
    return _both(lambda width: bars_svg(bars, width, axis), HALF, caption)
