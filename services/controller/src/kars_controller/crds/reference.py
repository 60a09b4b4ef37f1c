"""Writes the page that lists every field of every kind: type, default, limits, meaning, and the rules."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kars_controller.api_types.base import CATEGORIES, Kind
from kars_controller.api_types.published import RULES_KEYWORD
from kars_controller.crds import definitions

_INTRODUCTION = f"""\
<!-- Generated from services/controller/src/kars_controller/api_types by `make crds`. Do not edit. -->

# Resources

Every field of `{definitions.GROUP}/{definitions.VERSION}`, from the same models as the definitions in
`deploy/crds`. A field in **bold** is required. All kinds have a status subresource;
`kubectl get {CATEGORIES[0]}` lists all of them. Rules are evaluated by the API server and, word for word, by
the local platform.
"""


def page(kinds: Iterable[Kind]) -> str:
    """Return the page as Markdown."""
    listed = list(kinds)
    contents = "\n".join(f"- [{kind.name}](#{kind.name.lower()})" for kind in listed)
    return f"{_INTRODUCTION}\n{contents}\n" + "".join(_section(kind) for kind in listed)


def _section(kind: Kind) -> str:
    version = definitions.of(kind)["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]["properties"]
    columns = ", ".join(f"{column.name} `{column.json_path}`" for column in kind.columns)
    served = f"Not served yet: {kind.not_served}." if kind.not_served else "Served by the local platform."
    scope = "Namespaced" if kind.namespaced else "Cluster-wide"
    lines = [
        "",
        f"## {kind.name}",
        "",
        str(schema["spec"].get("description", "")),
        "",
        f"{scope}; `{kind.plural}`, short {', '.join(f'`{name}`' for name in kind.short_names)}. {served}",
    ]
    if kind.fixed_name:
        lines += ["", f"Its name is `{kind.fixed_name}`."]
    lines += ["", f"Columns: {columns}.", ""]
    for part in ("spec", "status"):
        lines += [f"| {part} | type | default | limits | meaning |", "|---|---|---|---|---|"]
        lines += list(_rows(schema[part], part))
        lines.append("")
    rules = list(_rules(schema["spec"], "spec"))
    if rules:
        lines += ["| rule of | says | in CEL |", "|---|---|---|", *rules, ""]
    return "\n".join(lines)


def _rows(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        shown = f"**`{here}`**" if name in schema.get("required", ()) else f"`{here}`"
        default = _code(field["default"]) if "default" in field else ""
        meaning = _cell(str(field.get("description", "")))
        yield f"| {shown} | {_type(field)} | {default} | {_limits(field)} | {meaning} |"
        yield from _rows(_inner(field), here + _suffix(field))


def _rules(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    for rule in schema.get(RULES_KEYWORD, ()):
        yield f"| `{path}{rule.get('fieldPath', '')}` | {_cell(rule['message'])} | {_code(rule['rule'])} |"
    for name, field in schema.get("properties", {}).items():
        yield from _rules(_inner(field), f"{path}.{name}{_suffix(field)}")


def _inner(field: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema whose properties are listed under the field."""
    inner: Mapping[str, Any] = field.get("items") or field.get("additionalProperties") or field
    return inner


def _suffix(field: Mapping[str, Any]) -> str:
    return "[]" if "items" in field else ".*" if "additionalProperties" in field else ""


def _type(field: Mapping[str, Any]) -> str:
    if "items" in field:
        return f"list of {_type(field['items'])}"
    if "additionalProperties" in field:
        return f"map of {_type(field['additionalProperties'])}"
    if field.get("x-kubernetes-preserve-unknown-fields"):
        return "any object" if field.get("type") == "object" else "text or number"
    return str(field["type"])


def _limits(field: Mapping[str, Any]) -> str:
    value = field.get("additionalProperties") or field
    value = value if "items" not in value else {**value["items"], **value}
    parts = [", ".join(_code(item) for item in value["enum"])] if "enum" in value else []
    for low, high, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " items"),
    ):
        if low in value or high in value:
            parts.append(f"{value.get(low, 0)} to {value.get(high, '…')}{unit}")
    if "pattern" in value:
        parts.append(_code(value["pattern"]))
    if value.get("format") == "date-time":
        parts.append("RFC 3339")
    return "; ".join(parts)


def _code(value: object) -> str:
    text = value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)
    return f"`{_cell(text)}`" if text else '`""`'


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
