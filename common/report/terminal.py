"""Show a report on a terminal: the headline first, where things lie last.

Only ASCII of our own is printed, and colour never carries meaning alone, so that a log file,
a narrow window and an old console show the same. Rich is imported when something is printed:
``medfed --help`` must not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from medfed.common.report.content import Outcome, RunReport
from medfed.common.report.table import Cell, Column, columns_of
from medfed.common.report.words import (
    METRICS,
    OUTCOMES,
    clean,
    duration,
    evaluation_head,
    levels,
    noised_name,
    noised_text,
    relation,
    seeds_text,
    unit_noun,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_COLOURS: dict[Outcome, str] = {
    "finished": "bold green",
    "incomplete": "bold red",
    "failed": "bold red",
    "stopped": "bold red",
}
_PLAIN = str.maketrans("–−", "--")  # the dashes of figures, for consoles that lack them
_ANY_WIDTH = 10_000  # columns: a window in which every table fits


def print_report(report: RunReport, *, console: Console | None = None) -> None:
    """Print a report: a headline, a table, what the figures mean, and where things lie.

    Args:
        report: What to show.
        console: Where to; standard output if None. Texts of the report are shown as they are,
            never read as Rich markup; what its encoding lacks becomes ``?``. In a
            narrow window the table becomes a list.
    """
    from rich.console import Console  # noqa: PLC0415  # `medfed --help` must not load rich

    screen = _Screen(console or Console())
    screen.say(OUTCOMES[report.outcome].upper(), _COLOURS[report.outcome])
    screen.say(report.headline, _COLOURS[report.outcome])
    screen.say(f"{report.title}: study {report.study_name}, network {report.network}")
    screen.gap()
    if report.sites:
        screen.table(columns_of(report))
    else:
        screen.say("No site took part.")
    for row in report.sites:
        if row.missing:
            screen.say(f"* {row.site}: {row.missing}", "red")
    for note in report.notes:
        screen.say(f"! {note}", "yellow")
    _say_evaluations(screen, report)
    screen.gap()
    for line in _meaning(report):
        screen.say(line)
    if not report.secret:
        screen.say(f"Randomness: {report.randomness}", "bold red")
    screen.gap()
    screen.place("Model:  ", report.model_path)
    screen.place("Report: ", report.page_path)


def _say_evaluations(screen: _Screen, report: RunReport) -> None:
    if report.evaluations:
        screen.gap()
        screen.say("Judged at the sites on their own patients, from noised counts:")
    for evaluation in report.evaluations:
        screen.say(f"  {evaluation_head(evaluation)}")
        for figure in evaluation.figures:
            text = noised_text(figure).translate(_PLAIN)
            screen.say(f"    {noised_name(figure.name):18}{text}")


class _Screen:
    """A console that shows plain texts only, as they are."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def text(self, text: str, style: str = "") -> Text:
        """Keep what may be shown and what the console's encoding can show."""
        from rich.text import Text  # noqa: PLC0415  # `medfed --help` must not load rich

        encoding = self.console.encoding
        lines = [clean(line).encode(encoding, "replace") for line in text.split("\n")]
        return Text(b"\n".join(lines).decode(encoding), style=style)

    def say(self, text: str, style: str = "") -> None:
        """Print a paragraph."""
        self.console.print(self.text(text.replace("\n", " "), style))

    def gap(self) -> None:
        """Print an empty line."""
        self.console.print()

    def place(self, label: str, path: str) -> None:
        """Print where something lies, on one line whatever the width, to be copied."""
        where = self.text(path.replace("\n", " ") or "none written")
        self.console.print(label, where, sep="", soft_wrap=True)

    def table(self, columns: list[Column]) -> None:
        """Print the widest form that fits: one line per row, two lines, or a list."""
        wide = self.console.options.update_width(_ANY_WIDTH)
        for joint in (" ", "\n"):
            table = self._grid(columns, joint)
            if self.console.measure(table, options=wide).maximum <= self.console.width:
                self.console.print(table)
                self.gap()
                return
        self.blocks(columns)

    def _grid(self, columns: list[Column], joint: str) -> Table:
        from rich import box  # noqa: PLC0415  # `medfed --help` must not load rich
        from rich.table import Table  # noqa: PLC0415  # as above

        look = box.ASCII if self.console.options.ascii_only else box.SIMPLE_HEAD
        table = Table(box=look, show_edge=False, padding=(0, 1, 0, 0))
        for column in columns:
            side: Literal["left", "right"] = "left" if column is columns[0] else "right"
            table.add_column(self.text(_joined(column.head, joint)), justify=side)
        for row in zip(*(column.cells for column in columns), strict=True):
            table.add_row(*(self.text(_joined(cell, joint)) for cell in row))
        table.add_section()
        table.add_row(*(self.text(_joined(column.total, joint)) for column in columns))
        return table

    def blocks(self, columns: list[Column]) -> None:
        """Print a block of lines per row, for a narrow window."""
        heads = [_joined(column.head, " ") for column in columns]
        rows = [*zip(*(column.cells for column in columns), strict=True)]
        for name, *cells in [*rows, tuple(column.total for column in columns)]:
            self.say(name.main, "bold")
            for head, cell in zip(heads[1:], cells, strict=True):
                if any(cell):
                    self.say(f"  {head}: {_joined(cell, ' ')}")


def _joined(cell: Cell, joint: str) -> str:
    return joint.join(part.translate(_PLAIN) for part in cell if part)


def _meaning(report: RunReport) -> list[str]:
    """Say what the figures refer to."""
    metric, level = METRICS[report.metric], levels(report)
    unit = unit_noun(report.sites)
    lines = []
    if level:
        lines.append(
            f"{metric}: 1 is perfect, 0.5 is guessing; with its {level} interval, on test "
            f"{unit} that were not trained on. Together: the model of all sites."
        )
    if any(row.alone for row in report.sites):
        lines.append(f"Alone: a model trained at that site only, on the same test {unit}.")
    if any(row.epsilon is not None for row in report.sites):
        lines.append(
            f"Epsilon: the privacy loss for {relation(report.sites)}; smaller is more private. "
            "Delta: the probability that it does not hold."
        )
    if any(row.epsilon is None for row in report.sites):
        lines.append("Not private: nothing limits what the model may tell about a patient.")
    if report.privacy_statement:
        lines.append(f"Privacy: {report.privacy_statement}")
    if seeds := seeds_text(report):
        lines.append(seeds)
    if report.seconds:
        spent = ", ".join(f"{phase} {duration(time)}" for phase, time in report.seconds.items())
        lines.append(f"Time: {duration(sum(report.seconds.values()))} on {report.device} ({spent})")
    return lines
