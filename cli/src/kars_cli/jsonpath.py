"""The part of JSONPath that printer columns use: members, indexes, and one filter by equality.

.status.phase    .spec.items[0].name    .status.conditions[?(@.type=="Ready")].status
"""

# ruff: noqa: ANN401  # values of JSON and YAML documents

import re
from typing import Any

_STEP = re.compile(
    r"""\.(?P<member>[A-Za-z0-9_\-/]+)
      | \.?\['(?P<quoted>[^']+)'\]
      | \[(?P<index>[0-9]{1,6})\]
      | \[\?\(@\.(?P<key>[A-Za-z0-9_]+)\s*==\s*["'](?P<value>[^"']*)["']\)\]""",
    re.VERBOSE,
)


def find(document: Any, path: str) -> Any:
    """Return the first value at a path; None when it is not there.

    Raises:
        ValueError: the path is not of this subset.
    """
    position, current = 0, document
    while position < len(path):
        step = _STEP.match(path, position)
        if step is None:
            raise ValueError(f"unsupported JSONPath {path!r} at character {position}")
        current = _follow(current, step)
        position = step.end()
    return current


def _follow(value: Any, step: re.Match[str]) -> Any:
    member = step["member"] or step["quoted"]
    if member is not None:
        return value.get(member) if isinstance(value, dict) else None
    if not isinstance(value, list):
        return None
    if step["index"] is not None:
        index = int(step["index"])
        return value[index] if index < len(value) else None
    matching = (item for item in value if isinstance(item, dict) and item.get(step["key"]) == step["value"])
    return next(matching, None)
