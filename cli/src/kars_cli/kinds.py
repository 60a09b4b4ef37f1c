"""The kinds that the controller serves, and a resource as a row of its kind's columns."""

from collections.abc import Sequence
from typing import Any

from kars.resource.v1 import resource_pb2
from kars_common.errors import NotFoundError

from kars_cli import jsonpath, output


def find(kinds: Sequence[resource_pb2.KindInfo], name: str) -> resource_pb2.KindInfo:
    """Return a kind by kind, plural or short name, any case.

    Raises:
        NotFoundError: `kind_not_served`, with what is served.
    """
    wanted = name.lower()
    for kind in kinds:
        if wanted in {kind.kind.lower(), kind.plural.lower(), *(short.lower() for short in kind.short_names)}:
            return kind
    served = ", ".join(f"{kind.kind} ({', '.join((kind.plural, *kind.short_names))})" for kind in kinds)
    raise NotFoundError("kind_not_served", f"kind {name!r} is not served; served: {served}")


def headings(kind: resource_pb2.KindInfo, *, wide: bool, namespaces: bool) -> list[str]:
    """Return the headings of a table of this kind."""
    first = ["Namespace", "Name"] if namespaces else ["Name"]
    return [*first, *(column.name for column in _columns(kind, wide=wide))]


def row(kind: resource_pb2.KindInfo, document: dict[str, Any], *, wide: bool, namespaces: bool) -> list[str]:
    """Return one resource as a row."""
    metadata = document.get("metadata") or {}
    first = [metadata.get("namespace", ""), metadata.get("name", "")] if namespaces else [metadata["name"]]
    return [*first, *(_cell(document, column) for column in _columns(kind, wide=wide))]


def _columns(kind: resource_pb2.KindInfo, *, wide: bool) -> list[resource_pb2.PrinterColumn]:
    return [column for column in kind.columns if wide or column.priority == 0]


def _cell(document: dict[str, Any], column: resource_pb2.PrinterColumn) -> str:
    try:
        value = jsonpath.find(document, column.json_path)
    except ValueError:
        return "?"
    if value is None:
        return ""
    if column.type == "date":
        return output.age(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
