"""YAML with line numbers, from strangers: bounded in size and depth, no duplicate keys, no tags.

Scalars mean what YAML 1.1 says, as `kubectl` reads them, except that dates stay text. Aliases are followed
and counted, so that a small file cannot grow large.
"""

# ruff: noqa: ANN401  # values of JSON and YAML documents

from collections.abc import Iterator
from typing import Any

import yaml

_MAX_NODES = 50_000
_MAX_DEPTH = 64
_PLAIN_TAGS = ("null", "bool", "int", "float", "str")


class YamlError(ValueError):
    """The text is not YAML that we read; `line` says where."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def load_all(text: str) -> Iterator[tuple[Any, dict[str, int]]]:
    """Yield each document that is not empty, with the line of every field path.

    Raises:
        YamlError: malformed, too deep or too large, with duplicate keys or foreign tags.
    """
    try:
        loader = yaml.SafeLoader(text)
    except yaml.YAMLError as exc:  # a character that YAML does not allow
        raise YamlError("not YAML: it has a control character", 1) from exc
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                continue
            builder = _Builder(loader)
            value = builder.build(node, "", 0)
            if value is not None:
                yield value, builder.lines
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        raise YamlError(str(exc.problem or exc.context or "not YAML"), mark.line + 1 if mark else 1) from exc
    except (yaml.YAMLError, RecursionError) as exc:
        raise YamlError(f"not YAML: {type(exc).__name__}", 1) from exc
    finally:
        loader.dispose()


class _Builder:
    """Turns one document's nodes into values."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._nodes = 0
        self.lines: dict[str, int] = {}

    def build(self, node: yaml.Node, path: str, depth: int) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self._nodes += 1
        if self._nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise YamlError(f"more than {_MAX_NODES} values, or deeper than {_MAX_DEPTH}", line)
        if isinstance(node, yaml.MappingNode):
            _refuse_tag(node, "map", line)
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            _refuse_tag(node, "seq", line)
            return [self.build(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(node.value)]
        value = self._scalar(node, line)
        if isinstance(value, str) and getattr(node, "style", None) == "|":
            self._inner_lines(value, path, line)
        return value

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlError("a key must be text", line)
            key = str(key_node.value)
            if key in mapping:
                raise YamlError(f"key {key[:60]!r} is given twice", line)
            inner = f"{path}.{key}" if path else key
            self.lines[inner] = line
            mapping[key] = self.build(value_node, inner, depth + 1)
        return mapping

    def _scalar(self, node: yaml.Node, line: int) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind in ("timestamp", "value"):
            return node.value
        if kind not in _PLAIN_TAGS:
            raise YamlError(f"tag {node.tag[:60]!r} is not allowed", line)
        try:
            return self._loader.construct_object(node)
        except (ValueError, yaml.YAMLError) as exc:
            raise YamlError(f"{node.value[:60]!r} is not a {kind}", line) from exc

    def _inner_lines(self, text: str, path: str, line: int) -> None:
        """Remember the lines of YAML inside a block of text (a policy profile), where it is any."""
        try:
            for _, lines in load_all(text):
                for inner, at in lines.items():
                    if inner and not inner.startswith("["):
                        self.lines.setdefault(f"{path}.{inner}", line + at)
                return
        except YamlError:
            return  # plain text, or broken: whoever reads it says so


def _refuse_tag(node: yaml.Node, plain: str, line: int) -> None:
    if node.tag != f"tag:yaml.org,2002:{plain}":
        raise YamlError(f"tag {node.tag[:60]!r} is not allowed", line)
