"""Commands of a hospital about single patients: exclude them, merge their record numbers."""

from __future__ import annotations

import csv
import io
import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from medfed.deploy.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from medfed.common.errors import ConfigError

_Root = Annotated[Path, typer.Option("--root", help="The site's data root.")]
_SEPARATORS = (",", ";", "\t")


def register(site_app: typer.Typer) -> None:
    """Add the commands to ``medfed site``."""
    for command in (exclude, merge):
        site_app.command()(command)


def exclude(
    root: _Root,
    patients: Annotated[
        Path, typer.Option(help="File of patient ids, one a line; '-' reads them from the input.")
    ],
    unknown: Annotated[
        bool, typer.Option("--unknown", help="Accept ids that no study here has met yet.")
    ] = False,
    format: FormatOption = Format.TEXT,
) -> None:
    """Take patients out of everything from the next round on; what they spent is kept.

    It cannot be undone. An id that no study has met is refused as a likely slip of the pen,
    unless --unknown is given: for patients whose scans are to come.

    Ids come from a file or the input, never from the command line, which other users may see.

    Example: medfed site exclude --root /srv/medfed-A --patients withdrawn-consent.txt
    """
    from medfed.client.site_root import KeyUse, open_ledger, open_site, pseudonym_key
    from medfed.common.errors import ConfigError

    site = open_site(root)
    key = pseudonym_key(site, KeyUse.EXCLUDE)
    named = {key(patient): line for line, patient in _ids(patients)}
    with closing(open_ledger(site)) as ledger:
        strangers = sorted(named[name] for name in named.keys() - ledger.known(named))
        if strangers and not unknown:
            raise ConfigError(
                f"site {site.name!r}: no study here has met the patients in lines "
                f"{', '.join(map(str, strangers))} of {patients}. Nobody was excluded.",
                advice="write each id exactly as in the scans; add --unknown if these patients "
                "are to come.",
            )
        pseudonyms, known = set(named), len(named) - len(strangers)
        new = ledger.exclude(pseudonyms)
    if format is Format.JSON:
        typer.echo(json.dumps({"given": len(pseudonyms), "known": known, "new": new}))
        return
    typer.echo(
        f"Site {site.name}: {len(pseudonyms)} patients given, {new} of them newly excluded. They "
        f"take part in nothing from the next round on.\n{known} of them were eligible for a study "
        "before; what they spent there stays on record."
    )


def merge(
    root: _Root,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Table with the columns patient_id and same_as; '-' reads it from the input."
        ),
    ] = None,
    patient: Annotated[
        str | None,
        typer.Option(help="A patient id. Other users of this machine may see it: prefer --file."),
    ] = None,
    same_as: Annotated[
        str | None, typer.Option(help="Another patient id of the same person.")
    ] = None,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="Accept ids that no study here has met yet.")
    ] = False,
    format: FormatOption = Format.TEXT,
) -> None:
    """Make record numbers that turned out to be one person one patient, for good.

    From the next round on the person is one privacy unit. What both ids have spent adds up, and
    more than that where both took part in one round. It cannot be undone. An id that no study
    has met is refused as a likely slip of the pen, unless --unknown is given.

    Example: medfed site merge --root /srv/medfed-A --file merged.csv
    """
    from medfed.client.site_root import KeyUse, ceiling_of, open_ledger, open_site, pseudonym_key
    from medfed.common.trust.audit_log import MERGED

    site = open_site(root)
    pairs, source = _pairs(file, patient, same_as)
    key = pseudonym_key(site, KeyUse.MERGE)
    named = [(key(pair.patient), key(pair.same_as)) for pair in pairs]
    with closing(open_ledger(site)) as ledger:
        known = ledger.known([name for both in named for name in both])
        strange = [p.line for p, both in zip(pairs, named, strict=True) if not known >= set(both)]
        if strange and not unknown:
            raise _strangers(site.name, strange, source)
        new = ledger.merge(named)
        merged, entry = ledger.merged(), ledger.head.sequence
    if new:
        site.audit.write(MERGED, entry=entry)
    beyond = sum(e.patients for e in merged if not e.within(ceiling_of(site)))
    if format is Format.JSON:
        told = {"given": len(pairs), "new": new, "merged_beyond_ceiling": beyond}
        typer.echo(json.dumps(told))
        return
    typer.echo(
        f"Site {site.name}: {len(pairs)} pairs given, {new} of them new. From the next round on "
        "each is one patient.\nA client that runs takes the scans of one of the ids until it is "
        "started again.\n"
        f"{beyond} merged patients have lost more than the ceiling allows; they take no further "
        "part."
    )


class _Pair(NamedTuple):
    """Two ids of one person. Private."""

    line: int
    patient: str
    same_as: str


def _pairs(file: Path | None, patient: str | None, same_as: str | None) -> tuple[list[_Pair], str]:
    """The pairs of a file or of the command line, and what they came from."""
    from medfed.common.errors import ConfigError

    typed = [text.strip() for text in (patient, same_as) if text is not None and text.strip()]
    if (file is None) == (not typed) or len(typed) == 1:
        raise ConfigError(
            "medfed site merge takes either --file or both --patient and --same-as.",
            advice="for more than one pair, write a table with the columns patient_id and same_as.",
        )
    pairs = [_Pair(1, *typed)] if file is None else _pairs_of(file)
    source = "the command line" if file is None else str(file)
    same = [pair.line for pair in pairs if pair.patient == pair.same_as]
    if same:
        raise ConfigError(
            f"{source}: one id twice in lines {', '.join(map(str, same))}. Nobody was merged.",
            advice="write two ids of one person on each line.",
        )
    return pairs, source


def _pairs_of(file: Path) -> list[_Pair]:
    text = _text(file)
    separator = max(_SEPARATORS, key=text.partition("\n")[0].count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    pairs: list[_Pair] = []
    try:
        columns = [cell.strip().lower() for cell in next(rows, [])]
        if sorted(columns) != ["patient_id", "same_as"]:
            raise _wrong(file, "line 1: the columns are not patient_id and same_as")
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            found = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
            if len(cells) != len(columns) or not all(found.values()):
                raise _wrong(file, f"line {rows.line_num}: not two patient ids")
            pairs.append(_Pair(rows.line_num, found["patient_id"], found["same_as"]))
    except csv.Error:
        raise _wrong(file, f"line {rows.line_num}: not valid CSV") from None
    if not pairs:
        raise _wrong(file, "no patient id in it")
    return pairs


def _wrong(file: Path, found: str) -> ConfigError:
    from medfed.common.errors import ConfigError

    return ConfigError(
        f"{file}: {found}. Nobody was merged.",
        advice="give a table with the columns patient_id and same_as, two ids of one person on "
        "each line.",
    )


def _strangers(site: str, lines: list[int], source: str) -> ConfigError:
    from medfed.common.errors import ConfigError

    return ConfigError(
        f"site {site!r}: no study here has met a patient in lines {', '.join(map(str, lines))} of "
        f"{source}. Nobody was merged.",
        advice="write each id exactly as in the scans; add --unknown if these patients are to "
        "come.",
    )


def _ids(path: Path) -> list[tuple[int, str]]:
    """Line numbers and patient ids. Private."""
    from medfed.common.errors import ConfigError

    lines = enumerate(_text(path).splitlines(), start=1)
    found = [(number, line.strip()) for number, line in lines if line.strip()]
    if not found:
        raise ConfigError(
            f"{path}: no patient id in it.", advice="give a text file with one patient id a line."
        )
    return found


def _text(path: Path) -> str:
    """What stands in a file of patient ids. Private."""
    from medfed.common.errors import ConfigError

    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: the patient ids cannot be read ({type(error).__name__}).",
            advice="give a text file (UTF-8) with one patient id a line.",
        ) from error
