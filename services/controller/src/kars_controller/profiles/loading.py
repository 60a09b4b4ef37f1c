"""Reads YAML from strangers: bounded, without aliases, tags or duplicate keys.

Bounds are checked on the event stream, before anything is built. Plain scalars mean what YAML 1.2's
core schema says: `yes` and `2026-01-01` are text.
"""

import re
from typing import Any

import yaml

from kars_controller.raw import Raw

_MAX_BYTES = 256 * 1024
_MAX_DEPTH = 16
_MAX_NODES = 20_000


class YamlRefusedError(ValueError):
    """The text is not YAML that we read; the message says why and where."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise YamlRefusedError(f"{_place(key_node)}: keys must be text")
            if key in mapping:
                raise YamlRefusedError(f"{_place(key_node)}: key {key[:60]!r} is given twice")
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]{1,18}", list("-+0123456789")),
    ("float", r"[-+]?[0-9]{1,18}\.[0-9]{1,18}", list("-+0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def load(text: str) -> Raw:
    """Return the one document in `text`.

    Raises:
        YamlRefusedError: malformed, too large, too deep, or with aliases, tags or duplicate keys.
    """
    if len(text.encode("utf-8", "surrogatepass")) > _MAX_BYTES:
        raise YamlRefusedError(f"has more than {_MAX_BYTES} bytes")
    try:
        _check_events(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader with fewer types
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise YamlRefusedError(f"{where}{getattr(exc, 'problem', None) or 'is not YAML'}") from exc
    except (ValueError, RecursionError) as exc:
        if isinstance(exc, YamlRefusedError):
            raise
        raise YamlRefusedError("is not YAML") from exc


def _check_events(text: str) -> None:
    depth = nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise YamlRefusedError(f"{_place(event)}: aliases are not allowed")
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
            if getattr(event, "tag", None) not in (None, "!"):
                raise YamlRefusedError(f"{_place(event)}: tags are not allowed")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH or nodes > _MAX_NODES:
            raise YamlRefusedError(
                f"{_place(event)}: nests deeper than {_MAX_DEPTH} or has over {_MAX_NODES} nodes"
            )


def _place(item: Raw) -> str:
    return f"line {item.start_mark.line + 1}"
