"""Print an audit on a terminal: the verdict first, then a row per check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medfed.common.report.words import clean
from medfed.simulations.privacy_audit.result import NOTES, AuditResult, Check

if TYPE_CHECKING:
    from rich.console import Console

_HEADS = ("check", "asked", "measured", "accepted", "")


def print_audit(result: AuditResult, *, console: Console | None = None) -> None:
    """Print the verdict, the table and what it means.

    Args:
        result: What to show.
        console: Where to; standard output if None. In a narrow window cells are wrapped.
    """
    from rich import box  # noqa: PLC0415  # `medfed --help` must not load rich
    from rich.console import Console  # noqa: PLC0415  # as above
    from rich.table import Table  # noqa: PLC0415  # as above
    from rich.text import Text  # noqa: PLC0415  # as above

    screen = console or Console()
    look = box.ASCII if screen.options.ascii_only else box.SIMPLE_HEAD
    table = Table(box=look, show_edge=False, padding=(0, 1, 0, 0))
    for head in _HEADS:
        table.add_column(head, justify="left" if head == _HEADS[0] else "right")
    several = len({check.site for check in result.checks}) > 1
    for check in result.checks:
        style = "" if check.passed else "bold red"
        table.add_row(*(Text(cell, style=style) for cell in _cells(check, several)))
    screen.print(Text(_verdict(result), style="bold green" if result.passed else "bold red"))
    screen.print(Text(f"study {clean(result.study)}, digest {result.digest}"), soft_wrap=True)
    screen.print()
    screen.print(table)
    screen.print()
    for line in _meaning(result):
        screen.print(Text(line))


def _cells(check: Check, several: bool) -> tuple[str, ...]:
    low, high = check.tolerance
    name = f"{clean(check.site)}: {check.name}" if several else check.name
    accepted = f"{_number(low)} to {_number(high)}"
    verdict = "ok" if check.passed else "FAILED"
    return name, _number(check.asked), _number(check.measured), accepted, verdict


def _number(value: float) -> str:
    """Three decimals, but not -0.000."""
    return f"{value:.3f}" if abs(value) >= 5e-4 else f"{value + 0.0:.0f}"


def _verdict(result: AuditResult) -> str:
    if result.passed:
        return f"PASSED: all {len(result.checks)} checks"
    return f"FAILED: {len(result.failed)} of {len(result.checks)} checks"


def _meaning(result: AuditResult) -> list[str]:
    source = (
        "Noise and coins came from the secret generator that a site uses."
        if result.secret
        else "Noise and coins came from the seeded generator of simulations, not a site's own."
    )
    odds = (
        "Tolerances: chance alone takes honest code out of one with a probability of "
        f"{result.false_alarm:g} at most."
    )
    return [*NOTES, source, odds]
