"""The parts of the page that say what happened, what is promised and how it was made."""

from __future__ import annotations

from medfed.common.report.content import Outcome, RunReport, SiteRow
from medfed.common.report.markup import paragraphs, safe, section, terms
from medfed.common.report.words import (
    GLOSSARY,
    METRICS,
    OUTCOMES,
    bounds,
    clean,
    delta_text,
    duration,
    epsilon_text,
    evaluation_head,
    figure,
    noised_name,
    noised_text,
    relation,
)

_ICONS: dict[Outcome, str] = {"finished": "✓", "incomplete": "!", "failed": "✕", "stopped": "■"}


def banner(report: RunReport) -> str:
    """Say how it ended, in the head of the page, and whether the model may leave."""
    about = [report.title, f"study {report.study_name}", report.purpose]
    icon = f'<span class="icon" aria-hidden="true">{_ICONS[report.outcome]}</span>'
    head = (
        f'<header class="{report.outcome}">'
        f'<p class="outcome">{icon}{OUTCOMES[report.outcome]}</p>'
        f'<h1>{safe(report.headline)}</h1><p class="soft">{safe(" · ".join(filter(None, about)))}'
        "</p></header>\n"
    )
    if report.secret:
        return head
    warning = f"<strong>Not for release.</strong> Randomness: {safe(report.randomness)}."
    return head + paragraphs([warning], "notice")


def tiles(report: RunReport) -> str:
    """Show the few figures that most readers come for."""
    shown: list[tuple[str, str, str]] = []
    if report.pooled:
        name = f"{METRICS[report.metric]}, all sites"
        small = f"{report.pooled.level * 100:g} % interval {bounds(report.pooled)}"
        shown.append((name, figure(report.pooled.value), small))
    gains = [row.gain for row in report.sites if row.gain is not None]
    if gains:
        better = f"{sum(gain > 0 for gain in gains)} of {len(gains)}"
        shown.append(("Better together", better, "sites, than alone"))
    if report.sites:
        whole = sum(not row.missing for row in report.sites)
        small = "nothing missing" if whole == len(report.sites) else "see below what is missing"
        shown.append(("Complete sites", f"{whole} of {len(report.sites)}", small))
        shown.append(_privacy_tile(report.sites))
    items = (
        f"<li><span>{safe(name)}</span><strong>{safe(value)}</strong><small>{safe(small)}</small>"
        "</li>"
        for name, value, small in shown
    )
    return f'<ul class="tiles">{"".join(items)}</ul>\n' if shown else ""


def problems(report: RunReport) -> str:
    """List what went wrong and what a reader must know."""
    items = [
        f"<li><strong>Site {safe(row.site)}:</strong> {safe(row.missing)}</li>"
        for row in report.sites
        if row.missing
    ]
    items += [f"<li>{safe(note)}</li>" for note in report.notes]
    if items:
        inner = f'<ul class="problems">{"".join(items)}</ul>'
    elif report.outcome == "finished":
        inner = "<p>Nothing.</p>"
    else:
        inner = "<p>What the headline says; nothing more was noted.</p>"
    return section("What went wrong or needs care", inner)


def privacy(report: RunReport) -> str:
    """State the guarantee, with its unit and relation."""
    lines = [safe(report.privacy_statement)] if report.privacy_statement else []
    if any(row.epsilon is not None for row in report.sites):
        lines.append(
            "Each epsilon in the table stands at its delta, for the relation "
            f"<strong>{safe(relation(report.sites))}</strong>, over everything the site released."
        )
    if any(row.epsilon is None for row in report.sites):
        lines.append(
            "<strong>Where the table says “not private”, nothing limits what the model may tell "
            "about a patient.</strong>"
        )
    return section("Privacy", paragraphs(lines)) if lines else ""


def evaluations(report: RunReport) -> str:
    """Show what the sites said of the model on their own patients."""
    if not report.evaluations:
        return ""
    blocks = []
    for evaluation in report.evaluations:
        entries = [(noised_name(f.name), safe(noised_text(f))) for f in evaluation.figures]
        head = evaluation_head(evaluation)
        blocks.append(f"<h3>{safe(head[0].upper() + head[1:])}</h3>{terms(entries)}")
    return section("Judged at the sites, from noised counts", "".join(blocks))


def making(report: RunReport) -> str:
    """Say how the model was made and where it lies."""
    entries = [
        ("Study", safe(report.study_name)),
        ("Study digest", f"<code>{safe(report.study_digest)}</code>"),
        *((name, safe(line)) for name, line in report.preparation),
        ("Network", safe(report.network)),
        ("Device", safe(report.device)),
        ("Randomness", safe(report.randomness)),
    ]
    if report.seconds:
        phases = (f"{clean(name)} {duration(spent)}" for name, spent in report.seconds.items())
        total = duration(sum(report.seconds.values()))
        entries.append(("Time", safe(f"{total} ({', '.join(phases)})")))
    where = f"<code>{safe(report.model_path)}</code>" if report.model_path else "none written"
    return section("How it was made", terms([*entries, ("Model file", where)]))


def glossary() -> str:
    """Explain every term the page uses."""
    entries = ((term, safe(meaning)) for term, meaning in GLOSSARY)
    return section("Words on this page", terms(entries, "glossary"))


def _privacy_tile(sites: tuple[SiteRow, ...]) -> tuple[str, str, str]:
    """Show the weakest guarantee of any site."""
    name = "Privacy loss, at most"
    losses = [(row.epsilon, row.delta or 0.0, row.unit) for row in sites if row.epsilon is not None]
    if len(losses) < len(sites):
        return (name, "no limit", "trained without privacy")
    epsilon, delta, unit = max(losses)
    small = f"epsilon at delta {delta_text(delta)}, per {unit}"
    return (name, epsilon_text(epsilon), small)
