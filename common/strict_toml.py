"""Read a TOML file into a frozen model, strictly, and say of every mistake where it stands.

One way for the study file and for ``site.toml``: no unknown key, no wrong type, no infinity. A
message names the file, the line and key, what was found and what is allowed.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from medfed.common.errors import ConfigError


class StrictTable(BaseModel):
    """A frozen table without unknown keys, wrong types, infinities or NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=StrictTable)


def read_strict(text: str, model: type[Model], *, source: str, next_step: str) -> Model:
    """Check the text of a TOML file against a model.

    Args:
        text: TOML.
        model: What it must be.
        source: What to call the file in messages.
        next_step: How the advice ends, after "correct it in FILE".

    Raises:
        ConfigError: it is not TOML or breaks a rule; one line per mistake.
    """
    try:
        document = tomllib.loads(text)
        # JSON mode is the strict one that still takes an array for a tuple. A date becomes what
        # no key takes: as text it would pass for a string.
        plain = json.dumps(document, default=lambda date: {"date": str(date)})
    except (ValueError, RecursionError) as error:  # also numbers too long, tables too deep
        raise ConfigError(
            f"{source}: not valid TOML: {error}.", advice="correct that line and try again."
        ) from error
    try:
        return model.model_validate_json(plain)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_explain(detail, text, source, model) for detail in error.errors()),
            advice=f"correct {'it' if error.error_count() == 1 else 'them'} in {source}{next_step}",
        ) from error


def _explain(detail: ErrorDetails, text: str, source: str, model: type[BaseModel]) -> str:
    """One validation error as: file, line, key, what was found, what is allowed."""
    path = tuple(str(part) for part in detail["loc"])
    key = ".".join(path) or "the file as a whole"
    line = _line_of(path, text)
    where = f"{source}, line {line}: {key}" if line else f"{source}: {key}"
    kind, message = detail["type"], detail["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"{where}: unknown key. {_allowed_keys(path, model)}"
    if kind == "missing":
        return f"{where}: missing; it has no default."
    if kind == "value_error" and isinstance(detail["input"], dict):
        return f"{where}: {message}."  # of a whole table: the message says what was found
    return f"{where}: found {_shown(detail['input'])}. {message}."


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _allowed_keys(path: tuple[str, ...], table: type[BaseModel]) -> str:
    for part in path[:-1]:
        if not part.isdigit():
            table = _table_in(table.model_fields[part].annotation)
    keys = list(table.model_fields)
    close = difflib.get_close_matches(path[-1], keys, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Allowed here: {', '.join(keys)}."


def _table_in(annotation: Any) -> type[BaseModel]:
    """The model of a field that is a table, or an array of tables."""
    found = (annotation, *get_args(annotation))
    return next(t for t in found if isinstance(t, type) and issubclass(t, BaseModel))


def _line_of(path: tuple[str, ...], text: str) -> int | None:
    """The line that names a key (or its table), for messages; None when it is not found."""
    if not path:
        return None
    table_line, in_table, seen = None, len(path) == 1, -1  # a lone key stands above the tables
    wanted = int(path[1]) if len(path) > 1 and path[1].isdigit() else 0
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*(\[\[?)\s*([A-Za-z0-9_]+)\s*\]", line)
        if header:
            same = header.group(2) == path[0]
            seen += same and header.group(1) == "[["
            in_table = same and (header.group(1) == "[" or seen == wanted)
            table_line = number if in_table else table_line
        elif in_table and re.match(rf"\s*{re.escape(_key_in(path))}\s*=", line):
            return number
    return table_line


def _key_in(path: tuple[str, ...]) -> str:
    """The name of the key inside its table: the first part that is no table and no index."""
    return next((part for part in path[1:] if not part.isdigit()), path[0])
