"""Output for people (tables) and programs (JSON, YAML); the same data either way."""

# ruff: noqa: ANN401  # values of JSON and YAML documents

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

_COLOURS = {
    "Running": "green",
    "Ready": "green",
    "Compiled": "green",
    "True": "green",
    "granted": "green",
    "pending": "yellow",
    "Pending": "yellow",
    "Suspended": "yellow",
    "denied": "red",
    "expired": "red",
    "Failed": "red",
    "Degraded": "red",
    "False": "red",
}


class Format(StrEnum):
    """How results are printed."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class DataFormat(StrEnum):
    """How results of commands without wide form are printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def console() -> Console:
    """Return a console on standard output; wide when nobody looks, so that lines are not broken."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=240)


def data(value: Any, form: Format | DataFormat) -> None:
    """Print a value as JSON or YAML."""
    if form.value == "json":
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    else:
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    raw(text)


def raw(text: str) -> None:
    """Print text for a program as it is; a terminal gets it without control characters."""
    sys.stdout.write(clean(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table without lines, as `kubectl` does."""
    out = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for heading in headings:
        out.add_column(heading.upper(), no_wrap=False, overflow="fold")
    for row in rows:
        out.add_row(*(Text(clean(cell), style=_COLOURS.get(cell, "")) for cell in row))
    console().print(out)


def clean(text: str) -> str:
    """Replace control characters, so that text from elsewhere cannot drive the terminal."""
    return "".join(
        char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def age(timestamp: object, now: datetime | None = None) -> str:
    """Return how long ago an RFC 3339 time was: 12s, 5m, 3h, 2d."""
    if not isinstance(timestamp, str):
        return ""
    try:
        then = datetime.fromisoformat(timestamp)
    except ValueError:
        return ""
    seconds = max(0, int(((now or datetime.now(UTC)) - then).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
